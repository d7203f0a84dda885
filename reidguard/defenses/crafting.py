"""Crafting the adversarial images of a defense: preparing, binding and relearning its attack."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from reidguard.attacks import ATTACKS, Attack, Guides, InstanceAttack, LearnedAttack
from reidguard.attacks.learned import check_same_device
from reidguard.contexts import seeded
from reidguard.data import ReIDDataset
from reidguard.distributed import gather
from reidguard.errors import InputError, RegistryError
from reidguard.fingerprint import fingerprint, weights_fingerprint
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn.batch_norm import sync_layers, without_memory
from reidguard.nn.cameras import with_cameras
from reidguard.nn.modes import inference_view, shared_copy
from reidguard.registry import Registry
from reidguard.types import BatchShard, Budget, Embedder, ReIDBatch

__all__ = [
    "AttackMode",
    "Crafter",
    "ShardedAttack",
    "attack_provenance",
    "is_bound",
    "registered_name",
]

AttackMode = Literal["eval", "train"]
A = TypeVar("A", bound=Attack)


class ShardedAttack(Attack):
    """Base of attacks for which it matters which images of a joint batch a process attacks.

    Attributes:
        shard: Which of all attacked images those of the next call are; None if they are all.

    Example:
        >>> from reidguard.defenses import FreePerturbation
        >>> issubclass(FreePerturbation, ShardedAttack), FreePerturbation().shard
        (True, None)
    """

    shard: BatchShard | None = None


class Crafter:
    """Makes adversarial images of a batch by an attack, on the model in training.

    Args:
        attack: One with parameters is copied and frozen; an instance attack that is not bound is
            bound to the model in every step, with the clean images of the batch as its guides.
        model: The model, in the state of the current step.
        mode: Mode of the model during an instance attack.

    Attributes:
        scale: Of the budget, in (0, 1]: the images are within that fraction of the attack's ε.

    Raises:
        InputError: If a learned attack is on another device, or has learnt nothing.
    """

    def __init__(self, attack: Attack, model: ReIDModel, mode: AttackMode) -> None:
        check_same_device(attack, model)
        fresh = isinstance(attack, LearnedAttack) and not any(
            bool(p.detach().any()) for p in attack.parameters()
        )
        if fresh:
            raise InputError(
                f"{type(attack).__name__} has learnt nothing yet, so its images are the clean "
                "ones: call attack.fit(model, dataset) first, or take one from load_attack(file)"
            )
        if not isinstance(attack, InstanceAttack):
            attack = copy.deepcopy(attack).requires_grad_(False).eval()
        self.attack = attack
        self.model = model
        self.mode = mode
        self.scale = 1.0

    def __call__(self, batch: ReIDBatch, chosen: Tensor, shard: BatchShard | None = None) -> Tensor:
        """Return adversarial images of the chosen rows of a batch, (len(chosen), 3, H, W).

        Args:
            batch: The images of this process, or more of the joint batch.
            chosen: (n,) rows of it.
            shard: Which of the images that all processes attack these are.
        """
        attack, images = self.attack, batch.images[chosen]
        if isinstance(attack, ShardedAttack):
            attack = _copied(attack)
            attack.shard = shard
        if not isinstance(attack, InstanceAttack):
            adversarial: Tensor = attack(images)
            if self.scale == 1:
                return adversarial
            return scaled_budget(attack, self.scale).project(adversarial, images)
        if self.scale < 1:
            attack = _shrunk(attack, self.scale)
        cameras = batch.camids[chosen]
        if is_bound(attack):
            return attack.with_cameras(cameras)(images)
        if self.mode == "train":
            model = shared_copy(self.model)
            # No module, of which the attack would take an inference view.
            names = ("features", "metric", "cameras")
            target = cast(Embedder, SimpleNamespace(**{n: getattr(model, n) for n in names}))
        else:
            target = model = inference_view(self.model, fold=False)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        train = self.mode == "train"

        def still() -> AbstractContextManager[None]:
            """Keep running statistics; used inside sync_layers, not around it."""
            return without_memory(model) if train else nullcontext()

        with seeded(0, device) if train else nullcontext():
            if attack.needs_guides:
                with torch.no_grad(), sync_layers(batch.shard), still():
                    seen = with_cameras(target, batch.camids)
                    features = gather(seen.features(batch.images), batch.shard)
                # Identity 0 would mark distractors.
                guides = Guides(features, gather(batch.pids, batch.shard) + 1)
                bound = attack.bind(target, guides).with_labels(batch.pids[chosen] + 1)
            else:
                bound = attack.bind(target)
            with sync_layers(shard), still():
                return bound.with_cameras(cameras)(images)

    def refresh(self, dataset: ReIDDataset, **options: Any) -> None:
        """Relearn the attack against the model, with the learner "plain"."""
        try:
            self.attack.requires_grad_(True)
            cast(LearnedAttack, self.attack).fit(self.model, dataset, learner="plain", **options)
        finally:
            self.attack.requires_grad_(False)
            self.attack.zero_grad(set_to_none=True)


def scaled_budget(attack: Attack, scale: float) -> Budget:
    """Return a fraction of an attack's budget."""
    return Budget(scale * attack.budget.eps)


def _shrunk(attack: InstanceAttack, scale: float) -> InstanceAttack:
    """Return an attack with a fraction of its budget, in steps of the same fraction."""
    smaller = _copied(attack)
    smaller.budget = scaled_budget(attack, scale)
    length = getattr(attack, "step_size", None)
    if length is not None:
        smaller.step_size = scale * length
    return smaller


def _copied(attack: A) -> A:
    """Return a copy of an attack that shares its parameters and is bound as it is."""
    twin = copy.copy(attack)
    if isinstance(twin, InstanceAttack) and isinstance(attack, InstanceAttack):
        twin._target = attack._target  # which a copy leaves out
    return twin


def is_bound(attack: Attack) -> bool:
    """Return whether an instance attack is bound to a model."""
    return getattr(attack, "_target", None) is not None


def attack_provenance(attack: Attack) -> dict[str, Any]:
    """Return what identifies an attack, as JSON values."""
    facts: dict[str, Any] = {
        "class": registered_name(ATTACKS, type(attack)),
        "config": attack.config(),
        "weights": weights_fingerprint(attack),
    }
    if is_bound(attack):
        target = cast(InstanceAttack, attack).target.model
        facts["target"] = fingerprint(model_key(target)) if isinstance(target, nn.Module) else None
    return facts


def registered_name(registry: Registry[Any], cls: type) -> str:
    """Return a class's registered name, or its own name if it has none."""
    try:
        return registry.name_of(cls)
    except RegistryError:
        return cls.__qualname__
