"""Result cards: what was measured of a model, with all that it takes to measure it again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from reidguard.errors import CheckpointError, InputError
from reidguard.fingerprint import fingerprint
from reidguard.records import Count, Fraction, convert, read_record, to_path
from reidguard.report.rerun import MACHINE, rerun_command, shortened, without_folders
from reidguard.report.runs import Run, check_records, read_run
from reidguard.storage import write_json

__all__ = ["Card", "read_cards", "write_card"]

COMMANDS = ("autoattack", "evaluate", "attack", "audit", "certify")
CURE = "give a run folder of " + ", ".join(COMMANDS[:-1]) + f" or {COMMANDS[-1]}, or its result"

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Hash = Annotated[str, Meta(min_length=8, max_length=128)]


@dataclass(frozen=True)
class DataFacts:
    """The dataset of a card."""

    name: Name
    query: Hash
    gallery: Hash
    query_every: Annotated[int, Meta(ge=1, le=2**53)] = 1


@dataclass(frozen=True)
class Facts:
    """What a card says of its model, data and budget."""

    weights: Hash
    data: DataFacts
    eps: Fraction | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    queries: Count | None = None


@dataclass(frozen=True, eq=False)
class Card:
    """The result of a run, with its command, settings and provenance.

    Attributes:
        run: The run; its manifest is empty where only a result is known.
        kind: ``suite``, ``evaluation``, ``audit`` or ``certificate``.
        facts: Model and data by their fingerprints, ε in [0, 1] units, protocol.

    Example:
        >>> card = read_cards(["runs/autoattack"])[0]  # doctest: +SKIP
        >>> card.kind, card.figures["robust, 8-bit: mAP"]  # doctest: +SKIP
        ('suite', 0.0123)
    """

    run: Run
    kind: str
    facts: Facts

    @property
    def result(self) -> dict[str, Any]:
        """The result as JSON values."""
        return self.run.result or {}

    @property
    def id(self) -> str:
        """The first 8 digits of a fingerprint of the result and the settings."""
        return fingerprint([self.result, self.run.manifest.get("settings")])[:8]

    @property
    def options(self) -> dict[str, Any]:
        """All options of the command; empty where they are not known."""
        return dict(self.run.manifest.get("options") or {})

    @property
    def by(self) -> str:
        """Who measured it, as the option ``--by`` of the command named them; may be empty."""
        return str(self.options.get("by") or "")[:200]

    @property
    def version(self) -> str:
        """Version of reidguard."""
        versions = self.run.manifest.get("versions") or self.result.get("versions") or {}
        return str(versions.get("reidguard", ""))

    @property
    def finished(self) -> str:
        """When the run ended, in ISO 8601; empty where it is not known."""
        return str(self.run.manifest.get("finished") or "")

    @property
    def model(self) -> str:
        """The model as its option names it, without folders; its fingerprint where none does."""
        spec = self.options.get("model")
        return shortened(str(spec))[:200] if spec else self.facts.weights[:8]

    @property
    def command(self) -> tuple[str, ...]:
        """The command to measure it again, without folders; empty where it is not known."""
        if not self.options:
            return ()
        return rerun_command({**self.run.manifest, "options": without_folders(self.options)})

    @property
    def figures(self) -> dict[str, float]:
        """All measured fractions by name, in [0, 1]."""
        return dict(_figures(self.kind, self.result))

    @property
    def statements(self) -> dict[str, Any]:
        """What the result says of data, model, options and warnings."""
        names = (
            "suite",
            "early_stop",
            "certify",
            "dataset",
            "counts",
            "protocol",
            "model",
            "facts",
        )
        said = {name: self.result[name] for name in (*names, "warnings") if name in self.result}
        evaluation = self.result.get("evaluation") or {}
        own = ("attack", "counts", "protocol", "weights")
        return said | {name: evaluation[name] for name in own if name in evaluation}


def read_cards(paths: Sequence[Path | str]) -> list[Card]:
    """Read result cards.

    Args:
        paths: Run folders of ``autoattack``, ``evaluate``, ``attack``, ``audit`` and ``certify``,
            their ``result.json`` or ``audit.json``, files of :func:`write_card`, and folders of
            all these. Of a folder of several, runs of other commands, of ``board verify`` and
            unfinished ones are left out.

    Raises:
        InputError: If something is no card, damaged, or not finished, or there are no cards.

    Example:
        >>> cards = read_cards(["runs"])  # doctest: +SKIP
    """
    cards: list[Card] = []
    seen: set[Path] = set()
    try:
        for path in map(to_path, paths):
            inner = [path] if not path.is_dir() or _is_run(path) else list(_cards_below(path))
            for place in inner:
                card = _card_at(place)
                here = card.run.path.resolve()
                if here not in seen:
                    cards.append(card)
                seen.add(here)
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if not cards:
        places = ", ".join(map(str, paths))
        raise InputError(f"there is no finished run to show in {places}; {CURE}")
    return cards


def write_card(path: Path | str, card: Card) -> None:
    """Write a card as one JSON file that can be passed on, without names of folders.

    The values of options that are paths keep their last part alone, the commit is kept.

    Args:
        path: The file.
        card: With a manifest.

    Raises:
        InputError: If the card is a result alone.
        CheckpointError: If the file cannot be written.

    Example:
        >>> write_card("cards/osnet.json", read_cards(["runs/osnet"])[0])  # doctest: +SKIP
    """
    if not card.run.manifest:
        raise InputError(f"{card.run.path} is a result without the manifest of its run; {CURE}")
    result = json.loads(json.dumps(card.result))
    if (evaluation := result.get("evaluation")) is not None:
        evaluation["skipped"] = [Path(name).name for name in evaluation.get("skipped", ())]
        if folder := evaluation["dataset"].get("query_folder"):
            evaluation["dataset"]["query_folder"] = Path(folder).name
    kept = {k: v for k, v in card.options.items() if k == "by" or k not in MACHINE}
    manifest = {
        **card.run.manifest,
        "command": list(card.command),
        "resumed": [],
        "options": without_folders(kept),
    }
    write_json(path, {"manifest": manifest, "result": result})


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _cards_below(folder: Path) -> Iterator[Path]:
    """Yield the finished runs below a folder, and the JSON files in it."""
    yield from sorted(folder.glob("*.json"))
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "manifest.json" in files:
            folders.clear()
            run = read_run(place)
            again = run.manifest["command"][1:3] == ["board", "verify"]
            if run.command in COMMANDS and run.manifest["status"] == "finished" and not again:
                yield Path(place)


def _card_at(path: Path) -> Card:
    run = read_run(path) if path.is_dir() else _run_of_file(path)
    status = run.manifest.get("status", "finished")
    if run.result is None or status != "finished":
        raise InputError(f"{path} is not finished ({status}); resume it first")
    kinds = {"robust": "suite", "findings": "audit", "certified": "certificate"}
    kind = next((kind for name, kind in kinds.items() if name in run.result), None)
    if kind is None and run.result.get("evaluation"):
        kind = "evaluation"
    if kind is None or (run.manifest and run.command not in COMMANDS):
        raise InputError(f"{path} is no result card; {CURE}")
    facts = convert(_facts(kind, run), Facts, f"the card {path}", cure=CURE, error=InputError)
    return Card(run, kind, facts)


def _run_of_file(path: Path) -> Run:
    """Read a result file of a run, or a card in one file."""
    if path.name in ("result.json", "audit.json") and _is_run(path.parent):
        return read_run(path.parent)
    content = read_record(path, dict[str, Any], cure=CURE, error=InputError)
    manifest, result = content.get("manifest"), content.get("result", content)
    if isinstance(result, dict) and {"clean", "weights"} <= result.keys():  # as evaluate() saves it
        result = {"evaluation": result}
    check_records(f"the manifest in {path}", manifest, f"the result in {path}", result)
    return Run(path, path.stem, manifest or {}, result, ())


def _facts(kind: str, run: Run) -> dict[str, Any]:
    """Return what :class:`Facts` checks; parts that a card lacks are None there."""
    result = run.result or {}
    if kind in ("suite", "certificate"):
        said, eps = result, _inner(result, "suite", "eps")
        weights, data = _inner(said, "model", "weights"), said["dataset"]
    elif kind == "audit":
        said, eps = result["facts"], result["facts"]["eps"]
        weights, data = said.get("weights"), {**said, "name": said["dataset"]}
    else:
        said = result["evaluation"]
        eps = None if said["attack"] is None else said["attack"]["eps"]
        weights, data = said["weights"], said["dataset"]
    prints = data.get("fingerprints")
    prints = prints if isinstance(prints, Mapping) else {}
    facts = {"name": data["name"], "query_every": data.get("query_every", 1)}
    queries = said.get("queries") if kind == "audit" else _inner(said, "counts", "query")
    return {
        "weights": weights,
        "data": {**facts, "query": prints.get("query"), "gallery": prints.get("gallery")},
        "eps": eps,
        "protocol": said.get("protocol", {}),
        "queries": queries,
    }


def _inner(values: Mapping[str, Any], outer: str, name: str) -> Any:
    inside = values.get(outer)
    return inside.get(name) if isinstance(inside, Mapping) else None


def _figures(kind: str, result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if kind == "suite":
        yield from _ranking("clean", result["clean"])
        for key, name in {"robust": "robust, float", "robust_8bit": "robust, 8-bit"}.items():
            yield from _ranking(name, result[key])
            yield f"{name}: broken", result[key]["broken"]
        for member in result["members"]:
            if member["mAP"] is not None:
                yield f"{member['name']}: mAP", member["mAP"]
            if member["queries"]:
                yield f"{member['name']}: broken", member["broken"] / member["queries"]
    elif kind == "evaluation":
        names = {"clean": "clean", "attacked": "attacked, float", "attacked_8bit": "8-bit"}
        for key, name in names.items():
            if result["evaluation"][key] is not None:
                yield from _ranking(name, result["evaluation"][key])
    elif kind == "audit":
        for point in result["curve"]:
            yield from _ranking(f"SMA at {255 * point['eps']:g}/255", point)
        for row in result["transfer"]:
            yield f"{row['attack']} on the model: mAP", row["white_box"]
            yield f"{row['attack']} on the surrogate: mAP", row["surrogate"]
    else:
        for name in ("certified", "smoothed", "abstained"):
            values = result.get(name)
            for rank, value in values.items() if isinstance(values, Mapping) else ():
                if rank.startswith("rank_") and isinstance(value, int | float) and 0 <= value <= 1:
                    yield f"{name}: {rank.replace('_', '-')}", float(value)


def _ranking(name: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if values["mAP"] is not None:
        yield f"{name}: mAP", values["mAP"]
    if "mINP" in values:
        yield f"{name}: mINP", values["mINP"]
    for rank, fraction in enumerate(values.get("cmc", [values.get("rank1")]), 1):
        yield f"{name}: rank-{rank}", fraction
