"""A table of the paper: shown, measured, and both side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.paper.experiments import (
    PAPER,
    READERS,
    STAND_IN,
    Plan,
    data_option,
    missing,
    needs,
    reasons,
)
from benchmarks.paper.runner import Workshop
from benchmarks.paper.tables import PaperTable, contradictions
from reidguard.evaluation import GridCell, GridResult
from reidguard.report.markdown import markdown_table

__all__ = [
    "measurable",
    "measure_table",
    "own_networks",
    "shown_table",
    "stand_ins",
    "table_beside_paper",
]

Place = tuple[int, int]


def lacking_cells(wanted: PaperTable, plan: Plan, datasets: set[str]) -> dict[Place, list[str]]:
    """Return the reasons against measuring, by row and column."""
    return {(f.row, f.column): missing(f.conditions, plan, datasets) for f in wanted.figures}


def measurable(wanted: PaperTable) -> list[int]:
    """Return how many of its figures can be measured: with all datasets, and with stand-ins."""
    return [
        sum(not missing(f.conditions, plan, datasets) for f in wanted.figures)
        for plan, datasets in ((PAPER, {*READERS.values()}), (STAND_IN, {*STAND_IN.domains}))
    ]


def shown_table(wanted: PaperTable) -> str:
    """Return the paper's figures for people, and what measuring them takes."""
    head = [*wanted.fields]
    for column in range(len(wanted.columns)):
        head += [" ".join(filter(None, [wanted.column_label(column), m])) for m in wanted.metrics]
    rows = [
        [*map(_plain, values), *(_shown(f.value, f.metric) for f in wanted.figures if f.row == row)]
        for row, values in enumerate(wanted.heads)
    ]
    lines = [f"Table {wanted.number} of the paper: {wanted.caption}", ""]
    lines += [markdown_table([head, *rows]), "", *_remarks(wanted)]
    names = sorted({data_option(n) for f in wanted.figures for n in needs(f.conditions)[0]})
    if names:
        lines.append(f"measuring it takes: {', '.join(f'--data {n}' for n in names)}")
    everything = lacking_cells(wanted, PAPER, {*READERS.values()})
    lines += [f"not measurable: {reason}" for reason in reasons([*everything.values()])]
    if measurable(wanted)[1]:
        lines.append(f"without data: reidguard paper table{wanted.number} --stand-in")
    return "\n".join(lines)


def measure_table(
    wanted: PaperTable, workshop: Workshop
) -> tuple[dict[str, Any], GridResult | None]:
    """Measure what can be, and put it beside the paper's figures.

    Returns:
        JSON values: ``table``, ``stand_in`` (the plan, if one was used), ``own_networks`` (those
        that a file of the user's gave), ``figures`` (each of the paper's, with ``measured``,
        ``measured_8bit`` and ``difference``, None where it was left out) and ``left_out``, the
        reasons. And the cells of attacks, if there is any.
    """
    plan = workshop.plan
    without = lacking_cells(wanted, plan, set(plan.domains) | set(workshop.given))
    cells = {
        (f.row, f.column): dict(f.conditions)
        for f in wanted.figures
        if not without[f.row, f.column]
    }
    groups: dict[tuple[str, str, str], list[Place]] = {}
    for place, c in cells.items():
        groups.setdefault((c["model"], c["data"], c["defense"]), []).append(place)
    measured: dict[Place, dict[str, Any]] = {}
    grid: list[GridCell] = []
    for victim, places in groups.items():
        model = workshop.robust(*victim)
        for place in places:
            measured[place], cell = workshop.measure(model, cells[place])
            grid += [] if cell is None else [cell]
    content = {
        "table": wanted.number,
        "stand_in": asdict(plan) if plan.stand_in else None,
        "own_networks": dict(workshop.own),
        "figures": list(_figures(wanted, measured)),
        "left_out": reasons([*without.values()]),
    }
    return content, GridResult(tuple(grid)) if grid else None


def _figures(wanted: PaperTable, measured: Mapping[Place, Any]) -> Iterator[dict[str, Any]]:
    """Each of the paper's figures, beside what was measured."""
    for f in wanted.figures:
        found = measured.get((f.row, f.column))
        ours = None if found is None else _figure(found, f.metric, "attacked")
        saved = None if found is None else _figure(found, f.metric, "attacked_8bit")
        yield {
            "row": f.row,
            "column": f.column,
            "conditions": dict(f.conditions),
            "metric": f.metric,
            "paper": f.value,
            "measured": ours,
            "measured_8bit": saved,
            "difference": None if ours is None else ours - f.value,
        }


def table_beside_paper(wanted: PaperTable, content: Mapping[str, Any], plan: Plan) -> str:
    """Return what :func:`measure_table` gave, for people."""
    lines = [f"Table {wanted.number} of the paper: {wanted.caption}"]
    if plan.stand_in:
        used = {name for f in wanted.figures for name in needs(f.conditions)[0]}
        lines.append(stand_ins(plan, used))
    if content["own_networks"]:
        lines.append(own_networks(content["own_networks"]))
    head = [*wanted.fields, "of"]
    for metric in wanted.metrics:
        head += [f"{metric} paper", "here", "8-bit", "difference"]
    rows = []
    by_place: dict[Place, list[dict[str, Any]]] = {}
    for one in content["figures"]:
        by_place.setdefault((one["row"], one["column"]), []).append(one)
    for (row, column), figures in by_place.items():
        line = [*map(_plain, wanted.heads[row]), wanted.column_label(column) or "-"]
        for one in figures:
            line.append(_shown(one["paper"], one["metric"]))
            for key, sign in (("measured", ""), ("measured_8bit", ""), ("difference", "+")):
                value = one[key]
                line.append("-" if value is None else _shown(value, one["metric"], sign))
        rows.append(line)
    lines.append(markdown_table([head, *rows]))
    if content["left_out"]:
        lines.append("\n".join(["left out:", *(f"- {r}" for r in content["left_out"])]))
    if remarks := list(_remarks(wanted)):
        lines.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(lines) + "\n"


def stand_ins(plan: Plan, used: set[str]) -> str:
    """Return what says that a result is none of the paper's experiment.

    Args:
        plan: With the stand-ins.
        used: The paper's names of the datasets that matter.
    """
    domains = [f"{n} = virtual:{d}" for n, d in plan.domains.items() if n in used]
    nets = [
        f"{n} = {s.name} {s.options.get('backbone', '')}, {s.steps} steps, unless from a file"
        for n, s in plan.networks.items()
    ]
    narrowed = [
        f"{name} with {', '.join(f'{key} {value}' for key, value in options.items())}"
        for name, options in plan.attack_options.items()
    ]
    return (
        "**STAND-INS, not the paper's experiment:** "
        f"{'; '.join([*domains, *nets, *narrowed])}. The "
        "differences say nothing about the paper's figures."
    )


def own_networks(own: Mapping[str, str]) -> str:
    """Return what says which networks a file of the user's gave."""
    return f"From files in models/: {', '.join(f'{name} ({kind})' for name, kind in own.items())}."


def _remarks(wanted: PaperTable) -> Iterator[str]:
    """What is odd about a table's figures."""
    yield from (f"note: {text}" for text in wanted.notes)
    for one in contradictions():
        if wanted.number in one.values:
            where_said: dict[float, list[str]] = {}
            for number, value in one.values.items():
                where_said.setdefault(value, []).append(str(number))
            told = "; ".join(
                f"{_shown(value, one.metric)} in {'Tables' if numbers[1:] else 'Table'} "
                f"{', '.join(numbers)}"
                for value, numbers in where_said.items()
            )
            c = one.conditions
            what = f"{c['attack']}{' meta' if c['meta'] else ''} ε={c['eps']:g}"
            where = f"{c['source_model']}→{c['model']} {c['data']}, defense {c['defense']}"
            yield f"the paper contradicts itself: {one.metric} of {what}, {where}: {told}"


def _shown(value: float, metric: str, sign: str = "") -> str:
    return f"{value:{sign}.{4 if metric == 'SSIM' else 1}f}"


def _plain(value: Any) -> str:
    return {True: "meta", False: "-"}[value] if isinstance(value, bool) else str(value)


def _figure(evaluation: Mapping[str, Any], metric: str, kind: str) -> float:
    found = evaluation[kind] or evaluation["clean"]
    if metric == "SSIM":
        return float(found["ssim"])
    return 100 * float(found["cmc"][0] if metric == "rank-1" else found["mAP"])
