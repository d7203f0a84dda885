"""Meta-learning over networks: the meta-test loss is that of the surrogate left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from reidguard.learners import Objective
from reidguard.models import EnsembleModel, ReIDModel
from reidguard.objectives import EnsembleLoss, FeatureObjective
from reidguard.training import Batches
from reidguard.training.loop import derived_seed
from reidguard.types import ReIDBatch

__all__ = ["LeftOutBatch", "LeftOutBatches", "LeftOutObjective", "left_out", "meta_over_networks"]


def left_out(step: int, members: int, seed: int) -> int:
    """Return which member a step leaves out.

    In as many steps as there are members each is left out once, in an order drawn for them.

    Args:
        step: From 0 on.
        members: How many there are.
        seed: Of the orders.

    Example:
        >>> [left_out(step, 3, seed=0) for step in range(6)]
        [2, 0, 1, 1, 0, 2]
    """
    turn, place = divmod(step, members)
    generator = torch.Generator().manual_seed(derived_seed(seed, "left out", turn))
    return int(torch.randperm(members, generator=generator)[place])


def meta_over_networks(
    objective: Objective, sources: Sequence[Batches], seed: int
) -> tuple[LeftOutObjective, list[LeftOutBatches]]:
    """Return the objective and the batches of meta-train and meta-test.

    Args:
        objective: On an ensemble, with an :class:`~reidguard.objectives.EnsembleLoss`.
        sources: Batches of one dataset, or of two: those of meta-test are of the last.
        seed: Of the order in which surrogates are left out.
    """
    assert isinstance(objective, FeatureObjective)
    members = len(cast(EnsembleModel, objective.model).members)
    pair = ((sources[0], False), (sources[-1], True))
    batches = [LeftOutBatches(source, members, seed, alone) for source, alone in pair]
    return LeftOutObjective(objective), batches


@dataclass(frozen=True)
class LeftOutBatch(ReIDBatch):
    """A batch for some members of an ensemble.

    Args:
        members: Their positions in the ensemble.
    """

    members: tuple[int, ...] = ()


@dataclass(eq=False)
class LeftOutBatches:
    """Batches for all members of an ensemble but the one that the step leaves out, or for it alone.

    Args:
        source: Yields the batches.
        members: How many the ensemble has.
        seed: Of the order in which they are left out.
        alone: Whether the batches are for the member left out.
    """

    source: Batches
    members: int
    seed: int
    alone: bool

    def __len__(self) -> int:
        return len(self.source)

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Yield the batches of an epoch, from position ``start`` on."""
        first = number * len(self) + start
        for step, batch in enumerate(self.source.epoch(number, start), first):
            out = left_out(step, self.members, self.seed)
            rest = tuple(i for i in range(self.members) if i != out)
            yield LeftOutBatch(**vars(batch), members=(out,) if self.alone else rest)


class LeftOutObjective:
    """The objective on the members of an ensemble that a batch is for.

    Args:
        objective: On an ensemble, with an :class:`~reidguard.objectives.EnsembleLoss`.
    """

    def __init__(self, objective: FeatureObjective) -> None:
        self.objective = objective
        self.parts: dict[tuple[int, ...], FeatureObjective] = {}

    def __call__(self, attack: Callable[[Tensor], Tensor], batch: LeftOutBatch) -> Tensor:
        """Return the mean of the members' losses."""
        loss = cast(EnsembleLoss, self.objective.loss)
        features = None
        if batch.features is not None:
            features = loss.columns(batch.features, batch.members)
        return self._part(batch.members)(attack, replace(batch, features=features))

    def _part(self, members: tuple[int, ...]) -> FeatureObjective:
        if members not in self.parts:
            ensemble = cast(EnsembleModel, self.objective.model)
            model = EnsembleModel([cast(ReIDModel, ensemble.members[i]) for i in members])
            model.training = False
            loss = cast(EnsembleLoss, self.objective.loss).only(members)
            self.parts[members] = replace(self.objective, model=model, loss=loss)
        return self.parts[members]
