"""Losses and objectives of re-ID models.

Triplet and cross-entropy (Eqs. 10 and 11 of the paper), and the losses of AGW (Ye et al., TPAMI
2021): a weighted triplet, smoothed cross-entropy and a centre loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.distributed import gather
from reidguard.errors import InputError
from reidguard.nn.batch_norm import sync_layers
from reidguard.nn.cameras import with_cameras
from reidguard.objectives.misranking import row_distance
from reidguard.schema import MAX_SEED, checked
from reidguard.types import BatchShard, ReIDBatch

__all__ = [
    "AGWObjective",
    "CentreLoss",
    "Loss",
    "ReIDObjective",
    "Reduction",
    "identity_loss",
    "triplet_loss",
    "weighted_triplet_loss",
]

Reduction = Literal["mean", "sum"]
Loss = Literal["triplet", "identity"]


def triplet_loss(
    embeddings: Tensor, pids: Tensor, margin: float = 0.5, *, reduction: Reduction = "mean"
) -> Tensor:
    """Batch-hard triplet loss (Eq. 10): ``[‖φ(x_p) − φ(x)‖₂ − ‖φ(x_n) − φ(x)‖₂ + m]₊``.

    ``x_p`` is the furthest other image of the same identity in the batch, ``x_n`` the nearest of
    another one. An anchor that lacks either is left out. The loss is computed in float32 at least,
    also under autocast, and can be differentiated twice; coinciding points get gradient zero.

    Args:
        embeddings: (N, D), not normalised here.
        pids: (N,) integer identities.
        margin: ``m``.
        reduction: "mean" or "sum" over the anchors that take part.

    Returns:
        A scalar.

    Raises:
        InputError: If shapes do not fit, or no anchor has both a positive and a negative. On a
            GPU the latter is not checked, as that would wait for the device: the mean is NaN.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
        >>> float(triplet_loss(points, torch.tensor([0, 0, 1, 1]), margin=2.0))
        0.375
    """
    _check_embeddings("triplet_loss", embeddings, pids)
    _check_reduction(reduction)
    margin = checked(float, "margin", margin, low=0, high=1e6)
    with torch.autocast(embeddings.device.type, enabled=False):
        points = _wide(embeddings)
        with torch.no_grad():
            # Choosing needs no gradient, so the exact cdist can serve, which lacks a second one.
            distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
            positive, negative, valid = _pairs(pids)
            furthest = distances.masked_fill(~positive, -1).argmax(1)
            nearest = distances.masked_fill(~negative, torch.inf).argmin(1)
        pull = row_distance(points, points[furthest])
        push = row_distance(points, points[nearest])
        losses = torch.where(valid, F.relu(pull - push + margin), 0)
        return losses.sum() if reduction == "sum" else losses.sum() / valid.sum()


def weighted_triplet_loss(
    embeddings: Tensor, pids: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    """AGW's weighted regularised triplet loss, which has no margin and uses every pair.

    ``log(1 + exp(Σ_p w_p ‖φ(x_p) − φ(x)‖₂ − Σ_n w_n ‖φ(x_n) − φ(x)‖₂))``, where ``x_p`` are the
    other images of the anchor's identity in the batch and ``x_n`` all of others. The weights are
    softmaxes, of the distances over ``p`` and of the negated distances over ``n``, and are
    differentiated, too. An anchor without any ``x_p`` or ``x_n`` is left out. (The published code
    counts an anchor among its own positives, at distance zero.) Computed in float32 at least, and
    can be differentiated twice.

    Args:
        embeddings: (N, D), not normalised here.
        pids: (N,) integer identities.
        reduction: "mean" or "sum" over the anchors that take part.

    Returns:
        A scalar.

    Raises:
        InputError: As for :func:`triplet_loss`.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> loss = weighted_triplet_loss(points, torch.tensor([0, 0, 1, 1]))
        >>> round(float(loss), 4)
        0.0679
    """
    _check_embeddings("weighted_triplet_loss", embeddings, pids)
    _check_reduction(reduction)
    with torch.autocast(embeddings.device.type, enabled=False):
        points = _wide(embeddings)
        positive, negative, valid = _pairs(pids)
        distances = row_distance(points[:, None], points[None, :])
        pull = _softmax_mean(distances, distances, positive)
        push = _softmax_mean(distances, -distances, negative)
        losses = torch.where(valid, F.softplus(pull - push), 0)
        return losses.sum() if reduction == "sum" else losses.sum() / valid.sum()


def _softmax_mean(values: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each row's chosen values, weighted by a softmax of their scores; 0 if none is."""
    # The lowest finite score in place of -inf: a row without any would be NaN, and its gradient.
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill(~chosen, lowest).softmax(1)
    return (weights * values.masked_fill(~chosen, 0)).sum(1)


def _check_embeddings(loss: str, embeddings: Tensor, pids: Tensor) -> None:
    if embeddings.dim() != 2 or pids.shape != embeddings.shape[:1] or not len(pids):
        raise InputError(
            f"{loss} needs embeddings (N, D) and pids (N,), N > 0, not "
            f"{tuple(embeddings.shape)} and {tuple(pids.shape)}"
        )


def _pairs(pids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, N) masks of positives and of negatives, and (N,) which anchors have both."""
    same = pids[:, None] == pids[None, :]
    positive = same & ~torch.eye(len(pids), dtype=torch.bool, device=pids.device)
    valid = positive.any(1) & ~same.all(1)
    if valid.device.type == "cpu" and not bool(valid.any()):
        raise InputError(
            f"no image of this batch of {len(pids)} has both another image of its "
            "identity and one of another; sample P identities × K images with P, K ≥ 2"
        )
    return positive, ~same, valid


class CentreLoss(nn.Module):
    """Squared distance to a centre of each identity, ``1/N Σ_i ‖φ(x_i) − c_{y_i}‖²``.

    The centres are learned by plain gradient descent on this loss itself, whatever weight it has
    in a sum: in train mode every call moves ``c_y`` by ``2·rate/N Σ_{i: y_i = y} (φ(x_i) − c_y)``
    after the loss is computed. They start from a normal distribution.

    Args:
        identities: How many centres.
        width: ``D`` of the embeddings.
        rate: Learning rate of the centres.
        seed: Of their start.

    Example:
        >>> loss = CentreLoss(2, 1)
        >>> _ = loss.centres.zero_()
        >>> float(loss(torch.tensor([[2.0], [4.0]]), torch.tensor([1, 1])))  # (4 + 16) / 2
        10.0
        >>> loss.centres  # by 2 · 0.5 / 2 · (2 + 4)
        tensor([[0.],
                [3.]])
    """

    centres: Tensor

    def __init__(self, identities: int, width: int, *, rate: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.rate = checked(float, "rate", rate, low=0, high=1e6)
        identities = checked(int, "identities", identities, low=1, high=10**8)
        width = checked(int, "width", width, low=1, high=10**6)
        seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
        start = torch.randn(identities, width, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("centres", start)

    def forward(self, embeddings: Tensor, pids: Tensor) -> Tensor:
        """Return the loss of (N, D) embeddings with (N,) labels, in float32 at least.

        Raises:
            InputError: If shapes do not fit.
        """
        _check_embeddings("CentreLoss", embeddings, pids)
        if embeddings.shape[1] != self.centres.shape[1]:
            raise InputError(
                f"the centres have {self.centres.shape[1]} numbers each, not {embeddings.shape[1]}"
            )
        with torch.autocast(embeddings.device.type, enabled=False):
            apart = _wide(embeddings) - self.centres[pids]
            loss = apart.square().sum(1).mean()
        if self.training:
            step = (2 * self.rate / len(pids)) * apart.detach()
            self.centres.index_add_(0, pids, step.to(self.centres.dtype))
        return loss


def identity_loss(
    logits: Tensor, pids: Tensor, smoothing: float = 0.0, *, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of the identity classifier (Eq. 11).

    Args:
        logits: (N, identities).
        pids: (N,) int64 training labels from 0.
        smoothing: Fraction of the target spread evenly over all identities, in [0, 1].
        reduction: "mean" or "sum" over the images.

    Returns:
        A scalar, computed in float32 at least.

    Raises:
        InputError: If shapes do not fit, or (checked on the CPU only) a label has no logit.

    Example:
        >>> float(identity_loss(torch.zeros(2, 4), torch.tensor([0, 3])).exp())
        4.0
    """
    if logits.dim() != 2 or pids.shape != logits.shape[:1]:
        raise InputError(
            "identity_loss needs logits (N, identities) and pids (N,), not "
            f"{tuple(logits.shape)} and {tuple(pids.shape)}"
        )
    smoothing = checked(float, "smoothing", smoothing, low=0, high=1)
    _check_reduction(reduction)
    if len(pids) and pids.device.type == "cpu":
        low, high = (int(v) for v in torch.aminmax(pids))
        if low < 0 or high >= logits.shape[1]:
            raise InputError(
                f"labels go from {low} to {high}, but the classifier knows {logits.shape[1]} "
                "identities, 0 to "
                f"{logits.shape[1] - 1}; use the training split's labels and its num_classes"
            )
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(_wide(logits), pids, reduction=reduction, label_smoothing=smoothing)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction must be 'mean' or 'sum', not {reduction!r}")


@dataclass(frozen=True)
class ReIDObjective:
    """Triplet loss plus cross-entropy, the objective of models and defenses.

    Models with parts give lists; the losses of the parts are added.

    Args:
        domain: Whose classifier the labels belong to; None where a model has only one.
        margin: Of the triplet loss.
        reduction: "mean" over the batch, or "sum" as in Eq. 12.
        losses: Which of the two, "triplet" and "identity", are added.
    """

    domain: str | None = None
    margin: float = 0.5
    reduction: Reduction = "mean"
    losses: tuple[Loss, ...] = ("triplet", "identity")

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)
        checked(float, "margin", self.margin, low=0, high=1e6)
        if not self.losses or not set(self.losses) <= set(get_args(Loss)):
            raise InputError(f"losses must name 'triplet', 'identity' or both, not {self.losses!r}")

    def __call__(self, model: Callable[..., Any], batch: ReIDBatch) -> Tensor:
        """Return the loss of a model on a batch, from one forward pass.

        Raises:
            InputError: If the model has no classifier, or the batch does not suit the losses.
        """
        with sync_layers(batch.shard):
            output = with_cameras(model, batch.camids)(batch.images, domain=self.domain)
        return self.loss(output.embeddings, output.logits, batch.pids, batch.shard)

    def loss(
        self,
        embeddings: Tensor | Sequence[Tensor],
        logits: Tensor | Sequence[Tensor] | None,
        pids: Tensor,
        shard: BatchShard | None = None,
    ) -> Tensor:
        """Return the loss of a model's outputs.

        Args:
            embeddings: (N, E), or one per part.
            logits: (N, identities), or one per part.
            pids: (N,) training labels.
            shard: Which rows of a joint batch these are; the loss is that of the joint batch.

        Raises:
            InputError: As for a call.
        """
        pids = gather(pids, shard)
        terms = []
        if "triplet" in self.losses:
            terms += [
                triplet_loss(gather(part, shard), pids, self.margin, reduction=self.reduction)
                for part in parts_of(embeddings)
            ]
        if "identity" in self.losses:
            if logits is None:
                raise InputError(
                    "the model has no classifier to train: "
                    "create it with num_classes=<identities of the training split>"
                )
            terms += [
                identity_loss(gather(part, shard), pids, reduction=self.reduction)
                for part in parts_of(logits)
            ]
        return torch.stack(terms).sum()


class AGWObjective(nn.Module):
    """The objective of AGW: weighted triplet + smoothed cross-entropy + weighted centre loss.

    The triplet and the centres see the embeddings (in AGW those before the neck). It is a module
    because of its centres, which are learned and saved in a checkpoint.

    Args:
        centres: The centre loss, for the identities and the width of the embeddings at hand.
        domain: Whose classifier the labels belong to; None where a model has only one.
        smoothing: Of the cross-entropy's targets.
        centre_weight: Of the centre loss.
    """

    def __init__(
        self,
        centres: CentreLoss,
        *,
        domain: str | None = None,
        smoothing: float = 0.1,
        centre_weight: float = 5e-4,
    ) -> None:
        super().__init__()
        self.centres = centres
        self.domain = domain
        self.smoothing = checked(float, "smoothing", smoothing, low=0, high=1)
        self.centre_weight = checked(float, "centre_weight", centre_weight, low=0, high=1e6)

    def forward(self, model: Callable[..., Any], batch: ReIDBatch) -> Tensor:
        """Return the loss of a model on a batch, from one forward pass.

        Raises:
            InputError: If the model has no classifier or several embeddings of an image.
        """
        shard = batch.shard
        with sync_layers(shard):
            output = with_cameras(model, batch.camids)(batch.images, domain=self.domain)
        if not isinstance(output.embeddings, Tensor) or not isinstance(output.logits, Tensor):
            raise InputError(
                "AGW's losses need a model with a classifier and one embedding of an image, "
                "such as 'agw' or 'ide' with num_classes; one with parts has several"
            )
        pids = gather(batch.pids, shard)
        embeddings, logits = gather(output.embeddings, shard), gather(output.logits, shard)
        triplet = weighted_triplet_loss(embeddings, pids)
        identity = identity_loss(logits, pids, self.smoothing)
        centre: Tensor = self.centres(embeddings, pids)
        return triplet + identity + self.centre_weight * centre


def parts_of(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Return what a model with parts gives for each part, or the only output of another one."""
    return [value] if isinstance(value, Tensor) else value
