"""Attacks with parameters that are learnt once and then serve every image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from reidguard.attacks.learned import (
    LearnedAttack,
    batch_loaders,
    check_same_device,
    fit_provenance,
)
from reidguard.data import BatchLoader, ReIDDataset
from reidguard.distributed import BatchShard, gather, world
from reidguard.errors import InputError
from reidguard.learners import MetaLearner
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.objectives import ATTACK_LOSSES, AttackLoss, FeatureObjective
from reidguard.training import MISGD, Progress, ProgressCallback, learn
from reidguard.types import ReIDBatch

__all__ = ["UniversalAttack"]

DECAY = 0.01  # the learning rate falls by e to the minus this in an epoch


class UniversalAttack(LearnedAttack):
    """An attack whose learned parameters are the same for every image."""

    @abstractmethod
    def clip_parameters(self) -> None:
        """Bring the parameters back into their bounds, in place, after an optimiser's step."""

    def start_epoch(self) -> None:
        """Do what an attack does to its parameters once an epoch, before its first step."""
        return None

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
        images_per_identity: int = 8,
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

        The model is only read: the attack learns on an inference view of it. Clean features are
        computed once and kept. MI-SGD starts from the parameters as they are; its rate falls by
        e^-0.01 an epoch.

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
            images_per_identity: Images of each; 8 by default, as in the paper.
            lr: Size of a step; ε/10 by default.
            momentum: How much of the past MI-SGD keeps, 0.5 by default. UAP-Retrieval keeps all
                of it (1.0): see ``docs/departures.rst``.
            clip: Bring the parameters back into their bounds after each step, as Algorithm 1's
                reference does; True by default. The budget holds without it, too.
            diversity: Input diversity: probability with which the model sees an adversarial image
                shrunk to at least 0.9 of its size and shifted. What is learnt so is weaker on the
                surrogate and stronger on other networks.
            image_size: Height and width the images are resized to.
            seed: Fixes the batches, and what diversity draws.
            checkpoint: File from which an interrupted run resumes, bit for bit.
            checkpoint_every: Steps between two writes of that file.
            progress: Called with a :class:`~reidguard.training.Progress` after every step.

        Returns:
            The attack itself.
        """
        defaults = self.fit_defaults
        learner = defaults.make_learner(learner)
        if not 0 <= diversity <= 1:
            raise InputError(f"diversity is a probability in [0, 1], not {diversity}")
        momentum = defaults.momentum if momentum is None else momentum
        clip = defaults.clip if clip is None else clip
        loss = defaults.objective if objective is None else objective
        if not isinstance(loss, AttackLoss):
            loss = ATTACK_LOSSES.create(str(loss))
        check_same_device(self, model)
        lr = self.budget.eps / 10 if lr is None else lr
        datasets = [meta_train]
        if meta_test is not None and learner.needs_meta_test:
            datasets.append(meta_test)
        loaders = batch_loaders(
            datasets,
            image_size=image_size,
            identities=identities,
            images_per_identity=images_per_identity,
            seed=seed,
        )
        if steps is None:
            steps = (epochs or defaults.epochs) * max(len(loader) for loader in loaders)
        facts: dict[str, Any] = {
            **fit_provenance(learner, model, datasets),
            "objective": ATTACK_LOSSES.name_of(type(loss)),
            "steps": steps,
            "identities": identities,
            "images_per_identity": images_per_identity,
            "lr": lr,
            "momentum": momentum,
            "clip": clip,
            **({"diversity": diversity} if diversity else {}),
            "image_size": list(image_size),
            "seed": seed,
        }
        view = inference_view(model)
        sources = [_with_representations(x, view, loss, steps, progress) for x in loaders]
        if isinstance(sources[0], _CleanRepresentations):
            loss = loss.with_statistics(sources[0].vectors)
        if loss.flat_at_clean:
            self._leave_the_start(lr, seed)
        learn(
            self,
            learner=learner,
            objective=FeatureObjective(view, loss, diversity),
            optimizer=MISGD(self.parameter_groups(lr), lr, momentum),
            meta_train=sources[0],
            meta_test=sources[1] if len(sources) > 1 else None,
            steps=steps,
            schedule=lambda epoch: math.exp(-DECAY * epoch),
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
