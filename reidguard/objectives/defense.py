"""The objective of defenses: Eqs. 12 and 13, on clean and adversarial images in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reidguard.distributed import gather, part_of
from reidguard.errors import InputError
from reidguard.nn.auxiliary import AuxiliaryNorms
from reidguard.nn.batch_norm import sync_layers, without_memory
from reidguard.nn.cameras import with_cameras
from reidguard.objectives.base import normalize_for
from reidguard.objectives.consistency import (
    Divergence,
    boosted_identity_loss,
    feature_divergence,
    logit_divergence,
    true_probability,
)
from reidguard.objectives.reid import Loss, Reduction, ReIDObjective, parts_of
from reidguard.objectives.triplets import given_triplet_loss
from reidguard.schema import checked
from reidguard.types import BatchShard, ReIDBatch

__all__ = ["BatchNormPolicy", "DefenseBatch", "DefenseObjective", "Regularizer"]

BatchNormPolicy = Literal["shared", "separate", "auxiliary"]
Regularizer = Literal["trades", "mart"]


@dataclass(frozen=True)
class DefenseBatch(ReIDBatch):
    """Clean images followed by the adversarial images of some of them.

    Args:
        domain: Whose classifier the labels belong to; None where a model has only one, or none.
        adversarial: How many of the last images are adversarial.
        sources: (M,) for each adversarial image of the joint batch, which of its clean images it
            was made of; None without clean images.
        triplets: (T, 3) rows of the anchors, positives and negatives of the triplet loss; None
            mines them among all images.
        statistics: Whether the images may enter running statistics.
    """

    domain: str | None = None
    adversarial: int = 0
    sources: Tensor | None = None
    triplets: Tensor | None = None
    statistics: bool = True


@dataclass(frozen=True)
class DefenseObjective:
    """Triplet loss and cross-entropy over all images of a batch, clean and adversarial (Eq. 12).

    Positives and negatives are mined among all of them, unless the batch has triplets. The batch
    says whose classifier is meant, so that one objective serves meta-train and meta-test.

    A regulariser takes the place of the losses of the adversarial images, with D the
    ``divergence`` of a pair of a clean and an adversarial image and β the ``beta``:

    * "trades" (Zhang et al., ICML 2019): the losses of the clean images + β · mean D.
    * "mart" (Wang et al., ICLR 2020): the triplet loss of all images + the boosted cross-entropy of
      the adversarial images + β · mean (1 − p_y(x)) D, so that clean images that the classifier
      gets wrong count more.

    Args:
        losses: Which of the two, "triplet" and "identity", are added.
        margin: Of the triplet loss.
        reduction: "mean" over the images, or "sum" as Eq. 12 has it.
        batch_norm: "shared" normalises the whole batch together, in one pass, and all of it enters
            the running statistics. "separate" normalises adversarial images by statistics of their
            own, in a pass of their own, and only clean images enter the running statistics: those
            that the model will be tested with. "auxiliary" does the same with weights of their own,
            too (Xie et al., CVPR 2020); a call then gives the
            :class:`~reidguard.nn.auxiliary.AuxiliaryNorms`.
        regularizer: "trades", "mart", or None.
        beta: β.
        divergence: "distance", the squared distance of the features as the model's retrieval
            compares them, or "kl", the divergence of the classifier's probabilities.

    Example:
        >>> DefenseObjective(regularizer="trade")
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: regularizer must be 'trades' or 'mart', not 'trade'
    """

    losses: tuple[Loss, ...] = ("triplet", "identity")
    margin: float = 0.5
    reduction: Reduction = "mean"
    batch_norm: BatchNormPolicy = "shared"
    regularizer: Regularizer | None = None
    beta: float = 6.0
    divergence: Divergence = "distance"

    def __post_init__(self) -> None:
        if self.batch_norm not in get_args(BatchNormPolicy):
            raise InputError(
                f"batch_norm must be 'shared', 'separate' or 'auxiliary', not {self.batch_norm!r}"
            )
        if self.regularizer not in (None, *get_args(Regularizer)):
            raise InputError(f"regularizer must be 'trades' or 'mart', not {self.regularizer!r}")
        if self.divergence not in get_args(Divergence):
            raise InputError(f"divergence must be 'distance' or 'kl', not {self.divergence!r}")
        checked(float, "beta", self.beta, low=0, high=1e6)
        self._of(None)  # checks the other arguments
        needs = self.regularizer == "mart" or (self.regularizer and self.divergence == "kl")
        if needs and "identity" not in self.losses:
            raise InputError(
                f"{'mart' if self.regularizer == 'mart' else 'the divergence kl'} compares the "
                "classifier's probabilities: leave 'identity' among the losses, or take "
                "regularizer='trades' with divergence='distance'"
            )

    def __call__(
        self, model: Any, batch: DefenseBatch, norms: AuxiliaryNorms | None = None
    ) -> Tensor:
        """Return the loss of a model on a batch.

        Args:
            model: The model, in train mode.
            batch: Clean and adversarial images.
            norms: Batch norms of the adversarial images, for ``batch_norm="auxiliary"``.

        Raises:
            InputError: If the model has no such classifier, or the batch does not suit the losses.
        """
        plain = self.regularizer is None and batch.triplets is None and batch.statistics
        if plain and not self._apart(batch):
            return self._of(batch.domain)(model, batch)
        clean, adversarial = self._outputs(model, batch, norms)
        if self.regularizer is None:
            return self._losses(clean.followed_by(adversarial), batch)
        if batch.sources is None:
            raise InputError("a regularizer compares clean and adversarial images: clean=True")
        sources = batch.sources.to(clean.features.device)
        metric = model.metric
        if self.regularizer == "trades":
            return self._losses(clean, batch) + self._tie(clean, adversarial, sources, metric)
        both = clean.followed_by(adversarial)
        terms = [self._tie(clean, adversarial, sources, metric)]
        if "triplet" in self.losses:
            terms.append(self._losses(both, batch, ("triplet",)))
        terms += [
            self._reduced(boosted_identity_loss(part, adversarial.pids))
            for part in _logits_of(adversarial)
        ]
        return torch.stack(terms).sum()

    def _tie(self, clean: _Outputs, adversarial: _Outputs, sources: Tensor, metric: Any) -> Tensor:
        """Return the regulariser."""
        if not len(sources):
            return clean.features.new_zeros(())
        if self.divergence == "distance":
            apart = feature_divergence(
                normalize_for(clean.features, metric)[sources],
                normalize_for(adversarial.features, metric),
            )
        else:
            pairs = zip(_logits_of(clean), _logits_of(adversarial), strict=True)
            apart = torch.stack([logit_divergence(a[sources], b) for a, b in pairs]).sum(0)
        if self.regularizer == "mart":
            known = [true_probability(part, clean.pids) for part in _logits_of(clean)]
            apart = (1 - torch.stack(known).mean(0)[sources]) * apart
        return self.beta * self._reduced(apart)

    def _reduced(self, values: Tensor) -> Tensor:
        return values.sum() if self.reduction == "sum" or not len(values) else values.mean()

    def _losses(
        self, outputs: _Outputs, batch: DefenseBatch, losses: tuple[Loss, ...] | None = None
    ) -> Tensor:
        """Return triplet loss and cross-entropy of outputs, with the batch's triplets if any."""
        losses = self.losses if losses is None else losses
        if batch.triplets is None or "triplet" not in losses:
            objective = ReIDObjective(batch.domain, self.margin, self.reduction, losses)
            return objective.loss(outputs.embeddings, outputs.logits, outputs.pids)
        triplets = batch.triplets.to(outputs.pids.device)
        terms = [
            given_triplet_loss(part, triplets, self.margin, reduction=self.reduction)
            for part in parts_of(outputs.embeddings)
        ]
        if "identity" in losses:
            objective = ReIDObjective(batch.domain, self.margin, self.reduction, ("identity",))
            terms.append(objective.loss(outputs.embeddings, outputs.logits, outputs.pids))
        return torch.stack(terms).sum()

    def _apart(self, batch: DefenseBatch) -> bool:
        """Return whether clean and adversarial images have a pass each."""
        if self.batch_norm == "shared":
            return False
        numbers = [len(batch) - batch.adversarial, batch.adversarial]
        if batch.shard is not None:
            rows = slice(numbers[0]), slice(numbers[0], None)
            numbers = [part_of(batch.shard, r).total for r in rows]
        return 0 not in numbers

    def _outputs(
        self, model: Any, batch: DefenseBatch, norms: AuxiliaryNorms | None
    ) -> tuple[_Outputs, _Outputs]:
        """Return the outputs of the clean and of the adversarial images of the joint batch."""
        first = len(batch) - batch.adversarial
        rows = slice(first), slice(first, None)
        shards: list[BatchShard | None] = [None, None]
        if batch.shard is not None:
            shards = [part_of(batch.shard, r) for r in rows]
        pids = [gather(batch.pids[r], shard) for r, shard in zip(rows, shards, strict=True)]
        if not self._apart(batch):
            with sync_layers(batch.shard), _statistics(model, batch):
                output = with_cameras(model, batch.camids)(batch.images, domain=batch.domain)
            found = [
                _selected(output, r, shard, own)
                for r, shard, own in zip(rows, shards, pids, strict=True)
            ]
            return found[0], found[1]
        with sync_layers(shards[0]), _statistics(model, batch):
            seen = with_cameras(model, batch.camids[rows[0]])
            clean = seen(batch.images[rows[0]], domain=batch.domain)
        with sync_layers(shards[1]), self._norms(model, norms):
            seen = with_cameras(model, batch.camids[rows[1]])
            other = seen(batch.images[rows[1]], domain=batch.domain)
        every = slice(None)
        return (
            _selected(clean, every, shards[0], pids[0]),
            _selected(other, every, shards[1], pids[1]),
        )

    @contextmanager
    def _norms(self, model: Any, norms: AuxiliaryNorms | None) -> Iterator[None]:
        """Let adversarial images have batch norms of their own, or statistics at least."""
        if self.batch_norm == "auxiliary":
            if norms is None:
                raise InputError("batch_norm='auxiliary' needs norms=AuxiliaryNorms(model)")
            with norms.used_in(model):
                yield
        else:
            with without_memory(model):
                yield

    def _of(self, domain: str | None) -> ReIDObjective:
        return ReIDObjective(domain, self.margin, self.reduction, self.losses)


def _statistics(model: Any, batch: DefenseBatch) -> AbstractContextManager[None]:
    """Let images enter running statistics if they may; used inside sync_layers, not around it."""
    return nullcontext() if batch.statistics else without_memory(model)


@dataclass(frozen=True)
class _Outputs:
    """A model's outputs of some images of the joint batch, and their labels."""

    features: Tensor
    embeddings: Tensor | Sequence[Tensor]
    logits: Tensor | Sequence[Tensor] | None
    pids: Tensor

    def followed_by(self, other: _Outputs) -> _Outputs:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Outputs(*(_joined(a, b) for a, b in pairs))


def _selected(output: Any, rows: slice, shard: BatchShard | None, pids: Tensor) -> _Outputs:
    """Return some rows of a model's outputs, of all processes."""
    return _Outputs(
        _rows(output.features, rows, shard),
        _rows(output.embeddings, rows, shard),
        _rows(output.logits, rows, shard),
        pids,
    )


def _logits_of(outputs: _Outputs) -> Sequence[Tensor]:
    if outputs.logits is None:
        raise InputError(
            "the model has no classifier to compare: "
            "create it with num_classes=<identities of the training split>"
        )
    return parts_of(outputs.logits)


def _rows(value: Any, rows: slice, shard: BatchShard | None) -> Any:
    """Return some rows of a tensor, or of each of a list, of all processes."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return gather(value[rows], shard)
    return [_rows(part, rows, shard) for part in value]


def _joined(clean: Any, adversarial: Any) -> Any:
    if clean is None:
        return None
    if isinstance(clean, Tensor):
        return torch.cat((clean, adversarial))
    return [_joined(a, b) for a, b in zip(clean, adversarial, strict=True)]
