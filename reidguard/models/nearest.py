"""Which registered model the weights of a file belong to."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from reidguard.contexts import on_meta
from reidguard.models.base import ReIDModel
from reidguard.models.factory import MODELS
from reidguard.models.weights import match_tensors, misfit

__all__ = ["nearest_model"]

# Blocks of the four stages, and whether these are bottlenecks.
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
SMALLEST_FRACTION = 0.1


def nearest_model(model: ReIDModel, tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence that names the registered model which the tensors of a file fit best.

    All registered models are built without memory for their weights: with their default options,
    with those of ``model``, and with the ResNet that the names in the file speak of.

    Args:
        model: That the file does not fit.
        tensors: As the file names them.
    """
    best, best_call = 0.0, ""
    for name, options in _calls(model, tensors):
        try:
            draft = _draft(MODELS.get(name), json.dumps(options))
        except Exception:  # other options, or code of a plugin that needs data
            continue
        state, report = match_tensors(draft, Path(), tensors)
        weights = draft.state_dict()
        body = {n: t.numel() for n, t in weights.items() if not n.startswith(draft.head_prefixes)}
        total, count = sum(body.values()), sum(body.get(n, 0) for n in report.loaded)
        fraction = count / total if total else 0.0
        if fraction <= max(best, SMALLEST_FRACTION):
            continue  # earlier calls have fewer options
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        best, best_call = fraction, f"create_model({name!r}{arguments})"
        if fraction == 1 and not misfit(draft, state, report):
            return f"It fits {best_call}: create that"
    if not best_call:
        return "No registered model is near it: create the model that the file was saved from"
    percent = math.floor(100 * best)
    return (
        f"No registered model fits it; {percent} % of the numbers of the nearest, {best_call}, are "
        "in the file: create the model that the file was saved from"
    )


def _calls(model: ReIDModel, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and options of models to compare with."""
    variants: list[dict[str, Any]] = [{}]
    if model.build_spec and model.build_spec[1]:
        variants.append(dict(model.build_spec[1]))
    blocks = {m.groups() for n in tensors if (m := re.search(r"layer([1-4])\.(\d+)\.", n))}
    stages = tuple(sum(stage == str(i) for stage, _ in blocks) for i in (1, 2, 3, 4))
    if resnet := RESNETS.get((stages, any(".conv3." in name for name in tensors))):
        variants.append({"backbone": resnet})
    for options in variants:
        for name in MODELS.list():
            yield name, options


@lru_cache(maxsize=64)
def _draft(factory: Callable[..., ReIDModel], options: str) -> ReIDModel:
    """Return a model on the meta device, whose weights take no memory."""
    with warnings.catch_warnings(), on_meta():
        warnings.simplefilter("ignore")
        return factory(**json.loads(options))
