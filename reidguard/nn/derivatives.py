"""Convolution and batch norm with second derivatives as cheap as the first.

Torch's own second derivatives are general: that of a convolution transposes batch and channels and
goes group by group, that of a batch norm is written in a dozen passes over the images. Here each
order of derivative takes only the kernels of a plain training step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ["LightDerivatives", "Replaced", "batch_norm", "convolve"]


class Replaced(TorchFunctionMode):
    """A context in which each function of torch that is a key is replaced by its value.

    The replacement may call the function itself.
    """

    def __init__(self, functions: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.functions.get(func, func)(*args, **(kwargs or {}))


class LightDerivatives(Replaced):
    """A context in which ``conv2d`` and ``batch_norm`` are :func:`convolve` and :func:`batch_norm`.

    Values and derivatives are the same. Whoever calls them, a layer, a subclass or a plugin, gets
    them; nothing is replaced in a module. Calls that these do not cover (a padding by name, half
    precision, fixed statistics) remain torch's.

    Example:
        >>> x = torch.ones(1, 1, 3, 3, requires_grad=True)
        >>> with LightDerivatives():
        ...     y = torch.nn.functional.conv2d(x, torch.ones(1, 1, 3, 3))
        >>> float(y)
        9.0
    """

    def __init__(self) -> None:
        super().__init__({F.batch_norm: batch_norm, torch.conv2d: _conv2d})


def _light(x: Tensor) -> bool:
    """Whether derivatives are recorded, in the precision of the tensors."""
    return (
        torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
    )


# --- convolution ------------------------------------------------------------------------------


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.dim() != 4:
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return convolve(input, weight, bias, (_pair(stride), _pair(padding), _pair(dilation), groups))


def _pair(value: Any) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value) * (2 // len(value))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Any) -> Tensor:
    """Return ``conv2d`` of (N, C, H, W) images, with derivatives of all orders at the same cost.

    A convolution is linear in the images and in the weight. So are its derivatives, which are
    convolutions, or transposes of one, with one of the factors exchanged: three kernels do for all
    orders.

    Args:
        x: Images.
        weight: (M, C / groups, h, w).
        bias: (M,) or None.
        shape: Stride, padding and dilation, each a pair, and the number of groups.
    """
    variables = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    if not variables or not _light(x):
        return F.conv2d(x, weight, bias, *shape)
    return cast(Tensor, _Convolve.apply(x, weight, bias, shape))


class _Convolve(torch.autograd.Function):
    """conv(x, w) + bias."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, shape: Any) -> Tensor:
        return F.conv2d(x, weight, bias, *shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, _, ctx.shape = inputs
        by_x, by_weight = ctx.needs_input_grad[:2]
        # Each derivative needs the values of the other factor only.
        ctx.save_for_backward(x if by_weight else None, weight if by_x else None)
        ctx.like = _like(x), _like(weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None, None
        by_x, by_weight = _Derivatives.apply(grad, *ctx.saved_tensors, ctx.like, ctx.shape)
        by_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias, None


class _Derivatives(torch.autograd.Function):
    """Derivatives of ``<grad, conv(x, w)>``: by x where w is given, by w where x is given.

    Their own are ``<v, by_x> + <u, by_w> = <grad, conv(v, w) + conv(x, u)>``, so the derivative by
    grad is a sum of convolutions, and those by x and w are these again, at v and u.
    """

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor | None, weight: Tensor | None, like: Any, shape: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        stride, padding, dilation, groups = shape
        # Of a factor whose values do not count, the kernel needs size and layout only.
        blank = [
            torch.empty_strided(*size, dtype=grad.dtype, device=grad.device)
            if factor is None
            else factor
            for factor, size in zip((x, weight), like, strict=True)
        ]
        needed = [weight is not None, x is not None, False]
        by_x, by_weight, _ = torch.ops.aten.convolution_backward(
            grad, *blank, None, stride, padding, dilation, False, [0, 0], groups, needed
        )
        return by_x, by_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, x, weight, ctx.like, ctx.shape = inputs
        again = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(grad if again else None, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, by_x: Tensor | None, by_weight: Tensor | None) -> Any:
        grad, x, weight = ctx.saved_tensors
        by_grad = x_again = weight_again = None
        if ctx.needs_input_grad[0]:
            terms = [
                _Convolve.apply(a, b, None, ctx.shape)
                for a, b in ((by_x, weight), (x, by_weight))
                if a is not None and b is not None
            ]
            by_grad = sum(terms[1:], terms[0]) if terms else None
        v = by_x if ctx.needs_input_grad[2] else None
        u = by_weight if ctx.needs_input_grad[1] else None
        if v is not None or u is not None:
            x_again, weight_again = _Derivatives.apply(grad, v, u, ctx.like, ctx.shape)
        return by_grad, x_again, weight_again, None, None


def _like(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape), tuple(x.stride())


# --- batch norm -------------------------------------------------------------------------------


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return :func:`torch.nn.functional.batch_norm`, with a second derivative in few passes.

    It is that of an affine norm in training, the others are torch's own.
    """
    if (
        not training
        or weight is None
        or bias is None
        or not _light(input)
        or weight.dtype != input.dtype
        or not (input.requires_grad or weight.requires_grad or bias.requires_grad)
        or input.numel() <= input.shape[1]  # torch's says what is wrong with it
    ):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    normalised, _, _ = _Normalise.apply(
        input, weight, bias, running_mean, running_var, momentum, eps
    )
    return cast(Tensor, normalised)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, *_, ctx.eps = inputs
        _, mean, scale = output
        ctx.mark_non_differentiable(mean, scale)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        if grad is None:
            return (None,) * 7
        derivatives = _NormaliseDerivatives.apply(
            grad, *ctx.saved_tensors, ctx.eps, ctx.needs_input_grad[0]
        )
        return *derivatives, None, None, None, None


class _NormaliseDerivatives(torch.autograd.Function):
    """Derivatives of a batch norm by images, weight and bias, with x̂ = (x - mean) · scale:

    ``weight · scale · (grad - mean(grad) - x̂ · mean(grad · x̂))``, ``sum(grad · x̂)``, ``sum(grad)``.
    """

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        eps: float,
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, scale, True, eps, [needs_x, True, True]
        )
        return by_x, by_weight, by_bias

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, x, weight, mean, scale, *_ = inputs
        # The two sums are needed again.
        ctx.save_for_backward(grad, x, weight, mean, scale, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable  # as torch's own
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None, t: Tensor | None) -> Any:
        """Differentiate ``<v, by x> + <u, by weight> + <t, by bias>`` by grad, x and weight.

        All sums come first, then each result as one affine form of images with a factor per
        channel.
        """
        grad, x, weight, mean, scale, grad_x, grad_1 = ctx.saved_tensors
        number = x.numel() // x.shape[1]
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        u = zero if u is None else u
        t = zero if t is None else t
        v_x = v_1 = v_grad = zero
        if v is not None:
            v_x, v_1 = _sums(v, x, mean, scale)
            v_grad, _ = _sums(v, grad, zero, one)
        size = weight * scale
        # <v, by x> is size · covariance
        covariance = v_grad - v_1 * grad_1 / number - v_x * grad_x / number

        def form(of_x: Tensor, constant: Tensor, *terms: tuple[Tensor, Tensor | None]) -> Tensor:
            """Return of_x · x̂ + constant + terms."""
            factor = of_x * scale
            result: Tensor = torch.native_batch_norm(
                x, factor, constant - factor * mean, zero, one, False, 0.0, 0.0
            )[0]
            for of_images, images in terms:
                if images is not None:
                    result.addcmul_(images, of_images.view(1, -1, *[1] * (x.dim() - 2)))
            return result

        # size · (v - mean(v) - x̂ · mean(v · x̂)) + u · x̂ + t
        by_grad = form(u - size * v_x / number, t - size * v_1 / number, (size, v))
        # By x̂ it is e = of_v · v + of_grad · grad, which goes back to x as any gradient of a batch
        # norm does; by scale, which is a function of x, too, it is weight · covariance.
        of_v, of_grad = -size * grad_x / number, u - size * v_x / number
        mean_e = (of_v * v_1 + of_grad * grad_1) / number
        mean_e_x = (of_v * v_x + of_grad * grad_x) / number
        x_again = form(
            -scale * (mean_e_x + size * covariance / number),
            -scale * mean_e,
            (scale * of_v, v),
            (scale * of_grad, grad),
        )
        return by_grad, x_again, scale * covariance, None, None, None, None


def _sums(grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum(grad · (x - mean) · scale)`` and ``sum(grad)`` of each channel, in one pass."""
    _, weighted, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return weighted, total
