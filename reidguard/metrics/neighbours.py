"""The nearest images of each image, and its furthest one, exactly.

A float32 matrix product finds some candidates more than are needed. These are ordered by their
exact distances (:mod:`.distances`), and a bound of the product's error tells whether an image that
is no candidate could belong to them; where it could, the whole row is computed exactly. So the
lists depend on neither the device nor the chunk size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.metrics.counting import CHUNK, FAR, PairKeys, squared_norms

__all__ = ["nearest"]

WIDTH = 4096  # columns of a tile
SPARE = 8  # candidates more than are needed


def nearest(keys: PairKeys, rows: slice, count: int) -> tuple[Tensor, Tensor] | None:
    """Return the nearest images of some images, and the distance to the furthest.

    Args:
        keys: Of all pairs of one set of N features with itself.
        rows: Images whose lists are returned.
        count: Length of a list, from 2 to N.

    Returns:
        (n, count) int64 indices and (n,) float32 distances; None for no rows. A list starts with
        the image itself; equal distances are ordered by index.
    """
    starts = range(rows.start, rows.stop, CHUNK)
    parts = [_block(keys, start, min(start + CHUNK, rows.stop), count) for start in starts]
    if not parts:
        return None
    lists, furthest = zip(*parts, strict=True)
    return torch.cat(lists), torch.cat(furthest)


def _block(keys: PairKeys, start: int, stop: int, count: int) -> tuple[Tensor, Tensor]:
    total, own = len(keys.gallery), torch.arange(start, stop, device=keys.device)
    queries = keys.prepare(keys.query, start, stop, 0)
    squares = squared_norms(queries)
    error = keys.error_bound(squares)[:, 0]
    near = Candidates(min(count - 1 + SPARE, total - 1), largest=False)
    far = Candidates(min(SPARE, total), largest=True)
    for first in range(0, total, WIDTH):
        last = min(first + WIDTH, total)
        tile = keys.product(queries, first, last)
        far.add(tile, first)
        here = own[(own >= first) & (own < last)]
        tile[here - start, here - first] = FAR  # the image itself is added below
        near.add(tile, first)
    places, distances = _ordered(near.places, _exact(keys, own, near.places))
    kept = distances[:, count - 2 : count - 1]
    certain = near.values.amax(1) - error > keys.keys(kept, squares)[:, 0]
    certain |= near.places.shape[1] == total - 1
    furthest = _exact(keys, own, far.places).amax(1)
    safe = far.values.amin(1) + error < keys.keys(furthest[:, None], squares)[:, 0]
    safe |= far.places.shape[1] == total
    lists = torch.cat([own[:, None], places[:, : count - 1]], 1)
    everyone = torch.arange(total, device=keys.device)[None]
    for i in (~(certain & safe)).nonzero().flatten().tolist():
        row = _exact(keys, own[i : i + 1], everyone)
        furthest[i] = row.max()
        order = row[0].argsort(stable=True)
        lists[i, 1:] = order[order != own[i]][: count - 1]
    return lists, furthest


class Candidates:
    """The columns with the smallest or largest keys of each row, of tiles seen one by one."""

    def __init__(self, count: int, *, largest: bool) -> None:
        self.count, self.largest = count, largest
        self.values, self.places = torch.empty(0), torch.empty(0)

    def add(self, tile: Tensor, first: int) -> None:
        """Add a (q, g) tile of keys whose columns start at ``first``."""
        values, places = self._best(tile)
        places = places + first
        if self.values.numel():
            values = torch.cat([self.values, values], 1)
            places = torch.cat([self.places, places], 1)
            values, order = self._best(values)
            places = places.gather(1, order)
        self.values, self.places = values, places

    def _best(self, values: Tensor) -> tuple[Tensor, Tensor]:
        count = min(self.count, values.shape[1])
        best = values.topk(count, largest=self.largest, sorted=False)
        return best.values, best.indices


def _exact(keys: PairKeys, own: Tensor, places: Tensor) -> Tensor:
    """Return the exact distances (q, n) of each image to the images at its places."""
    places = places.expand(len(own), -1)
    rows = own.repeat_interleave(places.shape[1])
    return keys.exact(rows, places.flatten()).view(places.shape)


def _ordered(places: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row by distance, equal ones by place."""
    places, order = places.sort(1)
    distances, by_distance = distances.gather(1, order).sort(dim=1, stable=True)
    return places.gather(1, by_distance), distances
