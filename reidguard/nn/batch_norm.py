"""Batch norms that are folded, leave running statistics alone, or span several processes.

All batch norms, those of other libraries included, end in :func:`torch.nn.functional.batch_norm`.
So the last two intercept that function, and replace nothing in a model, of which `higher` may have
made a copy. Second derivatives are in :mod:`reidguard.nn.derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reidguard.distributed import gather
from reidguard.nn.derivatives import Replaced
from reidguard.types import BatchShard

__all__ = ["active_sync_layers", "fold_batch_norm", "sync_layers", "without_memory"]


def _affine(
    mean: Tensor, variance: Tensor, weight: Any, bias: Any, eps: float
) -> tuple[Tensor, Tensor]:
    """Return (C,) scale and shift of the batch norm ``scale · x + shift`` of (N, C, ...)."""
    scale = torch.rsqrt(variance + eps)
    if isinstance(weight, Tensor):
        scale = scale * weight
    shift = -mean * scale
    if isinstance(bias, Tensor):
        shift = shift + bias
    return scale, shift


def _apply(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


# --- folded -----------------------------------------------------------------------------------


class _Folded(_BatchNorm):
    """A batch norm in eval mode, as the affine map of its statistics."""

    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return _apply(x, self.scale, self.shift).to(x.dtype)

    def _get_name(self) -> str:  # a model's fingerprint has it
        return type(self).__bases__[1].__name__


class _Folded1d(_Folded, nn.BatchNorm1d):
    pass


class _Folded2d(_Folded, nn.BatchNorm2d):
    pass


@torch.no_grad()
def fold_batch_norm(norm: nn.Module) -> None:
    """Make a ``BatchNorm1d`` or ``BatchNorm2d`` the affine map of its statistics, in place.

    Leaves any other module, subclasses of these included, as it is: it may do more.

    Example:
        >>> norm = nn.BatchNorm1d(2).eval()
        >>> fold_batch_norm(norm)
        >>> norm(torch.ones(1, 2)).round(decimals=3).tolist()
        [[1.0, 1.0]]
    """
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
        return
    folded = {nn.BatchNorm1d: _Folded1d, nn.BatchNorm2d: _Folded2d}.get(type(norm))
    if folded is None or norm.running_mean is None:
        return
    scale, shift = _affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    norm.register_buffer("scale", scale, persistent=False)
    norm.register_buffer("shift", shift, persistent=False)
    norm.__class__ = folded  # type: ignore[assignment]


# --- without memory ---------------------------------------------------------------------------


@contextmanager
def without_memory(model: nn.Module) -> Iterator[None]:
    """Keep batch norms in train mode from updating their running statistics.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with without_memory(norm):
        ...     _ = norm(torch.rand(4, 2))
        >>> norm.running_mean.tolist(), int(norm.num_batches_tracked)
        ([0.0, 0.0], 0)
    """
    counters = [m.num_batches_tracked for m in model.modules() if isinstance(m, _BatchNorm)]
    counted = [(counter, counter.clone()) for counter in counters if counter is not None]
    try:
        with Replaced({F.batch_norm: _batch_norm_on_copies}):
            yield
    finally:
        for counter, before in counted:
            counter.copy_(before)


def _batch_norm_on_copies(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor:
    # Copies and not None: a repeated pass has to save as many tensors as the first.
    mean, variance = (None if s is None else s.clone() for s in (running_mean, running_var))
    return F.batch_norm(x, mean, variance, *args, **kwargs)


# --- over several processes -------------------------------------------------------------------


_LAYERS: ContextVar[Replaced | None] = ContextVar("_LAYERS", default=None)


@contextmanager
def sync_layers(shard: BatchShard | None) -> Iterator[None]:
    """Compute batch norm and dropout on the joint batch of all processes.

    Batch norms in train mode take their statistics from the rows of all processes, by one message
    each; twice differentiable, on any device. Dropout draws for the joint batch and takes the rows
    of the shard, so that with equal generators it is that of one process.

    Args:
        shard: Of the batch that passes; None changes nothing.
    """
    if shard is None:
        yield
        return
    dropouts = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
    functions = {f: partial(_joint_dropout, f, shard) for f in dropouts}
    layers = Replaced({F.batch_norm: _joint_batch_norm, **functions})
    token = _LAYERS.set(layers)
    try:
        with layers:
            yield
    finally:
        _LAYERS.reset(token)


def active_sync_layers() -> Callable[[], AbstractContextManager[Any]]:
    """Return a factory of the active :func:`sync_layers` context, for a repeated pass."""
    layers = _LAYERS.get()
    return nullcontext if layers is None else lambda: layers


def _joint_dropout(
    dropout: Callable[..., Tensor],
    shard: BatchShard,
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    if not training or p == 0 or len(x) != len(shard.rows):
        return dropout(x, p, training, inplace)
    ones = torch.ones((shard.total, *x.shape[1:]), dtype=x.dtype, device=x.device)
    if x.dim() == 4 and not x.is_contiguous():
        ones = ones.contiguous(memory_format=torch.channels_last)  # draws follow the layout
    return x * dropout(ones, p, True)[shard.rows.to(x.device)]


def _joint_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = x if x.dtype == torch.float64 else x.float()
    own = [0, *range(2, x.dim())]
    shape = (1, -1, *[1] * (x.dim() - 2))
    # Of each process: mean, squares around it, and how many values; then joined (Chan et al.).
    number = x.numel() // x.shape[1]
    mean = wide.sum(own) / max(number, 1)
    squares = (wide - mean.view(shape)).square().sum(own)
    here = torch.cat((mean, squares, mean.new_full((1,), number)))
    slot = torch.full((1,), dist.get_rank(), device=x.device)
    all_of = gather(here[None], BatchShard(slot, dist.get_world_size()))
    means, all_squares, numbers = torch.split(all_of, [x.shape[1], x.shape[1], 1], dim=1)
    total = numbers.sum()
    mean = (numbers * means).sum(0) / total
    variance = (all_squares.sum(0) + (numbers * (means - mean).square()).sum(0)) / total
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (total / (total - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return _apply(wide, *_affine(mean, variance, weight, bias, eps)).to(x.dtype)
