"""Losses of several surrogates at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reidguard.distributed import world
from reidguard.errors import InputError
from reidguard.objectives.base import AttackLoss
from reidguard.types import Embedder

__all__ = ["EnsembleLoss", "LogitEnsembleLoss"]

TINY = 1e-12


class _EqualGradient(torch.autograd.Function):
    """The identity; a gradient that passes gets the length 1 (sum of absolute values)."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        return images.view_as(images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (gradient.abs().sum() + TINY)


class EnsembleLoss(AttackLoss):
    """The mean of a loss over the members of an ensemble, each in its own feature space.

    Args:
        loss: Of one model.
        equal_gradients: Whether the gradient that each member sends to the images is normalised to
            the same length, so that none outweighs the others.

    Raises:
        InputError: If gradients are to be equal where several processes share a batch.

    Example:
        >>> from reidguard.objectives import SelfMetricLoss
        >>> loss = EnsembleLoss(SelfMetricLoss(), equal_gradients=True)
    """

    def __init__(self, loss: AttackLoss, *, equal_gradients: bool = False) -> None:
        if equal_gradients and world() is not None:
            raise InputError(
                'ensemble="gradient" works in one process: take "loss" or "features", or call '
                "without torchrun"
            )
        self.losses: list[AttackLoss] = [loss]
        self.equal_gradients = equal_gradients
        self.widths: list[int] = []  # of each member's representation, and of its reference
        self.clean_widths: list[int] = []
        self.needs_training_statistics = loss.needs_training_statistics  # type: ignore[misc]
        self.flat_at_clean = loss.flat_at_clean  # type: ignore[misc]
        self.caches_clean = loss.caches_clean  # type: ignore[misc]

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return what the loss compares of each member of an ensemble, side by side."""
        parts = []
        for member in model.members:  # type: ignore[attr-defined]
            own = _EqualGradient.apply(images) if self.equal_gradients else images
            parts.append(self.losses[0].representation(member, own))
        self.widths = [part.shape[1] for part in parts]
        return torch.cat([part.to(parts[0].dtype) for part in parts], 1)

    def reference(self, model: Embedder, images: Tensor) -> Tensor:
        """Return what the loss takes of clean images of each member, side by side."""
        members = model.members  # type: ignore[attr-defined]
        parts = [self.losses[0].reference(member, images) for member in members]
        self.clean_widths = [part.shape[1] for part in parts]
        return torch.cat([part.to(parts[0].dtype) for part in parts], 1)

    def with_statistics(self, training: Tensor) -> EnsembleLoss:
        """Return the loss with each member's own statistics of the training images."""
        result = EnsembleLoss(self.losses[0], equal_gradients=self.equal_gradients)
        result.widths, result.clean_widths = self.widths, self.clean_widths
        parts = torch.split(training, self.clean_widths or self.widths, 1)
        result.losses = [self.losses[0].with_statistics(part) for part in parts]
        return result

    def only(self, members: Sequence[int]) -> EnsembleLoss:
        """Return the loss of an ensemble of some of the members, each with its statistics."""
        result = EnsembleLoss(self.losses[0], equal_gradients=self.equal_gradients)
        if len(self.losses) > 1:
            result.losses = [self.losses[i] for i in members]
        if self.clean_widths:
            result.clean_widths = [self.clean_widths[i] for i in members]
        return result

    def columns(self, vectors: Tensor, members: Sequence[int]) -> Tensor:
        """Return what :meth:`reference` gives for an ensemble of some of the members."""
        parts = torch.split(vectors, self.clean_widths or self.widths, 1)
        return torch.cat([parts[i] for i in members], 1)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean of the members' losses."""
        own = torch.split(clean, self.clean_widths or self.widths, 1)
        pairs = list(zip(torch.split(adversarial, self.widths, 1), own, strict=True))
        losses = self.losses if len(self.losses) > 1 else self.losses * len(self.widths)
        values = [loss(a, c, pids) for loss, (a, c) in zip(losses, pairs, strict=True)]
        return torch.stack(values).mean()


class LogitEnsembleLoss(AttackLoss):
    """A loss of the mean logits of an ensemble (Dong et al., CVPR 2018).

    Args:
        loss: Of logits.

    Raises:
        InputError: If the loss compares features.

    Example:
        >>> from reidguard.objectives import LabelWiseLoss
        >>> loss = LogitEnsembleLoss(LabelWiseLoss())
    """

    compares_logits = True

    def __init__(self, loss: AttackLoss) -> None:
        if not loss.compares_logits:
            raise InputError(
                'ensemble="logits" is for losses of logits: give objective="labelwise", or '
                'ensemble="loss"'
            )
        self.loss = loss

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return the mean of the members' logits, (N, classes).

        Raises:
            InputError: If a member has no classifier, or one of other identities.
        """
        members = model.members  # type: ignore[attr-defined]
        parts = [self.loss.representation(member, images) for member in members]
        if len({part.shape[1] for part in parts}) > 1:
            counts = ", ".join(str(part.shape[1]) for part in parts)
            raise InputError(
                f"the surrogates' classifiers have {counts} classes, and their mean needs those of "
                'the same identities: take ensemble="loss"'
            )
        return torch.stack([part.to(parts[0].dtype) for part in parts]).mean(0)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the loss of the mean logits."""
        return self.loss(adversarial, clean, pids)
