"""A page about runs: a summary of each, tables, charts, and figures that the caller made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reidguard.errors import InputError
from reidguard.evaluation.audit_report import TITLES, VERDICTS
from reidguard.evaluation.grid_result import SETTINGS
from reidguard.evaluation.results import ranking_metric
from reidguard.report.charts import Point, line_chart
from reidguard.report.html import paragraph, preformatted, render, table
from reidguard.report.runs import Run
from reidguard.report.verdicts import facts, headline, level, query_folder, top_chart, verdict
from reidguard.tables import percent

__all__ = ["Measured", "certified_chart", "details", "report_page", "results"]

QUERIES = {"clean": "clean", "attacked": "attacked, float", "attacked_8bit": "attacked, 8-bit"}
WORST = {"clean": "clean", "robust": "worst case, float", "robust_8bit": "worst case, 8-bit"}
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

    Example:
        >>> from reidguard.report import read_run, save_page
        >>> save_page("report.html", report_page([read_run("runs/delta")]))  # doctest: +SKIP
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise InputError("a report needs at least one run, and a different name for each")
    return render(
        "runs.html.j2",
        title="reidguard: report on " + ", ".join(names),
        runs=runs,
        headline=headline(runs),
        facts=facts(runs[0]) if len(runs) == 1 else {},
        chart=top_chart(runs),
        verdicts={run.name: verdict(run) for run in runs},
        results=results(runs),
        eps_charts=_eps_charts(runs),
        details={run.name: [*details(run), *(figures or {}).get(run.name, ())] for run in runs},
        losses={run.name: list(_loss_chart(run)) for run in runs},
    )


class Measured(NamedTuple):
    """One model under one attack, a row for each kind of queries; empty labels are left out.

    Attributes:
        run: Name of the run.
        labels: Setting, network and dataset, attack.
        rows: For each kind of queries its name and its metrics, of which some may be missing.
    """

    run: str
    labels: tuple[str, ...]
    rows: list[tuple[str, Mapping[str, Any]]]


def results(runs: Sequence[Run]) -> list[Measured]:
    """Return all evaluations of all runs, those of the suite of attacks included."""
    found = []
    for run in runs:
        for cell in sorted(run.cells, key=_by_setting):
            evaluation, attack = cell["evaluation"], cell["evaluation"]["attack"]
            label, under = evaluation["dataset"]["name"], ""
            if "model" in cell:
                label = f"{cell['model']}, {cell['dataset']}"
            if attack is not None:
                under = f"{cell.get('attack') or attack['name']}, {level(attack['eps'])}"
            names = dict(QUERIES)
            if folder := query_folder(evaluation):
                names["clean" if attack else "attacked_8bit"] = f"images of {folder}"
            rows = [(name, evaluation[key]) for key, name in names.items() if evaluation[key]]
            found.append(Measured(run.name, (cell["setting"], label, under), rows))
        result = run.result or {}
        if "robust" in result:
            under = f"retrieval-autoattack, {level(result['suite']['eps'])}"
            rows = [(name, result[key]) for key, name in WORST.items()]
            found.append(Measured(run.name, (result["dataset"]["name"], under), rows))
    return found


def _by_setting(cell: Mapping[str, Any]) -> int:
    return SETTINGS.index(cell["setting"]) if cell["setting"] in SETTINGS else len(SETTINGS)


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


def details(run: Run) -> Iterator[str]:
    """Yield what only this kind of run has."""
    result = run.result or {}
    tables = result.get("tables", ())
    for t in tables:
        yield table(t["header"], [t["rows"]], t["caption"], text=t["text_columns"])
    measured = run.cells or "findings" in result or "robust" in result
    if run.text and not (tables or measured):
        yield preformatted(run.text)
    if "certified" in result:
        yield from _certificate(result)
    if "findings" in result:
        yield from _audit(result)
    if "robust" in result:
        yield from _members(result)


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
        [TITLES.get(f["name"], f["name"]), f["measured"], f["limit"] or None, VERDICTS[f["level"]]]
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
    if result["transfer"]:
        head = [f"mAP at {level(result['facts']['eps'])}, made on", "the model", "the surrogate"]
        measured = [
            [row["attack"], percent(row["white_box"]), percent(row["surrogate"])]
            for row in result["transfer"]
        ]
        yield table(head, [measured], "White-box attacks and transfer")


def certified_chart(result: Mapping[str, Any]) -> tuple[str, str, str, dict[str, list[Point]]]:
    """Return title, axes and lines of a certificate's chart; no lines where it has no curve."""
    curve = [point for point in result["curve"] if "radius" in point]
    ranks = list(dict.fromkeys(key for point in curve for key in point if key != "radius"))
    lines = {
        rank.replace("_", "-"): [(p["radius"], 100 * p[rank]) for p in curve if rank in p]
        for rank in ranks[:5]  # a chart shows five lines
    }
    title = f"Certified accuracy, σ = {result['certified']['sigma']:g}"
    return title, "L2 radius", "certified rank-k in %", lines


def _certificate(result: Mapping[str, Any]) -> Iterator[str]:
    chart = certified_chart(result)
    if any(chart[-1].values()):
        yield line_chart(*chart, from_zero=True)


def _members(result: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        [
            *(member[key] for key in ("name", "restarts", "queries", "broken", "first")),
            percent(member["mAP"]),
            f"{member['forward']} / {member['backward']}",
            member.get("note") or None,
        ]
        for member in result["members"]
    ]
    head = ["member", "restarts", "queries", "broken alone", "broken first", "mAP alone", "passes"]
    suite = result["suite"]
    yield table(
        [*head, "note"],
        [rows],
        "Members of the suite; passes: forward / backward, per query. Broken: no match among the "
        f"first {suite['broken_rank']} and an average precision below {suite['broken_ap']:g}.",
    )
    yield from (paragraph(f"{f['measured']}. {f['cure']}") for f in result["suite_findings"])
    if result["audit"] is not None:
        yield from _audit(result["audit"])
