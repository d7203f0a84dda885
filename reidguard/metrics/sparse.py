"""Sparse non-negative vectors, and the Jaccard distances between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["PAD", "SparseRows"]

PAD = 2**31 - 1  # column of an empty place in a table
ROOM = 1 << 22  # elements of a temporary table


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Rows of a matrix of which only the entries above zero are stored, on the CPU.

    Args:
        starts: (N + 1,) int64; row i has the entries from ``starts[i]`` to ``starts[i + 1]``.
        cols: Columns, ascending in each row, int32.
        values: Entries, float32.
    """

    starts: Tensor
    cols: Tensor
    values: Tensor

    @classmethod
    def join(cls, parts: list[tuple[Tensor, Tensor, Tensor]]) -> SparseRows:
        """Return the rows of parts in order: (entries of each row, columns, values)."""
        counts, cols, values = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
        starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(starts, cols.to(torch.int32), values.to(torch.float32))

    def table(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return columns and values (P, W) of some rows, side by side.

        Behind a row's entries columns are ``PAD`` and values 0.
        """
        first = self.starts[rows]
        counts = self.starts[rows + 1] - first
        nth = torch.arange(int(counts.max()))
        filled = nth < counts[:, None]
        place = torch.where(filled, first[:, None] + nth, 0)
        cols = torch.where(filled, self.cols[place].long(), PAD)
        return cols, torch.where(filled, self.values[place], 0.0)

    def jaccard(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return the Jaccard distances (P,) float64 of pairs of rows.

        With s the sum of the smaller of both entries in each column, and rows that sum to 1, it is
        ``1 - s / (2 - s)``.
        """
        result = torch.empty(len(rows), dtype=torch.float64)
        widest = max(int((self.starts[1:] - self.starts[:-1]).max()), 1)
        step = max(ROOM // 4 // widest, 1)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            cols, values = self.table(rows[part])
            other_cols, other_values = self.table(others[part])
            if cols.shape[1] == 0 or other_cols.shape[1] == 0:
                result[part] = 1.0
                continue
            place = torch.searchsorted(other_cols, cols).clamp(max=other_cols.shape[1] - 1)
            shared = (other_cols.gather(1, place) == cols) & (cols != PAD)
            least = torch.minimum(values, other_values.gather(1, place)).double()
            # cumsum adds one by one, as the sum of a tile does
            result[part] = _distance(torch.where(shared, least, 0.0).cumsum(1)[:, -1])
        return result

    def jaccard_tile(self, rows: slice, others: slice) -> Tensor:
        """Return the Jaccard distances (n, m) float64 of two ranges of rows.

        By an inverted index: of each column, the rows among the others that have an entry there.
        """
        shape = (rows.stop - rows.start, others.stop - others.start)
        row, col, value = self._entries(rows)
        by_row, by_col, by_value = self._entries(others)
        by_col, order = by_col.sort(stable=True)
        by_row, by_value = by_row[order], by_value[order]
        left = torch.searchsorted(by_col, col)
        counts = torch.searchsorted(by_col, col, right=True) - left
        sums = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
        # Few entries at a time: a column may be shared by all rows.
        ends = counts.cumsum(0)
        pieces = torch.bincount(ends // ROOM).tolist() if len(ends) else []
        start = 0
        for piece in pieces:
            part = slice(start, start + piece)
            start += piece
            entry = torch.arange(piece).repeat_interleave(counts[part])
            nth = torch.arange(len(entry)) - (counts[part].cumsum(0) - counts[part])[entry]
            other = left[part][entry] + nth
            least = torch.minimum(value[part][entry], by_value[other]).double()
            sums.index_add_(0, row[part][entry] * shape[1] + by_row[other], least)
        return _distance(sums).view(shape)

    def _entries(self, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return row - first row, column and value of the entries of a range of rows."""
        starts = self.starts[rows.start : rows.stop + 1]
        row = torch.arange(rows.stop - rows.start).repeat_interleave(starts.diff())
        place = slice(int(starts[0]), int(starts[-1]))
        return row, self.cols[place], self.values[place]


def _distance(sums: Tensor) -> Tensor:
    return (1 - sums / (2 - sums)).clamp_(min=0)  # rounding may bring a sum above 1
