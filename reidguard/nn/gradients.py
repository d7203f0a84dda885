"""Gradients by images: whether there is a graph, and how many of them are zero or not finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reidguard.errors import InputError, ZeroGradientWarning

__all__ = [
    "ZERO_LIMIT",
    "GradientCount",
    "active_count",
    "check_graph",
    "count_gradients",
    "graph_needed",
    "usable",
    "warn_of_zero_gradients",
    "watch",
    "zero_gradient_text",
]

ZERO_LIMIT = 0.01
"""Fraction of unusable gradients above which attacks and evaluations warn."""

NO_GRAPH = (
    "no gradient passes through {name}: its features are computed under no_grad or inference_mode, "
    "from a detached tensor, or through numpy; let them depend on the images by torch operations "
    "alone, or attack with SquareAttack, which needs no gradient"
)


@dataclass(eq=False)
class GradientCount:
    """How many gradients by one image in one step were needed, and how many of them usable.

    The numbers stay on the device until :meth:`read`, so that counting never waits for a GPU.
    """

    needed: int = 0
    usable: int = 0
    pending: list[Tensor] = field(default_factory=list)

    def add(self, needed: Tensor, usable: Tensor) -> None:
        """Count two masks of bools."""
        pair = torch.stack([needed.sum(), usable.sum()])
        if self.pending and self.pending[-1].device == pair.device:
            self.pending[-1] = self.pending[-1] + pair
        else:
            self.pending.append(pair)

    def read(self) -> tuple[int, int]:
        """Return (needed, usable); waits for the device."""
        for pair in self.pending:
            needed, usable = pair.tolist()
            self.needed, self.usable = self.needed + needed, self.usable + usable
        self.pending.clear()
        return self.needed, self.usable

    @property
    def zero_fraction(self) -> float:
        """The fraction of needed gradients that were not usable; 0 if none was needed."""
        needed, usable = self.read()
        return 1 - usable / needed if needed else 0.0


_ACTIVE: ContextVar[GradientCount | None] = ContextVar("gradient count", default=None)


def active_count() -> GradientCount | None:
    """Return the innermost count of this thread, if there is one."""
    return _ACTIVE.get()


@contextmanager
def count_gradients(attack: str | None = None) -> Iterator[GradientCount]:
    """Count the gradients that attacks compute inside.

    At the end the count is added to that of an outer context. If there is none, and ``attack`` is
    given, a :class:`~reidguard.errors.ZeroGradientWarning` is emitted where it is due.

    Args:
        attack: Name of the attack, for the warning; None does not warn.
    """
    outer, count = _ACTIVE.get(), GradientCount()
    token = _ACTIVE.set(count)
    try:
        yield count
    finally:
        _ACTIVE.reset(token)
    if outer is not None:
        outer.needed, outer.usable = outer.needed + count.needed, outer.usable + count.usable
        outer.pending += count.pending
    elif attack is not None:
        warn_of_zero_gradients(attack, count.zero_fraction)


def warn_of_zero_gradients(attack: str, fraction: float) -> None:
    """Warn if more than :data:`ZERO_LIMIT` of an attack's gradients are unusable.

    Inside :func:`count_gradients` nothing is emitted: who counts there also warns.
    """
    if fraction > ZERO_LIMIT and _ACTIVE.get() is None:
        warnings.warn(zero_gradient_text(attack, fraction), ZeroGradientWarning, stacklevel=5)


def zero_gradient_text(attack: str, fraction: float) -> str:
    """Return what unusable gradients mean, and what to do."""
    return (
        f"{100 * fraction:.3g} % of the gradients of {attack} are zero or not finite, so it does "
        "not move the images there, and metrics that stay high show no robustness: attack with "
        "SquareAttack, which needs no gradient, and check the model with audit(model, dataset)"
    )


def usable(gradient: Tensor) -> Tensor:
    """Return (N,) bool: which rows of a gradient are finite and not zero everywhere."""
    size = gradient.detach().flatten(1).abs().amax(1)
    return (size > 0) & (size < torch.inf)


def watch(images: Tensor, output: Tensor, loss: Tensor | None) -> None:
    """Count the gradients by images in the backward pass of a loss, if there is an active count.

    An image whose output has no gradient needs none: its loss is at the optimum, such as a triplet
    that is satisfied. If no output has one, though the loss is not 0, all need one: features that
    are all equal are no optimum.

    Args:
        images: (N, 3, H, W) adversarial images, of which only ``output`` is computed.
        output: (N, D) what the loss compares.
        loss: A scalar; None for a loss whose gradient is zero elsewhere than at its optimum, too,
            so that every image needs a gradient.
    """
    count = _ACTIVE.get()
    if count is None or not (images.requires_grad and output.requires_grad):
        return
    needed: list[Tensor] = []  # filled by the first backward pass; second derivatives do not count

    def at_output(gradient: Tensor) -> None:
        if not needed:
            mask = usable(gradient)
            finite = gradient.detach().flatten(1).isfinite().all(1)
            stuck = ~mask.any() & (loss.detach() != 0) if loss is not None else mask | True
            needed.append(mask | ~finite | stuck)
            count.add(needed[0], torch.zeros_like(mask))

    def at_images(gradient: Tensor) -> None:
        if len(needed) == 1:
            mask = usable(gradient) & needed[0]
            needed.append(mask)
            count.add(torch.zeros_like(mask), mask)

    output.register_hook(at_output)  # type: ignore[no-untyped-call]
    images.register_hook(at_images)  # type: ignore[no-untyped-call]


@contextmanager
def graph_needed(model: object) -> Iterator[None]:
    """Turn torch's error at a conversion to numpy inside into one that names the cure.

    Raises:
        InputError: If the model converts a tensor with a gradient to numpy.
    """
    try:
        yield
    except RuntimeError as error:
        if "numpy() on Tensor" not in str(error):
            raise
        raise InputError(NO_GRAPH.format(name=type(model).__name__)) from error


def check_graph(output: Tensor | None, model: object) -> None:
    """Refuse an output, or gradient, that autograd does not connect with the images.

    Raises:
        InputError: If it is None or requires no gradient.
    """
    if output is None or not output.requires_grad:
        raise InputError(NO_GRAPH.format(name=type(model).__name__))
