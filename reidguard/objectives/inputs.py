"""Random copies of adversarial images for a surrogate, so that an attack suits other networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.distributed import gather
from reidguard.objectives.diversity import diverse
from reidguard.options import InputOptions
from reidguard.schema import resolve
from reidguard.types import ReIDBatch

__all__ = ["InputCopies", "partners", "shifted"]


@dataclass
class InputCopies:
    """The copies of an adversarial image x̃ that a surrogate sees in place of x̃.

    With all options, copy i of ``scales`` is ``shift(shrink((x̃ + admix · x') / 2^i))``, with draws
    of its own: x' is a clean image of another identity of the batch. It may leave [0, 1]: it is no
    image that is written. The global generator draws.

    Args:
        diversity: Probability of shrinking (input diversity: Xie et al., CVPR 2019).
        shift: Largest shift in pixels, each way across and down.
        scales: Copies (scale invariance: Lin et al., ICLR 2020).
        admix: Weight of x' (Admix: Wang et al., ICCV 2021).

    Raises:
        InputError: If a number is out of its range.

    Example:
        >>> numbers = torch.arange(4)
        >>> batch = ReIDBatch(torch.rand(4, 3, 32, 16), numbers // 2, numbers, numbers)
        >>> copies = list(InputCopies(scales=3)(batch.images, batch))
        >>> torch.equal(copies[2], batch.images / 4)
        True
    """

    diversity: float = 0.0
    shift: int = 0
    scales: int = 1
    admix: float = 0.0

    def __post_init__(self) -> None:
        vars(self).update(resolve(InputOptions, vars(self)))

    def __call__(self, images: Tensor, batch: ReIDBatch) -> Iterator[Tensor]:
        """Yield the copies, each (N, 3, H, W) with a gradient to ``images``.

        Args:
            images: (N, 3, H, W) adversarial images.
            batch: The clean ones.
        """
        others, pids = batch.images, batch.pids
        if self.admix > 0:
            with torch.no_grad():
                others, pids = gather(others, batch.shard), gather(pids, batch.shard)
        for power in range(self.scales):
            copy = images
            if self.admix > 0:
                chosen = partners(batch.pids, pids, _draws(1, batch)[:, 0])
                copy = copy + self.admix * others[chosen]
            if power > 0:
                copy = copy / 2**power
            if self.diversity > 0:
                copy = diverse(copy, _draws(4, batch), self.diversity)
            if self.shift > 0:
                copy = shifted(copy, _draws(2, batch), self.shift)
            yield copy


def _draws(count: int, batch: ReIDBatch) -> Tensor:
    """Return (N, count) draws: every process makes those of the joint batch, and takes its rows."""
    device, shard = batch.images.device, batch.shard
    if shard is None:
        return torch.rand(len(batch), count, device=device)
    return torch.rand(shard.total, count, device=device)[shard.rows.to(device)]


def partners(pids: Tensor, all_pids: Tensor, draws: Tensor) -> Tensor:
    """Draw a row of another identity for each image; any row where there is none.

    Args:
        pids: (N,) identities of the images.
        all_pids: (T,) identities of the rows to draw from.
        draws: (N,) in [0, 1).

    Returns:
        (N,) rows.
    """
    other = pids[:, None] != all_pids[None, :]
    count = other.sum(1)
    rank = (draws * count).long().clamp(max=count - 1) + 1
    return ((other.cumsum(1) == rank[:, None]) & other).int().argmax(1)


def shifted(images: Tensor, draws: Tensor, largest: int) -> Tensor:
    """Shift each image by whole pixels, drawn for itself, on a black background.

    Args:
        images: (N, 3, H, W).
        draws: (N, 2) in [0, 1): how far an image is shifted, across and down.
        largest: Largest shift each way.

    Returns:
        (N, 3, H, W), with a gradient to ``images``.
    """
    moves = (draws * (2 * largest + 1)).long() - largest
    for axis, move in ((3, moves[:, 0]), (2, moves[:, 1])):
        size = images.shape[axis]
        source = torch.arange(size, device=images.device) - move[:, None]
        shape = (-1, 1, 1, size) if axis == 3 else (-1, 1, size, 1)
        inside = ((source >= 0) & (source < size)).view(shape)
        index = source.clamp(0, size - 1).view(shape).expand_as(images)
        images = images.gather(axis, index) * inside
    return images
