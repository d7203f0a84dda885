"""The board: models compared under attack, a row for each model, dataset and ε."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from reidguard.attacks import ATTACKS, InstanceAttack, SquareAttack
from reidguard.fingerprint import fingerprint
from reidguard.report.cards import Card
from reidguard.tables import Table, percent

__all__ = ["BoardRow", "board_rows", "board_table"]

# Members of the suite of attacks by the column in which they count.
MEMBERS = {
    "universal": ("universal", "pattern"),
    "per_image": ("self-metric", "furthest-negative", "transfer"),
    "by_queries": ("square",),
}
FRACTIONS = {
    "clean_mAP": "clean mAP",
    "clean_rank1": "clean rank-1",
    "robust_mAP": "robust mAP",
    "robust_rank1": "robust rank-1",
    "universal": "universal",
    "per_image": "per image",
    "by_queries": "by queries",
    "certified": "certified",
}
"""Names of the columns of fractions, by the attribute of a row."""

Subject = tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class BoardRow:
    """What cards say of one model on one dataset at one ε. Fractions are in [0, 1].

    Attributes:
        id: Eight digits of a fingerprint of model, data, protocol and ε.
        model: As the command named it, without folders.
        data: Name of the dataset.
        eps: In [0, 1] units; None where nothing was attacked.
        queries: Number of queries.
        query_every: One query in how many was used.
        suite: Restarts, steps and squares of the suite; empty without one.
        clean_mAP: Without an attack.
        clean_rank1: Without an attack.
        robust_mAP: The worst case of each query in the suite of attacks; the lower one of float
            and 8-bit images.
        robust_rank1: The same for rank-1.
        universal: Lowest mAP under one universal perturbation, fixed or learnt.
        per_image: Lowest mAP under one attack that uses a network's gradients for each image.
        by_queries: Lowest mAP under an attack that only queries features.
        certified: Rank-1 that ``reidguard certify`` certifies, in the L2 ball of the certificate.
        warnings: Names of the warnings of audit and suite; None without an audit.
        by: Who measured it; empty where no card says.
        version: Versions of reidguard, with commas.
        finished: When the last run ended, in ISO 8601.
        cards: What the row was made of.

    Example:
        >>> row = board_rows(read_cards(["runs"]))[0]  # doctest: +SKIP
        >>> row.model, row.robust_mAP  # doctest: +SKIP
        ('osnet_x0_25:osnet_x0_25_market1501.pth', 0.0006)
    """

    id: str
    model: str
    data: str
    eps: float | None
    queries: int | None
    query_every: int
    suite: str
    clean_mAP: float | None  # noqa: N815 (the field's name for it)
    clean_rank1: float | None
    robust_mAP: float | None  # noqa: N815
    robust_rank1: float | None
    universal: float | None
    per_image: float | None
    by_queries: float | None
    certified: float | None
    warnings: tuple[str, ...] | None
    by: str
    version: str
    finished: str
    cards: tuple[Card, ...]

    @property
    def level(self) -> str:
        """ε in grey levels, as in "8/255"; empty without one."""
        return "" if self.eps is None else f"{255 * self.eps:.4g}/255"

    @property
    def dataset(self) -> str:
        """The dataset, and how many of its queries were used if not all."""
        part = f", one query in {self.query_every}" if self.query_every > 1 else ""
        return f"{self.data}{part}"

    @property
    def audit(self) -> str:
        """The verdict of the audit in words; empty without one."""
        if self.warnings is None:
            return ""
        return f"warns: {', '.join(self.warnings)}" if self.warnings else "no warning"

    @property
    def commands(self) -> tuple[str, ...]:
        """The command lines that measure the row again, without folders."""
        return tuple(shlex.join(card.command) for card in self.cards if card.command)


def board_rows(cards: Sequence[Card], *, by: str = "") -> list[BoardRow]:
    """Group cards by model, dataset and ε, and sort these rows by robust mAP.

    Results of the suite and evaluations share a row if weights, query and gallery images, the
    fraction of the queries, protocol and ε are the same; evaluations without an attack belong to
    every ε. Audits join the rows of their model, data and ε, and certificates, which are about L2
    balls, those of their model and data. Where several cards have a figure, the lowest counts.

    Args:
        cards: In any order.
        by: Who measured the cards that say nothing of it.

    Example:
        >>> rows = board_rows(read_cards(["runs"]), by="Robust Lab")  # doctest: +SKIP
    """
    groups: dict[tuple[Any, ...], list[Card]] = {}
    for card in cards:
        if card.kind in ("suite", "evaluation"):
            protocol = {k: v for k, v in card.facts.protocol.items() if k != "max_rank"}
            key = (_subject(card), card.facts.data.query_every, fingerprint(protocol))
            groups.setdefault(key, []).append(card)
    checks = [card for card in cards if card.kind in ("audit", "certificate")]
    measured = {key[0] for key in groups}
    for card in checks:
        if _subject(card) not in measured:
            groups.setdefault((_subject(card), 1, ""), [])
    rows = []
    for (subject, every, protocol_key), group in groups.items():
        own = [*group, *(card for card in checks if _subject(card) == subject)]
        levels = {_level(card) for card in own} - {None}
        for level in sorted(levels, key=float) if levels else [None]:  # type: ignore[arg-type]
            here = [card for card in own if _level(card) in (None, level)]
            identity = fingerprint([subject, every, protocol_key, level])[:8]
            rows.append(_row(identity, here, by))
    return sorted(rows, key=_order)


def board_table(rows: Iterable[BoardRow], *, commands: bool = False) -> Table:
    """Return the board as a table, mAP and rank-1 in percent.

    Args:
        rows: As :func:`board_rows` returns them.
        commands: Whether the last column has the commands.

    Example:
        >>> print(board_table([]).header[:3])
        ['row', 'model', 'data']
    """
    head = ["row", "model", "data", "ε", "queries", "suite", *FRACTIONS.values()]
    head += ["audit", "by", "reidguard", "date"] + ["commands"] * commands
    cells = [
        [
            row.id,
            row.model,
            row.dataset,
            row.level or None,
            row.queries,
            row.suite or None,
            *(percent(getattr(row, name)) for name in FRACTIONS),
            row.audit or None,
            row.by or None,
            row.version or None,
            row.finished[:10] or None,
            *(["; ".join(row.commands) or None] if commands else []),
        ]
        for row in rows
    ]
    return Table(head, cells)


def _subject(card: Card) -> Subject:
    return card.facts.weights, card.facts.data.query, card.facts.data.gallery


def _level(card: Card) -> float | None:
    """Return ε in grey levels, rounded so that equal ones are equal."""
    return None if card.facts.eps is None else round(255 * card.facts.eps, 4)


def _order(row: BoardRow) -> tuple[Any, ...]:
    values = (row.robust_mAP, row.robust_rank1, row.clean_mAP)
    return (*((v is None, -(v or 0)) for v in values), row.model, row.dataset, row.eps or 0, row.id)


def _row(identity: str, cards: Sequence[Card], by: str) -> BoardRow:
    order = ["suite", "evaluation", "audit", "certificate"]
    cards = sorted(cards, key=lambda card: order.index(card.kind))  # stable
    named = next((card for card in cards if card.run.manifest), cards[0])
    suites = [card.result for card in cards if card.kind == "suite"]
    evaluations = [card.result["evaluation"] for card in cards if card.kind == "evaluation"]
    measured = [*suites, *evaluations]
    worst = [suite[name] for suite in suites for name in ("robust", "robust_8bit")]
    clean = measured[0]["clean"] if measured else None
    columns = {
        column: _lowest([*_member_figures(suites, names), *_attacked(evaluations, column)])
        for column, names in MEMBERS.items()
    }
    first = cards[0].facts
    eps = next((c.facts.eps for c in cards if c.facts.eps is not None), None)
    return BoardRow(
        id=identity,
        model=named.model,
        data=first.data.name,
        eps=eps,
        queries=first.queries,
        query_every=first.data.query_every,
        suite="; ".join(dict.fromkeys(filter(None, map(_strength, suites)))),
        clean_mAP=clean and clean["mAP"],
        clean_rank1=clean and clean["cmc"][0],
        robust_mAP=_lowest(values["mAP"] for values in worst),
        robust_rank1=_lowest(values["cmc"][0] for values in worst),
        **columns,
        certified=_lowest(
            c.figures.get("certified: rank-1") for c in cards if c.kind == "certificate"
        ),
        warnings=_warnings(cards),
        by=", ".join(dict.fromkeys(name for c in cards if (name := c.by or by))),
        version=", ".join(dict.fromkeys(c.version for c in cards if c.version)),
        finished=max(card.finished for card in cards),
        cards=tuple(cards),
    )


def _strength(suite: dict[str, Any]) -> str:
    restarts, steps, squares = (suite["suite"].get(n) for n in ("restarts", "steps", "squares"))
    return "" if restarts is None else f"{restarts} × {steps} steps, {squares} squares"[:100]


def _lowest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _member_figures(suites: Sequence[dict[str, Any]], names: Sequence[str]) -> list[float | None]:
    members = [member for suite in suites for member in suite["members"]]
    return [member["mAP"] for member in members if member["name"] in names]


def _attacked(evaluations: Sequence[dict[str, Any]], column: str) -> list[float | None]:
    """Return the lower mAP, of float and 8-bit images, of each attack of a column's kind."""
    return [
        min(evaluation[name]["mAP"] for name in ("attacked", "attacked_8bit"))
        for evaluation in evaluations
        if (attack := evaluation["attack"]) is not None
        and attack.get("side", "query") == "query"
        and _column(attack["name"]) == column
    ]


@cache
def _instance_attacks() -> dict[str, type]:
    kinds = [ATTACKS.get(name) for name in ATTACKS.list()]
    classes = [kind for kind in kinds if isinstance(kind, type)]
    return {kind.__name__: kind for kind in classes if issubclass(kind, InstanceAttack)}


def _column(attack: str) -> str:
    """Return the column of an attack, by the name of its class."""
    if (kind := _instance_attacks().get(attack)) is None:
        return "universal"
    return "by_queries" if issubclass(kind, SquareAttack) else "per_image"


def _warnings(cards: Sequence[Card]) -> tuple[str, ...] | None:
    audited = [c for c in cards if c.kind == "audit" or c.result.get("audit") is not None]
    lists = [card.result["warnings"] for card in cards if card.kind in ("suite", "audit")]
    found = tuple(dict.fromkeys(name for names in lists for name in names))
    return found if audited or found else None
