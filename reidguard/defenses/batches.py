"""Algorithm 2's batches: augmented images, and adversarial ones made of some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from reidguard.data import Augment, BatchLoader
from reidguard.distributed import World, gather, world
from reidguard.errors import InputError
from reidguard.input_spec import channel_values
from reidguard.objectives.defense import DefenseBatch
from reidguard.training.loop import derived_seed
from reidguard.types import BatchShard, ReIDBatch

__all__ = ["AdversarialBatches", "AlternatingBatches", "Choice", "Craft", "geometry"]

Craft = Callable[[ReIDBatch, Tensor, BatchShard | None], Tensor]
"""``craft(batch, chosen, shard) -> (len(chosen), 3, H, W)`` adversarial images of the chosen ones.

``shard`` says which of all images that the processes attack these are; None for one process.
"""


@dataclass(frozen=True)
class Choice:
    """The images of a batch that are attacked.

    Args:
        rows: (M,) their rows. A row may be there more than once.
        triplets: (T, 3) rows of the triplet loss, where it is not mined: rows from the number of
            clean images on are adversarial images, in the order of ``rows``. Rows t, T + t, 2T + t
            and so on of ``rows`` are then those of triplet t, which are perturbed together.
    """

    rows: Tensor
    triplets: Tensor | None = None


Choose = Callable[[Tensor, Tensor], Choice]
"""``choose(order, pids)``: the choice, given all rows in random order and their identities."""


def geometry(augment: Augment | None) -> Augment | None:
    """Return the part of an augmentation that comes before the attack: all but erasing."""
    return None if augment is None else replace(augment, erase=0.0)


@dataclass(eq=False)
class AdversarialBatches:
    """Adds adversarial images to a loader's batches. A function of seed, epoch and position.

    The order is crop and flip, attack, erasing: the attack sees images of [0, 1] pixels, and an
    adversarial image is erased where its clean one is. So it is in the ε-ball of an image that is
    in the batch.

    Which images are attacked is drawn once for the step, and the adversarial images are part of
    the batch: whatever passes a learner takes, all see the same.

    Args:
        loader: Gives images after :func:`geometry`.
        craft: Makes adversarial images. It is called when the batch is yielded and not before, so
            that the model it may use is that of this step.
        augment: Its erasing is applied here.
        fraction: Attacked fraction of each batch.
        clean: Whether the clean images stay in the batch.
        domain: Name of the classifier that the labels belong to.
        seed: Fixes choice and erasing, with ``role``.
        role: Distinguishes the draws of meta-train and meta-test.
        before: Called with the number of each step before its batch is made.
        choose: Chooses the images that are attacked; by default the fraction of them.
        replays: Steps that each batch of the loader is used for.
        statistics: Whether the batches may enter running statistics.
    """

    loader: BatchLoader
    craft: Craft
    _: KW_ONLY
    augment: Augment | None
    fraction: float
    clean: bool
    domain: str | None
    seed: int
    role: str
    before: Callable[[int], None] | None = None
    choose: Choose | None = None
    replays: int = 1
    statistics: bool = True

    def __len__(self) -> int:
        return len(self.loader) * self.replays

    def epoch(self, number: int, start: int = 0) -> Iterator[DefenseBatch]:
        """Yield the epoch's batches, from position ``start`` on."""
        step = number * len(self) + start
        for batch in self.loader.epoch(number, start // self.replays):
            for _ in range(step % self.replays, self.replays):
                if self.before is not None:
                    self.before(step)
                yield self._extended(batch, step // self.replays)
                step += 1

    def _choice(self, batch: ReIDBatch, generator: torch.Generator) -> Choice:
        number = len(batch) if batch.shard is None else batch.shard.total
        order = torch.randperm(number, generator=generator)
        if self.choose is None:
            return Choice(order[: round(self.fraction * number)].sort().values)
        return self.choose(order, gather(batch.pids, batch.shard).cpu())

    def _extended(self, batch: ReIDBatch, step: int) -> DefenseBatch:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.role, step))
        shard, source = batch.shard, batch
        choice = self._choice(batch, generator)
        attacked = choice.rows.to(batch.images.device, non_blocking=True)
        own = torch.arange(len(batch), device=attacked.device)
        chosen, new_shard = attacked, None
        if shard is not None and choice.triplets is not None:
            # The images of a triplet are perturbed together, whichever process has them.
            source, own = _joint(batch), shard.rows.to(attacked.device)
            new_shard = _whole_triplets(choice, world() or World(0, 1))
            chosen = attacked[new_shard.rows.to(attacked.device)]
        elif shard is not None:
            chosen, new_shard = shard.choose(attacked)
        rows = torch.cat([own, chosen] if self.clean else [chosen])
        with torch.no_grad():
            adversarial = [self.craft(source, chosen, new_shard)] if len(attacked) else []
            images = torch.cat([batch.images, *adversarial] if self.clean else adversarial)
            if self.augment is not None and self.augment.erase > 0:
                # Blank images show where it erases.
                ones = (1.0, 1.0, 1.0)
                eraser = replace(self.augment, flip=0.0, crop="none", erase_value=ones)
                blank = torch.zeros_like(source.images)
                holes = eraser(blank, generator, source.shard)[:, :1] > 0
                fill = channel_values(self.augment.erase_value, images)
                images = torch.where(holes[rows], fill, images)
        if shard is not None and new_shard is not None and self.clean:
            new_shard = shard.followed_by(new_shard)
        return DefenseBatch(
            images,
            source.pids[rows],
            source.camids[rows],
            source.indices[rows],
            domain=self.domain,
            adversarial=len(chosen),
            shard=new_shard,
            sources=attacked if self.clean else None,
            triplets=choice.triplets,
            statistics=self.statistics,
        )


def _joint(batch: ReIDBatch) -> ReIDBatch:
    """Return the joint batch of which this process has a shard; collective."""
    parts = (batch.images, batch.pids, batch.camids, batch.indices)
    images, pids, camids, indices = (gather(part, batch.shard) for part in parts)
    return ReIDBatch(images, pids, camids, indices)


def _whole_triplets(choice: Choice, processes: World) -> BatchShard:
    """Return the rows of a choice that this process attacks: those of its share of the triplets.

    Raises:
        InputError: If a process would have none.
    """
    assert choice.triplets is not None
    number, total = len(choice.triplets), len(choice.rows)
    if number < processes.size:
        raise InputError(
            f"{number} triplets cannot be divided among {processes.size} processes: take larger "
            "batches, a larger fraction adversarial, or fewer processes"
        )
    places = torch.arange(number).tensor_split(processes.size)[processes.rank]
    return BatchShard(torch.cat([places + k for k in range(0, total, number)]), total)


@dataclass(eq=False)
class AlternatingBatches:
    """Batches of several streams in turns, one a step.

    Args:
        streams: Each goes on where it was when its turn comes again.
    """

    streams: Sequence[AdversarialBatches]

    def __len__(self) -> int:
        return len(self.streams) * max(len(stream) for stream in self.streams)

    def epoch(self, number: int, start: int = 0) -> Iterator[DefenseBatch]:
        """Yield the epoch's batches, from position ``start`` on."""
        first = number * len(self) + start
        turns = len(self.streams)
        # How many batches of each stream came before.
        running = [
            _endless(s, (first - k + turns - 1) // turns) for k, s in enumerate(self.streams)
        ]
        for step in range(first, (number + 1) * len(self)):
            yield next(running[step % turns])


def _endless(stream: AdversarialBatches, position: int) -> Iterator[DefenseBatch]:
    number, start = divmod(position, len(stream))
    while True:
        yield from stream.epoch(number, start)
        number, start = number + 1, 0
