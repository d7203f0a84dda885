"""k-means clustering of features."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.schema import MAX_SEED, checked

__all__ = ["k_means"]

MAX_CLUSTERS = 10**6


@torch.no_grad()
def k_means(points: Tensor, clusters: int, *, iterations: int = 20, seed: int = 0) -> Tensor:
    """Return the centroids of Lloyd's algorithm, started by k-means++.

    The same points and seed give the same centroids. A cluster that loses its last point keeps its
    centroid.

    Args:
        points: (N, D), any float dtype; computed in float32 at least, on their device.
        clusters: Number of centroids.
        iterations: Steps at most; it ends before when no point changes its cluster.
        seed: Fixes the start.

    Returns:
        (K, D), with K the smaller of ``clusters`` and the number of different points.

    Raises:
        InputError: If there are no points, or fewer than one cluster.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
        >>> k_means(points, 2).flatten().sort().values
        tensor([ 0.5000, 11.0000])
    """
    if points.dim() != 2 or not len(points):
        raise InputError(f"k_means needs points (N, D), N > 0, not {tuple(points.shape)}")
    clusters = checked(int, "clusters", clusters, low=1, high=MAX_CLUSTERS)
    iterations = checked(int, "iterations", iterations, low=0, high=10**6)
    seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    centroids = _plus_plus(points, clusters, torch.Generator().manual_seed(seed))
    before = None
    for _ in range(iterations):
        # The squared distance up to |point|², which is the same for all centroids.
        nearest = (centroids.square().sum(1) - 2 * points @ centroids.T).argmin(1)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        # As a product of matrices: an index_add would not be deterministic on a GPU.
        member = torch.nn.functional.one_hot(nearest, len(centroids)).to(points.dtype)
        count = member.sum(0)[:, None]
        centroids = torch.where(count > 0, member.T @ points / count.clamp(min=1), centroids)
    return centroids


def _plus_plus(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw each start with a probability that grows with the squared distance to those before."""
    first = int(torch.randint(len(points), (), generator=generator))
    chosen = [first]
    distance = (points - points[first]).square().sum(1)
    while len(chosen) < clusters:
        reach = distance.double().cumsum(0)
        if float(reach[-1]) == 0:  # every point is a centroid already
            break
        draw = torch.rand((), generator=generator, dtype=torch.float64).to(reach.device) * reach[-1]
        # right: a point at distance zero has probability zero, and is never drawn
        index = min(int(torch.searchsorted(reach, draw, right=True)), len(points) - 1)
        chosen.append(index)
        distance = torch.minimum(distance, (points - points[index]).square().sum(1))
    return points[chosen]
