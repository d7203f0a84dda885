"""Tables 1-19 and Figures 4-8 of the paper, and where the tables contradict each other.

Yang et al., *Towards Robust Person Re-identification by Defending Against Universal Attackers*,
TPAMI 2022. They are transcribed in ``paper.toml`` beside this module. Each value has the conditions
that it was measured under, so that values of the same experiment in different tables can be found.
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
    "PaperFigure",
    "PaperTable",
    "PaperValue",
    "contradictions",
    "paper_figures",
    "paper_tables",
]

SOURCE = Path(__file__).with_name("paper.toml")

# Conditions of the attack, absent where there is none.
ATTACK_CONDITIONS = ("source_model", "source_data", "attack_data", "meta", "extra", "eps")


@dataclass(frozen=True, eq=False)
class PaperValue:
    """One measured value in a table of the paper.

    Attributes:
        table: Number of its table.
        row: Its row, from 0.
        column: Its column, from 0; a column has a value for each metric.
        conditions: ``model`` and ``data`` (the attacked network and the dataset that it was
            trained on), ``defense``, ``attack`` and, unless that is "none", ``source_model``,
            ``source_data``, ``attack_data``, ``meta``, ``extra`` (the meta-test set, or the
            dataset of joint training), ``eps`` in grey levels. Table 19 has ``what`` and
            ``meta``.
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
        fields: Names of the conditions that head each row.
        heads: Values of the fields, for each row.
        columns: Conditions of each column.
        values: All measured values, row by row.
        notes: Peculiarities.
    """

    number: int
    caption: str
    metrics: tuple[str, ...]
    fields: tuple[str, ...]
    heads: tuple[tuple[Any, ...], ...]
    columns: tuple[Mapping[str, Any], ...]
    values: tuple[PaperValue, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name on the command line, such as "table1"."""
        return f"table{self.number}"

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
class PaperFigure:
    """One of the paper's Figures 4-8.

    Attributes:
        number: 4 to 8.
        caption: What it shows.
        pictures: "people" (queries, clean and under each row's attack), "changes" (the learnt
            perturbation, then people) or "lists" (for each query, one rank list per row).
        rows: Conditions of each row, as those of a :class:`PaperValue`.
        queries: Patterns of queries and how many are shown of each. A pattern has a sign per row:
            "+" where the first image is right, "-" where it is wrong, "." for either.
        notes: What the paper leaves open.
    """

    number: int
    caption: str
    pictures: str
    rows: tuple[Mapping[str, Any], ...]
    queries: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name on the command line, such as "figure4"."""
        return f"figure{self.number}"


@dataclass(frozen=True, eq=False)
class Contradiction:
    """Values of one experiment that differ between tables.

    Attributes:
        conditions: As those of a :class:`PaperValue`.
        metric: As that of a :class:`PaperValue`.
        values: Each table's value, by its number.
    """

    conditions: Mapping[str, Any]
    metric: str
    values: Mapping[int, float]


@cache
def paper_tables() -> Mapping[int, PaperTable]:
    """Return all tables by their numbers.

    Example:
        >>> table = paper_tables()[1]
        >>> table.caption, table.values[0].metric, table.values[0].value
        ('Source attack', 'mAP', 66.7)
        >>> table.values[0].conditions["model"], table.values[0].conditions["data"]
        ('IDE', 'Duke')
    """
    content = tomllib.loads(SOURCE.read_text("utf-8"))
    return {entry["number"]: _table(entry) for entry in content["table"]}


@cache
def paper_figures() -> Mapping[int, PaperFigure]:
    """Return Figures 4-8 by their numbers.

    Example:
        >>> figure = paper_figures()[7]
        >>> [row["defense"] for row in figure.rows], figure.queries
        (['none', 'none', 'M(color+delta)'], (('+-+', 2),))
    """
    content = tomllib.loads(SOURCE.read_text("utf-8"))
    return {
        entry["number"]: PaperFigure(
            entry["number"],
            entry["caption"],
            entry["pictures"],
            tuple(_complete({**entry["fixed"], **row}) for row in entry["rows"]),
            tuple((pattern, count) for pattern, count in entry["queries"]),
            tuple(entry["notes"]),
        )
        for entry in content["figure"]
    }


def _table(entry: dict[str, Any]) -> PaperTable:
    metrics, columns, fields = entry["metrics"], entry["columns"], entry["fields"]
    table_values, heads = [], []
    for number, row in enumerate(entry["rows"]):
        head, values = row[: len(fields)], row[len(fields) :]
        assert len(values) == len(columns) * len(metrics)
        heads.append(tuple(head))
        for place, value in enumerate(values):
            column, metric = divmod(place, len(metrics))
            conditions = {
                **entry["fixed"],
                **dict(zip(fields, head, strict=True)),
                **columns[column],
            }
            table_values.append(
                PaperValue(
                    entry["number"],
                    number,
                    column,
                    _complete(conditions),
                    metrics[metric],
                    float(value),
                )
            )
    return PaperTable(
        entry["number"],
        entry["caption"],
        tuple(metrics),
        tuple(fields),
        tuple(heads),
        tuple(columns),
        tuple(table_values),
        tuple(entry.get("notes", ())),
    )


def _complete(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in defaults, so that equal experiments have equal conditions."""
    if "data" not in conditions:
        return dict(conditions)
    full = {"defense": "none", "meta": False, "eps": 8, **conditions}
    full.setdefault("source_model", full["model"])
    full.setdefault("source_data", full["data"])
    if full.get("attack_data", "source") == "source":
        full["attack_data"] = full["source_data"]
    virtual = full["meta"] or full["attack"] == "misrank+personx"
    full.setdefault("extra", "PersonX" if virtual else "none")
    if full["attack"] == "none":
        for key in ATTACK_CONDITIONS:
            del full[key]
    return dict(sorted(full.items()))


def contradictions() -> list[Contradiction]:
    """Return every experiment for which two tables give different values.

    Example:
        >>> first = contradictions()[0]
        >>> first.metric, dict(first.values)
        ('mAP', {1: 0.6, 5: 0.6, 7: 0.6, 8: 0.6, 10: 0.6, 13: 0.6, 15: 0.6, 16: 1.1})
    """
    same: dict[tuple[Any, ...], list[PaperValue]] = {}
    for table in paper_tables().values():
        for value in table.values:
            key = (*value.conditions.items(), value.metric)
            same.setdefault(key, []).append(value)
    return [
        Contradiction(
            group[0].conditions, group[0].metric, {value.table: value.value for value in group}
        )
        for group in same.values()
        if len({value.value for value in group}) > 1
    ]
