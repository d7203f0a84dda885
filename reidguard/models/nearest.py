"""Which registered model the weights of a file belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from reidguard.models.base import ReIDModel
from reidguard.models.candidates import by_names

__all__ = ["nearest_model"]


def nearest_model(model: ReIDModel, tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence that names the registered model which the tensors of a file fit best.

    Args:
        model: That the file does not fit; its options are tried with the other models, too.
        tensors: As the file names them.
    """
    best = next(iter(by_names(tensors, model.build_spec[1] if model.build_spec else None)), None)
    if best is None:
        return "No registered model is near it: create the model that the file was saved from"
    if not best.problem:
        return f"It fits {best.call}: create that"
    return (
        f"No registered model fits it; {math.floor(100 * best.fraction)} % of the numbers of the "
        f"nearest, {best.call}, are in the file: create the model that the file was saved from"
    )
