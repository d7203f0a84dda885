"""Keys of cached features: what the features of a model depend on."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from reidguard.models.base import ReIDModel
from reidguard.storage import weights_fingerprint

__all__ = ["model_key"]


def model_key(model: nn.Module) -> dict[str, Any]:
    """Return JSON values that are equal for two models only if their features are.

    They are the fingerprint of architecture and weights and, of the model and of each model inside
    it (as in an ensemble), the InputSpec, the metric and how it is built.

    Example:
        >>> from reidguard.models import create_model
        >>> key = model_key(create_model("osnet_x0_25", size=(64, 32)))
        >>> key["models"][0]["metric"], key["models"][0]["input_spec"]["size"]
        ('cosine', [64, 32])
    """
    models = [
        {
            "input_spec": part.input_spec.to_dict(),
            "metric": part.metric,
            "build_spec": json.loads(json.dumps(part.build_spec, default=repr)),
        }
        for part in model.modules()
        if isinstance(part, ReIDModel)
    ]
    return {"weights": weights_fingerprint(model), "models": models}
