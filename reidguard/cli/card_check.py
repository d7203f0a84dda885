"""Measuring a result card again, and comparing: the work of ``reidguard board verify``."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from reidguard.cli.gate import BELOW
from reidguard.cli.options import Options
from reidguard.errors import InputError, printable
from reidguard.report.board import board_rows
from reidguard.report.cards import Card, read_cards
from reidguard.report.rerun import rerun_command
from reidguard.storage import changed_settings
from reidguard.tables import Table

__all__ = ["check_card", "compare", "find_cards"]

PLACES = ("data", "model", "surrogate", "universal")


def find_cards(name: str, places: Sequence[str]) -> list[Card]:
    """Return the cards at a path, or those of a row or card by its digits.

    Args:
        name: A path, or the digits that the board shows.
        places: Where the board's cards are, for digits.

    Raises:
        InputError: If there is no such card, or it was not made by a command.
    """
    if not places:
        if not Path(name).expanduser().exists():
            raise InputError(
                f"there is no card {name}; for the digits of a row also name the board's cards: "
                f"reidguard board verify {name} CARDS"
            )
        found = read_cards([name])
    else:
        cards = read_cards(places)
        rows = {row.id: list(row.cards) for row in board_rows(cards)}
        found = rows.get(name, [card for card in cards if card.id == name])
        if not found:
            raise InputError(f"no row and no card is {name}; rows are {', '.join(rows)}")
    for card in found:
        if not card.options:
            raise InputError(
                f"{card.run.path} does not say how it was measured: give the run folder, with its "
                "manifest.json"
            )
    return found


def check_card(card: Card, options: Options, *, several: bool = False) -> int:
    """Measure a card again in a new run folder, compare, and print the verdict.

    Args:
        card: With a manifest.
        options: Of ``reidguard board verify``.
        several: Whether this is one of several cards, so that ``--out`` is their common folder.

    Returns:
        The exit code.

    Raises:
        InputError: If model, data or settings are not those of the card.
    """
    from reidguard.cli.app import parse

    out = options.out or Path("runs") / f"verify-{card.id}"
    out = out / card.id if several and options.out else out
    if out.resolve() == card.run.path.resolve():
        raise InputError(f"{out} is the card itself: choose another folder with --out")
    places = {name: options.get(name) for name in PLACES}
    replaced = {name: None if place is None else str(place) for name, place in places.items()}
    words = rerun_command(card.run.manifest, **replaced)
    print(f"{_title(card)}\nmeasuring again: {printable(shlex.join(words))}", flush=True)
    again = parse(words[1:])
    assert again is not None
    for name in ("device", "threads", "cache"):
        setattr(again, name, options.get(name))
    again.out, again.argv = out, options.argv
    again.expected = card.run.manifest["settings"]
    again.run(again)
    text, equal = compare(card, read_cards([out])[0], options.tolerance)
    print(text)
    return 0 if equal else BELOW


def compare(card: Card, again: Card, tolerance: float = 0.05) -> tuple[str, bool]:
    """Compare the figures of two cards, and what they say of their model, data and options.

    Args:
        card: The one in question.
        again: The one that was measured now.
        tolerance: Percentage points by which figures may differ.

    Returns:
        The verdict in words, with the figures that differ, and whether they are equal.
    """
    before, now = card.figures, again.figures
    apart = {
        name: 100 * abs(before[name] - now[name]) if name in before and name in now else None
        for name in {**before, **now}
    }
    rows = [
        [name, _points(before.get(name)), _points(now.get(name)), None if d is None else f"{d:.2f}"]
        for name, d in apart.items()
        if d is None or d > tolerance
    ]
    changed = changed_settings(card.statements, again.statements)
    if rows or changed:
        head = Table(["figure, in %", "card", "now", "difference"], rows)
        parts = [f"differs: {len(rows)} of {len(apart)} figures by more than {tolerance:g} points"]
        parts += [head.to_markdown()] if rows else []
        parts += [f"the card says otherwise: {changed}"] if changed else []
        return "\n\n".join(parts), False
    largest = max(((d or 0.0, name) for name, d in apart.items()), default=(0.0, ""))
    if largest[0] == 0:
        return f"equal: all {len(apart)} figures are the same", True
    return (
        f"equal: all {len(apart)} figures agree within {tolerance:g} points; the largest "
        f"difference is {largest[0]:.2g} ({largest[1]})"
    ), True


def _points(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.2f}"


def _title(card: Card) -> str:
    eps = "" if card.facts.eps is None else f", ε = {255 * card.facts.eps:.4g}/255"
    return printable(f"card {card.id}: {card.model} on {card.facts.data.name}{eps}")
