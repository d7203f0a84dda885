"""Averages of the weights of a model in training: exponential (EMA) or plain (SWA)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from reidguard.schema import checked

__all__ = ["WeightAverage", "average_of"]


class WeightAverage(nn.Module):
    """A running average of a module's parameters and floating-point buffers, step by step.

    * EMA: ``w̄ ← d w̄ + (1 − d) w`` with ``d = min(decay, (1 + t) / (10 + t))`` after step t: it
      starts from the initial weights and forgets them within some steps.
    * SWA (Izmailov et al., UAI 2018): the mean of the weights after each step from ``first`` on.

    Running statistics are averaged, too, in place of computing them anew for the averaged weights.
    What is no floating-point number is copied.

    Args:
        module: In its state at the start. It is copied.
        decay: Of EMA; None for SWA.
        first: Steps before those that SWA averages.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(module)
        >>> for value in (1.0, 2.0, 6.0):
        ...     _ = nn.init.constant_(module.weight, value)
        ...     average.update(module)
        >>> average.module.weight.item()
        3.0
    """

    def __init__(self, module: nn.Module, *, decay: float | None = None, first: int = 0) -> None:
        super().__init__()
        self.decay = None if decay is None else checked(float, "decay", decay, low=0, high=1)
        self.first = checked(int, "first", first, low=0, high=10**9)
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's state after one more step into the average."""
        self.steps += 1
        if self.decay is not None:
            rate = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        else:
            rate = 1 / max(1, self.steps - self.first)
        for ours, theirs in _pairs(self.module, module):
            if ours.is_floating_point():
                ours.lerp_(theirs, rate)
            else:
                ours.copy_(theirs)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give a module the average."""
        for ours, theirs in _pairs(self.module, module):
            theirs.copy_(ours)

    def get_extra_state(self) -> Tensor:
        """Return the number of steps, which belongs to a checkpoint."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps."""
        self.steps = int(state)


def average_of(module: nn.Module, values: dict[str, Any]) -> WeightAverage | None:
    """Return the average that the options ``ema`` and ``swa`` ask for; None for none.

    Args:
        module: In its state at the start.
        values: Resolved :class:`~reidguard.options.ModelOptions`, with ``steps``.
    """
    if values["ema"] is not None:
        return WeightAverage(module, decay=values["ema"])
    if values["swa"] is not None:
        return WeightAverage(module, first=round(values["swa"] * values["steps"]))
    return None


def _pairs(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    parameters = zip(ours.parameters(), theirs.parameters(), strict=True)
    return [*parameters, *zip(ours.buffers(), theirs.buffers(), strict=True)]
