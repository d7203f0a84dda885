"""The attack that the options of ``reidguard attack`` describe, checked before anything slow."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

import torch

from reidguard.attacks import (
    ATTACKS,
    Attack,
    ColorAttack,
    InstanceAttack,
    LearnedAttack,
    create_attack,
    load_attack,
)
from reidguard.cli.options import Options, pathname
from reidguard.cli.session import build, file_digest
from reidguard.errors import InputError
from reidguard.evaluation import LPIPS
from reidguard.learners import LEARNERS, MetaLearner
from reidguard.objectives import ATTACK_LOSSES
from reidguard.options import AttackOptions, EvaluateOptions
from reidguard.schema import resolve, settings
from reidguard.storage import weights_fingerprint
from reidguard.types import Budget

__all__ = ["AttackPlan", "color_table"]

# Options of learning that are also of the evaluation.
SHARED = ("image_size",)


@dataclass(frozen=True)
class AttackPlan:
    """An attack and what to do with it.

    Attributes:
        attack: New, or loaded from a file.
        fit: Options of its :meth:`fit`; None where nothing is learnt.
        settings: Which attack it is, how it learns and how it is evaluated, as JSON values.
        lpips: Measures LPIPS, too.
    """

    attack: Attack
    fit: dict[str, Any] | None
    settings: dict[str, Any]
    lpips: LPIPS | None

    @classmethod
    def of(cls, options: Options, learning: tuple[str, ...]) -> AttackPlan:
        """Build the attack and its learner.

        Args:
            options: Of the command.
            learning: Names of the options that only concern learning.

        Raises:
            InputError: If options do not fit the attack or each other.
        """
        attack = load_attack(options.load) if options.load else _create(options)
        learns = isinstance(attack, LearnedAttack) and not options.load
        _check(options, attack, learns, learning)
        own = settings(EvaluateOptions, options.of(EvaluateOptions))
        lpips, fit = None, None
        if options.lpips is not None:
            lpips = LPIPS(*map(pathname, options.lpips.split(":", 1)))
            own["lpips"] = weights_fingerprint(lpips)
        if options.load:
            own["attack"] = file_digest(options.load)
        else:
            own |= {"attack": options.attack, "set": attack.config()}
        if isinstance(attack, LearnedAttack) and learns:
            learner = _learner(options, attack)
            fit = options.of(AttackOptions, explicit=True)
            if options.objective is not None:
                ATTACK_LOSSES.get(options.objective)
                fit["objective"] = options.objective
            own["recipe"] = settings(AttackOptions, resolve(AttackOptions, fit))
            own["learner"] = {"name": LEARNERS.name_of(type(learner)), **learner.config()}
            fit["learner"] = learner
        return cls(attack, fit, own, lpips)


def _check(options: Options, attack: Attack, learns: bool, learning: tuple[str, ...]) -> None:
    """Refuse options that this attack has no use for."""
    by_image, name = isinstance(attack, InstanceAttack), type(attack).__name__
    if options.load:
        _refuse(
            options,
            ("attack", "set", "eps", *learning),
            "--load applies a saved attack as it is: leave out {flags}, or leave out --load to "
            "learn one",
        )
        if options.surrogate is not None and not by_image:
            raise InputError(f"{name} is already learnt, so it needs no --surrogate: leave it out")
    elif by_image:
        _refuse(
            options,
            learning,
            f"{options.attack} is an instance attack and learns nothing: leave out {{flags}}; its "
            "own options go into --set, such as --set steps=15 or --set seed=1",
        )
    elif not learns:
        raise InputError(f"{name} is neither a learned nor an instance attack: call it in Python")
    if not learns and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("nothing is learnt here, so one process is enough: call without torchrun")
    if options.with_labels and not (isinstance(attack, InstanceAttack) and attack.needs_guides):
        raise InputError(f"{name} does not use the identities: leave --with-labels out")
    if options.cube is not None:
        color_table(attack)


def _refuse(options: Options, names: tuple[str, ...], message: str) -> None:
    needless = [n for n in dict.fromkeys(names) if n in options.explicit and n not in SHARED]
    if needless:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in needless)
        raise InputError(message.format(flags=flags))


def _create(options: Options) -> Attack:
    if taken := {"budget", "eps"} & options.set.keys():
        raise InputError(f"{taken.pop()} is no --set option: write --eps 8/255")
    arguments = dict(options.set)
    # What is added pixel by pixel has the images' size, unless the user says otherwise.
    if "size" in inspect.signature(ATTACKS.get(options.attack)).parameters:
        arguments.setdefault("size", options.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        budget = Budget(options.eps)
        return build("--set", create_attack, options.attack, budget=budget, **arguments)


def _learner(options: Options, attack: LearnedAttack) -> MetaLearner:
    """Build the learner of ``--learner`` and ``--learner-set``, or the attack's own."""
    defaults = attack.fit_defaults
    name = options.learner or defaults.learner
    arguments = dict(defaults.learner_options) if name == defaults.learner else {}
    arguments |= options.learner_set
    learner = build("--learner-set", LEARNERS.create, name, **arguments)
    if learner.needs_meta_test and options.meta_data is None:
        raise InputError(
            f"learner {name!r} needs a second dataset: give it with --meta-data NAME:PATH "
            "(virtual:plaza needs no files), or take --learner plain"
        )
    return learner


def color_table(attack: Attack) -> ColorAttack:
    """Return the part of an attack that has a colour table.

    Raises:
        InputError: If it has none.
    """
    for part in attack.modules():
        if isinstance(part, ColorAttack):
            return part
    raise InputError(f"{type(attack).__name__} has no colour table to write: leave --cube out")
