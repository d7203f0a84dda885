"""Makes what figures of the paper take, each thing once: people, networks, attacks, defenses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.experiments import COSINE, FAMILIES, Plan, hardening
from reidguard.attacks import (
    ATTACKS,
    Attack,
    InstanceAttack,
    LearnedAttack,
    MetaAttack,
    create_attack,
    load_attack,
)
from reidguard.data import ReIDDataset
from reidguard.defenses import AdversarialTraining, MetaDefense, MixedTraining
from reidguard.evaluation import FeatureStore, GridCell, Protocol, evaluate, evaluate_grid
from reidguard.models import ReIDModel, create_model, load_model
from reidguard.storage import remove_temporaries
from reidguard.training import MetricsFile, Progress, ProgressCallback, train_model
from reidguard.types import Budget
from reidguard.virtual import read_virtual

__all__ = ["Workshop"]

DEFENSES = {"adversarial": AdversarialTraining, "mixed": MixedTraining, "meta": MetaDefense}


class Workshop:
    """Makes and measures, by the conditions of a figure.

    What is learnt is kept under its name in ``models/`` and ``attacks/``, with a line for each step
    beside it; what is there already is used as it is. A killed run goes on.

    Args:
        plan: Networks, stand-ins, lengths.
        folder: Keeps everything.
        given: Datasets by the paper's names; stand-ins are rendered when they are needed.
        seed: Fixes every random draw.
        device: Where models and attacks are.
        progress: Told how far all is.

    Attributes:
        own: Networks that came from a file of the user's, by their names in ``models/``, with the
            name of their class.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        given: Mapping[str, ReIDDataset] | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: ProgressCallback | None = None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.given = dict(given or {})
        self.seed = seed
        self.device = torch.device(device)
        self.progress = progress
        self.own: dict[str, str] = {}
        self.protocol = Protocol(image_size=plan.size)
        self.store = FeatureStore(folder / "features")
        self.learning: dict[str, Any] = {
            "identities": plan.identities,
            "images_per_identity": plan.images_per_identity,
            "image_size": plan.size,
            "seed": seed,
        }

    def people(self, name: str) -> ReIDDataset:
        """Return a dataset, rendered first where it is a stand-in."""
        if name not in self.given:
            domain = self.plan.domains[name]
            self.given[name] = read_virtual(
                domain,
                **self.plan.people,
                seed=self.seed,
                root=self.folder / "people" / domain,
                progress=self._counted(f"rendering {domain}"),
            )
        return self.given[name]

    def normal(self, network: str, data: str) -> ReIDModel:
        """Return a network trained on a dataset."""
        target = self.folder / "models" / f"{data}-{network}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            people, spec = self.people(data), self.plan.networks[network]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                options = {"size": self.plan.size, **spec.options}
                model = create_model(spec.name, num_classes=people.num_train_pids, **options)
            with self._noted(target, f"training {network} on {data}") as progress:
                train_model(
                    model.to(self.device),
                    people,
                    epochs=85,
                    steps=spec.steps,
                    lr=spec.lr,
                    augment=self.plan.augment,
                    **self.learning,
                    checkpoint=target.with_suffix(".checkpoint"),
                    progress=progress,
                )
            model.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        model = load_model(target).to(self.device)
        if not target.with_suffix(".jsonl").exists():  # no step of ours made it
            self.own[target.stem] = type(model).__name__
        return model

    def robust(self, network: str, data: str, defense: str) -> ReIDModel:
        """Return a network hardened by a defense of the paper, or the normal one."""
        made = hardening(defense)
        if made is None:
            return self.normal(network, data)
        target = self.folder / "models" / f"{data}-{network}-{file_name(defense)}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            attack = self.attack(_own_meta_attack(network, data, made.attack))
            defended = DEFENSES[made.kind](attack, losses=made.losses)  # type: ignore[arg-type]
            with self._noted(target, f"{defense} on {data}") as progress:
                robust = defended.fit(
                    self.normal(network, data),
                    self.people(data),
                    None if made.extra == "none" else self.people(made.extra),
                    steps=self.plan.defense_steps,
                    augment=self.plan.augment,
                    **self.learning,
                    checkpoint=target.with_suffix(".checkpoint"),
                    progress=progress,
                )
            robust.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_model(target).to(self.device)

    def attack(self, c: Mapping[str, Any]) -> Attack:
        """Return the attack of some conditions, learnt or bound."""
        family, objective = FAMILIES[c["attack"]]
        budget = Budget(c["eps"] / 255)
        sized: dict[str, Any] = {} if family in ("color", "sma") else {"size": self.plan.size}
        sized |= self.plan.attack_options.get(family, {})
        factory = ATTACKS.get(family)
        if isinstance(factory, type) and issubclass(factory, InstanceAttack):
            # On the normal model, as all attacks on hardened ones are in the paper: transfer.
            made_on = self.normal(c["source_model"], c["source_data"])
            return factory(budget).bind(made_on)
        learnt = "meta" if c["meta"] else "plain" if c["extra"] == "none" else "joint"
        parts = (c["attack"], learnt, c["extra"], c["source_model"], c["source_data"])
        name = file_name("-".join((*parts, c["attack_data"], f"eps{c['eps']}")))
        target = self.folder / "attacks" / f"{name}.safetensors"
        remove_temporaries(target)
        if not target.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                made: Attack = (
                    MetaAttack(family, budget, **sized)
                    if c["meta"]
                    else create_attack(family, budget=budget, **sized)
                )
            assert isinstance(made, LearnedAttack)
            extra = None if c["extra"] == "none" else self.people(c["extra"])
            how: dict[str, Any] = {} if objective is None else {"objective": objective}
            if learnt == "joint":
                how["learner"] = "joint"
            learning = dict(self.learning)
            if family == "misrank":
                del learning["images_per_identity"]  # it has a batch of its own
            with self._noted(target, f"learning {name}") as progress:
                made.to(self.device).fit(
                    self.normal(c["source_model"], c["source_data"]),
                    self.people(c["attack_data"]),
                    extra,
                    steps=self.plan.attack_steps,
                    **how,
                    **learning,
                    checkpoint=target.with_suffix(".checkpoint"),
                    progress=progress,
                )
            made.save(target)
        target.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_attack(target).to(self.device)

    def measure(
        self, model: ReIDModel, c: Mapping[str, Any]
    ) -> tuple[dict[str, Any], GridCell | None]:
        """Return what was measured under some conditions, and its cell of a grid if attacked.

        Args:
            model: The one that is measured: of :meth:`robust`.
            c: Conditions of a :class:`~benchmarks.paper.Figure`.
        """
        people = self.people(c["data"])
        every = self.plan.query_every
        if c["attack"] == "none":
            phase = self._counted(f"{c['model']} on {c['data']}")
            clean = evaluate(
                model,
                people,
                None,
                self.protocol,
                store=self.store,
                query_every=every,
                progress=phase,
            )
            return clean.to_dict(), None
        attack = self.attack(c)
        network = c["model"] + ("" if c["defense"] == "none" else f", {c['defense']}")
        name = f"{c['attack']}{' meta' if c['meta'] else ''} {c['extra']} ε {c['eps']:g}"
        (cell,) = evaluate_grid(
            {name: attack},
            {network: model},
            {c["data"]: people},
            replace(self.protocol, metric="cosine") if c["attack"] == COSINE else self.protocol,
            sources={name: (c["source_model"], c["source_data"])},
            folder=self.folder,
            store=self.store,
            query_every=every,
            progress=self._counted(f"{name} on {network}, {c['data']}"),
        ).cells
        return cell.evaluation, cell

    def _noted(self, target: Path, name: str) -> MetricsFile:
        """Return what notes the steps of something that is learnt, and shows how far it is."""

        def show(told: Progress) -> None:
            if self.progress is not None:
                phase = name if told.phase == "learning" else f"{name}: {told.phase}"
                self.progress(replace(told, phase=phase))

        return MetricsFile(target.with_suffix(".jsonl"), show)

    def _counted(self, name: str) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(Progress(name, done, total))

        return show


def _own_meta_attack(network: str, data: str, family: str) -> dict[str, Any]:
    """The attack that a defense hardens against: meta-learnt on the normal model at ε = 8."""
    return {
        "attack": family,
        "meta": True,
        "extra": "PersonX",
        "eps": 8,
        "source_model": network,
        "source_data": data,
        "attack_data": data,
    }


def file_name(name: str) -> str:
    """Return a name with nothing that a file's name may not have."""
    return re.sub(r"[^\w+.-]+", "_", name)
