"""Attacks with parameters that are learnt once and then serve every image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Self

from reidguard.attacks.base import Attack
from reidguard.data import BatchLoader, ReIDDataset
from reidguard.distributed import BatchShard, gather, world
from reidguard.errors import InputError
from reidguard.learners import LEARNERS, MetaLearner, Objective
from reidguard.models import ReIDModel
from reidguard.nn import frozen
from reidguard.objectives import ATTACK_LOSSES, AttackLoss, FeatureObjective
from reidguard.storage import weights_fingerprint
from reidguard.training import MISGD, Progress, ProgressCallback, learn
from reidguard.types import ReIDBatch

__all__ = ["FitDefaults", "UniversalAttack"]


@dataclass(frozen=True)
class FitDefaults:
    """What :meth:`UniversalAttack.fit` does unless it is told otherwise.

    Args:
        learner: Registered name.
        learner_options: For the learner's constructor.
        epochs: Passes over the images.
        momentum: How much of the past MI-SGD keeps.
        clip: Bring the parameters back into their bounds after each step.
        objective: Registered name of the loss.
        images_per_identity: Images of each person in a batch.
        lr: Size of a step; None for ε/10.
        decay: The rate falls by e to the minus this an epoch.
        learners: Names of the learners that the attack takes; empty for all.
    """

    learner: str = "plain"
    learner_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 10
    momentum: float = 0.5
    clip: bool = True
    objective: str = "misranking"
    images_per_identity: int = 8
    lr: float | None = None
    decay: float = 0.01
    learners: tuple[str, ...] = ()


class UniversalAttack(Attack):
    """An attack learnt on training images and then applied to any image, without further work."""

    @property
    def fit_defaults(self) -> FitDefaults:
        """The recipe that :meth:`fit` takes where its arguments are None."""
        return FitDefaults()

    @abstractmethod
    def clip_parameters(self) -> None:
        """Bring the parameters back into their bounds, in place, after an optimiser's step."""

    def start_epoch(self) -> None:
        """Do what an attack does to its parameters once an epoch, before its first step."""
        return None

    def own_objective(self, model: ReIDModel) -> Objective | None:
        """Return what the attack learns for, if that is no :class:`AttackLoss` that fit is told."""
        return None

    def make_optimizer(self, lr: float, momentum: float) -> Optimizer:
        """Return the optimiser: MI-SGD, unless an attack takes another."""
        return MISGD(self.parameter_groups(lr), lr, momentum)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups; a family may give its stages steps of their own."""
        return [{"params": list(self.parameters()), "lr": lr}]

    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        *,
        learner: MetaLearner | str | None = None,
        objective: AttackLoss | str | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        identities: int = 8,
        images_per_identity: int | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        clip: bool | None = None,
        diversity: float = 0.0,
        image_size: tuple[int, int] = (256, 128),
        seed: int = 0,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 50,
        progress: ProgressCallback | None = None,
    ) -> Self:
        """Learn the parameters on the training images of a dataset (Algorithm 1).

        The model is only read: its weights are frozen meanwhile, and its modes and flags come
        back as they were. Clean features are computed once and kept. MI-SGD starts from the
        parameters as they are; its rate falls by e^-0.01 an epoch. MisRank takes Adam, at
        one rate.

        Args:
            model: The surrogate, on the same device as the attack.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for learners that use one.
            learner: A learner or its registered name; "plain" by default ("maml" for
                :class:`~reidguard.MetaAttack`).
            objective: A loss or its registered name; "misranking" by default ("pairwise" for
                :class:`~reidguard.UAPRetrieval`).
            epochs: Passes over the images; 10 by default. With two sets, an epoch lasts until
                both are enumerated.
            steps: Steps in all, in place of ``epochs``.
            identities: Identities in a batch.
            images_per_identity: Images of each; 8 by default, as in the paper (4 for
                :class:`~reidguard.MisRank`).
            lr: Size of a step; ε/10 by default (2e-4 for MisRank).
            momentum: How much of the past MI-SGD keeps, 0.5 by default. UAP-Retrieval keeps all
                of it (1.0): see ``docs/departures.rst``.
            clip: Bring the parameters back into their bounds after each step, as Algorithm 1's
                reference does; True by default. The budget holds without it, too.
            diversity: Input diversity: probability with which the model sees an adversarial image
                shrunk to at least 0.9 of its size and shifted. What is learnt so is weaker on the
                surrogate and stronger on other networks. Not for MisRank.
            image_size: Height and width the images are resized to.
            seed: Fixes the batches, and what diversity draws.
            checkpoint: File from which an interrupted run resumes, bit for bit.
            checkpoint_every: Steps between two writes of that file.
            progress: Called with a :class:`~reidguard.training.Progress` after every step.

        Returns:
            The attack itself.
        """
        defaults = self.fit_defaults
        if learner is None:
            learner = LEARNERS.create(defaults.learner, **defaults.learner_options)
        elif isinstance(learner, str):
            learner = LEARNERS.create(learner)
        if defaults.learners and (name := LEARNERS.name_of(type(learner))) not in defaults.learners:
            raise InputError(
                f"{type(self).__name__} takes the learners {' and '.join(defaults.learners)}, not "
                f"{name!r}: choose one of them"
            )
        if not 0 <= diversity <= 1:
            raise InputError(f"diversity is a probability in [0, 1], not {diversity}")
        momentum = defaults.momentum if momentum is None else momentum
        clip = defaults.clip if clip is None else clip
        if images_per_identity is None:
            images_per_identity = defaults.images_per_identity
        own, loss = self.own_objective(model), None
        if own is None:
            chosen = defaults.objective if objective is None else objective
            loss = ATTACK_LOSSES.create(chosen) if isinstance(chosen, str) else chosen
        elif objective not in (None, defaults.objective):
            raise InputError(
                f"{type(self).__name__} learns for an objective of its own: leave objective out"
            )
        elif diversity:
            raise InputError(
                f"{type(self).__name__} learns for an objective of its own: leave diversity out"
            )
        device = next(self.parameters()).device
        model_device = next(model.parameters(), torch.empty(0, device=device)).device
        if model_device != device:
            raise InputError(
                f"the attack is on {device} and the model on {model_device}; "
                f"move one of them first: attack.to({str(model_device)!r})"
            )
        if lr is None:
            lr = self.budget.eps / 10 if defaults.lr is None else defaults.lr

        def batches(dataset: ReIDDataset) -> BatchLoader:
            return BatchLoader(
                dataset.train,
                dataset.train_labels,
                image_size=image_size,
                identities=identities,
                images_per_identity=images_per_identity,
                seed=seed,
                world=world(),
            )

        loaders = [batches(meta_train)]
        if meta_test is not None and learner.needs_meta_test:
            loaders.append(batches(meta_test))
        if steps is None:
            steps = (epochs or defaults.epochs) * max(len(loader) for loader in loaders)
        facts: dict[str, Any] = {
            "learner": LEARNERS.name_of(type(learner)),
            **({"learner_options": options} if (options := learner.config()) else {}),
            "objective": defaults.objective if loss is None else ATTACK_LOSSES.name_of(type(loss)),
            "steps": steps,
            "identities": identities,
            "images_per_identity": images_per_identity,
            "lr": lr,
            "momentum": momentum,
            "clip": clip,
            **({"diversity": diversity} if diversity else {}),
            "image_size": list(image_size),
            "seed": seed,
            "model": weights_fingerprint(model),
            "meta_train": {"name": meta_train.name, "train": meta_train.fingerprint("train")},
        }
        if len(loaders) > 1 and meta_test is not None:
            facts["meta_test"] = {"name": meta_test.name, "train": meta_test.fingerprint("train")}
        with frozen(model):
            sources: list[BatchLoader | _CleanRepresentations] = [*loaders]
            if loss is not None:
                sources = [
                    _with_representations(one, model, loss, steps, progress) for one in loaders
                ]
                if isinstance(sources[0], _CleanRepresentations):
                    loss = loss.with_statistics(sources[0].vectors)
                if loss.flat_at_clean:
                    self._leave_the_start(lr, seed)
                own = FeatureObjective(model, loss, diversity)
            assert own is not None
            learn(
                self,
                learner=learner,
                objective=own,
                optimizer=self.make_optimizer(lr, momentum),
                meta_train=sources[0],
                meta_test=sources[1] if len(sources) > 1 else None,
                steps=steps,
                schedule=lambda epoch: math.exp(-defaults.decay * epoch),
                before_epoch=self.start_epoch,
                after_step=self.clip_parameters if clip else lambda: None,
                seed=seed,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                settings={**facts, "attack": self.config()},
                progress=progress,
            )
        self.provenance = facts
        return self

    @torch.no_grad()
    def _leave_the_start(self, distance: float, seed: int) -> None:
        """Move every parameter by ±``distance``, at random."""
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p.add_(signs.to(p), alpha=distance)
        self.clip_parameters()


class _CleanRepresentations:
    """Batches that carry what the loss compares of their clean images, computed in one pass."""

    def __init__(self, loader: BatchLoader, vectors: Tensor) -> None:
        self.loader = loader
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        for batch in self.loader.epoch(number, start):
            vectors = self.vectors[batch.indices.to(self.vectors.device)]
            yield replace(batch, features=vectors)


@torch.no_grad()
def _with_representations(
    loader: BatchLoader,
    model: ReIDModel,
    loss: AttackLoss,
    steps: int,
    progress: ProgressCallback | None,
) -> BatchLoader | _CleanRepresentations:
    """Compute all clean vectors first, unless fewer steps than one epoch would use them."""
    if steps < len(loader) and not loss.needs_training_statistics:
        return loader
    device = next(model.parameters(), torch.empty(0)).device
    together = world()
    rank, size = (0, 1) if together is None else (together.rank, together.size)
    # Every process works out its part of them.
    count = len(loader.samples)
    own = range(rank * count // size, (rank + 1) * count // size)
    parts = []
    for start in range(own.start, own.stop, 64):
        stop = min(start + 64, own.stop)
        pixels = loader.cache.batch(range(start, stop))
        parts.append(loss.representation(model, pixels.to(device).float() / 255))
        if progress is not None and rank == 0:
            done = count * (stop - own.start) // len(own)
            progress(Progress("clean features", done, count))
    share = None if together is None else BatchShard(torch.arange(own.start, own.stop), count)
    return _CleanRepresentations(loader, gather(torch.cat(parts), share))
