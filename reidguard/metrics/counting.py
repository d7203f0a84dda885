"""Count the non-matches ahead of each match, exactly, at the price of a matrix product.

The gallery is never sorted as a whole. A float32 matrix product gives every distance up to a known
error bound. Its tiles tell how many other images are certainly nearer than each match
(:mod:`.tiles`), and the few images within the error bound of a match are compared again by their
exact distances (:mod:`.distances`). That makes the counts independent of the chunk size, the device
and the order of the gallery.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.metrics.distances import blocks, pair_distances
from reidguard.metrics.near_keys import ROWS, NearKeys
from reidguard.metrics.tiles import Bands, Counts

__all__ = ["SAME_CAMERA", "Matches", "NonMatchCounter"]

SAME_CAMERA = ("exclude", "keep")
JUNK, DISTRACTOR = -1, 0  # identities in a gallery that match no query

CHUNK = ROWS  # queries compared at a time; bounds the memory
TILE = 1024  # gallery images compared at a time
SAMPLE = 1024  # images whose mean is near that of the gallery
UNIT = 2.0**-24  # rounding error of one float32 operation, relative
DEPTH = 64  # columns per matrix product: bounds how far rounding errors can pile up
FAR = 1e38  # key of an image that is not counted; finite, so that no inf - inf appears


Labels = Tensor | Sequence[int]


class Matches:
    """Which gallery images match each query, on the CPU: only pairs of one identity are listed."""

    def __init__(
        self,
        num_queries: int,
        num_gallery: int,
        query_pids: Labels,
        query_camids: Labels,
        gallery_pids: Labels,
        gallery_camids: Labels,
        same_camera: str,
    ) -> None:
        if same_camera not in SAME_CAMERA:
            raise InputError(f"same_camera must be 'exclude' or 'keep', not {same_camera!r}")
        pids = _labels(query_pids, num_queries, "query_pids")
        g_pids = _labels(gallery_pids, num_gallery, "gallery_pids")
        self.camids = _labels(query_camids, num_queries, "query_camids", several=True)
        self.g_camids = _labels(gallery_camids, num_gallery, "gallery_camids", several=True)
        if self.camids.shape[1:] != self.g_camids.shape[1:]:
            raise InputError(
                f"query_camids have {self.camids.shape[1]} labels per image and gallery_camids "
                f"{self.g_camids.shape[1]}; give both the same"
            )
        if int(pids.min()) <= DISTRACTOR:
            raise InputError(
                "query identities must be 1 or more: in a gallery 0 marks distractors and -1 junk; "
                "number the identities from 1"
            )
        if int(g_pids.min()) < JUNK:
            raise InputError(f"gallery identities must be -1 or more, not {int(g_pids.min())}")
        self.pids, self.g_pids = pids, g_pids
        self.exclude = same_camera == "exclude"
        self.junk = g_pids == JUNK
        sorted_pids, self._by_pid = g_pids.sort(stable=True)
        self._first = torch.searchsorted(sorted_pids, pids)
        self._count = torch.searchsorted(sorted_pids, pids, right=True) - self._first
        self.per_query = torch.zeros_like(pids)
        for start in range(0, len(pids), 1024):
            rows, _, match = self.pairs(start, min(start + 1024, len(pids)))
            self.per_query.index_add_(0, rows + start, match.long())

    def pairs(
        self, start: int, stop: int, first: int = 0, last: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the pairs of one identity of the queries start..stop and gallery first..last.

        Returns:
            Three of equal length: query - start, gallery index - first, whether they match.
        """
        count = self._count[start:stop]
        rows = torch.arange(stop - start).repeat_interleave(count)
        nth = torch.arange(len(rows)) - (count.cumsum(0) - count)[rows]
        cols = self._by_pid[self._first[start:stop][rows] + nth]
        match = torch.ones(len(rows), dtype=torch.bool)
        if self.exclude:
            match = (self.camids[start:stop][rows] != self.g_camids[cols]).all(1)
        if last is not None:
            inside = (cols >= first) & (cols < last)
            rows, cols, match = rows[inside], cols[inside] - first, match[inside]
        return rows, cols, match

    def without_junk(self) -> Matches:
        """Return the matches in the gallery that is left when its junk is removed."""
        kept = ~self.junk
        return Matches(
            len(self.pids),
            int(kept.sum()),
            self.pids,
            self.camids,
            self.g_pids[kept],
            self.g_camids[kept],
            "exclude" if self.exclude else "keep",
        )

    def of_queries(self, order: Tensor) -> Matches:
        """Return the matches of the queries in another order."""
        result = copy.copy(self)
        for name in ("pids", "camids", "per_query", "_first", "_count"):
            setattr(result, name, getattr(self, name)[order])
        return result

    def why_none(self) -> str:
        """Return why no query has a match."""
        of_queries = torch.unique(self.pids)
        of_gallery = torch.unique(self.g_pids[self.g_pids > DISTRACTOR])
        shared = torch.isin(of_queries, of_gallery)
        if not bool(shared.any()):
            return (
                f"no identity is in both (queries: {of_queries[:5].tolist()}…, gallery: "
                f"{of_gallery[:5].tolist()}…); check that both come from one dataset"
            )
        return (
            f"the {int(shared.sum())} shared identities are only seen again by the query's own "
            "camera; check the camera ids, or count such images with same_camera='keep'"
        )


def _labels(values: Labels, count: int, name: str, *, several: bool = False) -> Tensor:
    """Return labels as (N,) int64; as (N, k), if an image may have several."""
    labels = torch.as_tensor(values).cpu()
    if several and labels.dim() == 1:
        labels = labels[:, None]
    if labels.dim() != 1 + several or len(labels) != count or labels[:1].numel() == 0 < count:
        raise InputError(
            f"{name} must hold one number per feature, {count} in all, "
            f"not shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"{name} must be integers, not {labels.dtype}")
    return labels.long()


def near_mean(features: Tensor) -> Tensor:
    """Return (D,) float64, the mean of ``SAMPLE`` of the rows."""
    rows = torch.arange(0, len(features), -(-len(features) // SAMPLE), device=features.device)
    return features[rows].double().mean(0)


class PairKeys:
    """Float32 keys of all pairs of two sets of features, with a bound of their errors.

    Distances are compared on a key axis that a matrix product reaches in float32 with a small
    error. The key of a pair grows with its distance: ``|g|² - 2 q·g`` of centred features for the
    Euclidean distance (``|q|²`` is the same for the whole row), ``-2 q·g`` of unit vectors for the
    cosine one.

    Args:
        query: (Q, D) features.
        gallery: (g, D) features.
        metric: "euclidean" or "cosine".
        norms: The row norms of both, float64.
    """

    def __init__(
        self, query: Tensor, gallery: Tensor, metric: str, norms: tuple[Tensor, Tensor]
    ) -> None:
        self.query, self.gallery, self.metric, self.norms = query, gallery, metric, norms
        self.device = query.device
        self.scale = 1.0
        self.centre = None
        if metric == "euclidean":
            # Distances do not change when all features move by one vector; errors shrink.
            self.centre = near_mean(gallery)
            largest = float(torch.stack([n.max() for n in norms]).max())
            if largest > 0:  # a power of two is exact, and squares stay in range
                self.scale = 2.0 ** -math.ceil(math.log2(largest))
        self.bias = torch.empty(len(gallery), dtype=torch.float32, device=self.device)
        largest_square = torch.zeros((), dtype=torch.float64, device=self.device)
        for start, stop in self.tiles():
            squares = squared_norms(self.prepare(gallery, start, stop, 1))
            self.bias[start:stop] = squares if metric == "euclidean" else 0
            largest_square = torch.maximum(largest_square, squares.max())
        self.gallery_radius = largest_square.sqrt()

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Yield the first column of each tile, and one past its last."""
        for start in range(0, len(self.gallery), TILE):
            yield start, min(start + TILE, len(self.gallery))

    def prepare(self, features: Tensor, start: int, stop: int, side: int) -> Tensor:
        """Return rows for the float32 product: centred and scaled, or of unit length.

        Args:
            features: The query or the gallery.
            start: First row.
            stop: One past the last row.
            side: 0 for the query, 1 for the gallery.
        """
        rows = features[start:stop]
        if rows.dtype != torch.float64:
            rows = rows.float()
        if self.centre is not None:
            rows = rows - self.centre.to(rows.dtype)
            return (rows if self.scale == 1 else rows.mul_(self.scale)).float()
        length = self.norms[side][start:stop]
        return (rows / torch.where(length > 0, length, 1.0).to(rows.dtype)[:, None]).float()

    def keys(self, exact: Tensor, squares: Tensor) -> Tensor:
        """Return the float64 keys that belong to exact distances of rows with ``|q|²``."""
        if self.metric == "euclidean":
            return (exact.double() * self.scale).square() - squares[:, None]
        return 2 * exact.double() - 2

    def error_bound(self, squares: Tensor) -> Tensor:
        """Bound how far a float32 key is from the key of the exact distance, per row.

        With u for one rounding, S = |q| + |g| and n columns per product: the products err by at
        most 2nu·|q||g| in any order of summation, and each sum by u·(|g|² + 2|q||g|). The rounding
        of centred features adds 2u·S², that of |g|² u·|g|², that of the exact distance 2u·S², and
        that of a threshold u·S².
        """
        radius = squares.sqrt()[:, None]
        sums = math.ceil(self.query.shape[1] / DEPTH)
        depth = min(self.query.shape[1], DEPTH)
        square, product = self.gallery_radius.square(), radius * self.gallery_radius
        total = (radius + self.gallery_radius).square()
        error = 2 * (depth + sums) * product + (sums + 1) * square + 5 * total
        return 1.05 * UNIT * error + 1e-33  # products that underflow

    def product(self, queries: Tensor, first: int, last: int, out: Tensor | None = None) -> Tensor:
        """Return the (q, g) keys of a tile; summed in steps, which bounds the rounding error.

        Args:
            queries: (q, D) prepared rows.
            first: First column.
            last: One past the last column.
            out: Memory for the keys, q·g float32 or more; None is new memory.
        """
        rows = self.prepare(self.gallery, first, last, 1)
        size = len(queries) * len(rows)
        out = torch.empty(size, device=self.device, dtype=torch.float32) if out is None else out
        tile = out[:size].view(len(queries), len(rows))
        tile.copy_(self.bias[first:last].expand_as(tile))
        for k in range(0, rows.shape[1], DEPTH):
            part = slice(k, k + DEPTH)
            torch.addmm(tile, queries[:, part], rows[:, part].T, alpha=-2, out=tile)
        return tile

    def exact(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the exact distances (P,) float32 of pairs."""
        rows, cols = rows.to(self.device), cols.to(self.device)
        return pair_distances(self.query, self.gallery, rows, cols, self.metric, self.norms)


class NonMatchCounter(PairKeys):
    """Counts, in one shard of the gallery, the non-matches at most as far away as each match.

    Args:
        query: (Q, D) features.
        gallery: (g, D) features of the shard.
        first: Place of the shard's first row in the gallery.
        metric: "euclidean" or "cosine".
        norms: The row norms of both, float64.
        matches: Which images match, and which are left out.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        first: int,
        metric: str,
        norms: tuple[Tensor, Tensor],
        matches: Matches,
    ) -> None:
        super().__init__(query, gallery, metric, norms)
        self.first, self.matches = first, matches
        junk = matches.junk[first : first + len(gallery)]
        self.bias[junk.to(self.device)] = FAR

    def bands(self, start: int, stop: int, exact: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys of the matches of queries start..stop, and how far tiles may err."""
        return self.keys(exact, squares), self.error_bound(squares)

    def tile(self, queries: Tensor, start: int, first: int, last: int, out: Tensor) -> Tensor:
        """Return the (q, g) keys of prepared queries from ``start`` on, and gallery first..last.

        ``out`` is memory that they may be written to.
        """
        return self.product(queries, first, last, out)

    def match_distances(self, start: int, stop: int) -> Tensor:
        """Return the exact distances of the shard's matches, (q, m) padded with infinity."""
        rows, cols, match = self._pairs(start, stop)
        near = self.exact(rows[match] + start, cols[match])
        return self._by_row(rows[match].to(self.device), near, stop - start)

    def ahead(self, start: int, stop: int, exact: Tensor) -> Tensor:
        """Return for queries start..stop the shard's images ahead of each match.

        Args:
            start: First query.
            stop: One past the last query.
            exact: (q, M) distances of the matches in the whole gallery, ascending, padded with
                infinity.

        Returns:
            (q, M) counts of the shard's non-matches at most as far as each match.
        """
        width = exact.shape[1]
        rows, cols, _ = self._pairs(start, stop)
        queries = self.prepare(self.query, start, stop, 0)
        squares = squared_norms(queries)
        # A key outside [key - error, key + error] of every match is certainly before or behind
        # each of them. Bands that overlap become one: each ends where the next begins.
        keys, error = self.bands(start, stop, exact, squares)
        low, high = (keys - error).float(), (keys + error).float()
        high[:, :-1] = torch.minimum(high[:, :-1], low[:, 1:])
        edges = torch.stack([low, high], 2).flatten(1)
        # Images certainly before the band of each match, but not before the one before it.
        certain = torch.zeros(stop - start, width, dtype=torch.int64, device=self.device)
        # Images inside a band, by how many matches they are behind.
        behind = torch.zeros(stop - start, width + 1, dtype=torch.int64, device=self.device)
        one = behind.new_ones(())
        # Matches and removed images must not be counted as others: set them far away, tile by tile.
        order = torch.argsort(cols // TILE, stable=True)
        per_tile = torch.bincount(cols // TILE, minlength=-(-len(self.gallery) // TILE))
        special = torch.stack([rows, cols % TILE])[:, order].to(self.device)
        own = torch.split(special, per_tile.tolist(), dim=1)
        columns = min(TILE, len(self.gallery))
        out = torch.empty((stop - start) * columns, dtype=torch.float32, device=self.device)
        bands = Bands(edges, columns)
        near_keys = NearKeys(edges, columns) if self.device.type == "cpu" else None

        def add(counts: Counts) -> None:
            before, through, rows, cols = counts
            certain.add_(before)
            certain[:, 1:] -= through[:, :-1]
            if len(rows):
                near = self._by_row(rows, self.exact(rows + start, cols), stop - start)
                passed = torch.searchsorted(exact, near)  # equal ones stand before the match
                behind.scatter_add_(1, passed, one.expand_as(passed))

        for (first, last), (own_rows, own_cols) in zip(self.tiles(), own, strict=True):
            tile = self.tile(queries, start, first, last, out)
            tile[own_rows, own_cols] = FAR
            if near_keys is not None and near_keys.full(last):
                add(near_keys.count())
            if near_keys is None or not near_keys.add(tile, first):
                before, through, near_row, near_col = bands.count(tile)
                add((before, through, near_row, near_col + first))
        if near_keys is not None:
            add(near_keys.count())
        return (certain + behind[:, :-1]).cumsum(1)

    def _pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.matches.pairs(start, stop, self.first, self.first + len(self.gallery))

    @staticmethod
    def _by_row(rows: Tensor, values: Tensor, count: int) -> Tensor:
        """Return the values of each row side by side, padded with infinity; ``rows`` ascends."""
        counts = torch.bincount(rows, minlength=count)
        place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        table = values.new_full((count, int(counts.max())), math.inf)
        table[rows, place] = values
        return table


def squared_norms(rows: Tensor) -> Tensor:
    """Return the (N,) squared norms in float64."""
    out = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for start, stop in blocks(len(rows), rows):
        out[start:stop] = rows[start:stop].double().square_().sum(1)
    return out
