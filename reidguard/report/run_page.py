"""A page about runs: a summary of each, tables, charts, and figures that the caller made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reidguard.errors import InputError
from reidguard.evaluation.results import ranking_metric
from reidguard.report.charts import Point, line_chart
from reidguard.report.html import paragraph, preformatted, render, table
from reidguard.report.runs import Run
from reidguard.tables import Cell, percent

__all__ = ["report_page"]

QUERIES = {"clean": "clean", "attacked": "attacked, float", "attacked_8bit": "attacked, 8-bit"}
METRICS = {"mAP": "mAP", "rank1": "rank-1"}
EPS_AXES = ("ε in grey levels", "mAP, rank-1 in %")


def report_page(runs: Sequence[Run], figures: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return one page about some runs.

    Args:
        runs: Folders that :func:`read_run` read.
        figures: HTML to show for a run, by its name, such as what
            :func:`~reidguard.report.perturbation` and :meth:`.Retrieval.rank_lists` return.

    Raises:
        InputError: If there is no run, or two have the same name.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise InputError("a report needs at least one run, and a different name for each")
    return render(
        "runs.html.j2",
        title="reidguard: report on " + ", ".join(names),
        runs=runs,
        results=_results(runs),
        eps_charts=_eps_charts(runs),
        details={run.name: [*_details(run), *(figures or {}).get(run.name, ())] for run in runs},
    )


def _results(runs: Sequence[Run]) -> str:
    """Return a table of all evaluations; empty if there is none."""
    head = ["run", "attack", "queries", "mAP", "rank-1", "rank-5", "mINP", "L∞ ·255", "SSIM"]
    groups = []
    for run in runs:
        for cell in run.cells:
            evaluation, attack = cell["evaluation"], cell["evaluation"]["attack"]
            name = "none" if attack is None else f"{attack['name']}, ε {255 * attack['eps']:g}/255"
            label = ": ".join(filter(None, [cell["setting"], cell["label"]]))
            rows: list[list[Cell]] = []
            for key, queries in QUERIES.items():
                if (metrics := evaluation[key]) is None:
                    continue
                cmc = metrics["cmc"]
                fractions = (metrics["mAP"], cmc[0], cmc[4] if len(cmc) > 4 else None)
                rows.append(
                    [
                        ", ".join(filter(None, [run.name, label])),
                        name,
                        queries,
                        *map(percent, (*fractions, metrics["mINP"])),
                        f"{metrics.get('linf_255', 0):.2f}",
                        f"{metrics.get('ssim', 1):.3f}",
                    ]
                )
            groups.append(rows)
    note = (
        "mAP, rank-k and mINP in percent; L∞ is the largest change of any pixel in grey levels. "
        "Float: the attack's output; 8-bit: as an image file stores it."
    )
    return table(head, groups, note, text=3) if groups else ""


def _eps_charts(runs: Sequence[Run]) -> list[str]:
    """Return a chart for each attack evaluated at several ε on one model and dataset."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        learner = str(((run.result or {}).get("training") or {}).get("learner", ""))
        for evaluation in (cell["evaluation"] for cell in run.cells):
            if (attack := evaluation["attack"]) is not None:
                key = (attack["name"], learner, evaluation["dataset"]["name"])
                groups.setdefault((*key, evaluation["weights"]), []).append(evaluation)
    charts = []
    for (name, learner, dataset, weights), evaluations in groups.items():
        levels: dict[float, list[Mapping[str, Any]]] = {}
        for evaluation in evaluations:
            level = round(255 * evaluation["attack"]["eps"], 3)
            levels.setdefault(level, []).append(evaluation["attacked"])
        if len(levels) < 2:
            continue
        lines: dict[str, list[Point]] = {}
        for metric, label in METRICS.items():
            lines[label] = [(0.0, 100 * ranking_metric(evaluations[0]["clean"], metric))]
            for level in sorted(levels):
                values = [ranking_metric(attacked, metric) for attacked in levels[level]]
                lines[label].append((level, 100 * sum(values) / len(values)))
        title = f"{name}{f' ({learner})' if learner else ''} on {dataset}, model {weights[:8]}"
        title += "; means of the runs at each ε" if max(map(len, levels.values())) > 1 else ""
        charts.append(line_chart(title, *EPS_AXES, lines, from_zero=True))
    return charts


def _details(run: Run) -> Iterator[str]:
    """Yield what only this kind of run has."""
    result = run.result or {}
    tables = result.get("tables", ())
    for t in tables:
        yield table(t["header"], [t["rows"]], t["caption"], text=t["text_columns"])
    if run.text and not (tables or run.cells or "findings" in result):
        yield preformatted(run.text)
    yield from _loss_chart(run)
    if "findings" in result:
        yield from _audit(result)
    if "robust" in result:
        yield _members(result)


def _loss_chart(run: Run) -> Iterator[str]:
    two = any("test_loss" in step for step in run.metrics)
    labels = {
        "loss": "loss on the meta-train set" if two else "loss",
        "test_loss": "loss on the meta-test set, after the inner step",
    }
    lines = {
        label: [(m["step"], m[key]) for m in run.metrics if math.isfinite(m.get(key, math.nan))]
        for key, label in labels.items()
    }
    if any(lines.values()):
        yield line_chart("Training loss", "step", "loss", lines)


def _audit(result: Mapping[str, Any]) -> Iterator[str]:
    findings = result["findings"]
    rows = [
        [f["name"].replace("_", " "), f["measured"], f["limit"] or None, f["level"]]
        for f in findings
    ]
    yield table(["check", "measured", "warns", "verdict"], [rows], "Audit checks", text=4)
    yield from (paragraph(f["cure"]) for f in findings if f["cure"])
    if curve := result["curve"]:
        lines = {
            label: [(255 * point["eps"], 100 * point[metric]) for point in curve]
            for metric, label in METRICS.items()
        }
        yield line_chart("SMA on the model", *EPS_AXES, lines, from_zero=True)


def _members(result: Mapping[str, Any]) -> str:
    rows = [
        [
            *(member[key] for key in ("name", "restarts", "queries", "broken", "first")),
            percent(member["mAP"]),
            f"{member['forward']} / {member['backward']}",
        ]
        for member in result["members"]
    ]
    head = ["member", "restarts", "queries", "broken alone", "broken first", "mAP alone", "passes"]
    return table(head, [rows], "Members of the suite; passes: forward / backward, per query")
