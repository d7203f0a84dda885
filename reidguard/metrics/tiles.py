"""Counts of a tile's keys up to ascending edges, row by row.

A tile holds the keys of some queries and gallery images. Two edges around the key of each match
enclose a band. What is needed of a tile is how many keys are at most each edge, and which keys are
inside a band.

On a CPU numpy sorts each row with vector instructions, some ten times as fast as a binary search
for every key, and the edges are searched in the sorted row. On a GPU every key is searched among
the edges.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["by_searching", "by_sorting", "count_keys"]

ROWS = 64  # rows that are sorted at a time, so that they stay in a core's cache

Counts = tuple[Tensor, Tensor, Tensor]


def count_keys(tile: Tensor, edges: Tensor, spare: Tensor | None = None) -> Counts:
    """Count the keys up to each edge, and locate those inside a band.

    Args:
        tile: (q, g) float32 keys, finite.
        edges: (q, 2M) float32, ascending in each row; 2j and 2j + 1 enclose the band of match j.
        spare: q·g float32 or more, overwritten; None is new memory.

    Returns:
        (q, 2M) int64 numbers of keys at most each edge; rows and columns, each (P,) int64, of the
        keys inside a band, above its lower edge and at most its upper one. Rows ascend.
    """
    if tile.device.type == "cpu":
        return by_sorting(tile, edges, spare)
    return by_searching(tile, edges)


def by_searching(tile: Tensor, edges: Tensor) -> Counts:
    """:func:`count_keys` by a binary search of every key among the edges of its row."""
    passed = torch.searchsorted(edges, tile)
    between = torch.zeros(len(tile), edges.shape[1] + 1, dtype=torch.int64, device=tile.device)
    between.scatter_add_(1, passed, between.new_ones(()).expand_as(passed))
    # An odd number of edges is passed inside a band.
    rows, cols = (passed & 1).nonzero(as_tuple=True)
    return between[:, :-1].cumsum(1), rows, cols


def by_sorting(tile: Tensor, edges: Tensor, spare: Tensor | None = None) -> Counts:
    """:func:`count_keys` by sorting the rows; of a tile on the CPU."""
    copy = torch.empty_like(tile) if spare is None else spare[: tile.numel()].view_as(tile)
    keys, ordered = tile.numpy(), copy.numpy()

    def sort(rows: slice) -> None:
        ordered[rows] = keys[rows]
        ordered[rows].sort(axis=1)

    _in_threads(sort, len(keys))
    counts = torch.searchsorted(copy, edges, right=True)
    rows = (counts[:, 1::2] > counts[:, ::2]).any(1).nonzero().flatten()
    if len(rows) == 0:
        return counts, rows, rows
    first, last = counts[rows, ::2], counts[rows, 1::2]
    columns = _columns(keys[rows.numpy()], first, last)
    return counts, rows.repeat_interleave((last - first).sum(1)), columns


def _columns(keys: NDArray[np.float32], first: Tensor, last: Tensor) -> Tensor:
    """Return the columns of the keys at the places first..last of each sorted row.

    Each key and its column are packed into one integer, with the column in the lower half, and
    sorted again: cheaper than a sort that carries indices.
    """
    packed = np.empty(keys.shape, np.int64)
    columns = np.arange(keys.shape[1])

    def sort(rows: slice) -> None:
        bits = keys[rows].view(np.int32)
        # Negative floats have descending bits: inverted they are in the order of the numbers.
        packed[rows] = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        packed[rows] <<= 32
        packed[rows] |= columns
        packed[rows].sort(axis=1)

    _in_threads(sort, len(keys))
    size = (last - first).flatten()
    row = torch.arange(len(keys)).repeat_interleave(first.shape[1]).repeat_interleave(size)
    nth = torch.arange(len(row)) - (size.cumsum(0) - size).repeat_interleave(size)
    place = first.flatten().repeat_interleave(size) + nth
    return torch.from_numpy(packed)[row, place] & 0xFFFFFFFF


def _in_threads(function: Callable[[slice], None], rows: int) -> None:
    """Call a function with blocks of rows, in as many threads as torch uses; numpy has one."""
    blocks = [slice(start, start + ROWS) for start in range(0, rows, ROWS)]
    threads = min(torch.get_num_threads(), len(blocks))
    if threads == 1:
        for block in blocks:
            function(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, blocks))
