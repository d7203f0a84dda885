"""The first gallery images of a few queries.

One pass over the gallery gives float32 keys, which grow with the distance, and a bound of their
errors. The images whose keys may be among the smallest are compared by their exact distances.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.metrics.counting import (
    CHUNK,
    FAR,
    UNIT,
    Labels,
    Matches,
    PairKeys,
    near_mean,
    squared_norms,
)
from reidguard.metrics.distances import (
    check_features,
    check_norms,
    full_precision,
    pair_distances,
    row_norms,
)
from reidguard.metrics.ranking import MAX_RANK
from reidguard.schema import checked

__all__ = ["top_k"]

TABLE = 1 << 24  # keys at a time
FEW = 16  # queries at a time at least, however large the gallery is
BLOCK = 1 << 18  # numbers of a block of the gallery, which stays in a core's cache
LEAST, MOST = 1e-28, 1e28  # squared norms that need no scale


@fixed_context()
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
    """Return the first ``k`` gallery images of a few queries, in the order of :func:`rank`.

    A matrix product leaves the images that may be among the first, and only these are compared by
    their exact distances. Arguments are those of :func:`rank`.

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
    check_features(query, [gallery], metric)
    k = checked(int, "k", k, low=1, high=MAX_RANK)
    matches = Matches(
        len(query),
        len(gallery),
        query_pids,
        query_camids,
        gallery_pids,
        gallery_camids,
        same_camera,
    )
    device = query.device
    junk = matches.junk.nonzero().flatten()
    near = torch.full((len(query), k), math.inf, dtype=torch.float32, device=device)
    indices = torch.full((len(query), k), -1, device=device)
    step = max(FEW, min(CHUNK, TABLE // len(gallery)))
    with torch.no_grad(), full_precision(device):
        for start in range(0, len(query), step):
            own = query[start : start + step]
            found = one_pass(own, gallery, metric)
            if found is None:
                check_norms(query, [gallery], metric)
                found = scaled(own, gallery, metric)
            for i, row, error in zip(range(start, start + step), *found, strict=False):
                _, same, match = matches.pairs(i, i + 1)
                removed = torch.cat([junk, same[~match]])
                row[removed.to(device)] = FAR
                left = _nearest(row, float(error), k, len(row) - len(removed))
                exact = _distances(query[i : i + 1], gallery, left, metric)
                is_match = torch.isin(left, same[match].to(device)).to(torch.int8)
                others_first = is_match.argsort(stable=True)
                order = others_first[exact[others_first].argsort(stable=True)][:k]
                near[i, : len(order)] = exact[order]
                indices[i, : len(order)] = left[order]
    return near, indices


def one_pass(query: Tensor, gallery: Tensor, metric: str) -> tuple[Tensor, Tensor] | None:
    """Return keys of all pairs, and how far each row may be from the keys of exact distances.

    The keys are ``|g|² - 2 q·g`` of features less about their mean, or ``-2 q·g / |q||g|``. With u
    for one rounding, D columns and S = |q| + |g|, in any order of summation: the products err by
    2Du·|q||g|, the squares by Du·|g|², and the last operations and the rounding of features, norms,
    distances and thresholds by 10u·S²; for the cosine by 2Du, Du and 40u.

    Returns:
        (q, G) and (q,) float32; None if features are not finite, or too large or small for it.
    """
    width, device = gallery.shape[1], gallery.device
    centred = metric == "euclidean"
    wide = torch.float64 if torch.float64 in (query.dtype, gallery.dtype) else torch.float32
    centre = torch.zeros(width, dtype=wide, device=device)
    if centred:
        centre = near_mean(gallery).to(wide)
    own = (query.to(wide) - centre).double()
    own_squares = own.square().sum(1)
    if not centred:
        own = own / own_squares.sqrt()[:, None]
    table = torch.empty(len(query), len(gallery), dtype=torch.float32, device=device)
    squares = torch.empty(len(gallery), dtype=torch.float32, device=device)
    left, step = own.float(), max(1, BLOCK // width)
    spare = torch.empty(step, width, dtype=wide, device=device)
    for start in range(0, len(gallery), step):
        block = gallery[start : start + step]
        if centred:
            block = torch.sub(block, centre, out=spare[: len(block)])
        block = block.float()
        torch.mm(left, block.T, out=table[:, start : start + step])
        squares[start : start + step] = torch.linalg.vector_norm(block, dim=1).square_()
    extremes = torch.stack([own_squares.min(), own_squares.max(), *squares.double().aminmax()])
    sizes: list[float] = extremes.tolist()
    too_small = (max(sizes) if centred else min(sizes)) <= LEAST
    if not math.isfinite(sum(sizes)) or too_small or max(sizes) >= MOST:
        return None
    if centred:
        table.mul_(-2).add_(squares)
        radius, largest = own_squares.sqrt(), math.sqrt(sizes[-1])
        error = 2 * width * radius * largest + width * largest**2 + 10 * (radius + largest) ** 2
    else:
        table.mul_(squares.rsqrt_().mul_(-2))
        error = torch.full_like(own_squares, 3 * width + 40)
    return table, (1.1 * UNIT * error + LEAST).float()


def scaled(query: Tensor, gallery: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """:func:`one_pass` for features of any size, with several passes."""
    keys = PairKeys(query, gallery, metric, (row_norms(query), row_norms(gallery)))
    rows = keys.prepare(query, 0, len(query), 0)
    table = torch.cat([keys.product(rows, *tile) for tile in keys.tiles()], 1)
    return table, keys.error_bound(squared_norms(rows))[:, 0]


def _nearest(row: Tensor, error: float, k: int, left: int) -> Tensor:
    """Return the images, ascending, among which are the ``k`` nearest.

    Args:
        row: (G,) keys of one query; ``FAR`` those of images that are left out.
        error: How far they may be from the keys of the exact distances.
        k: Number of images.
        left: Number of images that are not left out.
    """
    if k >= left:
        return (row < FAR).nonzero().flatten()
    if row.device.type == "cpu":  # numpy selects with vector instructions
        kth = float(np.partition(row.numpy(), k - 1)[k - 1])
    else:
        kth = float(row.kthvalue(k).values)
    # The k images with the smallest keys are at most this far, and so is each of the nearest.
    return (row <= kth + 2.1 * error).nonzero().flatten()


def _distances(query: Tensor, gallery: Tensor, places: Tensor, metric: str) -> Tensor:
    """Return the exact distances (n,) of one query to some images."""
    parts = []
    for place in torch.split(places, CHUNK):
        some = gallery[place]
        cols = torch.arange(len(some), device=some.device)
        norms = (row_norms(query), row_norms(some)) if metric == "cosine" else ()
        parts.append(pair_distances(query, some, torch.zeros_like(cols), cols, metric, norms))
    return torch.cat(parts)
