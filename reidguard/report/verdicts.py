"""What a page says of each run in a sentence, and the chart and facts at its top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reidguard.evaluation.audit_report import TITLES, audit_verdict
from reidguard.evaluation.grid_result import SETTINGS
from reidguard.report.charts import bar_chart
from reidguard.report.runs import Run
from reidguard.tables import percent

__all__ = ["facts", "headline", "top_chart", "verdict"]

WHERE = {
    "source": "on the network and dataset that it was learnt on",
    "cross-model": "on another network",
    "cross-dataset": "on another dataset",
    "cross-model & dataset": "on another network and dataset",
}
AS_FILES = "attacked, 8-bit"
PATTERN = SETTINGS[-1]


def verdict(run: Run) -> str:
    """Return what was measured in a run, in a sentence."""
    result = run.result
    if result is None:
        status = run.manifest.get("status", "unknown")
        return f"Not finished ({status}); {len(run.metrics)} steps logged."
    if "findings" in result:
        return _audited(result)
    if "robust" in result:
        return _worst_case(result)
    if "certified" in result:
        return _certified(result)
    if not run.cells:
        return "See below." if run.text else "Nothing was measured."
    if len(run.cells) == 1:
        return _evaluated(run)
    return _grid(run)


def headline(runs: Sequence[Run]) -> str:
    """Return the verdict on one run, or on the one of several whose mAP falls the most."""
    if len(runs) == 1:
        return verdict(runs[0])
    pairs = {run.name: pair for run in runs if (pair := _clean_and_attacked(run)) is not None}
    if not pairs:
        return f"{len(runs)} runs, none of them with an evaluation under attack."
    worst = max(pairs, key=lambda name: pairs[name][0] - pairs[name][1])
    said = next(verdict(run) for run in runs if run.name == worst)
    return f"mAP falls the most in {worst}. {said}"


def top_chart(runs: Sequence[Run]) -> str:
    """Return a chart of mAP, clean and attacked: of each setting, or of each run; maybe empty."""
    if len(runs) > 1:
        pairs = {run.name: _clean_and_attacked(run) for run in runs}
        groups = {name: _bars(*pair) for name, pair in pairs.items() if pair is not None}
        return bar_chart("Clean and attacked", "mAP in %", groups) if groups else ""
    (run,) = runs
    result = run.result or {}
    if "robust" in result:
        groups = _by_metric(result["clean"], result["robust_8bit"], "worst case, 8-bit")
        return bar_chart("Clean and attacked", "% of queries; mAP in %", groups)
    attacked = [cell["evaluation"] for cell in run.cells if cell["evaluation"]["attacked_8bit"]]
    if not attacked:
        return ""
    if len(run.cells) > 1:
        means = _means(run, _strongest(run))
        groups = {setting: _bars(*pair) for setting, pair in means.items()}
        return bar_chart("Clean and attacked", "mAP in %", groups)
    groups = _by_metric(attacked[0]["clean"], attacked[0]["attacked_8bit"], AS_FILES)
    return bar_chart("Clean and attacked", "% of queries; mAP in %", groups)


def facts(run: Run) -> dict[str, str]:
    """Return version, date and command of a run, as far as they are known."""
    versions = run.manifest.get("versions") or (run.result or {}).get("versions") or {}
    date = str(run.manifest.get("finished") or run.manifest.get("started") or "")
    found = {
        "reidguard": str(versions.get("reidguard", "")),
        "date": date.replace("T", " ").replace("+00:00", " UTC"),
        "command": run.shell_command,
    }
    return {name: value for name, value in found.items() if value}


def level(eps: float) -> str:
    """Return a budget in [0, 1] as text in grey levels."""
    return f"ε = {255 * eps:g}/255"


def query_folder(evaluation: Mapping[str, Any]) -> str:
    """Return the folder that the query images were read from in place of the dataset's, or ""."""
    return str(evaluation["dataset"].get("query_folder") or "")


def _number(fraction: float) -> str:
    return f"{percent(fraction)}\N{NO-BREAK SPACE}%"


def _both(metrics: Mapping[str, Any]) -> str:
    return f"{_number(metrics['mAP'])} mAP and {_number(metrics['cmc'][0])} rank-1"


def _audited(result: Mapping[str, Any]) -> str:
    names = [TITLES.get(name, name) for name in result["warnings"]]
    failed = f"; checks not passed: {', '.join(names)}" if names else ""
    return f"Audit on {result['facts']['dataset']}: {audit_verdict(len(names))}{failed}."


def _certified(result: Mapping[str, Any]) -> str:
    certified = result["certified"]
    ranks = [
        f"{_number(value)} {name.replace('_', '-')}"
        for name, value in certified.items()
        if name.startswith("rank_")
    ]
    return (
        f"On {result['dataset']['name']}, the ranking smoothed by noise of σ = "
        f"{certified['sigma']:g} keeps a certified {', '.join(ranks)} within an L2 radius of "
        f"{certified['radius']:g}."
    )


def _worst_case(result: Mapping[str, Any]) -> str:
    robust, left = result["robust"], ""
    if robust["mAP"] is not None:
        left = f"{_number(robust['mAP'])} mAP and "
    text = (
        f"On {result['dataset']['name']}, the worst case over all attacks of retrieval-autoattack "
        f"at {level(result['suite']['eps'])} leaves {left}{_number(robust['cmc'][0])} rank-1 of "
        f"{_both(result['clean'])}; {_number(robust['broken'])} of the queries are broken."
    )
    if result["warnings"]:
        names = [TITLES.get(name, name) for name in result["warnings"]]
        text += f" Checks not passed: {', '.join(names)}."
    return text


def _evaluated(run: Run) -> str:
    evaluation = run.cells[0]["evaluation"]
    dataset, attack = evaluation["dataset"]["name"], evaluation["attack"]
    if attack is None:
        if folder := query_folder(evaluation):
            before, after = _both(evaluation["clean"]), _both(evaluation["attacked_8bit"])
            return f"On {dataset}, the images of {folder} take the model from {before} to {after}."
        return f"The model has {_both(evaluation['clean'])} on the clean queries of {dataset}."
    model = "hardened model" if run.command == "defend" else "model"
    return (
        f"Under {attack['name']} at {level(attack['eps'])}, the {model} goes from "
        f"{_both(evaluation['clean'])} to {_both(evaluation['attacked_8bit'])} on {dataset}."
    )


def _grid(run: Run) -> str:
    attack = _strongest(run)
    means = _means(run, attack)
    falls = [
        f"from {_number(clean)} to {_number(left)} {WHERE.get(setting, setting)}"
        for setting, (clean, left) in means.items()
    ]
    shown = [falls[0], falls[-1]] if len(falls) > 1 else falls
    last = next(reversed(means))
    if last != PATTERN and (left := _left_by_patterns(run, attack, last)) is not None:
        shown[-1] += f", where the strongest fixed pattern leaves {_number(left)}"
    eps = next(c["evaluation"]["attack"]["eps"] for c in run.cells if c.get("attack") == attack)
    return f"Under {attack} at {level(eps)}, mAP goes {', and '.join(shown)}."


def _strongest(run: Run) -> str:
    """Return the attack of a grid under which the least mAP is left, on the mean of its cells.

    Fixed patterns are what it is compared with; they count only where nothing else was measured.
    """
    left: dict[str, list[float]] = {}
    attacks = [cell for cell in run.cells if cell["setting"] != PATTERN]
    for cell in attacks or run.cells:
        mean_ap = cell["evaluation"]["attacked_8bit"]["mAP"]
        left.setdefault(str(cell.get("attack", "")), []).append(mean_ap)
    return min(left, key=lambda name: sum(left[name]) / len(left[name]))


def _means(run: Run, attack: str) -> dict[str, tuple[float, float]]:
    """Return the mean clean and attacked mAP of each setting of a grid, the source first."""
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in SETTINGS}
    for cell in run.cells:
        if str(cell.get("attack", "")) == attack:
            evaluation = cell["evaluation"]
            pair = evaluation["clean"]["mAP"], evaluation["attacked_8bit"]["mAP"]
            pairs.setdefault(cell["setting"], []).append(pair)
    return {
        setting: (sum(c for c, _ in found) / len(found), sum(a for _, a in found) / len(found))
        for setting, found in pairs.items()
        if found
    }


def _left_by_patterns(run: Run, attack: str, setting: str) -> float | None:
    """Return the mean mAP that fixed patterns leave where an attack was measured in a setting."""
    places = {
        (cell["model"], cell["dataset"])
        for cell in run.cells
        if str(cell.get("attack", "")) == attack and cell["setting"] == setting
    }
    left = [
        cell["evaluation"]["attacked_8bit"]["mAP"]
        for cell in run.cells
        if cell["setting"] == PATTERN and (cell["model"], cell["dataset"]) in places
    ]
    return sum(left) / len(left) if left else None


def _clean_and_attacked(run: Run) -> tuple[float, float] | None:
    """Return mAP before and after the worst attack of a run; None if it has no such attack."""
    result = run.result or {}
    if "robust" in result:
        pair = result["clean"]["mAP"], result["robust_8bit"]["mAP"]
        return None if pair[1] is None else pair
    cells = [cell["evaluation"] for cell in run.cells if cell["evaluation"]["attacked_8bit"]]
    pairs = [(one["clean"]["mAP"], one["attacked_8bit"]["mAP"]) for one in cells]
    return max(pairs, key=lambda pair: pair[0] - pair[1], default=None)


def _bars(clean: float, attacked: float, name: str = AS_FILES) -> dict[str, float]:
    return {"clean": 100 * clean, name: 100 * attacked}


def _by_metric(
    clean: Mapping[str, Any], attacked: Mapping[str, Any], name: str
) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    if attacked["mAP"] is not None:
        groups["mAP"] = _bars(clean["mAP"], attacked["mAP"], name)
    for k in (1, 5):
        if k <= min(len(clean["cmc"]), len(attacked["cmc"])):
            groups[f"rank-{k}"] = _bars(clean["cmc"][k - 1], attacked["cmc"][k - 1], name)
    return groups
