"""``reidguard report``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reidguard.attacks import Attack, InstanceAttack, load_attack
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, pathname
from reidguard.cli.progress import note
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import InputError, ReIDGuardError
from reidguard.evaluation import FeatureStore
from reidguard.models import ReIDModel, load_model
from reidguard.report import (
    Run,
    adversarial_examples,
    attacked_queries,
    before_and_after,
    evenly_spaced,
    paragraph,
    perturbation,
    rank1_correct,
    rank_lists,
    read_run,
    report_page,
    save_page,
)

EXAMPLES = """\
  one run, or several with a curve over their ε, on one page:
    reidguard report runs/delta
    reidguard report runs/eps4 runs/eps8 runs/eps12 --out eps.html

  the demo, or the folder of evaluate_grid:
    reidguard report runs/demo runs/grid

The page needs no network and no other file. Virtual people are shown. Real people are not, unless
you ask: --blur shows them as a few blocks of colour, --images as they are. Their pictures are then
part of the page, so think before you pass it on. For pictures of people the data must lie where it
lay during the run.
"""

EXAMINED = 64  # queries that are attacked to find two of each kind
SHOWN = 2
LEGEND = (
    "✓ and a solid blue frame: the same person by another camera. ✗ and a dashed orange frame: "
    "someone else."
)


class Subject(NamedTuple):
    """Whom a run attacked, and by what."""

    title: str
    model: ReIDModel
    dataset: ReIDDataset
    attack: Attack
    size: tuple[int, int]
    normal: ReIDModel | None = None  # what the model was hardened from


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("report", summary, EXAMPLES)
    made.usage = "reidguard report RUN [RUN ...] [options]"
    made.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    made.option("--out", "the page", pathname, metavar="FILE", default=Path("report.html"))
    made.flag("--no-images", "no pictures at all, only text and curves")
    made.flag("--blur", "show real people, as a few blocks of colour")
    made.flag("--images", "show real people as they are")
    made.exclusive("no_images", "blur", "images")
    made.option(
        "--cache",
        "folder for clean features, as for evaluate",
        pathname,
        metavar="DIR",
        shown="$XDG_CACHE_HOME/reidguard/features or ~/.cache/reidguard/features",
    )
    common.add_device(made)
    return made


def run(options: Options) -> int:
    """Read the runs, draw, write the page."""
    device = common.set_up_machine(options)
    runs = _named([read_run(Path(path).expanduser()) for path in options.runs])
    pictures = (
        {} if options.no_images else {one.name: _pictures(options, one, device) for one in runs}
    )
    save_page(options.out, report_page(runs, pictures))
    print(f"page: {options.out.resolve()}")
    return 0


def _named(runs: list[Run]) -> list[Run]:
    """Runs whose folders have the same name are called by their paths."""
    names = [one.name for one in runs]
    if len({one.path.resolve() for one in runs}) < len(runs):
        raise InputError("a run is given twice: name each folder once")
    return [replace(o, name=str(o.path)) if names.count(o.name) > 1 else o for o in runs]


def _pictures(options: Options, one: Run, device: torch.device) -> list[str]:
    parts = []
    own = one.path / "attack.safetensors"
    if own.exists():
        learnt = perturbation(load_attack(own))
        parts += ["<h3>What was learnt</h3>", *learnt] if learnt else []
    try:
        for subject in _subjects(one, device):
            parts += _people(options, subject, one, device)
    except _LeftOutError as reason:
        parts.append(paragraph(f"Pictures of people are left out: {reason}."))
    except (ReIDGuardError, OSError, KeyError) as error:
        note(f"{one.path}: no pictures of people: {error}")
        parts.append(paragraph("Pictures of people are left out: the run's data is not at hand."))
    return parts


class _LeftOutError(Exception):
    """A reason to show nobody, that is no fault."""


def _subjects(one: Run, device: torch.device) -> Iterator[Subject]:
    if one.result is None:
        return
    said: dict[str, Any] = one.manifest.get("options", {})
    if one.command == "demo":
        size = _size(one.result["plan"]["size"])
        attack = load_attack(one.path / "attack.safetensors").to(device)
        for cell in one.result["cells"]:
            name = f"{cell['domain']}-{cell['model'].lower()}.safetensors"
            model = load_model(one.path / "models" / name).to(device)
            people = load_dataset("virtual", one.path / "people" / cell["domain"])
            title = f"{cell['setting']} ({cell['model']}, {cell['domain']})"
            yield Subject(title, model, people, attack, size)
    elif one.command in ("attack", "defend") and one.result.get("evaluation"):
        if one.result["evaluation"]["attack"] is None:
            return
        people = load_dataset(said["data"])
        if (every := said["query_every"]) > 1:
            people = ReIDDataset(
                people.name, people.train, people.query[::every], people.gallery, root=people.root
            )
        size = _size(said["image_size"])
        given = Options(model=said["model"], model_set=said["model_set"])
        normal = None
        if one.command == "defend":
            model = load_model(one.path / "model.safetensors")
            made = Path(said["attack"] or "")
            if not made.is_file():
                raise _LeftOutError("the defense's attack is not in a file")
            attack = load_attack(made)
            if not isinstance(attack, InstanceAttack):  # such a one would be made on each anew
                normal = common.make_model(given).to(device)
        else:
            model = common.make_model(given)
            attack = load_attack(said["load"] or one.path / "attack.safetensors")
        if isinstance(attack, InstanceAttack):
            if attack.needs_guides or said.get("surrogate"):
                raise _LeftOutError("the attack needs more than the model to be made again")
            attack = attack.bind(model.to(device))
        model, attack = model.to(device), attack.to(device)
        yield Subject(people.name, model, people, attack, size, normal)


def _size(pair: list[int]) -> tuple[int, int]:
    return pair[0], pair[1]


def _people(options: Options, subject: Subject, one: Run, device: torch.device) -> list[str]:
    title, model, dataset, attack, size, normal = subject
    real = not dataset.name.startswith("virtual:")
    if real and not (options.blur or options.images):
        raise _LeftOutError(
            "they are real; --blur shows them as blocks of colour, --images as they are"
        )
    blur = real and options.blur
    parts = []
    if one.command == "attack" and not blur:
        parts.append("<h3>What it does to people</h3>")
        parts += adversarial_examples(attack, dataset, size, device=device)
    store = common.feature_store(options.cache)
    if normal is not None:
        return [*parts, *_defended(subject, normal, store, blur)]
    right = rank1_correct(model, dataset, store, size)
    chosen = evenly_spaced(right, EXAMINED)
    if not chosen:
        return [*parts, paragraph(f"{title}: nobody is found even before the attack.")]
    _, changed = attacked_queries(model, dataset, attack, chosen, size)
    still = rank1_correct(model, dataset, store, size, changed, chosen)
    broken = [number for number in chosen if number not in still]
    parts.append(
        paragraph(
            f"{title}: {len(still)} of {len(chosen)} queries still find the person first under "
            f"attack, as 8-bit images. They are spaced evenly among the {len(right)} of "
            f"{len(dataset.query)} that do before it. {LEGEND}"
        )
    )
    for what, numbers in (("Found no more", broken), ("Still found", still)):
        if numbers:
            parts.append(f"<h3>{what}</h3>")
            parts += before_and_after(
                model,
                dataset,
                attack,
                evenly_spaced(numbers, SHOWN),
                store=store,
                size=size,
                blur=blur,
            )
    return parts


def _defended(subject: Subject, normal: ReIDModel, store: FeatureStore, blur: bool) -> list[str]:
    """Rank lists of the normal model before and after the attack, and of the hardened one after."""
    title, model, dataset, attack, size, _ = subject
    right = rank1_correct(normal, dataset, store, size)
    chosen = evenly_spaced(right, EXAMINED)
    if not chosen:
        return [paragraph(f"{title}: the normal model finds nobody even before the attack.")]
    _, changed = attacked_queries(model, dataset, attack, chosen, size)
    kept, defended = (
        rank1_correct(network, dataset, store, size, changed, chosen) for network in (normal, model)
    )
    saved = [number for number in defended if number not in kept]
    broken = [number for number in chosen if number not in defended]
    parts = [
        paragraph(
            f"{title}: of {len(chosen)} queries whose first image is right before the attack, "
            f"spaced evenly among {len(right)} of {len(dataset.query)}, it still is under attack, "
            f"as 8-bit images, for {len(kept)} with the normal model and for {len(defended)} with "
            f"the hardened one. {LEGEND}"
        )
    ]
    for what, numbers in (("Found again by the defense", saved), ("Defended, yet lost", broken)):
        if numbers:
            parts.append(f"<h3>{what}</h3>")
            shown = evenly_spaced(numbers, SHOWN)
            images = changed[[chosen.index(number) for number in shown]]
            lists = (
                rank_lists(n, dataset, shown, i, title=t, store=store, size=size, blur=blur)
                for t, n, i in (
                    ("Before the attack", normal, None),
                    ("After the attack", normal, images),
                    ("After the defense", model, images),
                )
            )
            parts += [part for one_query in zip(*lists, strict=True) for part in one_query]
    return parts
