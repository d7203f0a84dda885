"""mAP, CMC and mINP of a gallery ranked for every query.

The metrics need only the ranks of each query's few matches: how many other images are at least as
near. :mod:`.counting` finds these without sorting the gallery.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.distributed import add_up, gather_equal, gather_rows
from reidguard.errors import InputError
from reidguard.metrics.counting import CHUNK, Labels, Matches, NonMatchCounter
from reidguard.metrics.distances import (
    check_features,
    check_norms,
    full_precision,
)
from reidguard.metrics.reranking import Reranking, reranked_counter
from reidguard.schema import checked

__all__ = ["MAX_RANK", "RankingResult", "rank"]

MAX_RANK = 10**6  # length of a CMC curve
TABLE = 1 << 21  # entries of a table of the matches of one chunk of queries


@dataclass(frozen=True, eq=False)
class RankingResult:
    """Retrieval metrics, each in [0, 1], as means over the queries that have a match.

    Attributes:
        mAP: Mean average precision by steps: per query the mean of ``i / rank_i`` over its matches.
        cmc: (max_rank,) float64; entry k-1 is the fraction of queries with a match in the first k.
        mINP: Mean of ``matches / rank of the last match``.
        ap: (Q,) float64, average precision per query; NaN where the query was skipped.
        inp: (Q,) float64, inverse negative penalty per query; NaN where the query was skipped.
        first_match: (Q,) int64 rank of the first match, from 1; 0 where the query was skipped.
        skipped: Indices of the queries without a match. They count in no mean.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [2.0]])
        >>> result = rank(features[:1], features[1:], query_pids=[7], query_camids=[1],
        ...               gallery_pids=[3, 7], gallery_camids=[2, 2])
        >>> result.mAP, result.rank_k(1), result.first_match.tolist()
        (0.5, 0.0, [2])
    """

    mAP: float  # noqa: N815 (the field's name for it)
    cmc: Tensor
    mINP: float  # noqa: N815
    ap: Tensor
    inp: Tensor
    first_match: Tensor
    skipped: Tensor

    def rank_k(self, k: int) -> float:
        """Return the fraction of queries with a match among the first ``k`` images."""
        k = checked(int, "k", k, low=1)
        if k > len(self.cmc):
            raise InputError(
                f"rank-{k} is not on the CMC curve: choose 1 <= k <= max_rank = {len(self.cmc)}"
            )
        return float(self.cmc[k - 1])


@dataclass(frozen=True, eq=False)
class GalleryPart:
    """What one of several processes that ``torch.distributed`` connects holds of a gallery.

    Attributes:
        shards: (g, D) features, in order.
        start: Place of their first row in the gallery.

    Example:
        >>> GalleryPart([torch.zeros(3, 512)], start=0).start
        0
    """

    shards: Sequence[Tensor]
    start: int


@fixed_context()
def rank(
    query: Tensor,
    gallery: Tensor | Sequence[Tensor] | GalleryPart,
    *,
    query_pids: Labels,
    query_camids: Labels,
    gallery_pids: Labels,
    gallery_camids: Labels,
    metric: str | Reranking = "euclidean",
    same_camera: str = "exclude",
    max_rank: int = 50,
) -> RankingResult:
    """Rank the gallery for every query and return the metrics of the ranking.

    Gallery images of identity -1 (junk) are left out; those of identity 0 (distractors) stay and
    match nothing. Among equal distances every other image is ranked before a match, so a model that
    maps all images to one point gets the lowest possible score. A query without any match is
    skipped. Beside the features it needs about ``100 + D / 40`` MiB, a copy of the queries, and 16
    bytes per gallery image, however large the gallery is.

    Several shards, on one process or on many, give the same bits as one tensor: what is added up is
    the number of images of each shard that are nearer than each match.

    Args:
        query: (Q, D) features, any float dtype, any device.
        gallery: (G, D) features on the same device, or shards of them in order. Rows are read in
            blocks, so memory-mapped ones may be larger than the memory. Of several processes each
            gives its :class:`GalleryPart`, and the queries and labels of the whole dataset.
        query_pids: Q identities, from 1 up.
        query_camids: Q cameras; or (Q, k) labels, such as camera and clothes, of which one that is
            equal leaves a gallery image of the query's identity out.
        gallery_pids: G identities.
        gallery_camids: G cameras, or (G, k) labels.
        metric: ``"euclidean"`` or ``"cosine"``, as :func:`distances` defines them, or a
            :class:`Reranking` of one of them, which takes about 400 MiB, a copy of all features,
            and for each image a list of the nearest ones and a sparse vector.
        same_camera: ``"exclude"`` leaves out, per query, the images of the same identity by the
            same camera; ``"keep"`` counts them as matches.
        max_rank: Length of the CMC curve.

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
    part = gallery if isinstance(gallery, GalleryPart) else None
    tensors = gallery.shards if isinstance(gallery, GalleryPart) else gallery
    shards = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    base = metric.metric if isinstance(metric, Reranking) else metric
    check_features(query, shards, base)
    max_rank = checked(int, "max_rank", max_rank, low=1, high=MAX_RANK)
    starts = list(accumulate((len(shard) for shard in shards), initial=part.start if part else 0))
    total = starts.pop()
    matches = Matches(
        len(query),
        len(gallery_pids) if part else total,
        query_pids,
        query_camids,
        gallery_pids,
        gallery_camids,
        same_camera,
    )
    if total > len(matches.g_pids):
        raise InputError(
            f"this part of the gallery ends at row {total}, but there are labels for "
            f"{len(matches.g_pids)} rows"
        )
    if int(matches.per_query.max()) == 0:
        raise InputError(
            "no query has a match in the gallery, so nothing can be ranked: " + matches.why_none()
        )
    with torch.no_grad(), full_precision(query.device):
        order = torch.arange(len(query))
        if isinstance(metric, Reranking):
            counters = [_reranked(query, shards, part, matches, metric)]
        else:
            query_norms, *shard_norms = check_norms(query, shards, metric)
            # Blocks of queries with about as many matches have the smallest tables.
            order = matches.per_query.argsort(stable=True)
            matches, places = matches.of_queries(order), order.to(query.device)
            query, query_norms = query[places], query_norms[places]
            counters = [
                NonMatchCounter(query, shard, start, metric, (query_norms, norms), matches)
                for shard, start, norms in zip(shards, starts, shard_norms, strict=True)
            ]
        distributed = part is not None and not isinstance(metric, Reranking)
        results = _per_query(counters, matches, distributed=distributed)
    ap, inp, first = (values[order.argsort()] for values in results)
    return summarize(ap, inp, first, max_rank)


def summarize(ap: Tensor, inp: Tensor, first: Tensor, max_rank: int) -> RankingResult:
    """Return the means over the queries that have a match.

    Args:
        ap: (Q,) float64, average precision; NaN where the query has no match.
        inp: (Q,) float64, inverse negative penalty; NaN likewise.
        first: (Q,) int64 rank of the first match, from 1; 0 likewise.
        max_rank: Length of the CMC curve.
    """
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


def _reranked(
    query: Tensor,
    shards: Sequence[Tensor],
    part: GalleryPart | None,
    matches: Matches,
    reranking: Reranking,
) -> NonMatchCounter:
    """Return the counter of re-ranked distances to the whole gallery; collective with a part."""
    gallery = torch.cat(list(shards)) if shards else None
    if part is not None:
        rows = slice(part.start, part.start + (0 if gallery is None else len(gallery)))
        gallery = gather_rows(gallery, rows, len(matches.g_pids))
    assert gallery is not None
    if bool(matches.junk.any()):  # nor is it a neighbour of other images
        gallery = gallery[~matches.junk.to(gallery.device)]
        matches = matches.without_junk()
    return reranked_counter(query, gallery, matches, reranking, distributed=part is not None)


def _per_query(
    counters: Sequence[NonMatchCounter], matches: Matches, *, distributed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return average precision, inverse negative penalty and first rank of each query."""
    queries = len(matches.per_query)
    ap = torch.full((queries,), math.nan, dtype=torch.float64)
    inp = ap.clone()
    first = torch.zeros(queries, dtype=torch.int64)
    step = max(1, min(CHUNK, TABLE // int(matches.per_query.max())))
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        counts = matches.per_query[rows]
        answered = counts > 0
        if not answered.any():
            continue
        ahead = _ahead(counters, rows, int(counts.max()), distributed)[answered]
        counts = counts[answered]
        ranks = ahead + torch.arange(1, ahead.shape[1] + 1)
        ap[rows][answered] = average_precision(ranks, counts)
        inp[rows][answered] = inverse_negative_penalty(ranks, counts)
        first[rows][answered] = ranks[:, 0]
    return ap, inp, first


def _ahead(
    counters: Sequence[NonMatchCounter], rows: slice, width: int, distributed: bool
) -> Tensor:
    """Return the (q, width) images ahead of each match of a block of queries, on the CPU."""
    near = torch.cat([counter.match_distances(rows.start, rows.stop) for counter in counters], 1)
    if distributed:
        near = torch.cat(gather_equal(_width(near, width)), 1)
    exact = _width(near.sort(1).values, width)
    ahead = sum(counter.ahead(rows.start, rows.stop, exact) for counter in counters)
    assert isinstance(ahead, Tensor)
    return (add_up(ahead) if distributed else ahead).cpu()


def _width(table: Tensor, width: int) -> Tensor:
    """Cut a table to its first columns, or pad it with infinity."""
    table = table[:, :width]
    return torch.nn.functional.pad(table, (0, width - table.shape[1]), value=math.inf)


def average_precision(ranks: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of ``i / rank_i`` over the matches of each query, (Q,) float64.

    Args:
        ranks: (Q, M) ranks of the matches, ascending, from 1.
        counts: (Q,) numbers of matches; what a row holds beyond its own is left out.
    """
    order = torch.arange(1, ranks.shape[1] + 1)
    precision = torch.where(order <= counts[:, None], order / ranks.double(), 0.0)
    # cumsum adds one by one, so padding with zeros moves no bit
    return precision.cumsum(1)[:, -1] / counts


def inverse_negative_penalty(ranks: Tensor, counts: Tensor) -> Tensor:
    """Return ``matches / rank of the last match`` of each query, (Q,) float64.

    Arguments are those of :func:`average_precision`.
    """
    last = ranks.gather(1, (counts - 1)[:, None])[:, 0]
    return counts / last.double()
