"""Pictures of a run for its report: the learnt perturbation, examples, rank lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from reidguard.attacks import Attack, InstanceAttack, load_attack
from reidguard.cli.progress import note
from reidguard.cli.session import model_from
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import ReIDGuardError
from reidguard.evaluation import FeatureStore
from reidguard.evaluation.features import module_device
from reidguard.models import ReIDModel, load_model
from reidguard.report import (
    Retrieval,
    Run,
    adversarial_examples,
    evenly_spaced,
    paragraph,
    perturbation,
)

__all__ = ["pictures"]

EXAMINED = 64  # queries that are attacked to find two of each kind
SHOWN = 2
LEGEND = (
    "They are spaced evenly among the {right} of {queries} whose first image is right before the "
    "attack. Attacked queries are 8-bit images. ✓ and a solid blue frame: the same person by "
    "another camera. ✗ and a dashed orange frame: someone else."
)


class Subject(NamedTuple):
    """A model under an attack, rebuilt from a run."""

    title: str
    model: ReIDModel
    dataset: ReIDDataset
    attack: Attack
    size: tuple[int, int]
    normal: ReIDModel | None = None  # what the model was hardened from


class _OmittedError(Exception):
    """A reason to show no people that is not an error."""


def pictures(
    run: Run,
    device: torch.device,
    store: FeatureStore,
    *,
    real: Literal["blur", "show"] | None = None,
) -> list[str]:
    """Return the parts of a page that show a run's perturbation and its effect on people.

    Args:
        run: What :func:`~reidguard.report.read_run` read.
        device: For models and attacks.
        store: Clean features.
        real: Show real people blurred, or as they are; None omits them.
    """
    parts = []
    own = run.path / "attack.safetensors"
    if own.exists() and (learnt := perturbation(load_attack(own))):
        parts += ["<h3>The learnt perturbation</h3>", *learnt]
    try:
        for subject in _subjects(run, device):
            parts += _people(subject, run, store, real)
    except _OmittedError as reason:
        parts.append(paragraph(f"Pictures of people are omitted: {reason}."))
    except (ReIDGuardError, OSError, KeyError) as error:
        note(f"{run.path}: no pictures of people: {error}")
        parts.append(paragraph("Pictures of people are omitted: the run's data is not available."))
    return parts


def _subjects(run: Run, device: torch.device) -> Iterator[Subject]:
    if run.result is None:
        return
    if run.command == "demo":
        attack = load_attack(run.path / "attack.safetensors").to(device)
        for cell in run.result["cells"]:
            name = f"{cell['dataset']}-{cell['model'].lower()}.safetensors"
            model = load_model(run.path / "models" / name).to(device)
            people = load_dataset("virtual", run.path / "people" / cell["dataset"])
            title = f"{cell['setting']} ({cell['model']}, {cell['dataset']})"
            yield Subject(
                title, model, people, attack, _size(run.manifest["settings"]["plan"]["size"])
            )
    elif run.command in ("attack", "defend") and (run.result.get("evaluation") or {}).get("attack"):
        yield _subject(run, device)


def _subject(run: Run, device: torch.device) -> Subject:
    """Rebuild what ``attack`` or ``defend`` evaluated."""
    call: dict[str, Any] = run.manifest["options"]
    dataset = load_dataset(call["data"])
    query = dataset.query[:: call["query_every"]]
    dataset = ReIDDataset(dataset.name, dataset.train, query, dataset.gallery, root=dataset.root)
    normal = None
    if run.command == "defend":
        model = load_model(run.path / "model.safetensors")
        if not Path(call["attack"] or "").is_file():
            raise _OmittedError("the defense's attack is not in a file")
        attack = load_attack(call["attack"])
        if not isinstance(attack, InstanceAttack):  # which would be made on each model anew
            normal = model_from(call["model"], call["model_set"]).to(device)
    else:
        model = model_from(call["model"], call["model_set"])
        attack = load_attack(call["load"] or run.path / "attack.safetensors")
    if isinstance(attack, InstanceAttack):
        if attack.needs_guides or call.get("surrogate"):
            raise _OmittedError("the attack needs more than the model to be made again")
        attack = attack.bind(model.to(device))
    size = _size(call["image_size"])
    return Subject(dataset.name, model.to(device), dataset, attack.to(device), size, normal)


def _size(pair: list[int]) -> tuple[int, int]:
    return pair[0], pair[1]


def _people(subject: Subject, run: Run, store: FeatureStore, real: str | None) -> list[str]:
    """Return examples, and rank lists before and after the attack (and the defense)."""
    title, model, dataset, attack, size, normal = subject
    is_real = not dataset.name.startswith("virtual:")
    if is_real and real is None:
        raise _OmittedError(
            "they are real; --blur shows them as blocks of colour, --images as they are"
        )
    blur = is_real and real == "blur"
    parts = []
    is_first = run.command == "attack" or title.startswith("source")
    if is_first and not blur:
        parts.append("<h3>Retrieval before and after the attack</h3>")
        parts += adversarial_examples(attack, dataset, size, device=module_device(model))
    retrieval = Retrieval(model, dataset, store, size)
    before = retrieval if normal is None else replace(retrieval, model=normal)
    right = before.rank1_correct()
    chosen = evenly_spaced(right, EXAMINED)
    if not chosen:
        return [*parts, paragraph(f"{title}: no query is found even before the attack.")]
    changed = retrieval.attacked(attack, chosen)
    robust = retrieval.rank1_correct(chosen, changed)
    lost = [number for number in chosen if number not in robust]
    summary = f"{title}: of {len(chosen)} queries, {len(robust)} still find the person first under "
    lists = [("Before", before, False), ("After", retrieval, True)]
    groups = [("Found no more", lost), ("Still found", robust)]
    if normal is None:
        summary += "attack."
    else:
        undefended = before.rank1_correct(chosen, changed)
        summary += f"attack with the hardened model, {len(undefended)} with the normal one."
        lists = [
            ("Before the attack", before, False),
            ("After the attack", before, True),
            ("After the defense", retrieval, True),
        ]
        saved = [number for number in robust if number not in undefended]
        groups = [("Found again by the defense", saved), ("Defended, yet lost", lost)]
    legend = LEGEND.format(right=len(right), queries=len(dataset.query))
    parts.append(paragraph(f"{summary} {legend}"))
    for heading, numbers in groups:
        if not numbers:
            continue
        shown = evenly_spaced(numbers, SHOWN)
        images = changed[[chosen.index(number) for number in shown]]
        columns = (
            ranked.rank_lists(shown, images if attacked else None, title=name, blur=blur)
            for name, ranked, attacked in lists
        )
        parts.append(f"<h3>{heading}</h3>")
        parts += [part for of_query in zip(*columns, strict=True) for part in of_query]
    return parts
