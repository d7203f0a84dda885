"""Defenses by adversarial triplets: anti-collapse triplets (ACT), hardness manipulation (HM)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from reidguard.attacks import SMA, Attack, GradientAttack
from reidguard.attacks.instance.base import Objective, Target, squared_distance
from reidguard.defenses.base import DEFENSES
from reidguard.defenses.batches import Choice, Choose
from reidguard.defenses.crafting import ShardedAttack
from reidguard.defenses.training import AdversarialTraining
from reidguard.distributed import gather
from reidguard.errors import InputError
from reidguard.nn.gradients import count_gradients
from reidguard.objectives.triplets import hardness
from reidguard.schema import checked
from reidguard.types import BatchShard, Budget

__all__ = ["ACT", "HM", "CollapsePairs", "RaiseHardness"]


class CollapsePairs(GradientAttack):
    """Pulls the two images of each pair together in the feature space (Zhou et al.).

    Minimises ``‖φ(p̃) − φ(ñ)‖²`` over both images of each pair by PGD, from a random start: the
    inner problem of anti-collapse triplets. Unlike that of other instance attacks, the result of an
    image depends on its partner: a call takes all positives, followed by all negatives.

    Args:
        budget: The L∞ ball; 8/255 by default.
        steps: Iterations.
        step_size: Length of a step in [0, 1] pixel units.
        seed: Fixes the starts, with the content of the images.

    Example:
        >>> CollapsePairs(steps=4).steps
        4
    """

    roles: ClassVar[int] = 2

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        steps: int = 7,
        step_size: float = 2 / 255,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, steps=steps, step_size=step_size, seed=seed)

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return minus the squared distance of each image to its partner."""
        _check_roles(self, len(clean), self.roles)

        def apart(features: Tensor) -> Tensor:
            positives, negatives = features.chunk(2)
            return -squared_distance(positives, negatives).repeat(2)

        return apart


class RaiseHardness(GradientAttack, ShardedAttack):
    """Raises the hardness of triplets up to a given one (Zhou & Patel, CVPR 2022).

    Minimises ``max(0, H_D − H)²`` over all three images by PGD, from a random start, where the
    hardness is ``H = ‖φ(ã) − φ(p̃)‖ − ‖φ(ã) − φ(ñ)‖`` of features as the model compares them. A call
    takes all anchors, followed by all positives and all negatives.

    Args:
        budget: The L∞ ball; 8/255 by default.
        hardness: H_D, up to which triplets are made harder. None is the gradual adversary:
            ``−min(m, ℓ)`` with the triplet loss ℓ of these triplets before the attack, so that
            triplets become harder as the model learns. (The paper takes ℓ of the last step's
            batch.)
        margin: m.
        steps: Iterations.
        step_size: Length of a step in [0, 1] pixel units.
        seed: Fixes the starts, with the content of the images.

    Example:
        >>> RaiseHardness(hardness=0.0, steps=4).hardness
        0.0
    """

    roles: ClassVar[int] = 3

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        hardness: float | None = None,
        margin: float = 0.5,
        steps: int = 7,
        step_size: float = 2 / 255,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, steps=steps, step_size=step_size, seed=seed)
        self.hardness = hardness
        if hardness is not None:
            self.hardness = checked(float, "hardness", hardness, low=-1e6, high=1e6)
        self.margin = checked(float, "margin", margin, low=0, high=1e6)

    def search(self, x: Tensor, clean: Tensor, target: Target) -> Tensor:
        """Run PGD. A triplet that is hard enough needs no gradient, so none are counted."""
        with _uncounted():
            return self._search(x, self.objective(clean, target), target)

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return minus the squared lack of hardness of each image's triplet."""
        _check_roles(self, len(clean), self.roles)
        before = (hardness(*clean.chunk(3)) + self.margin).clamp(min=0)
        if self.shard is not None:  # the triplets of the other processes, too
            number, rows = self.shard.total // self.roles, self.shard.rows[: len(before)]
            before = gather(before, BatchShard(rows, number))
        gradual = -before.mean().clamp(max=self.margin)
        aim = gradual if self.hardness is None else torch.full_like(gradual, self.hardness)

        def lack(features: Tensor) -> Tensor:
            missing = (aim - hardness(*features.chunk(3))).clamp(min=0)
            return -missing.square().repeat(3)

        return lack


@contextmanager
def _uncounted() -> Iterator[None]:
    """Leave the gradients inside out of an outer count."""
    with count_gradients() as count:
        try:
            yield
        finally:
            count.pending.clear()


def _check_roles(attack: Attack, images: int, roles: int) -> None:
    if images % roles:
        raise InputError(
            f"{type(attack).__name__} takes images in groups of {roles}, not {images} images"
        )


def draw_triplets(order: Tensor, pids: Tensor, count: int) -> Tensor:
    """Return (T, 3) rows: the first images of a random order, each with a positive and a negative.

    Those are the next image of its identity in the order, and the next one of another, going round.

    Args:
        order: (N,) a permutation of all rows.
        pids: (N,) identities by row.
        count: Triplets at most; an image that lacks a positive or a negative is left out.

    Raises:
        InputError: If no triplet is left.
    """
    rows, labels = order.tolist(), pids.tolist()
    triplets = []
    for i, anchor in enumerate(rows[:count]):
        others = rows[i + 1 :] + rows[:i]
        positive = next((row for row in others if labels[row] == labels[anchor]), None)
        negative = next((row for row in others if labels[row] != labels[anchor]), None)
        if positive is not None and negative is not None:
            triplets.append((anchor, positive, negative))
    if not triplets:
        raise InputError(
            "no image of the batch has another image of its identity and one of another; sample "
            "P identities × K images with P, K ≥ 2, and a fraction adversarial above 0"
        )
    return torch.tensor(triplets)


class _TripletTraining(AdversarialTraining):
    """Adversarial training whose attack perturbs the images of triplets together.

    Several processes divide the triplets of a joint batch, and exchange its images for that.
    """

    anchors: ClassVar[bool]
    """Whether anchors are perturbed, too."""

    def choose(self) -> Choose:
        """Return what draws a batch's triplets."""

        def chosen(order: Tensor, pids: Tensor) -> Choice:
            triplets = draw_triplets(order, pids, round(self.adversarial * len(order)))
            number, first = len(triplets), len(order) if self.clean else 0
            roles = range(0 if self.anchors else 1, 3)
            places = torch.arange(number)
            columns = [first + k * number + places for k in range(len(roles))]
            if not self.anchors:
                columns = [triplets[:, 0], *columns]
            return Choice(torch.cat([triplets[:, role] for role in roles]), torch.stack(columns, 1))

        return chosen

    def test_attack(self) -> Attack:
        """Return SMA with the same budget: the attack of the training needs triplets."""
        return SMA(self.attack.budget)


@DEFENSES.register("act")
@dataclass(frozen=True, eq=False)
class ACT(_TripletTraining):
    """Anti-collapse triplets (Zhou et al., "Adversarial Attack and Defense in Deep Ranking").

    Each step draws triplets (a, p, n) from the batch, one for a fraction ``adversarial`` of its
    images. :class:`CollapsePairs` pulls p and n together, and the triplet loss of (a, p̃, ñ) parts
    them again; a stays clean. The cross-entropy is that of all clean and adversarial images. See
    :class:`AdversarialTraining` for the other arguments.

    Example:
        >>> ACT().attack.steps
        7
    """

    attack: Attack = field(default_factory=CollapsePairs)

    anchors: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attack(self, CollapsePairs)
        if not self.clean:
            raise InputError("act has clean anchors: leave clean=True")


@DEFENSES.register("hm")
@dataclass(frozen=True, eq=False)
class HM(_TripletTraining):
    """Hardness manipulation (Zhou & Patel, CVPR 2022).

    Each step draws triplets from the batch, as :class:`ACT` does. :class:`RaiseHardness` perturbs
    all three images until the triplet is as hard as its ``hardness`` says, by default that of the
    gradual adversary, and the losses are those of the adversarial images alone. See
    :class:`AdversarialTraining` for the other arguments.

    Example:
        >>> HM(RaiseHardness(hardness=-0.1)).clean
        False
    """

    attack: Attack = field(default_factory=RaiseHardness)
    _: KW_ONLY
    clean: bool = False

    anchors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_attack(self, RaiseHardness)


def _check_attack(defense: AdversarialTraining, kind: type[Attack]) -> None:
    if not isinstance(defense.attack, kind) or defense.adversarial == 0:
        raise InputError(
            f"{type(defense).__name__} needs a {kind.__name__}, which perturbs triplets, and a "
            f"fraction adversarial above 0, not {type(defense.attack).__name__} and "
            f"{defense.adversarial}"
        )
