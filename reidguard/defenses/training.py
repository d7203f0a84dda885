"""Adversarial training and its meta-learning form, MetaDefense: one class, a few presets."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from reidguard.attacks import ATTACKS, Attack, Guides, InstanceAttack, LearnedAttack
from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.defenses.base import DEFENSES, Defense
from reidguard.defenses.batches import AdversarialBatches, draw, geometry
from reidguard.defenses.goat import GuideSampling
from reidguard.defenses.heads import domains_of, with_classifiers
from reidguard.distributed import gather, part_of, world
from reidguard.errors import InputError, RegistryError, TrainingError
from reidguard.learners import LEARNERS, MetaLearner
from reidguard.learners.bilevel import BilevelLearner
from reidguard.models import ReIDModel
from reidguard.nn.batch_norm import sync_layers, without_memory
from reidguard.nn.modes import inference_view, shared_copy
from reidguard.objectives.defense import BatchNormPolicy, DefenseObjective
from reidguard.objectives.reid import Loss, Reduction
from reidguard.storage import weights_fingerprint
from reidguard.training import ProgressCallback, learn
from reidguard.training.recipe import EPOCHS, FLAT
from reidguard.training.recompute import recomputing
from reidguard.types import Embedder, ReIDBatch

__all__ = ["GOAT", "AdversarialTraining", "MetaDefense", "MixedTraining", "ReleasedMetaDefense"]


@DEFENSES.register("adversarial")
@dataclass(frozen=True, eq=False)
class AdversarialTraining(Defense):
    """Learning on clean and adversarial images together: Table 17's No. 1, and base of the others.

    Every batch holds P identities × K clean images and the adversarial images that an attack makes
    of a random half. The loss is triplet and cross-entropy over all of them (Eq. 12), the
    optimiser Adam. With a learner that uses a second domain, its batches are made likewise.

    What the attack is decides against what the model hardens:

    - A learnt :class:`~reidguard.attacks.UniversalAttack` is frozen: M(Color), M(Delta),
      M(Col.+Del.).
    - An instance attack such as ``SMA()`` works on the model *as it hardens*: M(SMA). Against a
      frozen model the images would soon be harmless, and the defense would learn that one model's
      weakness. Where that is meant, pass ``SMA().bind(normal_model)``. An attack that needs guides
      and is not bound gets the clean images of the batch.

    Args:
        attack: Makes the adversarial images. It is only read.
        learner: A learner or its registered name.
        inner: The inner step of learners that have one and are given by name: "sgd" is
            Algorithm 2's ``w' = w − α∇L``; "scaled", "sign".
        inner_lr: α; by default the outer learning rate of the moment, as in Algorithm 2. What it
            does depends on ``reduction``.
        adversarial: Attacked share of the batch, N_adv / N_b; the paper attacks half.
        clean: Whether the clean images stay in the batch.
        losses: Of "triplet" and "identity" (cross-entropy), Table 18.
        margin: Of the triplet loss.
        reduction: "mean" over the images, or "sum" as Eq. 12 has it. Adam hardly sees a
            difference, the inner step does: with the sum it is as many times longer as there are
            images, and with the paper's α overshoots (see ``docs/defenses.rst``).
        batch_norm: "shared" or "separate" statistics of clean and adversarial images; see
            :class:`~reidguard.objectives.defense.DefenseObjective`.
        attack_mode: Mode of the model while an instance attack works on it, if it is not bound:
            "eval" as in a test, or "train" with the statistics of the batch. Neither moves any
            running statistics.
        refresh_every: Relearn the attack against the model as it hardens, every so many epochs,
            starting from its parameters then. None keeps it.
        refresh_steps: Steps of each relearning, with the learner "plain".

    Example:
        >>> from reidguard.attacks import SMA
        >>> AdversarialTraining(SMA(), losses=("triplet",)).config()["losses"]
        ['triplet']
        >>> robust = AdversarialTraining(attack).fit(model, data)  # doctest: +SKIP
    """

    attack: Attack
    _: KW_ONLY
    learner: MetaLearner | str = "plain"
    inner: str = "sgd"
    inner_lr: float | None = None
    adversarial: float = 0.5
    clean: bool = True
    losses: tuple[Loss, ...] = ("triplet", "identity")
    margin: float = 0.5
    reduction: Reduction = "mean"
    batch_norm: BatchNormPolicy = "shared"
    attack_mode: Literal["eval", "train"] = "eval"
    refresh_every: int | None = None
    refresh_steps: int = 20

    default_lr: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        if isinstance(self.losses, str | list):  # from a command line
            names = [self.losses] if isinstance(self.losses, str) else self.losses
            object.__setattr__(self, "losses", tuple(names))
        self._objective()
        self._made_learner()
        if not isinstance(self.attack, Attack):
            raise InputError(
                f"attack must be an Attack, not {self.attack!r}: load_attack(file), or SMA()"
            )
        if not 0 <= self.adversarial <= 1:
            raise InputError(
                f"adversarial is the attacked share of a batch, in [0, 1], not {self.adversarial}; "
                "half of 64 images is adversarial=0.5"
            )
        if not self.clean and (self.adversarial == 0 or self.batch_norm == "separate"):
            raise InputError(
                "without clean images there must be adversarial ones, and batch_norm='shared'"
            )
        if self.attack_mode not in ("eval", "train"):
            raise InputError(f"attack_mode must be 'eval' or 'train', not {self.attack_mode!r}")
        if self.refresh_every is not None:
            if not isinstance(self.attack, LearnedAttack):
                raise InputError(
                    f"{type(self.attack).__name__} has nothing to relearn: leave refresh_every out "
                    "(an instance attack that is not bound follows the model anyway)"
                )
            if self.refresh_every < 1 or self.refresh_steps < 1:
                raise InputError("refresh_every (epochs) and refresh_steps must be at least 1")

    @property
    def needs_meta_test(self) -> bool:
        """Whether :meth:`fit` must be given a second dataset."""
        return self._made_learner().needs_meta_test

    def config(self) -> dict[str, Any]:
        """Return all settings, and what identifies the attack, as JSON values."""
        learner = self._made_learner()
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **plain,
            "losses": list(self.losses),
            "attack": _attack_facts(self.attack),
            "learner": LEARNERS.name_of(type(learner)),
            "learner_options": learner.config(),
        }

    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        *,
        epochs: int = EPOCHS,
        steps: int | None = None,
        lr: float | None = None,
        weight_decay: float = 5e-4,
        identities: int = 8,
        images_per_identity: int = 8,
        augment: Augment | None = Augment(),  # noqa: B008 (frozen: nothing can change it)
        image_size: tuple[int, int] = (256, 128),
        seed: int = 0,
        recompute: bool = False,
        checkpoint: Path | str | None = None,
        checkpoint_every: int = 50,
        progress: ProgressCallback | None = None,
    ) -> ReIDModel:
        """Learn a robust model on training images (Algorithm 2).

        Crops and flips come before the attack, which sees [0, 1] pixels, and erasing after it, at
        the same place in a clean image and its adversarial one: so that one stays within the ε-ball
        of the other. The learning rate stays flat for the first 40/85 of the epochs and then falls
        tenfold in as many epochs again, as in :func:`~reidguard.training.train_model`.

        Args:
            model: Where learning starts, usually the normal model. It is only read. Its classifier
                is kept where it knows these identities; the others are new.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for learners that use one.
            epochs: Passes over the images; an epoch ends when both sets are enumerated.
            steps: Steps in all, in place of ``epochs``.
            lr: Adam's learning rate at the start; 3e-4 by default (2e-4 in the released preset).
            weight_decay: Of Adam.
            identities: Identities in a batch.
            images_per_identity: Images of each.
            augment: What happens to each batch; None leaves the images as they are.
            image_size: Height and width that images are resized to before the attack.
            seed: Fixes batches, augmentation, attacked images, dropout and new classifiers.
            recompute: Take less memory, and one more forward pass for each with gradients, by
                :func:`~reidguard.training.recompute.recomputing`; not with ``maml``.
            checkpoint: File from which an interrupted run resumes, bit for bit. A refreshed attack
                is in it, too.
            checkpoint_every: Steps between two writes of that file.
            progress: Called with a :class:`~reidguard.training.Progress` after every step.

        Returns:
            A new model in eval mode, on the device of ``model``; its ``provenance`` say how it
            was learnt.

        Raises:
            InputError: If the model can have no classifier, the attack has learnt nothing or is on
                another device, a second dataset is missing or needless, or an argument is out of
                range.
            DataError: If a dataset has too few people, or an image cannot be read.
            TrainingError: When a loss or weight is not finite; the message names the checkpoint
                with the last good state.
            CheckpointError: When the checkpoint is damaged or belongs to other settings.
        """
        learner = self._made_learner()
        lr = self.default_lr if lr is None else lr
        if not (lr > 0 and weight_decay >= 0):
            raise InputError(f"lr must be above 0 and weight_decay not below: {lr}, {weight_decay}")
        datasets = _datasets(learner, meta_train, meta_test)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        attack = self._usable_attack(device)
        names: list[str | None] = [next(iter(model.num_classes), None)] * len(datasets)
        domains: dict[str, ReIDDataset] = {}
        if "identity" in self.losses:
            domains = dict(zip(domains_of(model, datasets), datasets, strict=True))
            names = list(domains)
        robust = with_classifiers(model, domains, seed=draw(seed, "classifiers"))
        loaders = [
            BatchLoader(
                dataset,
                image_size=image_size,
                identities=identities,
                images_per_identity=images_per_identity,
                seed=seed,
                augment=geometry(augment),
                device=device,
                world=world(),
            )
            for dataset in datasets
        ]
        epoch_length = max(len(loader) for loader in loaders)
        steps = epochs * epoch_length if steps is None else steps
        if steps < 1:
            raise InputError(f"a defense needs at least one step, not {steps}")
        flat = FLAT / EPOCHS * steps / epoch_length  # in epochs
        facts: dict[str, Any] = {
            "recipe": _name(self),
            "defense": self.config(),
            "steps": steps,
            "lr": lr,
            "weight_decay": weight_decay,
            "identities": identities,
            "images_per_identity": images_per_identity,
            "augment": None if augment is None else asdict(augment),
            "image_size": list(image_size),
            "seed": seed,
            "base": weights_fingerprint(model),
            "data": [_data_facts(dataset) for dataset in datasets],
            "domains": {name: _data_facts(dataset) for name, dataset in domains.items()},
        }
        robust.train()
        objective = self._objective()

        period = (self.refresh_every or 0) * epoch_length

        def refresh(step: int) -> None:
            if period and step and step % period == 0:
                with _learnable(attack):
                    cast(LearnedAttack, attack).fit(
                        robust,
                        meta_train,
                        learner="plain",
                        steps=self.refresh_steps,
                        identities=identities,
                        images_per_identity=images_per_identity,
                        image_size=image_size,
                        seed=draw(seed, "refresh", step),
                    )

        def craft(batch: ReIDBatch, chosen: Tensor) -> Tensor:
            return self._crafted(attack, robust, batch, chosen)

        streams = [
            AdversarialBatches(
                loader,
                craft,
                augment=augment,
                share=self.adversarial,
                clean=self.clean,
                domain=name,
                seed=seed,
                role=role,
                before=refresh if role == "meta-train" else lambda step: None,
            )
            for loader, name, role in zip(
                loaders, names, ("meta-train", "meta-test")[: len(loaders)], strict=True
            )
        ]
        # A refreshed attack is part of the state, so it has to be in the checkpoint.
        pair = nn.ModuleDict({"model": robust})
        if self.refresh_every is not None:
            pair["attack"] = attack
        with recomputing(robust) if recompute else nullcontext():
            learn(
                pair,
                learner=learner,
                objective=lambda module, batch: objective(module["model"], batch),
                optimizer=torch.optim.Adam(
                    [p for p in robust.parameters() if p.requires_grad],
                    lr=lr,
                    weight_decay=weight_decay,
                ),
                meta_train=streams[0],
                meta_test=streams[1] if len(streams) > 1 else None,
                steps=steps,
                schedule=lambda epoch: 0.1 ** max(0.0, (epoch - flat) / flat),
                seed=seed,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                settings=facts,
                progress=progress,
            )
        bad = [k for k, v in robust.state_dict().items() if not bool(torch.isfinite(v).all())]
        if bad:  # learn() looks only where it writes a checkpoint
            raise TrainingError(
                f"the last step left values that are not finite in {', '.join(bad[:3])}: lower the "
                "learning rate"
            )
        robust.zero_grad(set_to_none=True)
        robust.provenance = facts
        return robust.eval()

    def _objective(self) -> DefenseObjective:
        return DefenseObjective(self.losses, self.margin, self.reduction, self.batch_norm)

    def _made_learner(self) -> MetaLearner:
        if not isinstance(self.learner, str):
            return self.learner
        factory = LEARNERS.get(self.learner)
        # A subclass of BilevelLearner may hand ``inner`` on without naming it.
        temporary = isinstance(factory, type) and issubclass(factory, BilevelLearner)
        if temporary or "inner" in inspect.signature(factory).parameters:
            return factory(inner=self.inner, inner_lr=self.inner_lr)
        if self.inner_lr is not None:
            raise InputError(f"the learner {self.learner!r} has no inner step: leave inner_lr out")
        return factory()

    def _usable_attack(self, device: torch.device) -> Attack:
        """Return an attack that this run may keep and relearn; a universal one as a frozen copy."""
        parameters = list(self.attack.parameters())
        if any(p.device != device for p in parameters):
            raise InputError(
                f"the attack is on {parameters[0].device} and the model on {device}; "
                f"move one of them first: attack.to({str(device)!r})"
            )
        if not isinstance(self.attack, LearnedAttack):
            return self.attack
        if not any(bool(p.detach().any()) for p in parameters):
            raise InputError(
                f"{type(self.attack).__name__} has learnt nothing yet, so its images are the clean "
                "ones: call attack.fit(model, dataset) first, or take one from load_attack(file)"
            )
        return copy.deepcopy(self.attack).requires_grad_(False).eval()

    def _crafted(
        self, attack: Attack, model: ReIDModel, batch: ReIDBatch, chosen: Tensor
    ) -> Tensor:
        images = batch.images[chosen]
        if not isinstance(attack, InstanceAttack) or is_bound(attack):
            adversarial: Tensor = attack(images)
            return adversarial
        in_train = self.attack_mode == "train"
        victim: Embedder = _AsItIs(model) if in_train else inference_view(model, fold=False)
        with _without_trace(victim.model) if isinstance(victim, _AsItIs) else nullcontext():
            guides = None
            if attack.needs_guides:
                with torch.no_grad(), sync_layers(batch.shard):
                    features = gather(victim.features(batch.images), batch.shard)
                pids = gather(batch.pids, batch.shard)
                guides = Guides(features, pids + 1)  # 0 would mark distractors
            bound = attack.bind(victim, guides)
            share = None if batch.shard is None else part_of(batch.shard, chosen)
            with sync_layers(share):
                adversarial = (bound.with_labels(batch.pids[chosen] + 1) if guides else bound)(
                    images
                )
        return adversarial


@DEFENSES.register("meta")
@dataclass(frozen=True, eq=False)
class MetaDefense(AdversarialTraining):
    """The paper's defense (Algorithm 2): robust after a step on one domain, tested on another.

    Meta-train takes Eq. 12 on the source domain and an inner step from w to w'; meta-test takes
    Eq. 13 on the other domain at w'; the model moves along the gradient of their sum at w
    (Eq. 14), through the inner step. See :class:`AdversarialTraining` for the arguments.

    Example:
        >>> from reidguard.attacks import SMA
        >>> MetaDefense(SMA()).needs_meta_test
        True
        >>> defense = MetaDefense(attack)  # doctest: +SKIP
        >>> robust = defense.fit(model, market, virtual)  # doctest: +SKIP
    """

    _: KW_ONLY
    learner: MetaLearner | str = "maml"


@DEFENSES.register("mixed")
@dataclass(frozen=True, eq=False)
class MixedTraining(AdversarialTraining):
    """Adversarial training on two domains at once, without meta-learning: Table 17's No. 3.

    See :class:`AdversarialTraining` for the arguments.
    """

    _: KW_ONLY
    learner: MetaLearner | str = "joint"


@DEFENSES.register("meta_released")
@dataclass(frozen=True, eq=False)
class ReleasedMetaDefense(MetaDefense):
    """MetaDefense with what can be had of the released code's choices.

    Triplet loss only, learning rate 2e-4, and an inner step by the gradient's sign, which is what
    a first step of Adam is; it has no derivative, so the learner is "first_order". Its mistakes
    are not repeated: ``docs/defenses.rst`` lists them.
    """

    _: KW_ONLY
    learner: MetaLearner | str = "first_order"
    inner: str = "sign"
    losses: tuple[Loss, ...] = ("triplet",)

    default_lr: ClassVar[float] = 2e-4


@DEFENSES.register("goat")
@dataclass(frozen=True, eq=False)
class GOAT(AdversarialTraining):
    """Guide-sampling adversarial training (Bouniot et al., 2020), with ε in pixels.

    Every image of a batch is adversarial: :class:`~reidguard.defenses.goat.GuideSampling`, 7 steps
    of 1/255 against guides of the batch, on the model in train mode. ``attack_mode="eval"`` attacks
    what will be tested. See :class:`AdversarialTraining` for the other arguments.
    """

    attack: Attack = field(default_factory=GuideSampling)
    _: KW_ONLY
    adversarial: float = 1.0
    clean: bool = False
    attack_mode: Literal["eval", "train"] = "train"


class _AsItIs:
    """A model that attacks take for no module, so that they leave it in its mode."""

    def __init__(self, model: ReIDModel) -> None:
        self.model = shared_copy(model)
        self.metric = model.metric

    def features(self, x: Tensor) -> Tensor:
        return self.model.features(x)


@contextmanager
def _without_trace(model: nn.Module) -> Iterator[None]:
    """Batch norms remember nothing of the passes inside, dropout leaves the generators alone."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with (
        without_memory(model),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        torch.manual_seed(0)
        yield


@contextmanager
def _learnable(attack: nn.Module) -> Iterator[None]:
    try:
        attack.requires_grad_(True)
        yield
    finally:
        attack.requires_grad_(False)
        attack.zero_grad(set_to_none=True)


def is_bound(attack: Attack) -> bool:
    """Return whether an instance attack has a victim of its own."""
    return getattr(attack, "_target", None) is not None


def _datasets(
    learner: MetaLearner, meta_train: ReIDDataset, meta_test: ReIDDataset | None
) -> list[ReIDDataset]:
    name = LEARNERS.name_of(type(learner))
    if learner.needs_meta_test and meta_test is None:
        raise InputError(
            f"the learner {name!r} needs a second dataset: pass meta_test=, or take the learner "
            "'plain' (AdversarialTraining)"
        )
    if meta_test is None:
        return [meta_train]
    if not learner.needs_meta_test:
        raise InputError(
            f"the learner {name!r} uses no second dataset: leave meta_test out, or take 'joint' "
            "(MixedTraining) or 'maml' (MetaDefense)"
        )
    return [meta_train, meta_test]


def _data_facts(dataset: ReIDDataset) -> dict[str, str]:
    return {"name": dataset.name, "fingerprint": dataset.fingerprint("train")}


def _attack_facts(attack: Attack) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "class": _attack_name(attack),
        "config": attack.config(),
        "weights": weights_fingerprint(attack),
    }
    if is_bound(attack):
        victim = cast(InstanceAttack, attack).target.model
        facts["victim"] = weights_fingerprint(victim) if isinstance(victim, nn.Module) else None
    return facts


def _attack_name(attack: Attack) -> str:
    try:
        return ATTACKS.name_of(type(attack))
    except RegistryError:
        return type(attack).__qualname__


def _name(defense: Defense) -> str:
    try:
        return DEFENSES.name_of(type(defense))
    except RegistryError:
        return type(defense).__qualname__
