"""Inner steps: the temporary parameters from the meta-train gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reidguard.errors import InputError

__all__ = ["INNER_STEPS", "InnerRates", "InnerStep", "first_buffer", "inner_step"]

TINY = 1e-12


@dataclass(frozen=True)
class InnerRates:
    """Rates of one parameter's inner step.

    Args:
        lr: Size of the step.
        momentum: Fraction of the buffer that stays; Adam's β₁.
        beta2: Adam's β₂.
        eps: Adam's.
        count: How many steps are in the buffer already, for Adam's bias correction.
    """

    lr: float
    momentum: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    count: int = 0


InnerStep = Callable[[Tensor, Tensor, InnerRates], tuple[Tensor, Tensor]]
"""``(gradient, buffer, rates) -> (direction, new buffer)``; w' = w - lr * direction."""


def scaled(gradient: Tensor, buffer: Tensor, rates: InnerRates) -> tuple[Tensor, Tensor]:
    """MI-SGD's direction without its sign: momentum over its own mean magnitude.

    ``g/‖g‖₁`` enters the buffer as in the outer MI-SGD, and the step moves a parameter by ``lr``
    on average, whatever the scale of the loss. It is differentiated through, both divisions too.
    """
    buffer = rates.momentum * buffer + gradient / (gradient.abs().sum() + TINY)
    return buffer / (buffer.abs().mean() + TINY), buffer


def sgd(gradient: Tensor, buffer: Tensor, rates: InnerRates) -> tuple[Tensor, Tensor]:
    """Momentum SGD as Algorithms 1 and 2 say: the raw gradient."""
    buffer = rates.momentum * buffer + gradient if rates.momentum else gradient
    return buffer, buffer


def sign(gradient: Tensor, buffer: Tensor, rates: InnerRates) -> tuple[Tensor, Tensor]:
    """The released code's step: MI-SGD itself, through whose sign no gradient flows."""
    buffer = rates.momentum * buffer + gradient / (gradient.abs().sum() + TINY)
    return buffer.sign(), buffer


def adam(gradient: Tensor, buffer: Tensor, rates: InnerRates) -> tuple[Tensor, Tensor]:
    """Adam without weight decay; the buffer holds both moments, (2, *shape).

    With moments of the outer Adam it is nearly linear in the gradient. Its very first step is
    nearly the gradient's sign, and has nearly no derivative.
    """
    first, second = buffer
    first = rates.momentum * first + (1 - rates.momentum) * gradient
    second = rates.beta2 * second + (1 - rates.beta2) * gradient.square()
    count = rates.count + 1
    # The root has no derivative at 0, and a gradient that is 0 needs none.
    positive = second > 0
    root = torch.where(positive, second, torch.ones_like(second)).sqrt()
    root = torch.where(positive, root, torch.zeros_like(root)) / (1 - rates.beta2**count) ** 0.5
    return first / (1 - rates.momentum**count) / (root + rates.eps), torch.stack((first, second))


INNER_STEPS: dict[str, InnerStep] = {"scaled": scaled, "sgd": sgd, "sign": sign, "adam": adam}


def inner_step(name: str) -> InnerStep:
    """Return the inner step of a name.

    Example:
        >>> rates = InnerRates(lr=0.1)
        >>> direction, _ = inner_step("scaled")(torch.tensor([1e-5, -3e-5]), torch.zeros(2), rates)
        >>> direction
        tensor([ 0.5000, -1.5000])
    """
    if name not in INNER_STEPS:
        raise InputError(f"unknown inner step {name!r}: choose one of {', '.join(INNER_STEPS)}")
    return INNER_STEPS[name]


def first_buffer(name: str, parameter: Tensor, state: Mapping[str, Any]) -> tuple[Tensor, int]:
    """Return the buffer that the inner steps start from, and how many steps are in it.

    Args:
        name: Of the inner step.
        parameter: Whose buffer it is.
        state: State of the outer optimiser for the parameter; empty to start from zeros. It is
            copied: the inner steps hold it constant.
    """
    if name == "adam":
        if "exp_avg_sq" in state:
            moments = torch.stack((state["exp_avg"], state["exp_avg_sq"])).detach()
            return moments, int(state["step"])
        return torch.zeros_like(parameter.detach()).expand(2, *parameter.shape).clone(), 0
    buffer = state.get("momentum_buffer") if name != "sgd" else None
    if buffer is None:
        return parameter.new_zeros(()).expand_as(parameter), 0  # takes no memory
    return buffer.detach().clone(), 0
