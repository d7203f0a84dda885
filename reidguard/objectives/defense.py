"""The objective of defenses: Eqs. 12 and 13, on clean and adversarial images in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reidguard.distributed import gather, part_of
from reidguard.errors import InputError
from reidguard.nn.batch_norm import sync_layers, without_memory
from reidguard.nn.cameras import with_cameras
from reidguard.objectives.reid import Loss, Reduction, ReIDObjective
from reidguard.types import BatchShard, ReIDBatch

__all__ = ["BatchNormPolicy", "DefenseBatch", "DefenseObjective"]

BatchNormPolicy = Literal["shared", "separate"]


@dataclass(frozen=True)
class DefenseBatch(ReIDBatch):
    """Clean images followed by the adversarial images of some of them.

    Args:
        domain: Whose classifier the labels belong to; None where a model has only one, or none.
        adversarial: How many of the last images are adversarial.
    """

    domain: str | None = None
    adversarial: int = 0


@dataclass(frozen=True)
class DefenseObjective:
    """Triplet loss and cross-entropy over all images of a batch, clean and adversarial (Eq. 12).

    Positives and negatives are mined among all of them. The batch says whose classifier is meant,
    so that one objective serves meta-train and meta-test.

    Args:
        losses: Which of the two, "triplet" and "identity", are added.
        margin: Of the triplet loss.
        reduction: "mean" over the images, or "sum" as Eq. 12 has it.
        batch_norm: "shared" normalises the whole batch together, in one pass, and all of it enters
            the running statistics. "separate" normalises adversarial images by statistics of their
            own, in a pass of their own, and only clean images enter the running statistics: those
            that the model will be tested with.

    Example:
        >>> DefenseObjective(batch_norm="own")
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: batch_norm must be 'shared' or 'separate', not 'own'
    """

    losses: tuple[Loss, ...] = ("triplet", "identity")
    margin: float = 0.5
    reduction: Reduction = "mean"
    batch_norm: BatchNormPolicy = "shared"

    def __post_init__(self) -> None:
        if self.batch_norm not in get_args(BatchNormPolicy):
            raise InputError(f"batch_norm must be 'shared' or 'separate', not {self.batch_norm!r}")
        self._of(None)  # checks the other arguments

    def __call__(self, model: Any, batch: DefenseBatch) -> Tensor:
        """Return the loss of a model on a batch.

        Raises:
            InputError: If the model has no such classifier, or the batch does not suit the losses.
        """
        objective = self._of(batch.domain)
        if self.batch_norm == "shared":
            return objective(model, batch)
        first = len(batch) - batch.adversarial
        rows = slice(first), slice(first, None)
        shard = batch.shard
        shards: list[BatchShard | None] = [None, None]
        numbers = [first, batch.adversarial]
        if shard is not None:
            parts = [part_of(shard, r) for r in rows]
            shards, numbers = [*parts], [part.total for part in parts]
        if 0 in numbers:
            return objective(model, batch)
        with sync_layers(shards[0]):
            seen = with_cameras(model, batch.camids[rows[0]])
            clean = seen(batch.images[rows[0]], domain=batch.domain)
        with sync_layers(shards[1]), without_memory(model):
            seen = with_cameras(model, batch.camids[rows[1]])
            other = seen(batch.images[rows[1]], domain=batch.domain)
        logits = None if clean.logits is None else _joined(clean.logits, other.logits, shards)
        pids = _joined(batch.pids[rows[0]], batch.pids[rows[1]], shards)
        return objective.loss(_joined(clean.embeddings, other.embeddings, shards), logits, pids)

    def _of(self, domain: str | None) -> ReIDObjective:
        return ReIDObjective(domain, self.margin, self.reduction, self.losses)


def _joined(
    clean: Tensor | Sequence[Tensor],
    adversarial: Tensor | Sequence[Tensor],
    shards: Sequence[BatchShard | None],
) -> Any:
    if isinstance(clean, Tensor) and isinstance(adversarial, Tensor):
        return torch.cat((gather(clean, shards[0]), gather(adversarial, shards[1])))
    return [_joined(a, b, shards) for a, b in zip(clean, adversarial, strict=True)]
