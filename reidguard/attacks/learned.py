"""Attacks with parameters that are learned from training images before they are applied."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from typing_extensions import Self, Unpack

from reidguard.attacks.base import Attack
from reidguard.data import BatchLoader, ReIDDataset
from reidguard.errors import InputError
from reidguard.fingerprint import fingerprint
from reidguard.learners import LEARNERS, MetaLearner
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn.cameras import cameras_of, check_cameras
from reidguard.nn.gradients import ZERO_LIMIT, warn_of_zero_gradients
from reidguard.options import LearnedAttackOptions
from reidguard.schema import resolve
from reidguard.training import batch_loaders

__all__ = ["FitDefaults", "LearnedAttack"]


@dataclass(frozen=True)
class FitDefaults:
    """Defaults of :meth:`LearnedAttack.fit` that differ between attacks.

    Args:
        learner: Registered name; None for an attack that is learnt in a way of its own.
        learner_options: For the learner's constructor.
        epochs: Passes over the images.
        momentum: Decay of MI-SGD's accumulated gradient.
        clip: Clip the parameters to their bounds after each step.
        objective: Registered name of the loss; None for an attack with an objective of its own.
        ensemble: How several surrogates count.

    Example:
        >>> from reidguard import MetaAttack
        >>> MetaAttack(size=(64, 32)).fit_defaults.learner
        'maml'
    """

    learner: str | None = "plain"
    learner_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 10
    momentum: float = 0.5
    clip: bool = True
    objective: str | None = "misranking"
    ensemble: str = "features"

    def make_learner(self, learner: MetaLearner | str | None) -> MetaLearner:
        """Return ``learner``, built if it is a registered name, and the default one for None."""
        if learner is None:
            if self.learner is None:
                raise InputError("this attack is not learnt by a learner")
            return LEARNERS.create(self.learner, **self.learner_options)
        return LEARNERS.create(learner) if isinstance(learner, str) else learner


class LearnedAttack(Attack):
    """An attack with parameters, learned on training images and then applied to any image.

    Example:
        >>> from reidguard import DeltaAttack, MisRank, SMA
        >>> [issubclass(attack, LearnedAttack) for attack in (DeltaAttack, MisRank, SMA)]
        [True, True, False]
    """

    fit_defaults: FitDefaults = FitDefaults()
    """Values of those arguments of :meth:`fit` that are left out."""

    @abstractmethod
    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[LearnedAttackOptions],
    ) -> Self:
        """Learn the parameters on a surrogate model and the training images of a dataset.

        Args:
            model: The surrogate; it is only read.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for learners that use one.
            options: :class:`~reidguard.options.LearnedAttackOptions`, and what the attack adds.

        Returns:
            The attack itself.
        """

    def _prepare(
        self,
        group: Any,
        options: Mapping[str, Any],
        model: ReIDModel,
        datasets: Sequence[ReIDDataset | None],
        **defaults: Any,
    ) -> tuple[dict[str, Any], MetaLearner, list[BatchLoader], dict[str, Any]]:
        """Return resolved options, learner, batches and provenance for :meth:`fit`.

        Args:
            group: The options of :meth:`fit`.
            options: Those that the caller gave.
            model: The surrogate.
            datasets: Meta-train and meta-test.
            defaults: Defaults besides those of :attr:`fit_defaults`.
        """
        usual = self.fit_defaults
        values = resolve(
            group, options, epochs=usual.epochs, momentum=usual.momentum, identities=8, **defaults
        )
        learner = usual.make_learner(values["learner"])
        check_same_device(self, model)
        used = [d for d in datasets[: 1 + learner.needs_meta_test] if d is not None]
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        for dataset in used:
            check_cameras(model, cameras_of(dataset.train))
        loaders = batch_loaders(used, values, device=device)
        facts = {
            "learner": LEARNERS.name_of(type(learner)),
            "learner_options": learner.config(),
            "model": fingerprint(model_key(model, values["image_size"])),
            **{
                role: {"name": dataset.name, "train": dataset.fingerprint("train")}
                for role, dataset in zip(("meta_train", "meta_test"), used, strict=False)
            },
        }
        if not facts["learner_options"]:
            del facts["learner_options"]
        return values, learner, loaders, facts

    def _record(self, facts: dict[str, Any], zero_gradients: float) -> None:
        """Keep how the parameters were learnt, and warn if the gradients were of no use."""
        if zero_gradients > ZERO_LIMIT:
            facts["zero_gradients"] = round(zero_gradients, 6)
        self.provenance = facts
        warn_of_zero_gradients(type(self).__name__, zero_gradients)


def check_same_device(attack: nn.Module, model: nn.Module) -> None:
    """Raise InputError if the attack and the model are on different devices."""
    device = next((p.device for p in attack.parameters()), None)
    model_device = next((p.device for p in model.parameters()), device)
    if device is not None and model_device != device:
        raise InputError(
            f"the attack is on {device} and the model on {model_device}; "
            f"move one of them first: attack.to({str(model_device)!r})"
        )
