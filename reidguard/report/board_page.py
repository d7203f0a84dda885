"""The board as a web page, with a few lines of script that sort and filter it."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from reidguard.errors import InputError
from reidguard.report.board import FRACTIONS, BoardRow
from reidguard.report.cards import Card
from reidguard.report.html import render, table
from reidguard.report.run_page import Measured, details, results
from reidguard.tables import percent

__all__ = ["board_page"]


def board_page(rows: Sequence[BoardRow], title: str = "Robustness of re-identification") -> str:
    """Return the board as one page.

    Its script is part of the page, and the only one that the page's policy lets run. Without it
    the rows are there, sorted by robust mAP, and open to their details.

    Args:
        rows: As :func:`board_rows` returns them.
        title: Of the page.

    Raises:
        InputError: If there are no rows.

    Example:
        >>> from reidguard.report import board_rows, read_cards, save_page
        >>> page = board_page(board_rows(read_cards(["runs"])))  # doctest: +SKIP
        >>> save_page("board.html", page)  # doctest: +SKIP
    """
    if not rows:
        raise InputError("a board needs a row: give it at least one card")
    script = resources.files("reidguard.report").joinpath("templates/board.js").read_text("utf-8")
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return render(
        "board.html.j2",
        title=title,
        headline=_headline(rows),
        rows=rows,
        columns=FRACTIONS,
        shown={row.id: [_shown(card) for card in row.cards] for row in rows},
        datasets=sorted({row.data for row in rows}),
        levels=[level for _, level in sorted({(row.eps or 0, row.level) for row in rows}) if level],
        script=script,
        digest=f"sha256-{base64.b64encode(digest).decode('ascii')}",
    )


class Shown(NamedTuple):
    """A card in the details of a row.

    Attributes:
        id: Of the card.
        title: The command and what it measured.
        facts: Names and values in words.
        measured: Results of the evaluation or the suite.
        parts: HTML of tables and charts.
        command: The command line that measures it again; empty where it is not known.
    """

    id: str
    title: str
    facts: dict[str, str]
    measured: list[Measured]
    parts: list[str]
    command: str


TITLES = {
    "suite": "Worst case of a fixed suite of attacks",
    "evaluation": "Evaluation",
    "audit": "Audit for masked gradients",
    "certificate": "Certificate",
}


def _shown(card: Card) -> Shown:
    parts = list(details(card.run))
    if card.kind == "certificate":
        rows = [[name, percent(value)] for name, value in card.figures.items()]
        certified = card.result["certified"]
        radius = f"At an L2 radius of {certified['radius']:g}, by noise of {certified['sigma']:g}"
        parts += [table(["queries", "%"], [rows], radius)]
    command = shlex.join(card.command)
    return Shown(card.id, TITLES[card.kind], _facts(card), results([card.run]), parts, command)


def _facts(card: Card) -> dict[str, str]:
    """Return settings, fingerprints and provenance in words."""
    facts, suite, manifest = card.facts, card.result.get("suite", {}), card.run.manifest
    versions = manifest.get("versions") or card.result.get("versions") or {}
    names = ("restarts", "steps", "squares", "seed")
    found: dict[str, Any] = {
        "measured by": card.by,
        "finished": card.finished.replace("T", " ").replace("+00:00", " UTC"),
        "queries": f"{facts.queries:,}" if facts.queries else "",
        "suite": ", ".join(f"{name} {suite[name]}" for name in names if name in suite),
        "protocol": ", ".join(f"{name} {value}" for name, value in facts.protocol.items()),
        "device": manifest.get("settings", {}).get("device", ""),
        "model's fingerprint": facts.weights,
        "queries' fingerprint": facts.data.query,
        "gallery's fingerprint": facts.data.gallery,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": manifest.get("commit") or "",
    }
    return {name: str(value) for name, value in found.items() if value}


def _headline(rows: Sequence[BoardRow]) -> str:
    models = len({row.cards[0].facts.weights for row in rows})
    datasets = len({row.cards[0].facts.data.query for row in rows})
    text = f"{models} model{'s' * (models > 1)} on {datasets} dataset{'s' * (datasets > 1)}"
    best: dict[str, BoardRow] = {}  # of each ε; the rows are sorted
    for row in rows:
        if row.robust_mAP is not None:
            best.setdefault(row.level, row)
    if not best:
        return f"{text}; robust mAP was not measured."
    shown = [
        f"{percent(row.robust_mAP)}\N{NO-BREAK SPACE}% at ε = {level} ({row.model} on {row.data})"
        for level, row in sorted(best.items(), key=lambda item: item[1].eps or 0)
    ]
    return f"{text}. Highest robust mAP: {', '.join(shown)}."
