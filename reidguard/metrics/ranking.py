"""mAP, CMC and mINP of a gallery ranked for every query, at the price of a matrix product.

The figures need only the rank of each query's few matches: how many other images are at least as
near. So nothing is sorted. A float32 matrix product gives every distance up to a known error bound,
a histogram per query counts what is certainly nearer than each match, and the few images within
the error bound of a match are compared again by their exact distances (:mod:`.exact`). That makes
the figures independent of the chunk size, the device and the order of the gallery.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.metrics.distances import (
    blocks,
    check_features,
    check_norms,
    full_precision,
    pair_distances,
)

__all__ = ["RankingResult", "rank", "top_k"]

SAME_CAMERA = ("exclude", "keep")
JUNK, DISTRACTOR = -1, 0

_UNIT = 2.0**-24  # rounding error of one float32 operation, relative
_DEPTH = 128  # columns per matrix product: bounds how far rounding errors can pile up
_FAR = 1e38  # stands for "never counted"; finite, so that no inf - inf appears
_TABLE = 1 << 21  # entries of a table of one chunk of queries

Labels = Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Retrieval figures, each in [0, 1], as means over the queries that have a match.

    Attributes:
        mAP: Mean average precision by steps: per query the mean of ``i / rank_i`` over its matches.
        cmc: (max_rank,) float64; entry k-1 is the share of queries with a match in the first k.
        mINP: Mean of ``matches / rank of the last match``.
        ap: (Q,) float64 per query; NaN where the query was skipped.
        inp: (Q,) float64 per query; NaN where the query was skipped.
        first_match: (Q,) int64 rank of the first match, from 1; 0 where the query was skipped.
        skipped: Indices of the queries that no gallery image answers. They count in no mean.
    """

    mAP: float  # noqa: N815 (the field's name for it)
    cmc: Tensor
    mINP: float  # noqa: N815
    ap: Tensor
    inp: Tensor
    first_match: Tensor
    skipped: Tensor

    def rank_k(self, k: int) -> float:
        """Return the share of queries with a match among the first ``k`` images."""
        if not 1 <= k <= len(self.cmc):
            raise InputError(f"rank-{k} was not kept: choose 1 <= k <= max_rank = {len(self.cmc)}")
        return float(self.cmc[k - 1])


def rank(
    query: Tensor,
    gallery: Tensor,
    *,
    query_pids: Labels,
    query_camids: Labels,
    gallery_pids: Labels,
    gallery_camids: Labels,
    metric: str = "euclidean",
    same_camera: str = "exclude",
    max_rank: int = 50,
    chunk_size: int = 1024,
) -> RankingResult:
    """Rank the gallery for every query and return the figures of the ranking.

    Gallery images of identity -1 (junk) are left out; those of identity 0 (distractors) stay and
    match nothing. Among equal distances every other image stands before a match, so a model that
    maps all to one point scores what it deserves. A query without any match is skipped.

    Beside the features themselves it needs about
    ``chunk_size * (28 * chunk_size + 24 * D + 50_000)``
    bytes and 16 per gallery image, however large the gallery is.

    Args:
        query: (Q, D) features, any float dtype, any device.
        gallery: (G, D) features on the same device.
        query_pids: Q identities, from 1 up.
        query_camids: Q cameras.
        gallery_pids: G identities.
        gallery_camids: G cameras.
        metric: ``"euclidean"`` or ``"cosine"``, as :func:`distances` defines them.
        same_camera: ``"exclude"`` leaves out, per query, the images of the same identity by the
            same camera; ``"keep"`` counts them as matches.
        max_rank: Length of the CMC curve.
        chunk_size: Queries and gallery images compared at a time. Changes no figure.

    Raises:
        InputError: For features that are NaN or do not fit together, labels that do not fit the
            features, or when no query has any match.

    Example:
        >>> result = rank(
        ...     torch.tensor([[0.0]]), torch.tensor([[1.0], [2.0], [3.0]]),
        ...     query_pids=[7], query_camids=[1],
        ...     gallery_pids=[7, 8, 7], gallery_camids=[2, 2, 3],
        ... )
        >>> round(result.mAP, 3), result.rank_k(1), round(result.mINP, 3)
        (0.833, 1.0, 0.667)
    """
    check_features(query, gallery, metric)
    if max_rank < 1 or chunk_size < 1:
        raise InputError(
            f"max_rank and chunk_size must be at least 1, not {max_rank} and {chunk_size}"
        )
    people = _People(
        _labels(query_pids, len(query), "query_pids"),
        _labels(query_camids, len(query), "query_camids"),
        _labels(gallery_pids, len(gallery), "gallery_pids"),
        _labels(gallery_camids, len(gallery), "gallery_camids"),
        same_camera,
    )
    most = int(people.matches_per_query.max())
    if most == 0:
        raise InputError(
            "no query has a match in the gallery, so nothing can be ranked: "
            + people.why_nothing_matches()
        )
    ap = torch.full((len(query),), math.nan, dtype=torch.float64)
    inp = ap.clone()
    first = torch.zeros(len(query), dtype=torch.int64)
    with torch.no_grad(), full_precision(query.device):
        norms = check_norms(query, gallery, metric)
        counter = _Counter(query, gallery, metric, norms, people, chunk_size)
        step = max(1, min(chunk_size, _TABLE // most))
        for start in range(0, len(query), step):
            stop = min(start + step, len(query))
            ahead, counts = counter.others_ahead(start, stop)
            order = torch.arange(1, ahead.shape[1] + 1)  # the i-th nearest match has i - 1 before
            valid = order <= counts[:, None]
            ranks = torch.where(valid, ahead + order, 1)
            precision = torch.where(valid, order / ranks.double(), 0.0)
            some = counts > 0
            # cumsum adds one by one, so padding with zeros moves no bit
            ap[start:stop][some] = (precision.cumsum(1)[:, -1] / counts)[some]
            last = ranks.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
            inp[start:stop][some] = (counts / last.double())[some]
            first[start:stop][some] = ranks[some, 0]
    answered = first > 0
    hits = torch.bincount(first[answered].clamp(max=max_rank + 1), minlength=max_rank + 2)
    return RankingResult(
        mAP=float(ap[answered].mean()),
        cmc=hits[1 : max_rank + 1].cumsum(0) / answered.sum().double(),
        mINP=float(inp[answered].mean()),
        ap=ap,
        inp=inp,
        first_match=first,
        skipped=(~answered).nonzero().flatten(),
    )


def top_k(
    query: Tensor,
    gallery: Tensor,
    k: int,
    *,
    query_pids: Labels,
    query_camids: Labels,
    gallery_pids: Labels,
    gallery_camids: Labels,
    metric: str = "euclidean",
    same_camera: str = "exclude",
) -> tuple[Tensor, Tensor]:
    """Return the first ``k`` gallery images of a few queries, in the order that :func:`rank` means.

    It computes every distance exactly, which is right for a page of pictures and slow for
    thousands of queries. Arguments are those of :func:`rank`.

    Returns:
        Distances (Q, k) float32 and gallery indices (Q, k) int64 on the features' device; where
        fewer than ``k`` images are left, infinity and -1.

    Example:
        >>> _, indices = top_k(
        ...     torch.tensor([[0.0]]), torch.tensor([[3.0], [1.0], [0.5]]), 2,
        ...     query_pids=[7], query_camids=[1],
        ...     gallery_pids=[7, 8, 7], gallery_camids=[2, 2, 1],
        ... )
        >>> indices  # the image by the query's own camera is left out
        tensor([[1, 0]])
    """
    check_features(query, gallery, metric)
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    people = _People(
        _labels(query_pids, len(query), "query_pids"),
        _labels(query_camids, len(query), "query_camids"),
        _labels(gallery_pids, len(gallery), "gallery_pids"),
        _labels(gallery_camids, len(gallery), "gallery_camids"),
        same_camera,
    )
    device = query.device
    near = torch.full((len(query), k), math.inf, device=device)
    indices = torch.full((len(query), k), -1, device=device)
    everyone = torch.arange(len(gallery), device=device)
    with torch.no_grad():
        norms = check_norms(query, gallery, metric)
        for i in range(len(query)):
            row = pair_distances(
                query, gallery, torch.full_like(everyone, i), everyone, metric, norms
            )
            removed, match = (mask.to(device) for mask in people.masks(i))
            others_first = match.to(torch.int8).argsort(stable=True)
            order = others_first[row[others_first].argsort(stable=True)]
            order = order[~removed[order]][:k]
            near[i, : len(order)] = row[order]
            indices[i, : len(order)] = order
    return near, indices


def _labels(values: Labels, count: int, name: str) -> Tensor:
    labels = torch.as_tensor(values).cpu()
    if labels.dim() != 1 or len(labels) != count:
        raise InputError(
            f"{name} must hold one number per feature, {count} in all, "
            f"not shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"{name} must be integers, not {labels.dtype}")
    return labels.long()


class _People:
    """Who matches whom. Lives on the CPU: it only touches the few pairs of one identity."""

    def __init__(
        self, pids: Tensor, camids: Tensor, g_pids: Tensor, g_camids: Tensor, same_camera: str
    ) -> None:
        if same_camera not in SAME_CAMERA:
            raise InputError(f"same_camera must be 'exclude' or 'keep', not {same_camera!r}")
        if int(pids.min()) <= DISTRACTOR:
            raise InputError(
                "query identities must be 1 or more: in a gallery 0 marks distractors and -1 junk; "
                "number the identities from 1"
            )
        if int(g_pids.min()) < JUNK:
            raise InputError(f"gallery identities must be -1 or more, not {int(g_pids.min())}")
        self.pids, self.camids, self.g_pids, self.g_camids = pids, camids, g_pids, g_camids
        self.exclude = same_camera == "exclude"
        self.junk = g_pids == JUNK
        sorted_pids, self._by_pid = g_pids.sort(stable=True)
        self._first = torch.searchsorted(sorted_pids, pids)
        self._count = torch.searchsorted(sorted_pids, pids, right=True) - self._first
        self.matches_per_query = torch.zeros_like(pids)
        for start in range(0, len(pids), 1024):
            rows, _, match = self.pairs(start, min(start + 1024, len(pids)))
            self.matches_per_query.index_add_(0, rows + start, match.long())

    def pairs(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return all pairs of one identity: query row - start, gallery index, whether it counts."""
        count = self._count[start:stop]
        rows = torch.arange(stop - start).repeat_interleave(count)
        nth = torch.arange(len(rows)) - (count.cumsum(0) - count)[rows]
        cols = self._by_pid[self._first[start:stop][rows] + nth]
        match = torch.ones(len(rows), dtype=torch.bool)
        if self.exclude:
            match = self.camids[start:stop][rows] != self.g_camids[cols]
        return rows, cols, match

    def masks(self, query: int) -> tuple[Tensor, Tensor]:
        """Return which gallery images are removed for one query, and which match it."""
        same = self.g_pids == self.pids[query]
        own = same & (self.g_camids == self.camids[query]) & self.exclude
        return own | self.junk, same & ~own

    def why_nothing_matches(self) -> str:
        wanted = torch.unique(self.pids)
        there = torch.unique(self.g_pids[self.g_pids > DISTRACTOR])
        shared = torch.isin(wanted, there)
        if not bool(shared.any()):
            return (
                f"no identity is in both (queries: {wanted[:5].tolist()}…, gallery: "
                f"{there[:5].tolist()}…); check that both come from one dataset"
            )
        return (
            f"the {int(shared.sum())} shared identities are only seen again by the query's own "
            "camera; check the camera ids, or count such images with same_camera='keep'"
        )


class _Counter:
    """Counts, for each match of a query, the other images that stand before it.

    The float32 *key* of a pair grows with its distance: ``|g|² - 2 q·g`` of centred features for
    the Euclidean distance (``|q|²`` is the same for the whole row), ``-2 q·g`` of unit vectors for
    the cosine one.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        metric: str,
        norms: tuple[Tensor, Tensor],
        people: _People,
        chunk_size: int,
    ) -> None:
        self.query, self.gallery, self.metric = query, gallery, metric
        self.norms, self.people, self.chunk = norms, people, chunk_size
        self.device = query.device
        self.scale = 1.0
        self.centre = None
        if metric == "euclidean":
            # Distances do not change when all features move by one vector; errors shrink.
            total = torch.zeros(gallery.shape[1], dtype=torch.float64, device=self.device)
            for start, stop in blocks(len(gallery), gallery):  # mean() would copy all to float64
                total += gallery[start:stop].double().sum(0)
            self.centre = total / len(gallery)
            largest = float(torch.stack([n.max() for n in norms]).max())
            if largest > 0:  # a power of two is exact, and squares stay in range
                self.scale = 2.0 ** -math.ceil(math.log2(largest))
        self.bias = torch.empty(len(gallery), device=self.device)
        largest_square = torch.zeros((), dtype=torch.float64, device=self.device)
        for start, stop in self._chunks():
            squares = _squares(self._bulk(gallery, start, stop, 1))
            self.bias[start:stop] = squares if metric == "euclidean" else 0
            largest_square = torch.maximum(largest_square, squares.max())
        self.bias[people.junk.to(self.device)] = _FAR
        self.gallery_radius = largest_square.sqrt()

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self.gallery), self.chunk):
            yield start, min(start + self.chunk, len(self.gallery))

    def _bulk(self, features: Tensor, start: int, stop: int, side: int) -> Tensor:
        """Return rows ready for the float32 product: centred and scaled, or of unit length."""
        rows = features[start:stop]
        if rows.dtype != torch.float64:
            rows = rows.float()
        if self.centre is not None:
            rows = rows - self.centre.to(rows.dtype)
            return (rows if self.scale == 1 else rows.mul_(self.scale)).float()
        length = self.norms[side][start:stop]
        return (rows / torch.where(length > 0, length, 1.0).to(rows.dtype)[:, None]).float()

    def _keys(self, exact: Tensor, squares: Tensor) -> Tensor:
        """Return the float64 keys that belong to exact distances of rows with ``|q|²``."""
        if self.metric == "euclidean":
            return (exact.double() * self.scale).square() - squares[:, None]
        return 2 * exact.double() - 2

    def _error_bound(self, squares: Tensor) -> Tensor:
        """Bound how far a float32 key is from the key of the exact distance, per row.

        With S = |q| + |g| and n columns per product: a product errs by at most n·u·|q||g| in any
        order of summation, each of the later sums, the centring and the rounding of thresholds
        by a few u·S².
        """
        radius = squares.sqrt()[:, None]
        sums = math.ceil(self.query.shape[1] / _DEPTH)
        depth = min(self.query.shape[1], _DEPTH)
        total = (radius + self.gallery_radius).square()
        return 1.05 * _UNIT * (2 * depth * radius * self.gallery_radius + (sums + 20) * total) + (
            1e-33  # products that underflow
        )

    def others_ahead(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return for queries start..stop the images before each match, nearest match first.

        Returns:
            (q, M) counts of non-matches at most as far as the match, on the CPU, padded at the
            end of each row; and (q,) numbers of matches.
        """
        size = stop - start
        counts = self.people.matches_per_query[start:stop]
        width = int(counts.max())
        if width == 0:
            return torch.zeros(size, 1, dtype=torch.int64), counts
        rows, cols, match = self.people.pairs(start, stop)
        queries = self._bulk(self.query, start, stop, 0)
        squares = _squares(queries)
        exact = self._match_distances(start, rows[match], cols[match], counts, width)
        table = _Thresholds(
            exact, self._keys(exact, squares), counts.to(self.device), self._error_bound(squares)
        )
        # Matches and removed images must not be counted as others: set them far away, tile by tile.
        by_chunk = torch.argsort(cols // self.chunk, stable=True)
        per_chunk = torch.bincount(
            cols // self.chunk, minlength=-(-len(self.gallery) // self.chunk)
        )
        special = torch.stack([rows, cols % self.chunk])[:, by_chunk].to(self.device)
        own = torch.split(special, per_chunk.tolist(), dim=1)
        for number, (first, last) in enumerate(self._chunks()):
            tile = self._product(queries, first, last)
            tile[own[number][0], own[number][1]] = _FAR
            near_row, near_col = table.count(tile)
            table.count_exact(
                near_row,
                pair_distances(
                    self.query,
                    self.gallery,
                    near_row + start,
                    near_col + first,
                    self.metric,
                    self.norms,
                ),
            )
        return table.ahead().cpu(), counts

    def _match_distances(
        self, start: int, rows: Tensor, cols: Tensor, counts: Tensor, width: int
    ) -> Tensor:
        """Return the exact distances of all matches, (q, M), ascending, padded with infinity."""
        nth = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        rows, cols, nth = rows.to(self.device), cols.to(self.device), nth.to(self.device)
        exact = pair_distances(
            self.query, self.gallery, rows + start, cols, self.metric, self.norms
        )
        table = torch.full((len(counts), width), math.inf, device=self.device)
        table[rows, nth] = exact
        return table.sort(1).values

    def _product(self, queries: Tensor, first: int, last: int) -> Tensor:
        """Return the (q, g) keys of a tile; summed in steps, which bounds the rounding error."""
        rows = self._bulk(self.gallery, first, last, 1)
        tile = self.bias[first:last].repeat(len(queries), 1)
        for k in range(0, rows.shape[1], _DEPTH):
            part = slice(k, k + _DEPTH)
            torch.addmm(tile, queries[:, part], rows[:, part].T, alpha=-2, out=tile)
        return tile


class _Thresholds:
    """The matches of a chunk of queries on the key axis, and what was counted against them.

    A key outside ``[key of match - error, key of match + error]`` of every match is certainly
    before or behind each of them. To find out fast, each row's axis is cut into equal cells: a
    cell that no such band touches only needs counting.
    """

    def __init__(self, exact: Tensor, keys: Tensor, counts: Tensor, error: Tensor) -> None:
        size, width = exact.shape
        device = exact.device
        self.exact = exact
        self.steps = torch.zeros(size, width + 1, dtype=torch.int64, device=device)
        some = counts > 0
        present = torch.arange(width, device=device) < counts[:, None]
        keys_of = torch.where(present, keys, math.inf)
        low, high = (keys_of - error).float(), (keys_of + error).float()
        # Bands that overlap become one: each ends where the next begins, and stays "in a band".
        high[:, :-1] = torch.minimum(high[:, :-1], low[:, 1:])
        self.edges = torch.stack([low, high], 2).flatten(1)
        self.cells = min(4096, max(1024, 1 << (16 * width - 1).bit_length()))
        end = high.gather(1, (counts - 1).clamp(min=0)[:, None])
        span = (end - low[:, :1]) / (self.cells - 2)
        self.origin = torch.where(some[:, None], low[:, :1] - span, 0.0)
        self.per_key = torch.where(some[:, None], 1 / span, 0.0)
        self.counted = torch.zeros(size, self.cells + 1, dtype=torch.int32, device=device)
        self.low_cell = self._cell(torch.where(present, low, _FAR))
        high_cell = self._cell(torch.where(present, high, _FAR))
        change = torch.zeros(size, self.cells + 2, dtype=torch.int32, device=device)
        change.scatter_add_(1, self.low_cell, present.int())
        change.scatter_add_(1, high_cell + 1, -present.int())
        self.in_band = change.cumsum(1, dtype=torch.int32)[:, : self.cells + 1] > 0

    def _cell(self, keys: Tensor) -> Tensor:
        # Each operation keeps the order of keys, so a key below an edge is in no later cell.
        return (keys - self.origin).mul_(self.per_key).clamp_(0, self.cells).to(torch.int64)

    def count(self, tile: Tensor) -> tuple[Tensor, Tensor]:
        """Count a (q, g) tile of keys; return the pairs (row, column) that need exact distances."""
        cell = self._cell(tile)
        self.counted.scatter_add_(1, cell, self.counted.new_ones(()).expand_as(cell))
        row, col = self.in_band.gather(1, cell).nonzero(as_tuple=True)
        passed = _lower_bound(self.edges, row, tile[row, col])
        unsure = passed % 2 == 1
        self._step(row, torch.where(unsure, self.exact.shape[1], passed // 2))
        return row[unsure], col[unsure]

    def count_exact(self, row: Tensor, exact: Tensor) -> None:
        """Count pairs by their exact distance: equal ones stand before the match."""
        self._step(row, _lower_bound(self.exact, row, exact))

    def _step(self, row: Tensor, passed: Tensor) -> None:
        # An image that is behind the first `passed` matches is ahead of all others.
        flat = row * self.steps.shape[1] + passed
        self.steps.view(-1).scatter_add_(0, flat, torch.ones_like(flat))

    def ahead(self) -> Tensor:
        """Return the (q, M) numbers of images counted before each match."""
        sure = self.counted.masked_fill(self.in_band, 0).cumsum(1, dtype=torch.int32)
        return sure.gather(1, self.low_cell) + self.steps[:, :-1].cumsum(1)


def _squares(rows: Tensor) -> Tensor:
    """Return the (N,) squared norms in float64."""
    out = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for start, stop in blocks(len(rows), rows):
        out[start:stop] = rows[start:stop].double().square_().sum(1)
    return out


def _lower_bound(table: Tensor, row: Tensor, value: Tensor) -> Tensor:
    """Return for each (row, value) how many entries of the ascending ``table[row]`` are below."""
    width = table.shape[1]
    flat, base = table.reshape(-1), row * width
    position = torch.zeros_like(row)
    step = 1 << (width.bit_length() - 1)
    while step:
        reach = position + step
        below = flat[base + reach.clamp(max=width) - 1] < value
        position = torch.where(below & (reach <= width), reach, position)
        step //= 2
    return position
