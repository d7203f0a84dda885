"""Adversarial training: one class, whose options make the other defenses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from reidguard.attacks import Attack
from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.defenses.base import DEFENSES, Defense
from reidguard.defenses.batches import (
    AdversarialBatches,
    AlternatingBatches,
    Choose,
    geometry,
)
from reidguard.defenses.checks import built_learner, check_options, dataset_facts, datasets_of
from reidguard.defenses.crafting import AttackMode, Crafter, attack_provenance, registered_name
from reidguard.defenses.heads import domains_of, with_classifiers
from reidguard.fingerprint import fingerprint
from reidguard.learners import LEARNERS, MetaLearner, Objective
from reidguard.learners.perturbed import PerturbedLearner
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn.auxiliary import AuxiliaryNorms
from reidguard.nn.cameras import cameras_of, check_cameras
from reidguard.nn.gradients import ZERO_LIMIT, warn_of_zero_gradients
from reidguard.objectives.consistency import Divergence
from reidguard.objectives.defense import (
    BatchNormPolicy,
    DefenseBatch,
    DefenseObjective,
    Regularizer,
)
from reidguard.objectives.reid import Loss, Reduction
from reidguard.options import DEFENSE_DEFAULTS, DefenseOptions, LoopOptions
from reidguard.schema import documented, resolve, select, settings
from reidguard.training import Batches, LoopHooks, batch_loaders, learn
from reidguard.training.averaging import average_of
from reidguard.training.loop import derived_seed
from reidguard.training.recipe import EPOCHS, FLAT
from reidguard.training.recompute import recomputing

__all__ = ["AdversarialTraining"]


@DEFENSES.register("adversarial")
@dataclass(frozen=True, eq=False)
class AdversarialTraining(Defense):
    """Training on clean and adversarial images together: Table 17's No. 1, and base of the others.

    Every batch holds P identities × K clean images and the adversarial images that an attack makes
    of a random half. The loss is triplet and cross-entropy over all of them (Eq. 12), the
    optimiser Adam. With a learner that uses a second domain, its batches are made in the same way.

    The attack determines what the model becomes robust to:

    - A learnt :class:`~reidguard.attacks.UniversalAttack` is frozen: M(Color), M(Delta),
      M(Col.+Del.).
    - An instance attack such as ``SMA()`` attacks the model *as it hardens*: M(SMA). Against a
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
        adversarial: Attacked fraction of the batch, N_adv / N_b; the paper attacks half.
        clean: Whether the clean images stay in the batch.
        losses: Of "triplet" and "identity" (cross-entropy), Table 18.
        margin: Of the triplet loss.
        reduction: "mean" over the images, or "sum" as Eq. 12 has it. Adam hardly sees a
            difference, the inner step does: with the sum it is as many times longer as there are
            images, and with the paper's α overshoots (see ``docs/defenses.rst``).
        batch_norm: "shared", "separate" or "auxiliary" batch norms of clean and adversarial images;
            see :class:`~reidguard.objectives.defense.DefenseObjective`.
        regularizer: "trades" or "mart" in place of the losses of the adversarial images; see there.
        beta: Weight of the regulariser.
        divergence: "distance" of features or "kl" of probabilities, in the regulariser.
        attack_mode: Mode of the model while an instance attack works on it, if it is not bound:
            "eval" as in a test, or "train" with the statistics of the batch. Neither moves any
            running statistics.
        refresh_every: Relearn the attack against the model as it hardens, every so many epochs,
            starting from its parameters then. None keeps it.
        refresh_steps: Steps of each relearning, with the learner "plain".
        warmup: Fraction of the steps over which ε rises linearly to that of the attack.
        awp: γ of adversarial weight perturbation, 0 for none: each step takes its gradient at
            weights moved by that fraction of their size; see
            :class:`~reidguard.learners.perturbed.PerturbedLearner`.
        replays: Steps in a row that each batch is used for.
        alternate: With a second dataset, take a step on each in turn, with the learner "plain",
            in place of both in each step. Batches of the second leave running statistics alone.

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
    attack_mode: AttackMode = "eval"
    refresh_every: int | None = None
    refresh_steps: int = 20
    regularizer: Regularizer | None = None
    beta: float = 6.0
    divergence: Divergence = "distance"
    warmup: float = 0.0
    awp: float = 0.0
    replays: int = 1
    alternate: bool = False

    default_lr: ClassVar[float] = 3e-4

    def __post_init__(self) -> None:
        if isinstance(self.losses, str | list):  # from a command line
            names = [self.losses] if isinstance(self.losses, str) else self.losses
            object.__setattr__(self, "losses", tuple(names))
        self._objective()
        check_options(self)

    @property
    def needs_meta_test(self) -> bool:
        """Whether :meth:`fit` needs a second dataset."""
        return self.alternate or self.make_learner().needs_meta_test

    def test_attack(self) -> Attack:
        """Return the attack that ``reidguard defend`` evaluates the robust model against."""
        return self.attack

    def choose(self) -> Choose | None:
        """Return what chooses the images that are attacked; None takes the fraction of them."""
        return None

    def config(self) -> dict[str, Any]:
        """Return all settings, and what identifies the attack, as JSON values."""
        learner = self.make_learner()
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **plain,
            "losses": list(self.losses),
            "attack": attack_provenance(self.attack),
            "learner": LEARNERS.name_of(type(learner)),
            "learner_options": learner.config(),
        }

    @documented(DefenseOptions, **DEFENSE_DEFAULTS)
    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
        **options: Unpack[DefenseOptions],
    ) -> ReIDModel:
        """Learn a robust model on training images (Algorithm 2).

        Crops and flips come before the attack, which sees [0, 1] pixels, and erasing after it, at
        the same place in a clean image and its adversarial one: so that one stays within the ε-ball
        of the other. The learning rate stays flat for the first 40/85 of the epochs and then falls
        tenfold in as many epochs again, as in :func:`~reidguard.training.train_model`.

        Args:
            model: Initial weights, usually those of the normal model. It is only read. Its
                classifier is kept where it knows these identities; the others are new.
            meta_train: Its ``train`` split is the source domain.
            meta_test: Its ``train`` split is the other domain, for learners that use one.
            **options: Any of :class:`~reidguard.options.DefenseOptions`. A refreshed attack is in
                the checkpoint, too; the seed also fixes which images are attacked and the initial
                weights of new classifiers.

        Returns:
            A new model in eval mode, on the device of ``model``; its ``provenance`` says how it
            was learnt.

        Raises:
            InputError: If the model can have no classifier, the attack has learnt nothing or is on
                another device, a second dataset is missing or needless, or an option is unknown or
                out of range.
            DataError: If a dataset has too few identities, or an image cannot be read.
            TrainingError: When a loss or weight is not finite; the message names the checkpoint
                with the last good state.
            CheckpointError: When the checkpoint is damaged or belongs to other settings.
        """
        values = resolve(
            DefenseOptions,
            options,
            epochs=EPOCHS,
            lr=self.default_lr,
            identities=8,
            images_per_identity=8,
        )
        if values["augment"] == "recipe":
            values["augment"] = Augment()
        learner = self.make_learner()
        datasets = datasets_of(learner, self.alternate, meta_train, meta_test)
        domains: dict[str, ReIDDataset] = {}
        if "identity" in self.losses:
            domains = dict(zip(domains_of(model, datasets), datasets, strict=True))
        robust = with_classifiers(model, domains, seed=derived_seed(values["seed"], "classifiers"))
        for dataset in datasets:
            check_cameras(model, cameras_of(dataset.train))
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        loaders = batch_loaders(
            datasets, values, augment=geometry(values["augment"]), device=device
        )
        facts: dict[str, Any] = {
            **settings(DefenseOptions, values),
            "method": registered_name(DEFENSES, type(self)),
            "defense": self.config(),
            "base": fingerprint(model_key(model, values["image_size"])),
            "data": [dataset_facts(dataset) for dataset in datasets],
            "domains": {name: dataset_facts(dataset) for name, dataset in domains.items()},
        }
        names: Sequence[str | None] = list(domains)
        if not names:
            names = [next(iter(model.num_classes), None)] * len(datasets)
        crafter = Crafter(self.attack, robust, self.attack_mode)
        streams = self._streams(loaders, names, crafter, meta_train, values)
        zero_gradients = self._train(crafter, learner, streams, values, facts)
        robust.zero_grad(set_to_none=True)
        if zero_gradients > ZERO_LIMIT:
            facts["zero_gradients"] = round(zero_gradients, 6)
        warn_of_zero_gradients(type(self.attack).__name__, zero_gradients)
        robust.provenance = facts
        return robust.eval()

    def _train(
        self,
        crafter: Crafter,
        learner: MetaLearner,
        streams: Sequence[AdversarialBatches],
        values: dict[str, Any],
        facts: dict[str, Any],
    ) -> float:
        """Optimise the crafter's model, and return the fraction of its attack's zero gradients."""
        robust = crafter.model.train()
        objective = self._objective()
        # A refreshed attack is part of the state, so it has to be in the checkpoint.
        parts = nn.ModuleDict({"model": robust})
        if self.refresh_every is not None:
            parts["attack"] = crafter.attack
        if self.batch_norm == "auxiliary":
            parts["norms"] = AuxiliaryNorms(robust)
        average = average_of(robust, values)
        state = {} if average is None else {"average": average}
        sources: list[Batches] = [AlternatingBatches(streams)] if self.alternate else [*streams]
        flat = FLAT / EPOCHS * values["steps"] / max(len(source) for source in sources)  # epochs
        with recomputing(robust) if values["recompute"] else nullcontext():
            zero_gradients = learn(
                parts,
                learner=PerturbedLearner(learner, self.awp) if self.awp else learner,
                objective=self._of_parts(objective, crafter),
                optimizer=torch.optim.Adam(
                    [p for p in parts.parameters() if p.requires_grad],
                    lr=values["lr"],
                    weight_decay=values["weight_decay"],
                ),
                meta_train=sources[0],
                meta_test=sources[1] if len(sources) > 1 else None,
                hooks=LoopHooks(
                    lambda epoch: 0.1 ** max(0.0, (epoch - flat) / flat),
                    after_step=lambda: None if average is None else average.update(robust),
                    state={**state, **self._state(crafter, values)},
                ),
                settings=facts,
                **select(LoopOptions, values),
            )
        if average is not None:
            average.copy_to(robust)
        return zero_gradients

    def _of_parts(self, objective: DefenseObjective, crafter: Crafter) -> Objective:
        """Return the objective of the module that holds the model and what is learnt beside it."""

        def loss(parts: Any, batch: DefenseBatch) -> Tensor:
            norms = parts["norms"] if self.batch_norm == "auxiliary" else None
            return objective(parts["model"], batch, norms)

        return loss

    def _state(self, crafter: Crafter, values: dict[str, Any]) -> dict[str, nn.Module]:
        """Return further modules whose state belongs to the checkpoint."""
        return {}

    def _streams(
        self,
        loaders: list[BatchLoader],
        names: Sequence[str | None],
        crafter: Crafter,
        meta_train: ReIDDataset,
        values: dict[str, Any],
    ) -> list[AdversarialBatches]:
        """Return the batches of meta-train and, with two loaders, meta-test."""
        longest = max(len(loader) for loader in loaders) * self.replays
        period = (self.refresh_every or 0) * longest
        turns = len(loaders) if self.alternate else 1
        rising = self.warmup * values["steps"] / turns

        def prepare(step: int) -> None:
            crafter.scale = min(1.0, (step + 1) / rising) if rising else 1.0
            if period and step and step % period == 0:
                names = ("identities", "images_per_identity", "image_size")
                crafter.refresh(
                    meta_train,
                    steps=self.refresh_steps,
                    seed=derived_seed(values["seed"], "refresh", step),
                    **{name: values[name] for name in names},
                )

        return [
            AdversarialBatches(
                loader,
                crafter,
                augment=values["augment"],
                fraction=self.adversarial,
                clean=self.clean,
                domain=name,
                seed=values["seed"],
                role=role,
                before=prepare if role == "meta-train" else None,
                choose=self.choose(),
                replays=self.replays,
                statistics=not (self.alternate and role == "meta-test"),
            )
            for loader, name, role in zip(loaders, names, ("meta-train", "meta-test"), strict=False)
        ]

    def _objective(self) -> DefenseObjective:
        return DefenseObjective(
            self.losses,
            self.margin,
            self.reduction,
            self.batch_norm,
            self.regularizer,
            self.beta,
            self.divergence,
        )

    def make_learner(self) -> MetaLearner:
        """Return the learner, built if it is a registered name.

        Raises:
            InputError: If ``inner_lr`` is given and the learner has no inner step.
        """
        return built_learner(self.learner, self.inner, self.inner_lr)
