"""A page about runs: one sentence each, tables, curves, and pictures that the caller made."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from reidguard.errors import CheckpointError, InputError
from reidguard.report.charts import line_chart
from reidguard.report.html import page, paragraph, section, table

__all__ = ["Run", "read_run", "report_page"]

KINDS = (("clean", "clean"), ("attacked", "attacked, float"), ("attacked_8bit", "attacked, 8-bit"))
SHARES = (("mAP", "mAP"), ("rank1", "rank-1"))


@dataclass(frozen=True, eq=False)
class Run:
    """What a run folder says of itself.

    Attributes:
        path: The folder.
        name: What the page calls it.
        manifest: Content of its manifest.json; empty for the folder of a grid.
        result: Content of its result; None while it has none.
        metrics: Lines of its metrics.jsonl.
        text: Its result as it was printed; empty where it has none.
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    metrics: tuple[dict[str, float], ...]
    text: str = ""

    @property
    def command(self) -> str:
        """Of the program that made it: "attack", "demo", ...; "grid" for a grid's folder."""
        if not self.manifest:
            return "grid"
        return str(self.manifest["settings"].get("command", "run")).split()[0]

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Each evaluation with what was attacked, as ``label``, ``setting`` and ``evaluation``."""
        result = self.result or {}
        found = []
        for cell in result.get("cells", ()):
            place = cell.get("dataset") or cell.get("domain")
            what = " on ".join(filter(None, [cell.get("attack"), f"{cell['model']}, {place}"]))
            found.append({"label": what, **cell})
        if result.get("evaluation") is not None:
            found.append({"label": "", "setting": "", "evaluation": result["evaluation"]})
        return found


def read_run(path: Path | str) -> Run:
    """Read a run folder of the command line, or the folder of :func:`reidguard.evaluate_grid`.

    Raises:
        InputError: If the folder is none.
        CheckpointError: If its files are damaged.
    """
    path = Path(path)
    manifest = _json(path / "manifest.json")
    names = ("grid.json",) if manifest is None else ("result.json", "audit.json", "grid.json")
    result = next((found for n in names if (found := _json(path / n)) is not None), None)
    if result is not None and "values" in result:  # a table of the paper: its cells are a grid
        result = {**(_json(path / "grid.json") or {}), **result}
    if manifest is None and result is None:
        raise InputError(
            f"{path} is no run folder: it holds neither manifest.json nor grid.json; give the "
            "folder that a command wrote with --out"
        )
    if manifest is not None and not isinstance(manifest.get("settings"), dict):
        raise CheckpointError(f"{path / 'manifest.json'} is damaged or of another program")
    name, text = path.resolve().name, _text(path / "result.md")
    return Run(path, name, manifest or {}, result, _metrics(path), text)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); repeat the run") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _metrics(path: Path) -> tuple[dict[str, float], ...]:
    lines = []
    with suppress(OSError, ValueError):  # none, or the last line of a running one is cut short
        for line in (path / "metrics.jsonl").read_text("utf-8").splitlines():
            lines.append(json.loads(line))
    return tuple(lines)


def report_page(runs: Sequence[Run], pictures: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return one page about some runs.

    Args:
        runs: Folders that :func:`read_run` read.
        pictures: Parts to show for a run, by its name, such as what
            :func:`~reidguard.report.perturbation` and :func:`~reidguard.report.before_and_after`
            return.

    Raises:
        InputError: If there is no run, or two have the same name.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise InputError("a report is about at least one run, and each has a name of its own")
    sections = [section("In short", *(paragraph(sentence) for sentence in map(_sentence, runs)))]
    sections += _figures(runs)
    sections += _eps_curves(runs)
    for run in runs:
        if parts := [
            *_as_printed(run),
            *_beside_paper(run),
            *_learning(run),
            *_audited(run),
            *_members(run),
            *(pictures or {}).get(run.name, ()),
        ]:
            sections.append(section(run.name, *parts))
    sections.append(
        section("How these came about", *(_provenance(run, open=len(runs) == 1) for run in runs))
    )
    return page("reidguard: report on " + ", ".join(names), *sections)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(found: Mapping[str, Any], figure: str) -> float:
    return float(found["cmc"][0] if figure == "rank1" else found[figure])


def _sentence(run: Run) -> str:
    result = run.result
    if result is None:
        status = run.manifest.get("status", "unknown")
        return f"{run.name}: not finished ({status}); {len(run.metrics)} steps are noted."
    if "findings" in result:
        warnings = result["warnings"]
        verdict = ", ".join(warnings) if warnings else "no sign of masked gradients"
        return f"{run.name}: audit on {result['facts']['dataset']}: {verdict}."
    if "robust" in result:
        return f"{run.name}: {_worst_case(result)}"
    cells = run.cells
    if not cells:
        return f"{run.name}: {'see below' if run.text else 'nothing was measured'}."
    if len(cells) == 1:
        return f"{run.name}: {_one(run, cells[0]['evaluation'])}"
    by_setting: dict[str, list[float]] = {}
    for cell in cells:
        if (rate := _drop(cell["evaluation"])) is not None:
            by_setting.setdefault(cell["setting"], []).append(rate)
    means = "; ".join(
        f"{setting} {_percent(sum(rates) / len(rates))}\xa0% (mean of {len(rates)})"
        for setting, rates in by_setting.items()
    )
    return f"{run.name}: share of the clean mAP that is lost: {means}."


def _drop(evaluation: Mapping[str, Any]) -> float | None:
    if evaluation["attacked"] is None or evaluation["clean"]["mAP"] == 0:
        return None
    clean = float(evaluation["clean"]["mAP"])
    return (clean - float(evaluation["attacked"]["mAP"])) / clean


def _one(run: Run, evaluation: Mapping[str, Any]) -> str:
    place = evaluation["dataset"]["name"]
    clean, attack = evaluation["clean"], evaluation["attack"]
    start = f"{_percent(clean['mAP'])}\xa0% mAP and {_percent(_share(clean, 'rank1'))}\xa0% rank-1"
    if attack is None:
        return f"{start} on the clean queries of {place}."
    told = f"{attack['name']} at ε = {255 * attack['eps']:g}/255"
    after, saved = evaluation["attacked"], evaluation["attacked_8bit"]
    end = f"{_percent(after['mAP'])}\xa0% and {_percent(_share(after, 'rank1'))}\xa0%"
    model = "the hardened model has" if run.command == "defend" else "the model has"
    return (
        f"on {place}, {model} {start} on clean queries, and {end} under {told} "
        f"(as 8-bit images: {_percent(saved['mAP'])}\xa0% and "
        f"{_percent(_share(saved, 'rank1'))}\xa0%)."
    )


def _figures(runs: Sequence[Run]) -> list[str]:
    head = ["run", "attack", "queries", "mAP", "rank-1", "rank-5", "mINP", "L∞ ·255", "SSIM"]
    groups = []
    for run in runs:
        for cell in run.cells:
            evaluation = cell["evaluation"]
            attack = evaluation["attack"]
            told = "none" if attack is None else f"{attack['name']}, ε {255 * attack['eps']:g}/255"
            where = ": ".join(filter(None, [cell["setting"], cell["label"]]))
            rows = []
            for key, name in KINDS:
                if (found := evaluation[key]) is None:
                    continue
                fifth = found["cmc"][4] if len(found["cmc"]) > 4 else None
                rows.append(
                    [
                        ", ".join(filter(None, [run.name, where])),
                        told,
                        name,
                        _percent(found["mAP"]),
                        _percent(_share(found, "rank1")),
                        "-" if fifth is None else _percent(fifth),
                        _percent(found["mINP"]),
                        f"{found.get('linf', 0):.2f}",
                        f"{found.get('ssim', 1):.3f}",
                    ]
                )
            groups.append(rows)
    if not groups:
        return []
    note = (
        "Shares in percent; L∞ is the largest change of any pixel in grey levels. Float: as the "
        "attack made the image; 8-bit: as a file holds it."
    )
    return [section("Figures", table(head, groups, note, text=3))]


def _eps_curves(runs: Sequence[Run]) -> list[str]:
    """A chart for each attack that was measured at several ε on one model and dataset."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        training = (run.result or {}).get("training") or {}
        for cell in run.cells:
            evaluation = cell["evaluation"]
            if evaluation["attack"] is None:
                continue
            learner = str(training.get("learner", ""))
            key = (evaluation["attack"]["name"], learner, evaluation["dataset"]["name"])
            groups.setdefault((*key, evaluation["weights"]), []).append(evaluation)
    charts = []
    for (attack, learner, place, weights), found in groups.items():
        levels: dict[float, list[Mapping[str, Any]]] = {}
        for one in found:
            levels.setdefault(round(255 * one["attack"]["eps"], 3), []).append(one)
        if len(levels) < 2:
            continue
        lines: dict[str, list[tuple[float, float]]] = {}
        for figure, label in SHARES:
            points = [(0.0, 100 * _share(found[0]["clean"], figure))]
            for eps in sorted(levels):
                shares = [_share(one["attacked"], figure) for one in levels[eps]]
                points.append((eps, 100 * sum(shares) / len(shares)))
            lines[label] = points
        several = max(map(len, levels.values())) > 1
        title = f"{attack}{f' ({learner})' if learner else ''} on {place}, model {weights[:8]}"
        title += "; means of the runs at each ε" if several else ""
        charts.append(
            line_chart(title, "ε in grey levels", "mAP, rank-1 in %", lines, from_zero=True)
        )
    return [section("What the budget does", *charts)] if charts else []


def _learning(run: Run) -> list[str]:
    names = [name for name in ("loss", "test_loss") if any(name in m for m in run.metrics)]
    labels = {"loss": "loss", "test_loss": "loss on the meta-test set, after the inner step"}
    if len(names) > 1:
        labels["loss"] = "loss on the meta-train set"
    lines = {
        labels[name]: [
            (m["step"], m[name]) for m in run.metrics if name in m and math.isfinite(m[name])
        ]
        for name in names
    }
    lines = {name: points for name, points in lines.items() if points}
    return [line_chart("Learning", "step", "loss", lines)] if lines else []


def _audited(run: Run) -> list[str]:
    result = run.result or {}
    if "findings" not in result:
        return []
    rows = [
        [f["name"].replace("_", " "), f["measured"], f["limit"] or "-", f["level"]]
        for f in result["findings"]
    ]
    parts = [table(["check", "measured", "warns", "verdict"], [rows], "What was checked", text=4)]
    parts += [paragraph(f["cure"]) for f in result["findings"] if f["cure"]]
    if result["curve"]:
        lines = {
            label: [(point["eps"], 100 * point[figure]) for point in result["curve"]]
            for figure, label in SHARES
        }
        parts.append(
            line_chart(
                "SMA on the model", "ε in grey levels", "mAP, rank-1 in %", lines, from_zero=True
            )
        )
    return parts


def _worst_case(result: Mapping[str, Any]) -> str:
    clean, worst = result["clean"], result["robust"]
    left = "" if worst["mAP"] is None else f"{_percent(worst['mAP'])}\xa0% mAP and "
    warned = ", ".join(result["warnings"])
    return (
        f"on {result['dataset']['name']}, the worst of all attacks of retrieval-autoattack at "
        f"ε = {255 * result['suite']['eps']:g}/255 leaves {left}"
        f"{_percent(_share(worst, 'rank1'))}\xa0% rank-1 of {_percent(clean['mAP'])}\xa0% and "
        f"{_percent(_share(clean, 'rank1'))}\xa0%; {_percent(worst['broken'])}\xa0% of the queries "
        f"are broken{f' (warnings: {warned})' if warned else ''}."
    )


def _members(run: Run) -> list[str]:
    result = run.result or {}
    if "robust" not in result:
        return []
    rows = [
        [
            member["name"],
            *(str(member[key]) for key in ("restarts", "queries", "broken", "first")),
            "-" if member["mAP"] is None else _percent(member["mAP"]),
            f"{member['forward']} / {member['backward']}",
        ]
        for member in result["members"]
    ]
    head = ["member", "restarts", "queries", "broken alone", "broken first", "mAP alone", "passes"]
    note = "What each member did; passes forward and backward, per query"
    return [table(head, [rows], note, text=1)]


def _as_printed(run: Run) -> list[str]:
    """The printed result, of commands that this page does not know better."""
    result = run.result or {}
    if not run.text or run.cells or "findings" in result or "values" in result:
        return []
    return [f'<div class="wide"><pre>{escape(run.text)}</pre></div>']


def _beside_paper(run: Run) -> list[str]:
    """The paper's values and ours, for a run of ``python -m benchmarks.paper``."""
    result = run.result or {}
    if "values" not in result:
        return []
    rows: dict[tuple[int, int], list[str]] = {}
    for one in result["values"]:
        c = one["conditions"]
        if one["measured"] is None:
            continue
        if c["attack"] == "none":
            how = ["none", "-"]
        else:
            learnt = f"{'meta-' * c['meta']}learnt on {c['source_model']}, {c['source_data']}"
            how = [f"{c['attack']}, {learnt}, {c['extra']}", f"{c['eps']:g}"]
        head = [f"{c['model']}, {c['data']}, defense {c['defense']}", *how]
        digits = 3 if one["metric"] == "SSIM" else 1
        numbers = (one["paper"], one["measured"], one["difference"])
        told = [
            f"{value:{sign}.{digits}f}" for value, sign in zip(numbers, ("", "", "+"), strict=True)
        ]
        rows.setdefault((one["row"], one["column"]), head).extend(told)
    metrics = list(dict.fromkeys(one["metric"] for one in result["values"]))
    head = ["attacked", "attack", "ε ·255"]
    for metric in metrics:
        head += [f"{metric}, paper", "here", "difference"]
    stand_in = "STAND-INS, not the paper's experiment: the differences say nothing about it. "
    caption = f"Table {result['table']} of the paper. {stand_in if result['stand_in'] else ''}"
    return [table(head, [list(rows.values())], caption, text=2)]


def _provenance(run: Run, *, open: bool) -> str:
    facts: list[list[str]] = []
    manifest = run.manifest
    if manifest:
        versions = manifest.get("versions", {})
        facts += [
            ["commit", str(manifest.get("commit"))],
            ["started", str(manifest.get("started"))],
            ["finished", str(manifest.get("finished"))],
            ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        ]
    training = (run.result or {}).get("training")
    if isinstance(training, Mapping):
        facts += [[name.replace("_", " "), _plain(value)] for name, value in training.items()]
    seconds = (run.result or {}).get("seconds_per_step")
    if seconds is not None:
        facts.append(["seconds per step", str(seconds)])
    command = shlex.join(manifest["command"]) if manifest.get("command") else "evaluate_grid(...)"
    rows = "\n".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th>'
        f'<td class="text">{escape(value)}</td></tr>'
        for name, value in facts
    )
    return (
        f"<details{' open' if open else ''}>"
        f"<summary>{escape(run.name)}: <code>{escape(command)}</code></summary>\n"
        f'<div class="wide">\n<table><tbody>\n{rows}\n</tbody></table>\n</div>\n</details>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
