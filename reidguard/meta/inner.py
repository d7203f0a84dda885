"""Inner steps: how the temporary parameters follow from the meta-train gradient."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from reidguard.errors import InputError

__all__ = ["INNER_STEPS", "InnerStep", "inner_step"]

InnerStep = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""``(gradient, momentum buffer, momentum) -> (direction, new buffer)``; w' = w - lr * direction."""

TINY = 1e-12


def scaled(gradient: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """MI-SGD's direction without its sign: momentum over its own mean magnitude.

    ``g/‖g‖₁`` enters the buffer as in the outer MI-SGD, and the step moves a parameter by ``lr``
    on average, whatever the scale of the loss. It is differentiated through, both divisions too.
    """
    buffer = momentum * buffer + gradient / (gradient.abs().sum() + TINY)
    return buffer / (buffer.abs().mean() + TINY), buffer


def sgd(gradient: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """Momentum SGD as Algorithm 1 says: the raw gradient."""
    buffer = momentum * buffer + gradient
    return buffer, buffer


def sign(gradient: Tensor, buffer: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The released code's step: MI-SGD itself, through whose sign no gradient flows."""
    buffer = momentum * buffer + gradient / (gradient.abs().sum() + TINY)
    return buffer.sign(), buffer


INNER_STEPS: dict[str, InnerStep] = {"scaled": scaled, "sgd": sgd, "sign": sign}


def inner_step(name: str) -> InnerStep:
    """Return the inner step of a name.

    Example:
        >>> import torch
        >>> direction, _ = inner_step("scaled")(torch.tensor([1e-5, -3e-5]), torch.zeros(2), 0.5)
        >>> direction
        tensor([ 0.5000, -1.5000])
    """
    if name not in INNER_STEPS:
        raise InputError(f"unknown inner step {name!r}: choose one of {', '.join(INNER_STEPS)}")
    return INNER_STEPS[name]
