"""Passes of a surrogate that are altered so that attacks on it transfer to other networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from reidguard.nn.branches import block_input

__all__ = ["Alteration", "AlteredPass"]

SUMS = (torch.add, Tensor.add, Tensor.add_)
RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
CLAMPS = (F.hardtanh, F.relu6)
TINY = 1e-30


@dataclass(frozen=True)
class Alteration:
    """What an :class:`AlteredPass` alters.

    Args:
        skip_gradient: Factor on the gradient of residual branches.
        ghost: Shortcuts are multiplied by factors drawn from 1 ± this, by the global generator.
        relus: ReLUs of one pass of the network, from where on they are counted anew.
        linear_from: Number of the first ReLU that gradients pass unchanged.
    """

    skip_gradient: float = 1.0
    ghost: float = 0.0
    relus: int = 2**62
    linear_from: int = 2**62


class AlteredPass(TorchFunctionMode):
    """A context in which a network's pass with gradients is altered.

    Sums of a shortcut and a residual branch, and ReLUs (ReLU6, too), are recognised in calls of
    torch's functions, in whatever layers these are.

    Args:
        alteration: What is altered; by default nothing.

    Attributes:
        relus: How many ReLUs were met.
        branches: How many residual branches were met.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> with AlteredPass(Alteration(skip_gradient=0.5)) as found:
        ...     y = x + 3 * torch.relu(x)
        >>> found.branches, torch.autograd.grad(y.sum(), x)[0]  # 1 + 0.5 · 3
        (1, tensor([2.5000, 2.5000]))
    """

    def __init__(self, alteration: Alteration = Alteration()) -> None:
        super().__init__()
        self.alteration = alteration
        self.relus = self.branches = 0
        self.true_derivatives = False  # of ReLUs, while a branch is normalised

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in SUMS and _are_summands(args) and not kwargs:
            return self._sum(func, *args)
        if func in RELUS and args and args[0].requires_grad:
            return self._relu(func, args, kwargs, 0.0, torch.inf)
        if func in CLAMPS and args and args[0].requires_grad:
            low, high = _bounds(*args[1:], **kwargs) if func is F.hardtanh else (0.0, 6.0)
            if low == 0:
                return self._relu(func, args, kwargs, low, high)
        return func(*args, **kwargs)

    def _relu(self, func: Any, args: Any, kwargs: Any, low: float, high: float) -> Tensor:
        number = self.relus % self.alteration.relus
        self.relus += 1
        x: Tensor = args[0]
        if number < self.alteration.linear_from:
            result: Tensor = func(*args, **kwargs)
            return result
        return cast(Tensor, _Linear.apply(x, low, high, self))

    def _sum(self, func: Any, first: Tensor, second: Tensor) -> Tensor:
        if (edge := block_input(first, second)) is not None:
            self.branches += 1
            return self._shortcut(first) + self._branch(second, edge)
        if (edge := block_input(second, first)) is not None:
            self.branches += 1
            return self._branch(first, edge) + self._shortcut(second)
        result: Tensor = func(first, second)
        return result

    def _shortcut(self, shortcut: Tensor) -> Tensor:
        if not self.alteration.ghost:
            return shortcut
        return shortcut * (1 + self.alteration.ghost * (2 * torch.rand(()).item() - 1))

    def _branch(self, branch: Tensor, edge: GradientEdge) -> Tensor:
        linear = self.relus > 0 and (
            (self.relus - 1) % self.alteration.relus >= self.alteration.linear_from
        )
        if self.alteration.skip_gradient == 1 and not linear:
            return branch

        def factor(gradient: Tensor) -> Tensor | float:
            scale = self._normalisation(branch, edge, gradient) if linear else 1.0
            return scale * self.alteration.skip_gradient

        return cast(Tensor, _Scaled.apply(branch, factor))

    def _normalisation(self, branch: Tensor, edge: GradientEdge, gradient: Tensor) -> Tensor:
        """Return, for each image, the factor that gives a branch's gradient its true length."""
        lengths = []
        for self.true_derivatives in (True, False):
            (at_input,) = torch.autograd.grad(
                [branch], [edge], [gradient.detach()], retain_graph=True
            )
            lengths.append(at_input.flatten(1).norm(dim=1))
        ratio: Tensor = lengths[0] / lengths[1].clamp(min=TINY)
        return ratio.view(-1, *[1] * (gradient.dim() - 1))


def _are_summands(args: tuple[Any, ...]) -> bool:
    return (
        len(args) == 2
        and all(isinstance(x, Tensor) and x.requires_grad for x in args)
        and args[0].shape == args[1].shape
    )


def _bounds(min_val: float = -1.0, max_val: float = 1.0, *_: Any, **__: Any) -> tuple[float, float]:
    return min_val, max_val


class _Linear(torch.autograd.Function):
    """A ReLU, or a ReLU with an upper bound, that gradients pass unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, mode: AlteredPass) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        ctx.mode = mode
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.mode.true_derivatives:
            gradient = gradient * ctx.saved_tensors[0]
        return gradient, None, None, None


class _Scaled(torch.autograd.Function):
    """The identity; a gradient that passes is multiplied by a function of it, held constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Callable[[Tensor], Tensor | float]) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.factor(gradient), None
