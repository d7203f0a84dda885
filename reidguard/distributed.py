"""One step by several processes: each works on its share of a batch, all know the whole loss.

`torchrun` starts the processes; :func:`join` connects them. A loader gives each its
:class:`BatchShard` of the same joint batch. The model sees the share; :func:`gather` brings the
features of all shares together, so that every process mines in, and averages over, the joint batch;
:func:`average` makes one gradient of those of all processes. What comes out is what one process
would find with the joint batch, up to rounding.

Every collective here is a linear map whose derivative is its transpose, a collective again. So
all of it can be differentiated twice, and ``maml`` is exact here too: each process's loss is the
joint one, so a gradient through the gathered features is ``size`` times its part, and the average
over the processes is the gradient of the joint loss.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reidguard.errors import InputError, TrainingError

__all__ = [
    "BatchShard",
    "World",
    "active_sync_layers",
    "agree",
    "average",
    "gather",
    "join",
    "shard_of",
    "sync_layers",
    "world",
]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that learn together.

    Args:
        rank: Which of them this one is, from 0. Only 0 writes files and tells of progress.
        size: How many there are, 2 or more.
    """

    rank: int
    size: int


def world() -> World | None:
    """Return the processes that ``torch.distributed`` connects; None for a process on its own.

    Example:
        >>> world() is None
        True
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def join(device: torch.device | str = "cpu") -> Iterator[World | None]:
    """Connect the processes that `torchrun` started, over gloo on CPUs and NCCL on GPUs.

    Does nothing in a process that `torchrun` did not start, or that is connected already.

    Args:
        device: Where this process works; of several GPUs, the one of its ``LOCAL_RANK``.

    Example:
        >>> with join() as others:
        ...     print(others)
        None
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield world()
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield world()
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True, eq=False)
class BatchShard:
    """Which rows of a joint batch a process holds.

    Args:
        rows: (n,) int64, ascending positions in the joint batch.
        total: Length of the joint batch.

    Example:
        >>> share = BatchShard(torch.tensor([0, 1, 4, 5]), 8)
        >>> here, chosen = share.choose(torch.tensor([1, 2, 5]))
        >>> here, chosen.rows, chosen.total  # rows 1 and 5 are here, first and last of three
        (tensor([1, 3]), tensor([0, 2]), 3)
    """

    rows: Tensor
    total: int

    def choose(self, chosen: Tensor) -> tuple[Tensor, BatchShard]:
        """Return where the chosen rows of the joint batch are in this share, and their share.

        Args:
            chosen: Ascending positions in the joint batch, the same in all processes.
        """
        chosen = chosen.to(self.rows.device)
        here = torch.isin(self.rows, chosen).nonzero().flatten()
        return here, BatchShard(torch.searchsorted(chosen, self.rows[here]), len(chosen))

    def followed_by(self, other: BatchShard) -> BatchShard:
        """Return the share of two joint batches in a row."""
        rows = torch.cat((self.rows, other.rows.to(self.rows.device) + self.total))
        return BatchShard(rows, self.total + other.total)

    def part(self, here: slice | Tensor) -> BatchShard:
        """Return the share of the joint batch of what the processes pick of theirs; collective."""
        picked = torch.zeros(self.total, dtype=torch.int64, device=self.rows.device)
        picked[self.rows[here]] = 1
        dist.all_reduce(picked)
        places = picked.cumsum(0) - 1
        return BatchShard(places[self.rows[here]], int(picked.sum()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BatchShard:
        """Return the share with its rows on ``device``."""
        return replace(self, rows=self.rows.to(device, non_blocking=non_blocking))


def shard_of(batch: Any) -> BatchShard | None:
    """Return which share of a joint batch this is; None for a batch of its own."""
    return getattr(batch, "shard", None)


def gather(x: Tensor, share: BatchShard | None) -> Tensor:
    """Return the rows of all processes, in the order of the joint batch.

    Differentiable as often as wished; a gradient is summed over the processes.

    Args:
        x: (n, ...) rows of this process.
        share: Which they are; None leaves ``x`` as it is.

    Returns:
        (total, ...).
    """
    if share is None:
        return x
    rows = share.rows.to(x.device)
    if len(rows) != len(x):
        raise InputError(f"this share of a batch has {len(rows)} rows, not {len(x)}")
    return cast(Tensor, _Gather.apply(x, rows, share.total))


class _Gather(torch.autograd.Function):
    """Put rows in their places and add up over the processes. Adding zeros rounds nothing."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor, total: int) -> Tensor:
        joint = x.new_zeros((total, *x.shape[1:]))
        joint[rows] = x
        dist.all_reduce(joint)
        return joint

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, rows, ctx.total = inputs
        ctx.save_for_backward(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return _Spread.apply(grad, rows, ctx.total), None, None


class _Spread(torch.autograd.Function):
    """The transpose of :class:`_Gather`: add up over the processes and take the own rows."""

    @staticmethod
    def forward(joint: Tensor, rows: Tensor, total: int) -> Tensor:
        joint = joint.contiguous().clone()
        dist.all_reduce(joint)
        return joint[rows]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, rows, ctx.total = inputs
        ctx.save_for_backward(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return _Gather.apply(grad, rows, ctx.total), None, None


def average(tensors: Sequence[Tensor | None], share: BatchShard | None) -> list[Tensor | None]:
    """Return each tensor's mean over the processes: one gradient of those that each found.

    One message for all tensors of a kind. Differentiable as often as wished.

    Args:
        tensors: The same shapes in all processes, None in the same places.
        share: What the tensors were computed from; None leaves them as they are.
    """
    found = list(tensors)
    if share is None:
        return found
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, tensor in enumerate(found):
        if tensor is not None:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(i)
    for places in kinds.values():
        given = [t for i in places if (t := found[i]) is not None]
        flat = _Average.apply(torch.cat([t.reshape(-1) for t in given]))
        parts = torch.split(flat, [t.numel() for t in given])
        for i, t, part in zip(places, given, parts, strict=True):
            found[i] = part.view(t.shape)
    return found


class _Average(torch.autograd.Function):
    """The mean over the processes, its own transpose."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x.div_(dist.get_world_size())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        """Nothing of it is needed."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _Average.apply(grad)


_LAYERS: ContextVar[_SyncLayers | None] = ContextVar("_LAYERS", default=None)


@contextmanager
def sync_layers(share: BatchShard | None) -> Iterator[None]:
    """Let layers that look beyond one image see the joint batch.

    Batch norms in train mode take their statistics from the rows of all processes, by one message
    each; twice differentiable, on any device. Dropout draws for the joint batch and takes the rows
    of the share, so that with equal generators it is that of one process.

    Args:
        share: Of the batch that passes; None changes nothing.
    """
    if share is None:
        yield
        return
    layers = _SyncLayers(share)
    token = _LAYERS.set(layers)
    try:
        with layers:
            yield
    finally:
        _LAYERS.reset(token)


def active_sync_layers() -> Callable[[], AbstractContextManager[Any]]:
    """Return what brings the :func:`sync_layers` of now back, for a pass that is repeated."""
    layers = _LAYERS.get()
    return nullcontext if layers is None else lambda: layers


DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class _SyncLayers(TorchFunctionMode):
    # All batch norms, other libraries' included, end in F.batch_norm; so nothing needs to be
    # replaced in a model, of which `higher` may have made a copy.
    def __init__(self, share: BatchShard) -> None:
        super().__init__()
        self.share = share

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        if func in DROPOUTS:
            return self._dropout(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _dropout(
        self, func: Any, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or len(x) != len(self.share.rows):
            return cast(Tensor, func(x, p, training, inplace))
        ones = torch.ones((self.share.total, *x.shape[1:]), dtype=x.dtype, device=x.device)
        if x.dim() == 4 and not x.is_contiguous():
            ones = ones.contiguous(memory_format=torch.channels_last)  # draws follow the layout
        kept: Tensor = func(ones, p, True)[self.share.rows.to(x.device)]
        return x * kept


def _batch_norm(
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
    here = torch.cat((mean, squares, mean.new_tensor([number])))
    slot = torch.tensor([dist.get_rank()], device=x.device)
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
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


def agree(facts: Mapping[str, Any]) -> None:
    """Make sure that all processes are about to do the same thing; collective.

    Args:
        facts: JSON values, by name.

    Raises:
        TrainingError: In every process, naming what differs.
    """
    together = world()
    if together is None:
        return
    told: list[Any] = [None] * together.size
    dist.all_gather_object(told, json.dumps(dict(facts), sort_keys=True))
    first, *others = (json.loads(one) for one in told)
    for rank, other in enumerate(others, 1):
        keys = sorted(k for k in {*first, *other} if first.get(k) != other.get(k))
        if keys:
            details = "; ".join(
                f"{k}: {first.get(k)!r} in process 0, {other.get(k)!r} in process {rank}"
                for k in keys
            )
            raise TrainingError(
                f"the processes are not at the same thing ({details}): give all of them the same "
                "model, data, options and seed, and a checkpoint on a disk that all of them see"
            )
