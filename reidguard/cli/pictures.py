"""Pictures of a run for its report: the learnt perturbation, examples, rank lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

import torch
from msgspec import Meta

from reidguard.attacks import Attack, InstanceAttack, load_attack
from reidguard.cli.model_option import model_from
from reidguard.cli.progress import note
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import ReIDGuardError
from reidguard.evaluation import FeatureStore
from reidguard.models import load_model
from reidguard.records import convert, to_path
from reidguard.report import (
    Retrieval,
    Run,
    adversarial_examples,
    columns,
    evenly_spaced,
    paragraph,
    perturbation,
    subsection,
)

__all__ = ["pictures"]

EXAMINED = 64  # queries that are attacked to find two of each kind
SHOWN = 2
LEGEND = (
    "✓ and a solid blue frame: the same person by another camera. ✗ and a dashed orange frame: "
    "someone else. Attacked queries are 8-bit images. A click enlarges an image."
)


class Subject(NamedTuple):
    """A model under an attack, rebuilt from a run."""

    title: str
    retrieval: Retrieval
    attack: Attack
    normal: Retrieval | None = None  # of the model before it was hardened


@dataclass(frozen=True, kw_only=True)
class Call:
    """Options in the manifest of ``attack`` and ``defend`` from which pictures are made again."""

    data: str
    model: str
    model_set: dict[str, Any] = field(default_factory=dict)
    input: str | None = None
    attack: str | None = None
    load: str | None = None
    surrogate: tuple[str, ...] | str | None = None
    image_size: tuple[int, int]
    query_every: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class DemoPlan:
    """The part of the demo's plan from which pictures are made again."""

    size: tuple[int, int]


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
    learnt, parts = [], []
    own = run.path / "attack.safetensors"
    if own.exists():
        learnt += perturbation(load_attack(own))
    try:
        for place, subject in enumerate(_subjects(run, device, store)):
            retrieval = subject.retrieval
            is_real = not retrieval.dataset.name.startswith("virtual:")
            if is_real and real is None:
                raise _OmittedError(
                    "they are real; --blur shows them as blocks of colour, --images as they are"
                )
            if place == 0 and subject.normal is None and not (is_real and real == "blur"):
                examples = adversarial_examples(
                    subject.attack, retrieval.dataset, retrieval.size, device=device
                )
                parts.append(subsection("What the attack does to an image", *examples))
            if place == 0:
                parts.append(paragraph(LEGEND))
            parts.append(_people(subject, blur=is_real and real == "blur"))
    except _OmittedError as reason:
        parts.append(paragraph(f"Pictures of people are omitted: {reason}."))
    except (ReIDGuardError, OSError) as error:
        note(f"{run.path}: no pictures of people: {error}")
        parts.append(paragraph("Pictures of people are omitted: the run's data is not available."))
    if len(learnt) > 1:
        learnt = [columns(*learnt)]
    return [*learnt, *parts]


def _subjects(run: Run, device: torch.device, store: FeatureStore) -> Iterator[Subject]:
    if run.result is None:
        return
    if run.command == "demo":
        attack = load_attack(run.path / "attack.safetensors").to(device)
        plan = convert(run.manifest["settings"].get("plan"), DemoPlan, "the manifest's plan")
        for cell in run.result["cells"]:
            name = f"{cell['dataset']}-{cell['model'].lower()}.safetensors"
            model = load_model(run.path / "models" / name).to(device)
            people = load_dataset("virtual", run.path / "people" / cell["dataset"])
            title = f"{cell['setting']} ({cell['model']}, {cell['dataset']})"
            yield Subject(title, Retrieval(model, people, store, plan.size), attack)
    elif run.command in ("attack", "defend") and (run.result.get("evaluation") or {}).get("attack"):
        yield _subject(run, device, store)


def _subject(run: Run, device: torch.device, store: FeatureStore) -> Subject:
    """Rebuild what ``attack`` or ``defend`` evaluated."""
    call = convert(run.manifest["options"], Call, "the manifest's options")
    dataset = load_dataset(call.data)
    query = dataset.query[:: call.query_every]
    dataset = ReIDDataset(dataset.name, dataset.train, query, dataset.gallery, root=dataset.root)
    is_defense = run.command == "defend"
    if is_defense:
        model = load_model(run.path / "model.safetensors")
        if call.attack is None or not to_path(call.attack).is_file():
            raise _OmittedError("the defense's attack is not in a file")
        attack = load_attack(call.attack)
    else:
        model = model_from(call.model, call.model_set, prepared=call.input)
        attack = load_attack(call.load or run.path / "attack.safetensors")
    retrieval = Retrieval(model.to(device), dataset, store, call.image_size)
    normal = None
    if isinstance(attack, InstanceAttack):
        if attack.needs_guides or call.surrogate:
            raise _OmittedError("the attack cannot be repeated with the model alone")
        attack = attack.bind(model)
    elif is_defense:
        hardened_from = model_from(call.model, call.model_set, prepared=call.input)
        normal = replace(retrieval, model=hardened_from.to(device))
    return Subject(dataset.name, retrieval, attack.to(device), normal)


def _people(subject: Subject, *, blur: bool) -> str:
    """Return rank lists before and after the attack (and the defense)."""
    title, retrieval, attack, normal = subject
    before = normal or retrieval
    correct = before.rank1_correct()
    examined = evenly_spaced(correct, EXAMINED)
    if not examined:
        none = "No query has a correct rank-1 match, even clean."
        return subsection(title, paragraph(none))
    changed = retrieval.attacked(attack, examined)
    robust = retrieval.rank1_correct(examined, changed)
    lost = [query for query in examined if query not in robust]
    summary = (
        f"{len(correct)} of {len(retrieval.dataset.query)} queries have a correct rank-1 match "
        f"before the attack. Of {len(examined)} of them, evenly spaced, {len(robust)} keep it "
        "under attack"
    )
    if normal is None:
        lists = [("Before", before, False), ("After", retrieval, True)]
        groups = [("Rank-1 match lost", lost), ("Rank-1 match kept", robust)]
    else:
        undefended = before.rank1_correct(examined, changed)
        summary += f" with the hardened model, {len(undefended)} with the normal one"
        lists = [
            ("Before the attack", before, False),
            ("After the attack", before, True),
            ("After the defense", retrieval, True),
        ]
        groups = [
            ("Rank-1 match kept by the defense", [q for q in robust if q not in undefended]),
            ("Rank-1 match lost despite the defense", lost),
        ]
    parts = [paragraph(f"{summary}.")]
    for heading, queries in groups:
        shown = evenly_spaced(queries, SHOWN)
        if not shown:
            continue
        images = changed[[examined.index(query) for query in shown]]
        of_each = (
            ranked.rank_lists(shown, images if attacked else None, title=name, blur=blur)
            for name, ranked, attacked in lists
        )
        parts.append(f"<h4>{heading}</h4>")
        parts += [columns(*of_query) for of_query in zip(*of_each, strict=True)]
    return subsection(title, *parts)
