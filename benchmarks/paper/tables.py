"""The figures of Tables 1-19 of the paper, where they contradict each other, and Figures 4-8.

Yang et al., *Towards Robust Person Re-identification by Defending Against Universal Attackers*,
TPAMI 2022. ``paper.toml`` beside this module holds them; each figure knows its conditions, so that
figures of the same experiment in different tables can be found.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Contradiction",
    "Figure",
    "PaperPicture",
    "PaperTable",
    "contradictions",
    "paper_pictures",
    "paper_tables",
]

PAPER = Path(__file__).with_name("paper.toml")

# What belongs to an attack, and so says nothing where there is none.
OF_ATTACK = ("source_model", "source_data", "attack_data", "meta", "extra", "eps")


@dataclass(frozen=True, eq=False)
class Figure:
    """One number of the paper.

    Attributes:
        table: Number of its table.
        row: Its row, from 0.
        column: Its column, from 0; a column has a figure for each metric.
        conditions: What was measured: ``model`` and ``data`` (the network that is attacked, and
            the dataset that it was trained on), ``defense``, ``attack`` and, unless that is
            "none", ``source_model``, ``source_data``, ``attack_data``, ``meta``, ``extra`` (the
            meta-test set, or what was learnt from jointly), ``eps`` in grey levels. Table 19 has
            ``what`` and ``meta``.
        metric: "mAP" or "rank-1" in percent, "SSIM", or "s/epoch".
        value: As printed.
    """

    table: int
    row: int
    column: int
    conditions: Mapping[str, Any]
    metric: str
    value: float


@dataclass(frozen=True, eq=False)
class PaperTable:
    """One table of the paper.

    Attributes:
        number: 1 to 19.
        caption: What it shows.
        metrics: Of each column.
        fields: What the heads of the rows say.
        heads: Values of the fields, for each row.
        columns: Conditions of each column.
        figures: All of them, row by row.
        notes: What is odd about it.
    """

    number: int
    caption: str
    metrics: tuple[str, ...]
    fields: tuple[str, ...]
    heads: tuple[tuple[Any, ...], ...]
    columns: tuple[Mapping[str, Any], ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]

    def column_label(self, column: int) -> str:
        """Return a column's name, such as "Duke→Market"."""
        rest = dict(self.columns[column])
        parts = []
        for target in ("model", "data"):
            if (source := rest.pop(f"source_{target}", None)) is not None:
                parts.append(f"{source}→{rest.pop(target)}")
        if rest.get("meta") is True:
            parts.append("meta")
        parts += [str(value) for key, value in rest.items() if key != "meta"]
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class PaperPicture:
    """One of the paper's Figures 4-8.

    Attributes:
        number: 4 to 8.
        caption: What it shows.
        pictures: "people" (queries, and what each row's attack makes of them), "changes" (what was
            learnt, then people) or "lists" (of each query one rank list for each row).
        rows: Conditions of each, as those of a :class:`Figure`.
        queries: How many of which kind are shown: a sign for each row, "+" where the first image is
            right, "-" where it is wrong, "." for either.
        notes: What the paper leaves open.
    """

    number: int
    caption: str
    pictures: str
    rows: tuple[Mapping[str, Any], ...]
    queries: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Figures of one experiment that differ.

    Attributes:
        conditions: As those of a :class:`Figure`.
        metric: As that of a :class:`Figure`.
        values: Each table's figure, by its number.
    """

    conditions: Mapping[str, Any]
    metric: str
    values: Mapping[int, float]


@cache
def paper_tables() -> Mapping[int, PaperTable]:
    """Return all tables by their numbers.

    Example:
        >>> table = paper_tables()[1]
        >>> table.caption, table.figures[0].metric, table.figures[0].value
        ('Source attack', 'mAP', 66.7)
        >>> table.figures[0].conditions["model"], table.figures[0].conditions["data"]
        ('IDE', 'Duke')
    """
    content = tomllib.loads(PAPER.read_text("utf-8"))
    return {entry["number"]: _table(entry) for entry in content["table"]}


@cache
def paper_pictures() -> Mapping[int, PaperPicture]:
    """Return Figures 4-8 by their numbers.

    Example:
        >>> figure = paper_pictures()[7]
        >>> [row["defense"] for row in figure.rows], figure.queries
        (['none', 'none', 'M(color+delta)'], (('+-+', 2),))
    """
    content = tomllib.loads(PAPER.read_text("utf-8"))
    return {
        entry["number"]: PaperPicture(
            entry["number"],
            entry["caption"],
            entry["pictures"],
            tuple(_complete({**entry["fixed"], **row}) for row in entry["rows"]),
            tuple((kind, count) for kind, count in entry["queries"]),
            tuple(entry["notes"]),
        )
        for entry in content["figure"]
    }


def _table(entry: dict[str, Any]) -> PaperTable:
    metrics, columns, fields = entry["metrics"], entry["columns"], entry["fields"]
    figures, heads = [], []
    for number, row in enumerate(entry["rows"]):
        head, values = row[: len(fields)], row[len(fields) :]
        assert len(values) == len(columns) * len(metrics)
        heads.append(tuple(head))
        for place, value in enumerate(values):
            column, metric = divmod(place, len(metrics))
            given = {**entry["fixed"], **dict(zip(fields, head, strict=True)), **columns[column]}
            figures.append(
                Figure(
                    entry["number"], number, column, _complete(given), metrics[metric], float(value)
                )
            )
    return PaperTable(
        entry["number"],
        entry["caption"],
        tuple(metrics),
        tuple(fields),
        tuple(heads),
        tuple(columns),
        tuple(figures),
        tuple(entry.get("notes", ())),
    )


def _complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions in full, so that equal experiments have equal ones."""
    if "data" not in given:
        return dict(given)
    full = {"defense": "none", "meta": False, "eps": 8, **given}
    full.setdefault("source_model", full["model"])
    full.setdefault("source_data", full["data"])
    if full.get("attack_data", "source") == "source":
        full["attack_data"] = full["source_data"]
    virtual = full["meta"] or full["attack"] == "misrank+personx"
    full.setdefault("extra", "PersonX" if virtual else "none")
    if full["attack"] == "none":
        for key in OF_ATTACK:
            del full[key]
    return dict(sorted(full.items()))


def contradictions() -> list[Contradiction]:
    """Return every experiment of which two tables give different figures.

    Example:
        >>> first = contradictions()[0]
        >>> first.metric, dict(first.values)
        ('mAP', {1: 0.6, 5: 0.6, 7: 0.6, 8: 0.6, 10: 0.6, 13: 0.6, 15: 0.6, 16: 1.1})
    """
    same: dict[tuple[Any, ...], list[Figure]] = {}
    for table in paper_tables().values():
        for figure in table.figures:
            key = (*figure.conditions.items(), figure.metric)
            same.setdefault(key, []).append(figure)
    return [
        Contradiction(
            group[0].conditions, group[0].metric, {figure.table: figure.value for figure in group}
        )
        for group in same.values()
        if len({figure.value for figure in group}) > 1
    ]
