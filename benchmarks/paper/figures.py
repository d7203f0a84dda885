"""A figure of the paper: shown in words, and drawn again as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from benchmarks.paper.experiments import (
    PAPER,
    READERS,
    STAND_IN,
    data_option,
    missing,
    needs,
    reasons,
)
from benchmarks.paper.results import own_networks, stand_ins
from benchmarks.paper.runner import Workshop
from benchmarks.paper.tables import PaperPicture
from reidguard.attacks import InstanceAttack
from reidguard.data import decode_image
from reidguard.errors import InputError
from reidguard.models import ReIDModel
from reidguard.report import (
    as_image,
    attacked_queries,
    evenly_spaced,
    figure,
    figure_row,
    page,
    paragraph,
    perturbation,
    rank1_correct,
    rank_lists,
    section,
    thumbnail,
)

__all__ = ["draw_picture", "shown_picture"]

EXAMINED = 64  # queries that are attacked to find some of each kind


def shown_picture(wanted: PaperPicture) -> str:
    """Return what a figure shows, for people, and what drawing it takes."""
    lines = [f"Figure {wanted.number} of the paper: {wanted.caption}", ""]
    lines += [f"- {_label(c)}, on {c['model']} of {c['data']}" for c in wanted.rows]
    lines += ["", *(f"note: {text}" for text in wanted.notes)]
    names = sorted({data_option(name) for c in wanted.rows for name in needs(c)[0]})
    lines.append(f"drawing it takes: {', '.join(f'--data {n}' for n in names)}")
    missing = reasons([missing(c, PAPER, {*READERS.values()}) for c in wanted.rows])
    lines += [f"cannot be drawn: {reason}" for reason in missing]
    if not any(missing(c, STAND_IN, {*STAND_IN.domains}) for c in wanted.rows):
        lines.append(f"without data: reidguard paper figure{wanted.number} --stand-in")
    return "\n".join(lines)


def draw_picture(
    wanted: PaperPicture, workshop: Workshop, *, blur: bool = False
) -> tuple[dict[str, Any], str]:
    """Draw a figure anew.

    Args:
        wanted: The figure.
        workshop: Makes what it takes.
        blur: Show people as a few blocks of colour.

    Returns:
        JSON values: ``figure``, ``stand_in`` (the plan, if one was used), ``own_networks``
        (those that a file of the user's gave), ``rows`` (conditions,
        and how many of the queries looked at are right) and ``queries`` (names of the files
        shown, and for each row whether the first image is right). And a page.

    Raises:
        InputError: If something that it takes is not at hand.
    """
    plan = workshop.plan
    datasets = set(plan.domains) | set(workshop.given)
    if missing := reasons([missing(c, plan, datasets) for c in wanted.rows]):
        raise InputError(f"figure {wanted.number} cannot be drawn: {'; '.join(missing)}")
    people = workshop.people(wanted.rows[0]["data"])
    examined = evenly_spaced(range(len(people.query)), EXAMINED)
    rows = [_Row(workshop, c, examined) for c in wanted.rows]
    chosen: list[int] = []
    unmet = []
    for kind, count in wanted.queries:
        fitting = [n for n in examined if n not in chosen and _fits(kind, rows, n)]
        chosen += evenly_spaced(fitting, count) if fitting else []
        if len(fitting) < count:
            unmet.append(
                f"Of {len(examined)} queries {len(fitting) or 'none'} came out as wanted: "
                + "; ".join(
                    f"{_label(row.conditions)}: first image {'right' if sign == '+' else 'wrong'}"
                    for sign, row in zip(kind, rows, strict=True)
                    if sign != "."
                )
                + "."
            )
    content = {
        "figure": wanted.number,
        "stand_in": asdict(plan) if plan.stand_in else None,
        "own_networks": dict(workshop.own),
        "examined": len(examined),
        "rows": [{"conditions": dict(r.conditions), "right": len(r.right)} for r in rows],
        "queries": [
            {"file": people.query[n].path.name, "right": [n in row.right for row in rows]}
            for n in chosen
        ],
    }
    parts = [paragraph(text) for text in (*wanted.notes, *unmet)]
    if plan.stand_in:
        used = {name for c in wanted.rows for name in needs(c)[0]}
        parts.insert(0, paragraph(stand_ins(plan, used).replace("**", "")))
    if workshop.own:
        parts.append(paragraph(own_networks(workshop.own)))
    counts = "; ".join(f"{_label(r.conditions)}: {len(r.right)}" for r in rows)
    parts.append(
        paragraph(f"Queries whose first image is right, of {len(examined)} looked at: {counts}.")
    )
    draw = {"people": _people, "changes": _changes, "lists": _lists}[wanted.pictures]
    title = f"Figure {wanted.number} of the paper, drawn again: {wanted.caption}"
    return content, page(title, *parts, *draw(rows, workshop, chosen, blur))


class _Row:
    """What one line of conditions does to the queries that are looked at."""

    def __init__(
        self, workshop: Workshop, conditions: Mapping[str, Any], examined: Sequence[int]
    ) -> None:
        self.conditions = conditions
        self.people = workshop.people(conditions["data"])
        self.store = workshop.store
        self.size = workshop.plan.size
        self.model: ReIDModel = workshop.robust(
            conditions["model"], conditions["data"], conditions["defense"]
        )
        self.attack = None if conditions["attack"] == "none" else workshop.attack(conditions)
        images = self.images(examined)
        found = rank1_correct(self.model, self.people, self.store, self.size, images, examined)
        self.right = set(found)

    def images(self, chosen: Sequence[int]) -> Tensor | None:
        """The 8-bit adversarial images of some queries; None where nothing attacks."""
        if self.attack is None:
            return None
        return attacked_queries(self.model, self.people, self.attack, chosen, self.size)[1]

    def lists(self, chosen: Sequence[int], blur: bool) -> list[str]:
        return rank_lists(
            self.model,
            self.people,
            chosen,
            self.images(chosen),
            title=_label(self.conditions),
            store=self.store,
            size=self.size,
            blur=blur,
        )


def _fits(kind: str, rows: Sequence[_Row], number: int) -> bool:
    return all(
        sign == "." or (number in row.right) == (sign == "+")
        for sign, row in zip(kind, rows, strict=True)
    )


def _label(c: Mapping[str, Any]) -> str:
    victim = "" if c["defense"] == "none" else f" on {c['defense']}"
    if c["attack"] == "none":
        return f"clean{victim}"
    return f"{c['attack']}{', meta-learnt' if c['meta'] else ''}, ε = {c['eps']:g}{victim}"


def _people(
    rows: Sequence[_Row], workshop: Workshop, chosen: Sequence[int], blur: bool
) -> Iterator[str]:
    people, size = rows[0].people, rows[0].size
    changed = [row.images(chosen) for row in rows]
    for place, number in enumerate(chosen):
        name = f"query {place + 1}"
        shown = [(as_image(decode_image(people.query[number].path, size)), "clean")]
        shown += [
            (as_image(images[place]), _label(row.conditions))
            for row, images in zip(rows, changed, strict=True)
            if images is not None
        ]
        yield figure_row(
            *(figure(thumbnail(i, blur), f"{name}: {what}", what) for i, what in shown)
        )


def _changes(
    rows: Sequence[_Row], workshop: Workshop, chosen: Sequence[int], blur: bool
) -> Iterator[str]:
    for row in rows:
        learnt = []
        if row.attack is not None and not isinstance(row.attack, InstanceAttack):
            learnt = perturbation(row.attack)
        yield section(_label(row.conditions), *learnt, *_people([row], workshop, chosen, blur))


def _lists(
    rows: Sequence[_Row], workshop: Workshop, chosen: Sequence[int], blur: bool
) -> Iterator[str]:
    if not chosen:
        return
    yield paragraph(
        "✓ and a solid blue frame: the same person by another camera. ✗ and a dashed orange frame: "
        "someone else."
    )
    for place, one_query in enumerate(
        zip(*(row.lists(chosen, blur) for row in rows), strict=True), 1
    ):
        yield section(f"Query {place}", *one_query)
