"""k-reciprocal re-ranking (Zhong et al., CVPR 2017).

The distance of two images becomes a mean of two parts: their distance as it was, and the Jaccard
distance of their *k-reciprocal encodings*, sparse vectors of the images that each is near to and
that are near to it. Queries and gallery together make the lists of nearest images. These lists, the
encodings and one block of distances are all that is stored, so that the memory grows with the
number of images and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.distributed import gather_rows, rows_here
from reidguard.errors import InputError
from reidguard.metrics.counting import (
    CHUNK,
    UNIT,
    Matches,
    NonMatchCounter,
    PairKeys,
    squared_norms,
)
from reidguard.metrics.distances import METRICS, check_features, check_norms, full_precision
from reidguard.metrics.neighbours import nearest
from reidguard.metrics.sparse import PAD, SparseRows
from reidguard.schema import checked

__all__ = ["Encodings", "RerankedCounter", "Reranking", "reranked_counter"]

ROOM = 1 << 22  # elements of a temporary table
MAX_K = 1000


@dataclass(frozen=True)
class Reranking:
    """k-reciprocal re-ranking of a metric (Zhong et al., CVPR 2017), used in place of its name.

    With n the squared Euclidean distance (of unit vectors for "cosine", that is the cosine
    distance), divided by the largest one from the query to any image, and J the Jaccard distance of
    the two images' k-reciprocal encodings, the distance is ``(1 - weight) J + weight n``. As in the
    authors' code, in torchreid and in fast-reid, queries are neighbours of each other, too, so the
    result for one query depends on the others. (torchreid's own evaluation squares its squared
    Euclidean or cosine distances once more, so its numbers differ.)

    Args:
        metric: The metric that is re-ranked: "euclidean" or "cosine".
        k1: Length of the lists of nearest images.
        k2: Nearest images, itself included, over which an image's encoding is averaged; 1 for none.
        weight: Weight of the distance as it was, the paper's λ.

    Raises:
        InputError: If the metric is unknown, or a number is out of range.

    Example:
        >>> points = torch.tensor([[0.0], [0.1], [2.0], [2.1]])
        >>> Reranking(k1=1, k2=1).distances(points[:1], points[1:]).round(decimals=3)
        tensor([[0.0020, 0.9720, 1.0000]], dtype=torch.float64)
    """

    metric: str = "euclidean"
    k1: int = 20
    k2: int = 6
    weight: float = 0.3

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InputError(f"unknown metric {self.metric!r}; use one of {', '.join(METRICS)}")
        for name in ("k1", "k2"):
            object.__setattr__(
                self, name, checked(int, name, getattr(self, name), low=1, high=MAX_K)
            )
        object.__setattr__(self, "weight", checked(float, "weight", self.weight, low=0, high=1))

    @fixed_context()
    def distances(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Return the re-ranked distances that :func:`rank` compares. For small uses.

        Args:
            query: (Q, D) features, any float dtype.
            gallery: (G, D) features on the same device.

        Returns:
            (Q, G) float64.

        Raises:
            InputError: For features that cannot be compared.
        """
        check_features(query, [gallery], self.metric)
        nobody = [0] * len(gallery)
        queries = [1] * len(query)
        matches = Matches(len(query), len(gallery), queries, queries, nobody, nobody, "keep")
        with torch.no_grad(), full_precision(query.device):
            counter = reranked_counter(query, gallery, matches, self)
            rows = torch.arange(len(query)).repeat_interleave(len(gallery))
            exact = counter.exact(rows, torch.arange(len(gallery)).repeat(len(query)))
        return exact.view(len(query), len(gallery))


class Encodings:
    """The k-reciprocal encodings of a set of images, each a vector with one entry per image.

    Several processes share the work if ``distributed``; all get the same encodings.

    Args:
        features: (N, D) of queries and gallery.
        norms: (N,) float64 row norms.
        reranking: The settings.
        distributed: Whether all processes call this, with the same features.
    """

    def __init__(
        self, features: Tensor, norms: Tensor, reranking: Reranking, *, distributed: bool = False
    ) -> None:
        self.settings = reranking
        keys = PairKeys(features, features, reranking.metric, (norms, norms))
        total = len(features)
        rows = rows_here(total, CHUNK) if distributed else slice(0, total)
        count = min(max(reranking.k1 + 1, reranking.k2), total)
        lists, furthest = nearest(keys, rows, count) or (None, None)
        if distributed:
            lists, furthest = (gather_rows(part, rows, total) for part in (lists, furthest))
        assert lists is not None
        assert furthest is not None
        self.nearest = lists.cpu()
        largest = self.squared(furthest.double())
        #: (N,) float64 on the features' device: what the squared distances of a row are divided by.
        self.largest = torch.where(largest > 0, largest, 1.0)
        self.vectors = self._averaged(SparseRows.join(list(self._encoded(keys))))

    def squared(self, distances: Tensor) -> Tensor:
        """Return squared Euclidean distances, or what they are up to a factor for "cosine"."""
        return distances.square() if self.settings.metric == "euclidean" else distances

    def _encoded(self, keys: PairKeys) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the encodings of blocks of images: entries of each row, columns, values."""
        largest = self.largest.cpu()
        for start, counts, cols in self._neighbourhoods():
            rows = torch.arange(start, start + len(counts)).repeat_interleave(counts)
            distances = self.squared(keys.exact(rows, cols).cpu().double())
            weights = (-distances / largest[rows]).exp()
            nth = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows - start]
            table = torch.zeros(len(counts), int(counts.max()), dtype=torch.float64)
            table[rows - start, nth] = weights
            sums = table.cumsum(1)[:, -1] if table.shape[1] else table.sum(1)
            yield counts, cols, weights / sums[rows - start]

    def _neighbourhoods(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield first row, sizes and members of the expanded k-reciprocal sets, in blocks."""
        k1 = min(self.settings.k1 + 1, self.nearest.shape[1])
        half = min(round(self.settings.k1 / 2) + 1, k1)
        near = self.nearest[:, :k1]
        mutual, mutual_half = _reciprocal(near), _reciprocal(near[:, :half])
        step = max(ROOM // (k1 * k1 * half), 1)
        for start in range(0, len(near), step):
            members = near[start : start + step]
            reciprocal = torch.where(mutual[start : start + step], members, -1)
            candidates, valid = near[:, :half][members], mutual_half[members]
            shared = (candidates.flatten(1)[:, :, None] == reciprocal[:, None]).any(2)
            shared = shared.view(valid.shape) & valid
            # A neighbour's own set is added if more than two thirds of it are shared.
            accepted = (reciprocal >= 0) & (3 * shared.sum(2) > 2 * valid.sum(2))
            added = torch.where(valid & accepted[:, :, None], candidates, PAD).flatten(1)
            joint = torch.cat([torch.where(reciprocal >= 0, members, PAD), added], 1).sort(1).values
            new = torch.ones_like(joint, dtype=torch.bool)
            new[:, 1:] = joint[:, 1:] != joint[:, :-1]
            new &= joint != PAD
            yield start, new.sum(1), joint[new]

    def _averaged(self, vectors: SparseRows) -> SparseRows:
        """Return the mean encodings of each image's ``k2`` nearest images."""
        k2 = min(self.settings.k2, self.nearest.shape[1])
        if k2 == 1:
            return vectors
        parts = []
        for start in range(0, len(self.nearest), CHUNK):
            members = self.nearest[start : start + CHUNK, :k2]
            cols, values = (t.view(len(members), -1) for t in vectors.table(members.flatten()))
            cols, order = cols.sort(dim=1, stable=True)
            new = torch.ones_like(cols, dtype=torch.bool)
            new[:, 1:] = cols[:, 1:] != cols[:, :-1]
            place = new.cumsum(1) - 1
            sums = torch.zeros(cols.shape, dtype=torch.float64)
            sums.scatter_add_(1, place, values.gather(1, order).double())
            new &= cols != PAD
            counts = new.sum(1)
            filled = torch.arange(cols.shape[1]) < counts[:, None]
            parts.append((counts, cols[new], sums[filled] / k2))
        return SparseRows.join(parts)


def _reciprocal(near: Tensor) -> Tensor:
    """Return for (N, k) lists of nearest images whether each has the list's image in its own."""
    step = max(ROOM // near.shape[1] ** 2, 1)
    parts = []
    for start in range(0, len(near), step):
        own = torch.arange(start, min(start + step, len(near)))
        parts.append((near[near[own]] == own[:, None, None]).any(2))
    return torch.cat(parts)


class RerankedCounter(NonMatchCounter):
    """Counts non-matches ahead of each match by re-ranked distances.

    Args:
        query: (Q, D) features.
        gallery: (G, D) features, without junk.
        norms: The row norms of both, float64.
        matches: Which images match, and which are left out.
        encodings: Of queries and gallery, in this order.
    """

    def __init__(
        self,
        query: Tensor,
        gallery: Tensor,
        norms: tuple[Tensor, Tensor],
        matches: Matches,
        encodings: Encodings,
    ) -> None:
        super().__init__(query, gallery, 0, encodings.settings.metric, norms, matches)
        self.encodings, self.weight = encodings, encodings.settings.weight

    def exact(self, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the re-ranked distances (P,) float64 of pairs."""
        rows, cols = rows.to(self.device), cols.to(self.device)
        own = self.encodings.squared(super().exact(rows, cols).double())
        own = own / self.encodings.largest[rows]
        jaccard = self.encodings.vectors.jaccard(rows.cpu(), cols.cpu() + len(self.query))
        return (1 - self.weight) * jaccard.to(self.device) + self.weight * own

    def bands(self, start: int, stop: int, exact: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distances of the matches, and how far tiles may err from exact ones."""
        error = self.weight * self.error_bound(squares) / self._unit(start, stop)
        return exact, error + 4 * UNIT  # of distances up to 1, rounded to float32

    def tile(self, queries: Tensor, start: int, first: int, last: int, out: Tensor) -> Tensor:
        """Return the (q, g) re-ranked distances, up to the error of :meth:`bands`."""
        stop = start + len(queries)
        keys = self.product(queries, first, last, out).double()
        zero = squared_norms(queries)[:, None] if self.metric == "euclidean" else 2.0
        own = (keys + zero) / self._unit(start, stop)
        others = slice(len(self.query) + first, len(self.query) + last)
        jaccard = self.encodings.vectors.jaccard_tile(slice(start, stop), others)
        return ((1 - self.weight) * jaccard.to(self.device) + self.weight * own).float()

    def _unit(self, start: int, stop: int) -> Tensor:
        """Return by how much a key grows from the nearest to the furthest image, (q, 1)."""
        largest = self.encodings.largest[start:stop, None]
        return largest * (self.scale**2 if self.metric == "euclidean" else 2.0)


def reranked_counter(
    query: Tensor,
    gallery: Tensor,
    matches: Matches,
    reranking: Reranking,
    *,
    distributed: bool = False,
) -> RerankedCounter:
    """Return the counter of re-ranked features; collective if ``distributed``.

    Args:
        query: (Q, D) features.
        gallery: (G, D) features, without junk.
        matches: Which images match, and which are left out.
        reranking: The settings.
        distributed: Whether all processes call this with the same arguments.
    """
    query_norms, gallery_norms = check_norms(query, [gallery], reranking.metric)
    encodings = Encodings(
        torch.cat([query, gallery]),
        torch.cat([query_norms, gallery_norms]),
        reranking,
        distributed=distributed,
    )
    return RerankedCounter(query, gallery, (query_norms, gallery_norms), matches, encodings)
