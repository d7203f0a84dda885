"""Universal attacks: parameters learnt once and applied to every image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self, Unpack

from reidguard.attacks.learned import FitDefaults, LearnedAttack
from reidguard.attacks.universal.left_out import meta_over_networks
from reidguard.data import BatchLoader, ReIDDataset
from reidguard.data.images import to_device
from reidguard.distributed import gather, world
from reidguard.errors import InputError
from reidguard.learners import MetaLearner, Objective
from reidguard.learners.displaced import DisplacedLearner
from reidguard.models import EnsembleModel, ReIDModel
from reidguard.models.transfer import for_transfer
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, with_cameras
from reidguard.objectives import (
    ATTACK_LOSSES,
    AttackLoss,
    EnsembleLoss,
    FeatureObjective,
    InputCopies,
    LogitEnsembleLoss,
)
from reidguard.options import AttackOptions, InputOptions, LoopOptions, SurrogateOptions
from reidguard.schema import documented, select, settings
from reidguard.training import MISGD, Batches, LoopHooks, learn
from reidguard.types import BatchShard, Progress, ProgressCallback, ReIDBatch

__all__ = ["CleanRepresentations", "UniversalAttack", "with_representations"]

DECAY = 0.01  # the learning rate falls by e to the minus this in an epoch


class UniversalAttack(LearnedAttack):
    """An attack whose learned parameters are the same for every image.

    Example:
        >>> from reidguard import DeltaAttack
        >>> attack = DeltaAttack(size=(4, 2))
        >>> _ = attack.delta.data.fill_(1.0)
        >>> attack.clip_parameters()
        >>> round(255 * float(attack.delta.detach().max()))
        8
    """

    @abstractmethod
    def clip_parameters(self) -> None:
        """Bring the parameters back into their bounds, in place, after an optimiser's step."""

    def start_epoch(self) -> None:
        """Update the parameters before the first step of an epoch; by default, do nothing."""
        return None

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the optimiser's groups; a family may give its stages steps of their own."""
        return [{"params": list(self.parameters()), "lr": lr}]

    @documented(
        AttackOptions,
        **{**vars(FitDefaults()), "lr": "ε/10", "identities": 8, "images_per_identity": 8},
    )
    def fit(
        self,
        model: ReIDModel | Sequence[ReIDModel],
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[AttackOptions],
    ) -> Self:
        """Learn the parameters on the training images of a dataset (Algorithm 1).

        The model is only read: the attack learns on an inference view of it. Clean features are
        computed once. MI-SGD starts from the parameters as they are; its rate falls by
        e^-0.01 an epoch. Defaults that differ between attacks are in :attr:`fit_defaults`:
        :class:`~reidguard.MetaAttack` takes the learner "maml", :class:`~reidguard.UAPRetrieval`
        the objective "pairwise" and a momentum of 1 (see ``docs/departures.rst``).

        Args:
            model: The surrogate, on the same device as the attack, or several: each resizes and
                normalises for itself, and the option ``ensemble`` says how they count.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for learners that use one.
            **options: Any of :class:`~reidguard.options.AttackOptions`.

        Returns:
            The attack itself.

        Raises:
            InputError: If an option is unknown or out of range, if ``aggregate`` does not divide
                ``images_per_identity``, or model and attack are on different devices.
        """
        defaults = self.fit_defaults
        if isinstance(model, Sequence):
            model = EnsembleModel(model)
        values, learner, loaders, facts = self._prepare(
            AttackOptions,
            options,
            model,
            (meta_train, meta_test),
            lr=self.budget.eps / 10,
            images_per_identity=8,
            clip=defaults.clip,
            objective=defaults.objective,
            ensemble=defaults.ensemble if isinstance(model, EnsembleModel) else "features",
        )
        loss: AttackLoss = values["objective"]
        if not isinstance(loss, AttackLoss):
            loss = ATTACK_LOSSES.create(str(loss))
        values["objective"] = ATTACK_LOSSES.name_of(type(loss))
        if own := own_options(loss):
            facts["objective_options"] = own
        loss = loss_of_surrogates(loss, values["ensemble"], model, learner)
        facts |= settings(AttackOptions, values)
        lr, seed, steps, progress = (values[name] for name in ("lr", "seed", "steps", "progress"))
        clip = self.clip_parameters if values["clip"] else lambda: None
        learner = displaced(learner, values, clip)
        view = inference_view(for_transfer(model, **select(SurrogateOptions, values)))
        sources = [with_representations(x, view, loss, steps, progress) for x in loaders]
        if isinstance(sources[0], CleanRepresentations):
            loss = loss.with_statistics(sources[0].vectors)
        if loss.flat_at_clean:
            self._random_step(lr, seed)
        copies = InputCopies(**select(InputOptions, values))
        objective: Objective = FeatureObjective(view, loss, copies)
        batches: Sequence[Batches] = sources
        if values["ensemble"] == "left_out":
            objective, batches = meta_over_networks(objective, batches, seed)
        zero_gradients = learn(
            self,
            learner=learner,
            objective=objective,
            optimizer=MISGD(self.parameter_groups(lr), lr, values["momentum"]),
            meta_train=batches[0],
            meta_test=batches[1] if len(batches) > 1 else None,
            hooks=LoopHooks(
                schedule=lambda epoch: math.exp(-DECAY * epoch),
                before_epoch=self.start_epoch,
                after_step=clip,
            ),
            settings={**facts, "attack": self.config()},
            **select(LoopOptions, values),
        )
        self._record(facts, zero_gradients)
        return self

    @torch.no_grad()
    def _random_step(self, distance: float, seed: int) -> None:
        """Move every parameter by ±``distance``, at random."""
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
            p.add_(signs.to(p), alpha=distance)
        self.clip_parameters()


def displaced(
    learner: MetaLearner, values: Mapping[str, Any], clip: Callable[[], None]
) -> MetaLearner:
    """Return the learner that the options ``aggregate`` and ``nesterov`` make of one."""
    parts, each = values["aggregate"], values["images_per_identity"]
    if each % parts:
        raise InputError(
            f"aggregate={parts} does not divide images_per_identity={each}: take a divisor of it, "
            "or other batches"
        )
    if parts == 1 and not values["nesterov"]:
        return learner
    return DisplacedLearner(learner, parts, values["nesterov"], clip)


def own_options(loss: AttackLoss) -> dict[str, Any]:
    """Return the arguments of a loss that differ from the defaults, as JSON values."""
    if not is_dataclass(loss):
        return {}
    values = {f.name: (getattr(loss, f.name), f.default) for f in fields(loss) if f.init}
    kinds = (bool, int, float, str)
    return {k: v for k, (v, usual) in values.items() if isinstance(v, kinds) and v != usual}


def loss_of_surrogates(
    loss: AttackLoss, ensemble: str, model: ReIDModel, learner: MetaLearner
) -> AttackLoss:
    """Return the loss of one surrogate, or of several as the option ``ensemble`` says."""
    if ensemble == "features":
        return loss
    if not isinstance(model, EnsembleModel):
        raise InputError(
            f"ensemble={ensemble!r} is for several surrogates: give a list of models, or leave it "
            "out"
        )
    if ensemble == "left_out" and not (learner.needs_meta_test and len(model.members) > 1):
        raise InputError(
            'ensemble="left_out" is for two surrogates or more and a learner with a meta-test, '
            "such as 'maml': give both, or take ensemble=\"loss\""
        )
    if ensemble == "logits":
        return LogitEnsembleLoss(loss)
    return EnsembleLoss(loss, equal_gradients=ensemble == "gradient")


@dataclass(eq=False)
class CleanRepresentations:
    """Batches that carry what the loss compares of their clean images, computed in one pass."""

    loader: BatchLoader
    vectors: Tensor

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Yield the loader's batches with their clean representations."""
        for batch in self.loader.epoch(number, start):
            vectors = self.vectors[batch.indices.to(self.vectors.device)]
            yield replace(batch, features=vectors)


@torch.no_grad()
def with_representations(
    loader: BatchLoader,
    view: ReIDModel,
    loss: AttackLoss,
    steps: int,
    progress: ProgressCallback | None,
) -> BatchLoader | CleanRepresentations:
    """Compute all clean vectors first, unless the loss or too few steps advise against it."""
    few = steps < len(loader) or not loss.caches_clean
    if few and not loss.needs_training_statistics:
        return loader
    device = next(view.parameters(), torch.empty(0)).device
    processes = world()
    rank, size = (0, 1) if processes is None else (processes.rank, processes.size)
    # Every process computes its part of them.
    count = len(loader.samples)
    own = range(rank * count // size, (rank + 1) * count // size)
    parts = []
    for start in range(own.start, own.stop, 64):
        stop = min(start + 64, own.stop)
        pixels = to_device(loader.cache.batch(range(start, stop)), device)
        seen = with_cameras(view, cameras_of(loader.samples[start:stop]))
        parts.append(loss.reference(seen, pixels.float() / 255))
        if progress is not None and rank == 0:
            done = count * (stop - own.start) // len(own)
            progress(Progress("clean features", done, count))
    shard = None if processes is None else BatchShard(torch.arange(own.start, own.stop), count)
    return CleanRepresentations(loader, gather(torch.cat(parts), shard))
