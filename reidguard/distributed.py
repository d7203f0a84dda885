"""Data-parallel learning by several processes, each on its shard of a joint batch.

`torchrun` starts the processes; :func:`join` connects them. A loader gives each its
:class:`~reidguard.types.BatchShard` of the same joint batch. The model sees the shard;
:func:`gather` brings the features of all shards together, so that every process mines in, and
averages over, the joint batch; ``average`` makes one gradient of those of all processes. The
result is what one process would compute with the joint batch, up to rounding.

Every collective here is a linear map whose derivative is its transpose, a collective again. So
all of it can be differentiated twice, and ``maml`` is exact here too: each process's loss is the
joint one, so a gradient through the gathered features is ``size`` times its part, and the average
over the processes is the gradient of the joint loss.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from reidguard.errors import InputError, ReIDGuardError, TrainingError
from reidguard.records import environment_number
from reidguard.types import BatchShard

__all__ = [
    "World",
    "gather",
    "is_first",
    "join",
    "rows_here",
    "world",
]


@dataclass(frozen=True)
class World:
    """The processes that learn together.

    Args:
        rank: Which of them this one is, from 0. Only 0 writes files and reports progress.
        size: How many there are, 2 or more.

    Example:
        >>> World(rank=1, size=2).size
        2
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
    if dist.is_initialized() or environment_number("WORLD_SIZE", 1) == 1:
        yield world()
        return
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:  # RANK, MASTER_ADDR, ... missing or wrong
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes cannot connect ({reason}); use torchrun") from error
    try:
        yield world()
    finally:
        # In torch 2.6, gloo's threads may need the interpreter to drop the tensors of the last
        # exchange, and its destructor waits for them without letting go of the interpreter.
        time.sleep(0.1)
        dist.destroy_process_group()


def shard_of(batch: Any) -> BatchShard | None:
    """Return which rows of a joint batch a batch holds; None for a batch of its own."""
    return getattr(batch, "shard", None)


def part_of(shard: BatchShard, rows: slice | Tensor) -> BatchShard:
    """Return the shard of the rows that the processes select from theirs; collective."""
    picked = torch.zeros(shard.total, dtype=torch.int64, device=shard.rows.device)
    picked[shard.rows[rows]] = 1
    dist.all_reduce(picked)
    places = picked.cumsum(0) - 1
    return BatchShard(places[shard.rows[rows]], int(picked.sum()))


def gather(x: Tensor, shard: BatchShard | None) -> Tensor:
    """Return the rows of all processes, in the order of the joint batch.

    Differentiable as often as wished; a gradient is summed over the processes.

    Args:
        x: (n, ...) rows of this process.
        shard: Which they are; None leaves ``x`` as it is.

    Returns:
        (total, ...).

    Example:
        >>> gather(torch.ones(2), None)
        tensor([1., 1.])
    """
    if shard is None:
        return x
    rows = shard.rows.to(x.device)
    if len(rows) != len(x):
        raise InputError(f"this shard of a batch has {len(rows)} rows, not {len(x)}")
    return cast(Tensor, _Gather.apply(x, rows, shard.total))


class _Rows(torch.autograd.Function):
    """Base of :class:`_Gather` and its transpose: what they save for the backward pass."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, rows, ctx.total = inputs
        ctx.save_for_backward(rows)


class _Gather(_Rows):
    """Put rows in their places and add up over the processes. Adding zeros rounds nothing."""

    @staticmethod
    def forward(x: Tensor, rows: Tensor, total: int) -> Tensor:
        joint = x.new_zeros((total, *x.shape[1:]))
        joint[rows] = x
        dist.all_reduce(joint)
        return joint

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return _Spread.apply(grad, rows, ctx.total), None, None


class _Spread(_Rows):
    """The transpose of :class:`_Gather`: add up over the processes and take the own rows."""

    @staticmethod
    def forward(joint: Tensor, rows: Tensor, total: int) -> Tensor:
        joint = joint.contiguous().clone()
        dist.all_reduce(joint)
        return joint[rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (rows,) = ctx.saved_tensors
        return _Gather.apply(grad, rows, ctx.total), None, None


def average(tensors: Sequence[Tensor | None], shard: BatchShard | None) -> list[Tensor | None]:
    """Return each tensor's mean over the processes: one gradient of those that each computed.

    One message for all tensors of a kind. Differentiable as often as wished.

    Args:
        tensors: The same shapes in all processes, None in the same places.
        shard: What the tensors were computed from; None leaves them as they are.
    """
    result = list(tensors)
    if shard is None:
        return result
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor is not None:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(i)
    for places in kinds.values():
        group = [t for i in places if (t := tensors[i]) is not None]
        flat = _Average.apply(torch.cat([t.reshape(-1) for t in group]))
        parts = torch.split(flat, [t.numel() for t in group])
        for i, t, part in zip(places, group, parts, strict=True):
            result[i] = part.view(t.shape)
    return result


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


def rows_here(total: int, batch_size: int) -> slice:
    """Return the rows that this process works on: whole batches, in a row.

    Args:
        total: Rows of all processes.
        batch_size: Rows of a batch, of which the last may be smaller.

    Example:
        >>> rows_here(100, 8)  # one process works on all of them
        slice(0, 100, None)
    """
    processes = world() or World(0, 1)
    batches = -(-total // batch_size)
    first, last = (batches * (processes.rank + k) // processes.size for k in (0, 1))
    return slice(min(first * batch_size, total), min(last * batch_size, total))


def gather_rows(x: Tensor | None, rows: slice, total: int) -> Tensor:
    """Return the rows of all processes, in order; collective.

    Args:
        x: (n, ...), what :func:`rows_here` gave this process; None for no rows.
        rows: Where they stand.
        total: Rows of all processes.

    Returns:
        (total, ...) in every process.
    """
    processes = world()
    if processes is None:
        assert x is not None
        return x
    layouts: list[Any] = [None] * processes.size
    layout = None if x is None else (x.shape[1:], x.dtype, str(x.device))
    dist.all_gather_object(layouts, layout)
    shape, dtype, device = next(known for known in layouts if known is not None)
    if x is None:
        device = device if torch.device(device).type == "cpu" else "cuda"
        x = torch.empty((0, *shape), dtype=dtype, device=device)
    return gather(x, BatchShard(torch.arange(rows.start, rows.stop), total))


def gather_equal(x: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, which have equal shapes; collective."""
    processes = world()
    if processes is None:
        return [x]
    result = [torch.empty_like(x) for _ in range(processes.size)]
    dist.all_gather(result, x.contiguous())
    return result


def add_up(x: Tensor) -> Tensor:
    """Return the sum of the tensors of all processes, which have equal shapes; collective."""
    if world() is not None:
        x = x.clone()
        dist.all_reduce(x)
    return x


def is_first() -> bool:
    """Return whether this process is the one that writes files and reports.

    Example:
        >>> is_first()
        True
    """
    processes = world()
    return processes is None or processes.rank == 0


def from_first(value: Any) -> Any:
    """Return the first process's value in every process; collective."""
    if world() is None:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def from_all(values: list[Any]) -> list[Any]:
    """Return the values of all processes, in their order; collective."""
    processes = world()
    if processes is None:
        return values
    lists: list[list[Any]] = [[]] * processes.size
    dist.all_gather_object(lists, values)
    return [value for part in lists for value in part]


def shared_outcome(outcome: Any) -> Any:
    """Return what the first process got, in every process; collective.

    Args:
        outcome: In the first process a result, or a :class:`ReIDGuardError`, which it raises after
            this call. Ignored in the others.

    Raises:
        ReIDGuardError: In the others, if the first has one. It is ``reported`` there.
    """
    shared = from_first(outcome)
    if isinstance(shared, ReIDGuardError) and not is_first():
        shared.reported = True
        raise shared
    return shared


@contextmanager
def entered_by_first(manager: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context manager in the first process only, before the others go on; collective.

    Raises:
        ReIDGuardError: In every process, if entering it raises one.
    """
    with ExitStack() as stack:
        if is_first():
            try:
                stack.enter_context(manager)
            except ReIDGuardError as error:
                shared_outcome(error)
                raise
        shared_outcome(None)
        yield


def agree(settings: Mapping[str, Any]) -> None:
    """Make sure that all processes have the same settings; collective.

    Args:
        settings: JSON values, by name.

    Raises:
        TrainingError: In every process, naming what differs.
    """
    processes = world()
    if processes is None:
        return
    texts: list[Any] = [None] * processes.size
    dist.all_gather_object(texts, json.dumps(dict(settings), sort_keys=True))
    first, *others = (json.loads(text) for text in texts)
    for rank, other in enumerate(others, 1):
        keys = sorted(k for k in {*first, *other} if first.get(k) != other.get(k))
        if keys:
            details = "; ".join(
                f"{k}: {first.get(k)!r} in process 0, {other.get(k)!r} in process {rank}"
                for k in keys
            )
            raise TrainingError(
                f"the processes have different settings ({details}): give all of them the same "
                "model, data, options and seed, and a checkpoint on a disk that all of them see"
            )
