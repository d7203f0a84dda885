"""How to borrow a network: untouched afterwards, and meanwhile with no work for its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from reidguard.nn.derivatives import convolve

__all__ = ["frozen"]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def frozen(model: M) -> Iterator[M]:
    """Borrow a model: inside, it is in eval mode and no parameter asks for a gradient.

    Gradients to the input still flow. Meanwhile

    * the convolutions of a :class:`ReIDModel` have their weights in its ``memory_format``, which
      saves the same conversion in every pass;
    * batch norms are the affine maps that fixed statistics make of them, which makes passes
      and second derivatives cheaper;
    * convolutions are linear maps with one derivative for all orders, where torch's own second
      derivative works out the gradient of the weights, group by group, though nobody asked.

    So weights and statistics must not be changed inside. Afterwards, also after an exception, the
    weights, the training flag of every submodule and ``requires_grad`` of every parameter are what
    they were.

    Args:
        model: Any module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with frozen(net):
        ...     net[1].training, net[0].weight.requires_grad
        (False, False)
        >>> net[1].training, net[0].weight.requires_grad
        (True, True)
    """
    modes = [(module, module.training) for module in model.modules()]
    wants = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # A model inside another, as in an ensemble, has its own.
    layouts = {
        id(parameter): layout
        for module, _ in modes
        if isinstance(layout := getattr(module, "memory_format", None), torch.memory_format)
        for parameter in module.parameters()
    }
    weights = [(parameter, parameter.data) for parameter, _ in wants if parameter.dim() == 4]
    replaced = []
    try:
        # Set the flags themselves: train() and eval() reach children, and may be overridden.
        for module, _ in modes:
            module.training = False
        for parameter, _ in wants:
            parameter.requires_grad_(False)
        for parameter, data in weights:
            wanted_layout = layouts.get(id(parameter), torch.contiguous_format)
            parameter.data = data.contiguous(memory_format=wanted_layout)
        for module, _ in modes:
            # The inner of two nested calls finds the outer's forward there.
            if "forward" not in vars(module) and (lighter := _lighter(module)) is not None:
                module.forward = lighter
                replaced.append(module)
        yield model
    finally:
        for module in replaced:
            vars(module).pop("forward", None)
        for parameter, data in weights:
            parameter.data = data
        for module, mode in modes:
            module.training = mode
        for parameter, wanted in wants:
            parameter.requires_grad_(wanted)


def _lighter(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """A forward that computes the same for fixed weights, or None. A subclass may do more."""
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.running_var is not None:
        return _affine(module)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else _linear(module)
    return None


@torch.no_grad()
def _affine(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a batch norm with fixed statistics computes, ``scale · x + shift``."""
    mean, variance = norm.running_mean, norm.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    scale = torch.rsqrt(variance + cast(float, norm.eps))
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight
    shift = -mean * scale
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias

    def apply(x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)

    return apply


def _linear(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    shape = (
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )

    return lambda x: convolve(x, convolution.weight, convolution.bias, shape)
