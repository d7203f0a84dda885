"""``reidguard demo``."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reidguard.attacks import MetaAttack, load_attack
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, pathname, positive
from reidguard.cli.progress import Display
from reidguard.cli.run_dir import RunFolder
from reidguard.data import Augment, ReIDDataset
from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.models import ReIDModel, create_model, load_model
from reidguard.report import (
    adversarial_examples,
    before_and_after,
    evenly_spaced,
    page,
    paragraph,
    perturbation,
    rank1_correct,
    save_page,
    section,
)
from reidguard.report import table as html_table
from reidguard.storage import remove_temporaries, write_json
from reidguard.tables import Table
from reidguard.training import MetricsFile, Progress, ProgressCallback, train_model
from reidguard.types import Budget
from reidguard.virtual import read_virtual

EXAMPLES = """\
  reidguard demo
  reidguard demo --out /tmp/demo --threads 2

It renders three crowds of virtual people, trains two small networks on each of two of them, learns
one MetaAttack on the first network of the first (the third crowd is the meta-test set), and
measures it on all four, in settings from white box to unknown network and unknown dataset. The
people searched for are never learnt from. Nothing is downloaded. The same command goes on where it
was interrupted.
"""

RESULT, PAGE = "result.json", "demo.html"


@dataclass(frozen=True)
class Network:
    """One architecture, and how long it learns."""

    label: str
    name: str
    options: dict[str, Any]
    steps: int
    lr: float


@dataclass(frozen=True)
class Plan:
    """All that the figures depend on, but for the seed."""

    # The attack is learnt on the first. Learnt on the ResNet, it leaves the other unharmed.
    networks: tuple[Network, Network] = (
        Network("EfficientNet", "ide", {"backbone": "test_efficientnet_gn"}, 440, 1e-3),
        Network("ResNet", "ide", {"backbone": "test_resnet"}, 280, 2e-3),
    )
    domains: tuple[str, str] = ("plaza", "campus")
    meta_domain: str = "station"
    train_identities: int = 100
    meta_identities: int = 60
    test_identities: int = 25
    cameras: int = 3
    images_per_camera: int = 4
    size: tuple[int, int] = (128, 64)
    identities: int = 8
    images_per_identity: int = 4
    attack_steps: int = 100
    eps: float = 8 / 255


PLAN = Plan()
# Mild: in so few steps, strong crops and erased parts teach less than they hinder.
AUGMENT = Augment(crop="pad", padding=4, erase=0.0)
QUERIES = 2  # of each network, with their rank lists


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("demo", summary, EXAMPLES)
    made.option(
        "--out", "where everything goes", pathname, metavar="DIR", default=Path("runs/demo")
    )
    common.add_seed(made)
    made.option("--threads", "CPU threads", positive, metavar="N", shown="torch's choice")
    return made


def run(options: Options) -> int:
    """Render, train, attack, measure, and show it on one page."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = {
        "command": "demo",
        "plan": asdict(PLAN),
        "augment": asdict(AUGMENT),
        "seed": options.seed,
    }
    with common.running(options.out, options, settings, (RESULT, PAGE)) as (folder, display):
        if folder.finished:
            result = json.loads((folder / RESULT).read_text("utf-8"))
        else:
            result = _Demo(PLAN, options.seed, folder, display).run()
            folder.finish()
        rows = [row for rows in _rows(result) for row in rows]
        print(Table(HEAD, rows).to_markdown())
        print(f"\nattack: {folder / 'attack.safetensors'}")
        print(f"figures: {folder / RESULT}")
        print(f"page: {(folder / PAGE).resolve()}", flush=True)
    return 0


class _Demo:
    """The stages; each leaves a file and is skipped where that is there already."""

    def __init__(self, plan: Plan, seed: int, folder: RunFolder, display: Display) -> None:
        self.plan = plan
        self.seed = seed
        self.folder = folder
        self.display = display
        self.seconds: dict[str, float] = {}
        cells = len(plan.domains) * len(plan.networks)
        self.stages = len(plan.domains) + 1 + cells + 1 + cells
        self.stage = 0

    def run(self) -> dict[str, Any]:
        """Return what result.json says."""
        plan = self.plan
        people = {domain: self.people(domain) for domain in (*plan.domains, plan.meta_domain)}
        models = {
            (domain, network.label): self.model(people[domain], domain, network)
            for domain in plan.domains
            for network in plan.networks
        }
        first, second = plan.networks
        home, away = plan.domains
        attack = self.attack(models[home, first.label], people[home], people[plan.meta_domain])
        store = FeatureStore()
        settings = (
            ("source", first, home),
            ("cross-model", second, home),
            ("cross-dataset", first, away),
            ("cross-model & dataset", second, away),
        )
        cells, lists = [], []
        for setting, network, domain in settings:
            model = models[domain, network.label]
            with self.timed(f"measuring {setting}") as name:
                measured = evaluate(
                    model,
                    people[domain],
                    attack,
                    Protocol(image_size=plan.size),
                    store=store,
                    progress=self.display.phase(name),
                )
                lists.append(_rank_lists(model, people[domain], attack, store, plan.size))
            cells.append(
                {
                    "setting": setting,
                    "model": network.label,
                    "domain": domain,
                    "evaluation": measured.to_dict(),
                }
            )
        result = {
            "plan": asdict(plan),
            "seed": self.seed,
            "cells": cells,
            "attack": attack.provenance,
            "seconds": self.seconds,
        }
        save_page(self.folder / PAGE, _page(result, plan, attack, people[home], models, lists))
        write_json(self.folder / RESULT, result)
        return result

    @contextmanager
    def timed(self, what: str) -> Iterator[str]:
        """Yield a name for a stage's progress, and keep its seconds."""
        self.stage += 1
        began = time.perf_counter()
        yield f"{self.stage}/{self.stages} {what}"
        self.seconds[what] = round(time.perf_counter() - began, 2)

    def learning(self, name: str) -> ProgressCallback:
        """Return what shows how far learning is."""

        def show(told: Progress) -> None:
            phase = name if told.phase == "learning" else f"{name}: {told.phase}"
            self.display(replace(told, phase=phase))

        return show

    def people(self, domain: str) -> ReIDDataset:
        """Render a domain; of the meta-test one only people to learn from are needed."""
        plan = self.plan
        other = domain == plan.meta_domain
        target = self.folder / "people" / domain
        for leftover in target.parent.glob(f".{domain}.*"):  # of a killed run
            shutil.rmtree(leftover, ignore_errors=True)
        with self.timed(f"rendering {domain}") as name:
            return read_virtual(
                domain,
                train_identities=plan.meta_identities if other else plan.train_identities,
                test_identities=1 if other else plan.test_identities,
                cameras=plan.cameras,
                images_per_camera=plan.images_per_camera,
                height=plan.size[0],
                seed=self.seed,
                root=target,
                progress=self.display.phase(name),
            )

    def model(self, people: ReIDDataset, domain: str, network: Network) -> ReIDModel:
        """Train a network on a domain."""
        plan = self.plan
        target = self.folder / "models" / f"{domain}-{network.label.lower()}.safetensors"
        checkpoint = target.with_suffix(".checkpoint")
        with (
            self.timed(f"training {network.label} on {domain}") as name,
            MetricsFile(target.with_suffix(".jsonl"), self.learning(name)) as progress,
        ):
            remove_temporaries(target)
            if not target.exists():
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self.seed)
                    model = create_model(
                        network.name,
                        num_classes=people.num_train_pids,
                        size=plan.size,
                        **network.options,
                    )
                train_model(
                    model,
                    people,
                    steps=network.steps,
                    lr=network.lr,
                    identities=plan.identities,
                    images_per_identity=plan.images_per_identity,
                    augment=AUGMENT,
                    image_size=plan.size,
                    seed=self.seed,
                    checkpoint=checkpoint,
                    progress=progress,
                )
                model.save(target)
            checkpoint.unlink(missing_ok=True)
            return load_model(target)

    def attack(self, model: ReIDModel, source: ReIDDataset, meta_test: ReIDDataset) -> MetaAttack:
        """Learn the attack."""
        plan = self.plan
        target = self.folder / "attack.safetensors"
        checkpoint = target.with_suffix(".checkpoint")
        with (
            self.timed("learning MetaAttack") as name,
            MetricsFile(self.folder / "metrics.jsonl", self.learning(name)) as progress,
        ):
            if not target.exists():
                attack = MetaAttack(budget=Budget(plan.eps), size=plan.size)
                attack.fit(
                    model,
                    source,
                    meta_test,
                    steps=plan.attack_steps,
                    identities=plan.identities,
                    images_per_identity=plan.images_per_identity,
                    image_size=plan.size,
                    seed=self.seed,
                    checkpoint=checkpoint,
                    progress=progress,
                )
                attack.save(target)
            checkpoint.unlink(missing_ok=True)
            made = load_attack(target)
        assert isinstance(made, MetaAttack)
        return made


HEAD = ["setting", "model, people", "queries", "mAP", "rank-1", "mINP", "L∞", "SSIM"]


def _rows(result: dict[str, Any]) -> list[list[list[str]]]:
    """The table's rows, one group for each setting; shares in percent, L∞ in grey levels."""
    groups = []
    for cell in result["cells"]:
        measured = cell["evaluation"]
        rows = []
        for name, key in (("clean", "clean"), ("float", "attacked"), ("8-bit", "attacked_8bit")):
            found = measured[key]
            shares = [found["mAP"], found["cmc"][0], found["mINP"]]
            rows.append(
                [
                    cell["setting"],
                    f"{cell['model']}, {cell['domain']}",
                    name if name == "clean" else f"attacked, {name}",
                    *(f"{100 * share:.1f}" for share in shares),
                    f"{found.get('linf', 0.0):.2f}",
                    f"{found.get('ssim', 1.0):.3f}",
                ]
            )
        groups.append(rows)
    return groups


def _rank_lists(
    model: ReIDModel,
    people: ReIDDataset,
    attack: MetaAttack,
    store: FeatureStore,
    size: tuple[int, int],
) -> list[str]:
    """Lists before and after for some queries, evenly spaced among those found at first."""
    chosen = evenly_spaced(rank1_correct(model, people, store, size), QUERIES)
    if not chosen:
        return [paragraph("Here the network finds nobody even before the attack.")]
    return before_and_after(model, people, attack, chosen, store=store, size=size)


def _page(
    result: dict[str, Any],
    plan: Plan,
    attack: MetaAttack,
    people: ReIDDataset,
    models: dict[tuple[str, str], ReIDModel],
    lists: list[list[str]],
) -> str:
    first, second = plan.networks
    home, away = plan.domains
    levels = f"{255 * attack.budget.eps:g}"
    groups = _rows(result)
    sections = [
        paragraph(
            f"One universal change, at most {levels} of 255 grey levels anywhere, was learnt on "
            f"{first.label} and people of “{home}”, with people of “{plan.meta_domain}” as its "
            f"meta-test set. It is added to pictures of people that no network has seen, and "
            f"the networks are asked to find each of them again. Nobody here is real: all people "
            f"are rendered."
        ),
        section(
            "What it does to finding people",
            html_table(
                HEAD,
                groups,
                "Shares in percent; L∞ is the largest change of any pixel in grey levels. Float: "
                "as the attack made the image; 8-bit: as a file holds it.",
                text=3,
            ),
            paragraph(
                f"Source: the very network and place that it was learnt on (other people of "
                f"“{home}” are searched for). Cross-model: {second.label}, trained on the same "
                f"place. Cross-dataset: {first.label}, trained on “{away}”. The last: "
                f"{second.label}, trained on “{away}”."
            ),
        ),
        section("What was learnt", *perturbation(attack, 2 * plan.size[1])),
        section("What it does to a picture", *adversarial_examples(attack, people, plan.size)),
    ]
    for cell, parts in zip(result["cells"], lists, strict=True):
        sections.append(
            section(f"Who is found: {cell['setting']} ({cell['model']}, {cell['domain']})", *parts)
        )
    sections.append(
        section(
            "About these lists",
            paragraph(
                "Queries are spaced evenly among those whose first image was right before the "
                "attack. ✓ and a solid blue frame: the same person by another camera. ✗ and a "
                "dashed orange frame: someone else. The query’s own camera does not count for "
                "the same person. Attacked queries are 8-bit images."
            ),
        )
    )
    return page("reidguard: one change against four networks", *sections)
