"""Counts of a tile's keys around ascending bands, row by row.

A tile holds the keys of some queries and gallery images. Two edges around the key of each match
enclose a band. What is needed of a tile is how many keys lie before each band, and which keys lie
inside one.

On a CPU the keys of a row are rounded to ``LEVELS`` steps between its first and its last edge, and
packed into one integer with their column. numpy sorts short segments of such integers with vector
instructions, at a small fraction of the matrix product's time, and the bands are searched in the
sorted segments. A band may gain keys by the rounding, and loses none. On a GPU every key is
searched among the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Bands", "Counts", "in_threads"]

ROWS = 64  # rows that are sorted at a time, so that they stay in a core's cache
BITS = 9
SEGMENT = 1 << BITS  # columns that are sorted together; vectorised sorts are fastest up to here
LEVELS = 1 << (30 - BITS)  # steps between the first and the last edge of a row
BEYOND = 2 * LEVELS - 2  # level of all keys that are far behind the last edge
LAST = np.iinfo(np.int32).max  # fills a segment

Counts = tuple[Tensor, Tensor, Tensor, Tensor]


class Bands:
    """Counts the keys of tiles around the bands of some queries.

    Args:
        edges: (q, 2M) float32, ascending in each row; 2j and 2j + 1 enclose the band of match j.
            Infinite ones are those of no match.
        columns: Largest number of columns of a tile.
    """

    def __init__(self, edges: Tensor, columns: int) -> None:
        self.edges = edges
        if edges.device.type != "cpu":
            return
        self.segments = -(-columns // SEGMENT)
        self.levels = Levels(edges.numpy())
        # Packed keys that are the last before each band, and inside it, for each segment of a row.
        low, high = (bound.repeat(self.segments, 0) for bound in self.levels.bounds())
        self.low, self.high = torch.from_numpy(low), torch.from_numpy(high)
        self.places = np.arange(self.segments * SEGMENT, dtype=np.int32) & (SEGMENT - 1)
        self.packed = torch.empty(len(low), SEGMENT, dtype=torch.int32)

    def count(self, tile: Tensor) -> Counts:
        """Count the keys before each band, and locate those inside one.

        Args:
            tile: (q, g) float32 keys, finite.

        Returns:
            (q, M) int64 numbers of keys before each band, which are at most its lower edge; (q, M)
            numbers of keys up to its end; rows and columns, each (P,) int64, of the keys inside a
            band. Rows ascend. Keys above a lower edge and at most the upper one are always inside.
        """
        if tile.device.type != "cpu":
            return by_searching(tile, self.edges)
        self._sort(tile.numpy())
        through = torch.searchsorted(self.packed, self.high, right=True)
        before, (segment, band), size = self._before(through)
        nth = torch.arange(len(size)).repeat_interleave(size)
        place = torch.arange(len(nth)) - (size.cumsum(0) - size)[nth]
        segment, first = segment[nth], before[segment, band][nth]
        columns = self.packed[segment, first + place].long() & (SEGMENT - 1)
        columns += segment % self.segments * SEGMENT
        shape = (len(tile), self.segments, -1)
        before, through = before.view(shape).sum(1), through.view(shape).sum(1)
        return before, through, segment // self.segments, columns

    def _sort(self, keys: NDArray[np.float32]) -> None:
        """Pack the keys and sort each segment."""
        packed = self.packed.numpy().reshape(len(keys), -1)
        columns = keys.shape[1]

        def sort(rows: slice) -> None:
            own = packed[rows]
            self.levels.of(keys[rows], rows, own[:, :columns])
            np.left_shift(own, BITS, out=own)
            np.bitwise_or(own, self.places, out=own)
            own[:, columns:] = LAST
            own.reshape(-1, SEGMENT).sort(axis=1)

        in_threads(sort, len(keys))

    def _before(self, through: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Step from the end of each band to its first key.

        Returns:
            Numbers of keys before each band; segments and bands with keys inside, and how many.
        """
        ends = torch.nn.functional.pad(through[:, :-1], (1, 0))  # of the band before
        inside = self.packed.gather(1, (through - 1).clamp_(min=0)) > self.low
        hits = inside.logical_and_(through > ends).nonzero(as_tuple=True)
        first, least, bound = through[hits] - 1, ends[hits], self.low[hits]
        going = torch.arange(len(first))
        while len(going):
            going = going[first[going] > least[going]]
            going = going[self.packed[hits[0][going], first[going] - 1] > bound[going]]
            first[going] -= 1
        size = through[hits] - first
        before = through.clone()
        before[hits] = first
        return before, hits, size


def by_searching(tile: Tensor, edges: Tensor) -> Counts:
    """:meth:`Bands.count` by a binary search of every key among the edges of its row."""
    passed = torch.searchsorted(edges, tile)
    between = torch.zeros(len(tile), edges.shape[1] + 1, dtype=torch.int64, device=tile.device)
    between.scatter_add_(1, passed, between.new_ones(()).expand_as(passed))
    # An odd number of edges is passed inside a band.
    rows, cols = (passed & 1).nonzero(as_tuple=True)
    counts = between[:, :-1].cumsum(1)
    return counts[:, ::2], counts[:, 1::2], rows, cols


class Levels:
    """Steps of the keys of each row: monotone, as the same two operations compute them for all.

    Args:
        edges: (q, 2M) float32, ascending.
    """

    def __init__(self, edges: NDArray[np.float32]) -> None:
        self.edges = edges
        finite = np.isfinite(edges)
        self.first = np.where(finite[:, :1], edges[:, :1], np.float32(0))
        last = np.where(finite, edges, self.first).max(1, keepdims=True)
        self.scale = np.float32(LEVELS) / np.maximum(last - self.first, np.float32(1e-30))

    def of(self, keys: NDArray[np.float32], rows: slice, out: NDArray[np.int32]) -> None:
        """Write the levels of the keys of some rows: -1 before the first edge."""
        steps = keys - self.first[rows]
        with np.errstate(over="ignore"):
            np.multiply(steps, self.scale[rows], out=steps)
        np.clip(steps, np.float32(-1), np.float32(BEYOND), out=steps)
        np.copyto(out, steps, casting="unsafe")

    def bounds(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the (q, M) packed keys that are the last before each band, and inside it."""
        levels = np.empty(self.edges.shape, np.int32)
        self.of(self.edges, slice(None), levels)
        low, high = levels[:, ::2] << BITS, levels[:, 1::2] << BITS
        low -= 1
        high |= SEGMENT - 1
        for bound, edges in ((low, self.edges[:, ::2]), (high, self.edges[:, 1::2])):
            bound[np.isposinf(edges)] = LAST - 1
        return low, high


def in_threads(function: Callable[[slice], None], rows: int, step: int = ROWS) -> int:
    """Call a function with blocks of rows, in as many threads as torch uses; numpy has one.

    Returns:
        Number of blocks.
    """
    blocks = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads == 1:
        for block in blocks:
            function(block)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, blocks))
    return len(blocks)
