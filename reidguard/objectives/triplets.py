"""Triplets that are given, rather than mined in a batch: their hardness and their loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError
from reidguard.objectives.misranking import row_distance
from reidguard.schema import checked

__all__ = ["given_triplet_loss", "hardness"]


def hardness(anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Return the hardness ‖a − p‖₂ − ‖a − n‖₂ of triplets (Zhou & Patel, CVPR 2022).

    Args:
        anchors: (T, D) embeddings.
        positives: (T, D) of the anchors' identities.
        negatives: (T, D) of others.

    Returns:
        (T,), in float32 at least. Coinciding points get gradient zero.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> hardness(*points.split(1))
        tensor([-2.])
    """
    with torch.autocast(anchors.device.type, enabled=False):
        a, p, n = (
            t if t.dtype == torch.float64 else t.float() for t in (anchors, positives, negatives)
        )
        return row_distance(a, p) - row_distance(a, n)


def given_triplet_loss(
    embeddings: Tensor, triplets: Tensor, margin: float = 0.5, *, reduction: str = "mean"
) -> Tensor:
    """Return the triplet loss ``[hardness + m]₊`` of given triplets.

    Args:
        embeddings: (N, D), not normalised here.
        triplets: (T, 3) int64 rows of anchors, positives and negatives.
        margin: ``m``.
        reduction: "mean" or "sum" over the triplets.

    Returns:
        A scalar.

    Raises:
        InputError: If shapes do not fit.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [1.2]])
        >>> round(float(given_triplet_loss(points, torch.tensor([[0, 1, 2]]))), 4)
        0.3
    """
    if embeddings.dim() != 2 or triplets.dim() != 2 or triplets.shape[1] != 3 or not len(triplets):
        raise InputError(
            "given_triplet_loss needs embeddings (N, D) and triplets (T, 3), T > 0, not "
            f"{tuple(embeddings.shape)} and {tuple(triplets.shape)}"
        )
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction must be 'mean' or 'sum', not {reduction!r}")
    margin = checked(float, "margin", margin, low=0, high=1e6)
    losses = F.relu(hardness(*(embeddings[rows] for rows in triplets.T)) + margin)
    return losses.sum() if reduction == "sum" else losses.mean()
