"""Algorithm 2's batches: augmented images, and adversarial ones made of some of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from reidguard.data import Augment, BatchLoader
from reidguard.objectives.defense import DefenseBatch
from reidguard.types import ReIDBatch

__all__ = ["AdversarialBatches", "Craft", "draw", "geometry"]

Craft = Callable[[ReIDBatch, Tensor], Tensor]
"""``craft(batch, chosen) -> (len(chosen), 3, H, W)`` adversarial images of the chosen ones."""


def geometry(augment: Augment | None) -> Augment | None:
    """Return the part of an augmentation that comes before the attack: all but erasing."""
    return None if augment is None else replace(augment, erase=0.0)


def draw(*key: object) -> int:
    """Return a seed for whatever the key names."""
    text = "/".join(map(str, key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


class AdversarialBatches:
    """Adds adversarial images to a loader's batches. A function of seed, epoch and position.

    The order is crop and flip, attack, erasing: the attack sees images of [0, 1] pixels, and an
    adversarial image is erased where its clean one is. So it is in the ε-ball of an image that is
    in the batch.

    Which images are attacked is drawn once for the step, and the adversarial images are part of
    the batch: whatever passes a learner takes, all see the same.

    Args:
        loader: Gives images after :func:`geometry`.
        craft: Makes adversarial images, when the batch is asked for and not before: the model that
            it may use is that of this step.
        augment: Whose erasing is done here.
        share: Attacked share of each batch.
        clean: Whether the clean images stay in the batch.
        domain: Whose classifier the labels belong to.
        seed: Fixes choice and erasing, with ``role``.
        role: Tells the draws of meta-train and meta-test apart.
        before: Called with the number of each step before its batch is made.
    """

    def __init__(
        self,
        loader: BatchLoader,
        craft: Craft,
        *,
        augment: Augment | None,
        share: float,
        clean: bool,
        domain: str | None,
        seed: int,
        role: str,
        before: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.loader = loader
        self.craft = craft
        self.share = share
        self.clean = clean
        self.domain = domain
        self.seed = seed
        self.role = role
        self.before = before
        self.fill = None if augment is None or augment.erase == 0 else augment.erase_value
        self._eraser: Augment | None = None
        if augment is not None:
            self._eraser = replace(augment, flip=0.0, crop="none", erase_value=(1.0, 1.0, 1.0))

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, number: int, start: int = 0) -> Iterator[DefenseBatch]:
        """Yield the epoch's batches, from position ``start`` on."""
        step = number * len(self) + start
        for batch in self.loader.epoch(number, start):
            self.before(step)
            yield self._extended(batch, step)
            step += 1

    def _extended(self, batch: ReIDBatch, step: int) -> DefenseBatch:
        generator = torch.Generator().manual_seed(draw(self.seed, self.role, step))
        whole = batch.shard
        number = len(batch) if whole is None else whole.total
        order = torch.randperm(number, generator=generator)
        attacked = order[: round(self.share * number)].sort().values.to(batch.images.device)
        chosen, made_share = (attacked, None) if whole is None else whole.choose(attacked)
        if whole is not None and made_share is not None:
            made_share = whole.followed_by(made_share) if self.clean else made_share
        parts = [torch.arange(len(batch), device=chosen.device)] if self.clean else []
        rows = torch.cat([*parts, chosen])
        with torch.no_grad():
            made = [self.craft(batch, chosen)] if len(attacked) else []
            images = torch.cat([batch.images, *made] if self.clean else made)
            if self.fill is not None and self._eraser is not None:
                # Blank images show where it erases.
                blank = self._eraser(torch.zeros_like(batch.images), generator, whole)
                holes = blank[:, :1] > 0
                fill = images.new_tensor(self.fill).view(3, 1, 1)
                images = torch.where(holes[rows], fill, images)
        return DefenseBatch(
            images,
            batch.pids[rows],
            batch.camids[rows],
            batch.indices[rows],
            domain=self.domain,
            adversarial=len(chosen),
            shard=made_share,
        )
