"""A defense: a method that returns a new model and leaves the given one as it is."""

from __future__ import annotations

import copy
from typing import Any

import torch

from reidguard import Defense, ReIDDataset, ReIDModel


class RoundedWeights(Defense):
    """Rounds all weights to a grid. It defends against nothing: it shows the form of a defense.

    Args:
        step: Distance of the grid's values.
    """

    def __init__(self, step: float = 1 / 64) -> None:
        self.step = step

    @torch.no_grad()
    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Any,
    ) -> ReIDModel:
        """Return a copy of the model with rounded weights."""
        robust = copy.deepcopy(model)
        for weight in robust.parameters():
            weight.div_(self.step).round_().mul_(self.step)
        return robust.eval()
