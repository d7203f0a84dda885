"""A figure of the paper: described as text, and drawn as an HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from benchmarks.paper.experiments import (
    DATASETS,
    PAPER,
    STAND_IN,
    data_option,
    missing,
    requirements,
    summarize,
)
from benchmarks.paper.results import describe_own_networks, describe_stand_ins
from benchmarks.paper.runner import Runner
from benchmarks.paper.tables import PaperFigure
from reidguard.attacks import InstanceAttack
from reidguard.data import decode_image
from reidguard.errors import InputError
from reidguard.report import (
    Retrieval,
    as_image,
    evenly_spaced,
    figure_row,
    page,
    paragraph,
    perturbation,
    section,
    thumbnail,
)
from reidguard.report import figure as html_figure

__all__ = ["describe_figure", "draw_figure"]

CANDIDATES = 64  # queries among which those of each pattern are searched


def describe_figure(figure: PaperFigure) -> str:
    """Return what a figure shows and what drawing it requires, as text."""
    lines = [f"Figure {figure.number} of the paper: {figure.caption}", ""]
    lines += [f"- {_label(c)}, on {c['model']} of {c['data']}" for c in figure.rows]
    lines += ["", *(f"note: {text}" for text in figure.notes)]
    names = sorted({data_option(name) for c in figure.rows for name in requirements(c)[0]})
    lines.append(f"drawing it requires: {', '.join(f'--data {n}' for n in names)}")
    reasons = summarize([missing(c, PAPER, {*DATASETS.values()}) for c in figure.rows])
    lines += [f"cannot be drawn: {reason}" for reason in reasons]
    if not any(missing(c, STAND_IN, {*STAND_IN.domains}) for c in figure.rows):
        lines.append(f"without data: python -m benchmarks.paper {figure.name} --stand-in")
    return "\n".join(lines)


def draw_figure(
    figure: PaperFigure, runner: Runner, *, blur: bool = False
) -> tuple[dict[str, Any], str]:
    """Draw a figure.

    Args:
        figure: The figure.
        runner: Trains and measures what it requires.
        blur: Show people as a few blocks of colour.

    Returns:
        JSON values: ``figure``, ``stand_in`` (the setup, if stand-ins were used),
        ``own_networks`` (those from files of the user's), ``examined`` (number of candidate
        queries), ``rows`` (conditions, and for how many candidates the first image is right) and
        ``queries`` (file names of the queries shown, and for each row whether the first image is
        right). And an HTML page.

    Raises:
        InputError: If something that it requires is missing.
    """
    setup = runner.setup
    datasets = set(setup.domains) | set(runner.datasets)
    if reasons := summarize([missing(c, setup, datasets) for c in figure.rows]):
        raise InputError(f"{figure.name} cannot be drawn: {'; '.join(reasons)}")
    dataset = runner.dataset(figure.rows[0]["data"])
    candidates = evenly_spaced(range(len(dataset.query)), CANDIDATES)
    rows = [_Row(runner, c, candidates) for c in figure.rows]
    chosen, remarks = _choose(figure, rows, candidates)
    content = {
        "figure": figure.number,
        "stand_in": asdict(setup) if setup.stand_in else None,
        "own_networks": dict(runner.own_networks),
        "examined": len(candidates),
        "rows": [{"conditions": dict(r.conditions), "right": len(r.right)} for r in rows],
        "queries": [
            {"file": dataset.query[n].path.name, "right": [n in row.right for row in rows]}
            for n in chosen
        ],
    }
    parts = [paragraph(text) for text in (*figure.notes, *remarks)]
    if setup.stand_in:
        used = {name for c in figure.rows for name in requirements(c)[0]}
        parts.insert(0, paragraph(describe_stand_ins(setup, used).replace("**", "")))
    if runner.own_networks:
        parts.append(paragraph(describe_own_networks(runner.own_networks)))
    counts = "; ".join(f"{_label(r.conditions)}: {len(r.right)}" for r in rows)
    parts.append(
        paragraph(f"Queries whose first image is right, of {len(candidates)} examined: {counts}.")
    )
    draw = {"people": _people, "changes": _changes, "lists": _lists}[figure.pictures]
    title = f"Figure {figure.number} of the paper, drawn again: {figure.caption}"
    return content, page(title, *parts, *draw(rows, chosen, blur))


class _Row:
    """One row of a figure: a model, maybe an attack, and the candidates that it still finds."""

    def __init__(
        self, runner: Runner, conditions: Mapping[str, Any], candidates: Sequence[int]
    ) -> None:
        self.conditions = conditions
        self.dataset = runner.dataset(conditions["data"])
        self.size = runner.setup.size
        model = runner.defended_model(
            conditions["model"], conditions["data"], conditions["defense"]
        )
        self.retrieval = Retrieval(model, self.dataset, runner.store, self.size)
        self.attack = None if conditions["attack"] == "none" else runner.attack(conditions)
        self.right = set(self.retrieval.rank1_correct(candidates, self.images(candidates)))

    def images(self, chosen: Sequence[int]) -> Tensor | None:
        """Return the 8-bit adversarial images of some queries; None without an attack."""
        if self.attack is None:
            return None
        return self.retrieval.attacked(self.attack, chosen)

    def lists(self, chosen: Sequence[int], blur: bool) -> list[str]:
        return self.retrieval.rank_lists(
            chosen, self.images(chosen), title=_label(self.conditions), blur=blur
        )


def _choose(
    figure: PaperFigure, rows: Sequence[_Row], candidates: Sequence[int]
) -> tuple[list[int], list[str]]:
    """Return the queries to show, and remarks on patterns that too few queries match."""
    chosen: list[int] = []
    remarks = []
    for pattern, count in figure.queries:
        matching = [n for n in candidates if n not in chosen and _matches(pattern, rows, n)]
        chosen += evenly_spaced(matching, count) if matching else []
        if len(matching) < count:
            outcomes = "; ".join(
                f"{_label(row.conditions)}: first image {'right' if sign == '+' else 'wrong'}"
                for sign, row in zip(pattern, rows, strict=True)
                if sign != "."
            )
            number = len(matching) or "none"
            remarks.append(f"Of {len(candidates)} queries, {number} had this outcome: {outcomes}.")
    return chosen, remarks


def _matches(pattern: str, rows: Sequence[_Row], query: int) -> bool:
    return all(
        sign == "." or (query in row.right) == (sign == "+")
        for sign, row in zip(pattern, rows, strict=True)
    )


def _label(c: Mapping[str, Any]) -> str:
    target = "" if c["defense"] == "none" else f" on {c['defense']}"
    if c["attack"] == "none":
        return f"clean{target}"
    return f"{c['attack']}{', meta-learnt' if c['meta'] else ''}, ε = {c['eps']:g}{target}"


def _people(rows: Sequence[_Row], chosen: Sequence[int], blur: bool) -> Iterator[str]:
    dataset, size = rows[0].dataset, rows[0].size
    attacked = [row.images(chosen) for row in rows]
    for place, number in enumerate(chosen):
        name = f"query {place + 1}"
        shown = [(as_image(decode_image(dataset.query[number].path, size)), "clean")]
        shown += [
            (as_image(images[place]), _label(row.conditions))
            for row, images in zip(rows, attacked, strict=True)
            if images is not None
        ]
        yield figure_row(
            *(html_figure(thumbnail(i, blur), f"{name}: {text}", text) for i, text in shown)
        )


def _changes(rows: Sequence[_Row], chosen: Sequence[int], blur: bool) -> Iterator[str]:
    for row in rows:
        learnt = []
        if row.attack is not None and not isinstance(row.attack, InstanceAttack):
            learnt = perturbation(row.attack)
        yield section(_label(row.conditions), *learnt, *_people([row], chosen, blur))


def _lists(rows: Sequence[_Row], chosen: Sequence[int], blur: bool) -> Iterator[str]:
    if not chosen:
        return
    yield paragraph(
        "✓ and a solid blue frame: the same person by another camera. ✗ and a dashed orange frame: "
        "someone else."
    )
    lists = [row.lists(chosen, blur) for row in rows]
    for place, of_query in enumerate(zip(*lists, strict=True), 1):
        yield section(f"Query {place}", *of_query)
