"""Runner of the paper's experiments: renders, trains and measures what they require, once each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.experiments import COSINE, FAMILIES, Setup, parse_defense
from reidguard.attacks import (
    ATTACKS,
    Attack,
    InstanceAttack,
    LearnedAttack,
    MetaAttack,
    create_attack,
    load_attack,
)
from reidguard.data import ReIDDataset, load_dataset
from reidguard.defenses import AdversarialTraining, MetaDefense, MixedTraining
from reidguard.evaluation import FeatureStore, GridCell, Protocol, evaluate, evaluate_grid
from reidguard.files import remove_leftovers
from reidguard.models import ReIDModel, create_model, load_model
from reidguard.training import MetricsFile, Progress, ProgressCallback, train_model
from reidguard.types import Budget

__all__ = ["Runner"]

DEFENSES = {"adversarial": AdversarialTraining, "mixed": MixedTraining, "meta": MetaDefense}


class Runner:
    """Trains and measures by the conditions of the paper's values.

    Trained networks and attacks are saved in ``models/`` and ``attacks/``, each with a JSONL file
    of its training steps; files that exist already are used as they are. A run that was killed
    resumes.

    Args:
        setup: Networks, stand-ins, lengths.
        folder: For all files.
        datasets: By the paper's names; stand-ins are rendered when they are first used.
        seed: Fixes every random draw.
        device: Where models and attacks are.
        progress: Progress callback.

    Attributes:
        own_networks: Networks that came from files of the user's, by their names in ``models/``,
            with the names of their classes.
    """

    def __init__(
        self,
        setup: Setup,
        folder: Path,
        datasets: Mapping[str, ReIDDataset] | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: ProgressCallback | None = None,
    ) -> None:
        self.setup = setup
        self.folder = folder
        self.datasets = dict(datasets or {})
        self.seed = seed
        self.device = torch.device(device)
        self.progress = progress
        self.own_networks: dict[str, str] = {}
        self.protocol = Protocol(image_size=setup.size)
        self.store = FeatureStore(folder / "features")
        self.fit_options: dict[str, Any] = {
            "identities": setup.identities,
            "images_per_identity": setup.images_per_identity,
            "image_size": setup.size,
            "seed": seed,
        }

    def dataset(self, name: str) -> ReIDDataset:
        """Return a dataset; a stand-in is rendered first."""
        if name not in self.datasets:
            domain = self.setup.domains[name]
            self.datasets[name] = load_dataset(
                f"virtual:{domain}",
                **self.setup.virtual_options,
                seed=self.seed,
                folder=self.folder / "people" / domain,
                progress=self._phase(f"rendering {domain}"),
            )
        return self.datasets[name]

    def model(self, network: str, data: str) -> ReIDModel:
        """Return an undefended network, trained on a dataset."""
        path = self.folder / "models" / f"{data}-{network}.safetensors"
        remove_leftovers(path.parent)
        if not path.exists():
            dataset, spec = self.dataset(data), self.setup.networks[network]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                options = {"size": self.setup.size, **spec.options}
                model = create_model(spec.name, num_classes=dataset.num_train_pids, **options)
            with self._metrics_file(path, f"training {network} on {data}") as progress:
                train_model(
                    model.to(self.device),
                    dataset,
                    epochs=85 if spec.steps is None else None,
                    steps=spec.steps,
                    lr=spec.lr,
                    augment=self.setup.augment,
                    **self.fit_options,
                    checkpoint=path.with_suffix(".checkpoint"),
                    progress=progress,
                )
            model.save(path)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        model = load_model(path).to(self.device)
        if not path.with_suffix(".jsonl").exists():  # not trained here
            self.own_networks[path.stem] = type(model).__name__
        return model

    def defended_model(self, network: str, data: str, defense: str) -> ReIDModel:
        """Return a network trained with a defense of the paper; undefended if that is "none"."""
        spec = parse_defense(defense)
        if spec is None:
            return self.model(network, data)
        path = self.folder / "models" / f"{data}-{network}-{file_name(defense)}.safetensors"
        remove_leftovers(path.parent)
        if not path.exists():
            attack = self.attack(_defense_attack(network, data, spec.attack))
            trainer = DEFENSES[spec.kind](attack, losses=spec.losses)  # type: ignore[arg-type]
            with self._metrics_file(path, f"{defense} on {data}") as progress:
                model = trainer.fit(
                    self.model(network, data),
                    self.dataset(data),
                    None if spec.extra == "none" else self.dataset(spec.extra),
                    steps=self.setup.defense_steps,
                    augment=self.setup.augment,
                    **self.fit_options,
                    checkpoint=path.with_suffix(".checkpoint"),
                    progress=progress,
                )
            model.save(path)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_model(path).to(self.device)

    def attack(self, c: Mapping[str, Any]) -> Attack:
        """Return the attack of an experiment, fitted or bound.

        Args:
            c: Conditions of the experiment.
        """
        family, objective = FAMILIES[c["attack"]]
        budget = Budget(c["eps"] / 255)
        factory = ATTACKS.get(family)
        if isinstance(factory, type) and issubclass(factory, InstanceAttack):
            # Transferred from the undefended model, as all attacks on defended ones in the paper.
            return factory(budget).bind(self.model(c["source_model"], c["source_data"]))
        learner = "maml" if c["meta"] else "plain" if c["extra"] == "none" else "joint"
        label = "meta" if c["meta"] else learner
        parts = (c["attack"], label, c["extra"], c["source_model"], c["source_data"])
        name = file_name("-".join((*parts, c["attack_data"], f"eps{c['eps']}")))
        path = self.folder / "attacks" / f"{name}.safetensors"
        remove_leftovers(path.parent)
        if not path.exists():
            options: dict[str, Any] = {} if family == "color" else {"size": self.setup.size}
            options |= self.setup.attack_options.get(family, {})
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                attack: Attack = (
                    MetaAttack(family, budget, **options)
                    if c["meta"]
                    else create_attack(family, budget=budget, **options)
                )
            assert isinstance(attack, LearnedAttack)
            fit_options = dict(self.fit_options)
            if objective is not None:
                fit_options["objective"] = objective
            if learner == "joint":
                fit_options["learner"] = learner
            if family == "misrank":
                del fit_options["images_per_identity"]  # MisRank has its own batches
            with self._metrics_file(path, f"learning {name}") as progress:
                attack.to(self.device).fit(
                    self.model(c["source_model"], c["source_data"]),
                    self.dataset(c["attack_data"]),
                    None if c["extra"] == "none" else self.dataset(c["extra"]),
                    steps=self.setup.attack_steps,
                    **fit_options,
                    checkpoint=path.with_suffix(".checkpoint"),
                    progress=progress,
                )
            attack.save(path)
        path.with_suffix(".checkpoint").unlink(missing_ok=True)
        return load_attack(path).to(self.device)

    def measure(
        self, model: ReIDModel, c: Mapping[str, Any]
    ) -> tuple[dict[str, Any], GridCell | None]:
        """Return the evaluation of an experiment, and its grid cell if there is an attack.

        Args:
            model: From :meth:`defended_model`.
            c: Conditions of a :class:`~benchmarks.paper.PaperValue`.
        """
        dataset = self.dataset(c["data"])
        query_every = self.setup.query_every
        if c["attack"] == "none":
            clean = evaluate(
                model,
                dataset,
                None,
                self.protocol,
                store=self.store,
                query_every=query_every,
                progress=self._phase(f"{c['model']} on {c['data']}"),
            )
            return clean.to_dict(), None
        attack = self.attack(c)
        network = c["model"] + ("" if c["defense"] == "none" else f", {c['defense']}")
        name = f"{c['attack']}{' meta' if c['meta'] else ''} {c['extra']} ε {c['eps']:g}"
        (cell,) = evaluate_grid(
            {name: attack},
            {network: model},
            {c["data"]: dataset},
            replace(self.protocol, metric="cosine") if c["attack"] == COSINE else self.protocol,
            sources={name: (c["source_model"], c["source_data"])},
            folder=self.folder,
            store=self.store,
            query_every=query_every,
            patterns=False,
            progress=self._phase(f"{name} on {network}, {c['data']}"),
        ).cells
        return cell.evaluation, cell

    def _metrics_file(self, path: Path, name: str) -> MetricsFile:
        """Return a callback that logs training steps beside a file and reports progress."""

        def report(progress: Progress) -> None:
            if self.progress is not None:
                phase = name if progress.phase == "learning" else f"{name}: {progress.phase}"
                self.progress(replace(progress, phase=phase))

        return MetricsFile(path.with_suffix(".jsonl"), report)

    def _phase(self, name: str) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(Progress(name, done, total))

        return report


def _defense_attack(network: str, data: str, family: str) -> dict[str, Any]:
    """The attack that a defense trains against: meta-learnt on the undefended model at ε = 8."""
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
    """Replace characters that a file name may not have."""
    return re.sub(r"[^\w+.-]+", "_", name)
