"""The few keys of each tile that are not behind every match, sorted together for many tiles.

With a good model most of the gallery is further away than a query's last match. Such keys count
nowhere, so that comparing a tile with one number per row leaves a few percent of it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reidguard.metrics.tiles import Counts, in_threads

__all__ = ["ROWS", "NearKeys"]

ROW_BITS, COLUMN_BITS = 10, 21  # beside the 32 bits of a key, in a positive int64
ROWS, COLUMNS = 1 << ROW_BITS, 1 << COLUMN_BITS
FEW = 1 / 8  # of a tile; with more it is faster to sort all of it
FULL = 1 << 20  # keys that are sorted together, 8 MiB


class NearKeys:
    """Collects keys up to the last band of their row, and counts those around the bands.

    Args:
        edges: (q, 2M) float32 on the CPU, ascending in each row, q at most ``ROWS``; 2j and
            2j + 1 enclose the band of match j. Infinite ones are those of no match.
        columns: Largest number of columns of a tile.
    """

    def __init__(self, edges: Tensor, columns: int) -> None:
        self.shape = edges.shape
        last = torch.where(edges.isinf(), -torch.inf, edges).amax(1, keepdim=True)
        self.last = last.numpy()
        rows = np.arange(len(edges), dtype=np.int64)[:, None]
        # All keys equal to an edge are sorted before it.
        self.edges = (packed(rows, edges.numpy()) | (COLUMNS - 1)).reshape(-1)
        self.starts = rows[:, 0] << (32 + COLUMN_BITS)
        self.mask = np.empty((len(edges), columns), bool)
        self.kept: list[NDArray[np.int64]] = []
        self.size = self.first = 0

    def add(self, tile: Tensor, first: int) -> bool:
        """Keep the near keys of a tile, unless there are too many.

        Args:
            tile: (q, g) float32 keys, finite.
            first: Column of the gallery where the tile begins; the next one lies behind it.

        Returns:
            Whether the tile is done.
        """
        origin = first - (self.first if self.kept else first)
        keys = tile.numpy()
        found: list[NDArray[np.int64]] = []

        def gather(block: slice) -> None:
            own = keys[block]
            mask = self.mask[block].reshape(-1)[: own.size]
            np.less_equal(own, self.last[block], out=mask.reshape(own.shape))
            if np.count_nonzero(mask) <= FEW * own.size:
                places = np.flatnonzero(mask)  # several times as fast as in two dimensions
                rows = places // own.shape[1]  # much faster than np.divmod
                columns = places - rows * own.shape[1]
                near = packed(rows + block.start, own.reshape(-1)[places])
                near |= columns + origin
                found.append(near)

        blocks = in_threads(gather, len(keys), -(-len(keys) // torch.get_num_threads()))
        if len(found) < blocks:
            return False
        self.first = first - origin
        self.kept += found
        self.size += sum(map(len, found))
        return True

    def full(self, last: int) -> bool:
        """Whether :meth:`count` is due before a tile that ends at this column."""
        return bool(self.kept) and (self.size >= FULL or last - self.first > COLUMNS)

    def count(self) -> Counts:
        """Count what was added, and begin anew.

        Returns:
            As :meth:`Bands.count <reidguard.metrics.tiles.Bands.count>`, with the columns of the
            gallery.
        """
        keys = np.concatenate([*self.kept, np.empty(0, np.int64)])
        self.kept, self.size = [], 0
        keys.sort()
        places = np.searchsorted(keys, self.edges, side="right").reshape(self.shape)
        starts = np.searchsorted(keys, self.starts)[:, None]
        before, through = places[:, ::2], places[:, 1::2]
        size = (through - before).reshape(-1)
        ends = size.cumsum()
        inside = np.arange(ends[-1]) + (before.reshape(-1) - ends + size).repeat(size)
        rows, columns = keys[inside] >> (32 + COLUMN_BITS), keys[inside] & (COLUMNS - 1)
        return (
            torch.from_numpy(before - starts),
            torch.from_numpy(through - starts),
            torch.from_numpy(rows),
            torch.from_numpy(columns + self.first),
        )


def packed(rows: NDArray[np.int64], keys: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return integers in the order of rows and keys, with place for a column."""
    bits = (keys + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    # The bits of floats are in the order of positive ones; those of negative ones in reverse.
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) + 2**31
    return (rows << (32 + COLUMN_BITS)) | (order << COLUMN_BITS)
