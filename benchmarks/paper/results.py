"""A table of the paper: described, measured, and compared with the measured values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.paper.experiments import (
    DATASETS,
    PAPER,
    STAND_IN,
    Setup,
    data_option,
    missing,
    requirements,
    summarize,
)
from benchmarks.paper.runner import Runner
from benchmarks.paper.tables import PaperTable, contradictions
from reidguard.evaluation import GridCell, GridResult
from reidguard.tables import Cell, Table

__all__ = [
    "compare_table",
    "count_measurable",
    "describe_own_networks",
    "describe_stand_ins",
    "describe_table",
    "measure_table",
    "missing_by_cell",
    "report_table",
]

CellIndex = tuple[int, int]  # row and column


def missing_by_cell(
    table: PaperTable, setup: Setup, datasets: set[str]
) -> dict[CellIndex, list[str]]:
    """Return the reasons why each cell cannot be measured, by row and column."""
    return {(v.row, v.column): missing(v.conditions, setup, datasets) for v in table.values}


def count_measurable(table: PaperTable) -> list[int]:
    """Return how many values can be measured: with all datasets, and with stand-ins."""
    return [
        sum(not missing(v.conditions, setup, datasets) for v in table.values)
        for setup, datasets in ((PAPER, {*DATASETS.values()}), (STAND_IN, {*STAND_IN.domains}))
    ]


def describe_table(table: PaperTable) -> str:
    """Return the paper's table as text, its peculiarities and what measuring it requires."""
    header = [*table.fields]
    for column in range(len(table.columns)):
        label = table.column_label(column)
        header += [" ".join(filter(None, [label, metric])) for metric in table.metrics]
    rows = [
        [
            *map(_condition_text, head),
            *(_value_text(v.value, v.metric) for v in table.values if v.row == row),
        ]
        for row, head in enumerate(table.heads)
    ]
    lines = [f"Table {table.number} of the paper: {table.caption}", ""]
    lines += [Table(header, rows).to_markdown(), "", *_remarks(table)]
    names = sorted({data_option(n) for v in table.values for n in requirements(v.conditions)[0]})
    if names:
        lines.append(f"measuring it requires: {', '.join(f'--data {n}' for n in names)}")
    reasons = missing_by_cell(table, PAPER, {*DATASETS.values()})
    lines += [f"not measurable: {reason}" for reason in summarize([*reasons.values()])]
    if count_measurable(table)[1]:
        lines.append(f"without data: python -m benchmarks.paper {table.name} --stand-in")
    return "\n".join(lines)


def measure_table(table: PaperTable, runner: Runner) -> tuple[dict[str, Any], GridResult | None]:
    """Measure the cells of a table whose requirements are met.

    Returns:
        JSON values: ``table``, ``stand_in`` (the setup, if stand-ins were used), ``own_networks``
        (those from files of the user's), ``values`` (each of the paper's, with ``measured``,
        ``measured_8bit`` and ``difference``, None where it was left out), ``left_out``, the
        reasons, and ``tables`` for ``reidguard report``. And the cells under attack, if there are
        any.
    """
    setup = runner.setup
    reasons = missing_by_cell(table, setup, set(setup.domains) | set(runner.datasets))
    cells = {
        (v.row, v.column): dict(v.conditions) for v in table.values if not reasons[v.row, v.column]
    }
    by_model: dict[tuple[str, str, str], list[CellIndex]] = {}
    for index, c in cells.items():
        by_model.setdefault((c["model"], c["data"], c["defense"]), []).append(index)
    measured: dict[CellIndex, dict[str, Any]] = {}
    grid: list[GridCell] = []
    for target, indices in by_model.items():
        model = runner.defended_model(*target)
        for index in indices:
            measured[index], cell = runner.measure(model, cells[index])
            grid += [] if cell is None else [cell]
    content = {
        "table": table.number,
        "stand_in": asdict(setup) if setup.stand_in else None,
        "own_networks": dict(runner.own_networks),
        "values": list(_compared_values(table, measured)),
        "left_out": summarize([*reasons.values()]),
    }
    content["tables"] = [report_table(content)]
    return content, GridResult(tuple(grid)) if grid else None


def _compared_values(
    table: PaperTable, measured: Mapping[CellIndex, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    for v in table.values:
        evaluation = measured.get((v.row, v.column))
        floats = evaluation and _metric(evaluation, v.metric, "attacked")
        yield {
            "row": v.row,
            "column": v.column,
            "conditions": dict(v.conditions),
            "metric": v.metric,
            "paper": v.value,
            "measured": floats,
            "measured_8bit": evaluation and _metric(evaluation, v.metric, "attacked_8bit"),
            "difference": None if floats is None else floats - v.value,
        }


def compare_table(table: PaperTable, content: Mapping[str, Any], setup: Setup) -> str:
    """Return the result of :func:`measure_table` as Markdown, beside the paper's values."""
    parts = [f"Table {table.number} of the paper: {table.caption}"]
    if setup.stand_in:
        used = {name for v in table.values for name in requirements(v.conditions)[0]}
        parts.append(describe_stand_ins(setup, used))
    if content["own_networks"]:
        parts.append(describe_own_networks(content["own_networks"]))
    header = [*table.fields, "of"]
    for metric in table.metrics:
        header += [f"{metric} paper", "here", "8-bit", "difference"]
    by_cell: dict[CellIndex, list[dict[str, Any]]] = {}
    for value in content["values"]:
        by_cell.setdefault((value["row"], value["column"]), []).append(value)
    rows = []
    for (row, column), values in by_cell.items():
        line = [*map(_condition_text, table.heads[row]), table.column_label(column) or "-"]
        for value in values:
            metric = value["metric"]
            line += [_value_text(value[key], metric) for key in ("paper", "measured")]
            line.append(_value_text(value["measured_8bit"], metric))
            line.append(_value_text(value["difference"], metric, "+"))
        rows.append(line)
    parts.append(Table(header, rows).to_markdown())
    if content["left_out"]:
        parts.append("\n".join(["left out:", *(f"- {reason}" for reason in content["left_out"])]))
    if remarks := list(_remarks(table)):
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def report_table(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paper's values beside the measured ones, as a table of a report's page.

    Args:
        content: ``table``, ``stand_in`` and ``values`` as :func:`measure_table` returns them.
    """
    rows: dict[CellIndex, list[Cell]] = {}
    for value in content["values"]:
        if value["measured"] is None:
            continue
        c = value["conditions"]
        row: list[Cell] = [f"{c['model']}, {c['data']}, defense {c['defense']}", "none", None]
        if c["attack"] != "none":
            source = f"{'meta-' * c['meta']}learnt on {c['source_model']}, {c['source_data']}"
            row[1:] = [f"{c['attack']}, {source}, {c['extra']}", f"{c['eps']:g}"]
        digits = 3 if value["metric"] == "SSIM" else 1
        rows.setdefault((value["row"], value["column"]), row).extend(
            [
                f"{value['paper']:.{digits}f}",
                f"{value['measured']:.{digits}f}",
                f"{value['difference']:+.{digits}f}",
            ]
        )
    header = ["attacked", "attack", "ε ·255"]
    for metric in dict.fromkeys(value["metric"] for value in content["values"]):
        header += [f"{metric}, paper", "here", "difference"]
    caption = f"Table {content['table']} of the paper."
    if content["stand_in"]:
        caption += " STAND-INS, not the paper's experiment: the differences say nothing about it."
    return {"caption": caption, "header": header, "text_columns": 2, "rows": [*rows.values()]}


def describe_stand_ins(setup: Setup, used: set[str]) -> str:
    """Return a warning that a result is not of the paper's experiment.

    Args:
        setup: With the stand-ins.
        used: The paper's names of the datasets that the result uses.
    """
    domains = [f"{n} = virtual:{d}" for n, d in setup.domains.items() if n in used]
    networks = [
        f"{n} = {s.name} {s.options.get('backbone', '')}, {s.steps} steps, unless from a file"
        for n, s in setup.networks.items()
    ]
    attacks = [
        f"{name} with {', '.join(f'{key} {value}' for key, value in options.items())}"
        for name, options in setup.attack_options.items()
    ]
    return (
        "**STAND-INS, not the paper's experiment:** "
        f"{'; '.join([*domains, *networks, *attacks])}. The "
        "differences say nothing about the paper's values."
    )


def describe_own_networks(own: Mapping[str, str]) -> str:
    """Return a sentence on the networks that came from files of the user's."""
    return f"From files in models/: {', '.join(f'{name} ({kind})' for name, kind in own.items())}."


def _remarks(table: PaperTable) -> Iterator[str]:
    yield from (f"note: {text}" for text in table.notes)
    for contradiction in contradictions():
        if table.number not in contradiction.values:
            continue
        metric, c = contradiction.metric, contradiction.conditions
        tables: dict[float, list[str]] = {}
        for number, value in contradiction.values.items():
            tables.setdefault(value, []).append(str(number))
        values = "; ".join(
            f"{_value_text(value, metric)} in {'Tables' if numbers[1:] else 'Table'} "
            f"{', '.join(numbers)}"
            for value, numbers in tables.items()
        )
        attack = f"{c['attack']}{' meta' if c['meta'] else ''} ε={c['eps']:g}"
        target = f"{c['source_model']}→{c['model']} {c['data']}, defense {c['defense']}"
        yield f"the paper contradicts itself: {metric} of {attack}, {target}: {values}"


def _value_text(value: float | None, metric: str, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{4 if metric == 'SSIM' else 1}f}"


def _condition_text(value: Any) -> str:
    return {True: "meta", False: "-"}[value] if isinstance(value, bool) else str(value)


def _metric(evaluation: Mapping[str, Any], metric: str, kind: str) -> float:
    """Return a metric as the paper gives it: percent, but for SSIM."""
    measured = evaluation[kind] or evaluation["clean"]
    if metric == "SSIM":
        return float(measured["ssim"])
    return 100 * float(measured["cmc"][0] if metric == "rank-1" else measured["mAP"])
