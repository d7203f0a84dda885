"""Checks of a defense's options, and what they name: its learner and its datasets."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from reidguard.attacks import Attack, LearnedAttack
from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.learners import LEARNERS, MetaLearner
from reidguard.learners.bilevel import BilevelLearner
from reidguard.schema import checked

if TYPE_CHECKING:
    from reidguard.defenses.training import AdversarialTraining

__all__ = ["built_learner", "check_options", "dataset_facts", "datasets_of"]


def check_options(defense: AdversarialTraining) -> None:
    """Refuse options of adversarial training that are out of range or exclude each other.

    Raises:
        InputError: Naming the option and the cure.
    """
    learner = defense.make_learner()
    if not isinstance(defense.attack, Attack):
        raise InputError(
            f"attack must be an Attack, not {defense.attack!r}: load_attack(file), or SMA()"
        )
    checked(float, "adversarial", defense.adversarial, low=0, high=1)
    checked(bool, "clean", defense.clean)
    if defense.inner_lr is not None:
        checked(float, "inner_lr", defense.inner_lr, above=0, high=1e6)
    checked(int, "refresh_steps", defense.refresh_steps, low=1, high=10**9)
    checked(float, "warmup", defense.warmup, low=0, high=1)
    checked(float, "awp", defense.awp, low=0, high=1)
    checked(int, "replays", defense.replays, low=1, high=1000)
    checked(bool, "alternate", defense.alternate)
    if defense.attack_mode not in ("eval", "train"):
        raise InputError(f"attack_mode must be 'eval' or 'train', not {defense.attack_mode!r}")
    if not defense.clean and (defense.adversarial == 0 or defense.batch_norm != "shared"):
        raise InputError(
            "without clean images there must be adversarial ones, and batch_norm='shared'"
        )
    if defense.regularizer is not None and not (defense.clean and defense.adversarial > 0):
        raise InputError(
            "a regularizer compares clean and adversarial images: clean=True and a fraction "
            "adversarial above 0"
        )
    if defense.alternate and learner.needs_meta_test:
        raise InputError(
            "alternate takes the datasets in turns: take the learner 'plain', or leave alternate "
            "out"
        )
    if defense.refresh_every is not None:
        if not isinstance(defense.attack, LearnedAttack):
            raise InputError(
                f"{type(defense.attack).__name__} has nothing to relearn: leave refresh_every out "
                "(an instance attack that is not bound follows the model anyway)"
            )
        checked(int, "refresh_every", defense.refresh_every, low=1, high=10**6)


def built_learner(learner: MetaLearner | str, inner: str, inner_lr: float | None) -> MetaLearner:
    """Return a learner, built with the inner step if it is a registered name.

    Raises:
        InputError: If ``inner_lr`` is given and the learner has no inner step.
    """
    if not isinstance(learner, str):
        return learner
    factory = LEARNERS.get(learner)
    # A subclass of BilevelLearner may pass ``inner`` on without naming it.
    bilevel = isinstance(factory, type) and issubclass(factory, BilevelLearner)
    if bilevel or "inner" in inspect.signature(factory).parameters:
        return factory(inner=inner, inner_lr=inner_lr)
    if inner_lr is not None:
        raise InputError(f"the learner {learner!r} has no inner step: leave inner_lr out")
    return factory()


def datasets_of(
    learner: MetaLearner,
    alternate: bool,
    meta_train: ReIDDataset,
    meta_test: ReIDDataset | None,
) -> list[ReIDDataset]:
    """Return the datasets that are trained on.

    Raises:
        InputError: If the second one is missing or needless.
    """
    name = LEARNERS.name_of(type(learner))
    if alternate and meta_test is None:
        raise InputError("alternate needs a second dataset: pass meta_test=, or leave it out")
    if learner.needs_meta_test and meta_test is None:
        raise InputError(
            f"the learner {name!r} needs a second dataset: pass meta_test=, or take the learner "
            "'plain' (AdversarialTraining)"
        )
    if meta_test is None:
        return [meta_train]
    if not learner.needs_meta_test and not alternate:
        raise InputError(
            f"the learner {name!r} uses no second dataset: leave meta_test out, or take 'joint' "
            "(MixedTraining) or 'maml' (MetaDefense), or alternate=True"
        )
    return [meta_train, meta_test]


def dataset_facts(dataset: ReIDDataset) -> dict[str, str]:
    """Return what identifies the training images of a dataset."""
    return {"name": dataset.name, "fingerprint": dataset.fingerprint("train")}
