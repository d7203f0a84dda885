"""Thresholds of ``--fail-below``, and the verdict on a result: text, a file and an exit code."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

from reidguard.cli.options import Flag, Options
from reidguard.errors import InputError

__all__ = ["BELOW", "Gate", "judge", "thresholds"]

BELOW = 3
"""Exit code where a metric is below its threshold, or a check for masked gradients warns."""

VERDICT = "verdict.json"
RANK = re.compile(r"rank([1-9][0-9]{0,3})")


class Gate(TypedDict, total=False):
    """What a result must reach."""

    fail_below: Annotated[
        dict[str, Any],
        Flag(
            "exit with code 3 if a metric, in percent, is lower: mAP=60, rank1=80; or if a check "
            "for masked gradients warns"
        ),
    ]


def thresholds(options: Options) -> dict[str, float]:
    """Return the thresholds of ``--fail-below`` in percent, by metric.

    Raises:
        InputError: If the command measures no such metric, or a value is no percentage.
    """
    known = ["mAP", "rank1", "rank5", "rank10"]
    if options.command == "audit":
        known = ["mAP", "rank1"]
    elif options.command == "certify":
        known = [f"rank{rank}" for rank in options.ranks]
    elif options.command == "evaluate":
        known.append("mINP")
    any_rank = options.command not in ("audit", "certify")
    for name, value in options.fail_below.items():
        if name not in known and not (any_rank and RANK.fullmatch(name)):
            raise InputError(
                f"--fail-below {name}: {options.command} does not measure it; metrics are "
                f"{', '.join(known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 100:
            raise InputError(
                f"--fail-below {name}={value}: thresholds are percentages from 1 to 100, as in the "
                f"tables: write {name}=60"
            )
    if "mAP" in options.fail_below and options.get("early_stop"):
        raise InputError(
            "--early-stop does not measure robust mAP: leave it out, or give --fail-below rank1=..."
        )
    return {name: float(value) for name, value in options.fail_below.items()}


def judge(options: Options, content: Mapping[str, Any], folder: Path | None) -> int:
    """Compare a result with the thresholds of ``--fail-below``, and print the verdict.

    Args:
        options: Of the command.
        content: The result as JSON values.
        folder: The run folder, which gets ``verdict.json``; None where there is none.

    Returns:
        The exit code: 0, or 3 if a metric is below its threshold or the result has warnings.

    Raises:
        InputError: If a rank beyond the measured ones has a threshold.
    """
    limits = thresholds(options) if hasattr(options, "fail_below") else {}
    if not limits:
        return 0
    metrics = []
    for name, limit in limits.items():
        measured = 100 * _measured(options.command, content, name)
        passed = measured >= limit
        metrics.append(
            {"metric": name, "measured": measured, "fail_below": limit, "passed": passed}
        )
        relation = "is not below" if passed else "is below"
        print(f"{name}: {measured:.2f} % {relation} {limit:g} %")
    warnings = list(content.get("warnings", ()))
    if warnings:
        print(f"warnings, so the metrics may be too favourable: {', '.join(warnings)}")
    passed = not warnings and all(metric["passed"] for metric in metrics)
    code = 0 if passed else BELOW
    print(f"verdict: {'passed' if passed else 'failed'}")
    if folder is not None:
        from reidguard.storage import write_json

        verdict = {"passed": passed, "exit_code": code, "metrics": metrics, "warnings": warnings}
        write_json(folder / VERDICT, verdict)
        print(f"verdict as JSON: {folder / VERDICT}")
    return code


def _measured(command: str, content: Mapping[str, Any], name: str) -> float:
    """Return the lowest value of a metric, a fraction in [0, 1], that a result has."""
    if command == "audit":
        within = [p for p in content["curve"] if 0 < p["eps"] <= content["facts"]["eps"] + 1e-9]
        values = [float(point[name]) for point in within]
        if name == "mAP":
            values += [
                row[side] for row in content["transfer"] for side in ("white_box", "surrogate")
            ]
        if not values:
            raise InputError(
                f"--fail-below {name}: nothing was measured up to --eps; give --epsilons some "
                "radii that are not above it"
            )
        return min(values)
    if command == "certify":
        return float(content["certified"][name.replace("rank", "rank_")])
    if command == "autoattack":
        rankings = [content["robust"], content["robust_8bit"]]
    else:
        evaluation = content["evaluation"]
        rankings = [evaluation["attacked_8bit"] or evaluation["clean"]]
    return min(_metric(ranking, name) for ranking in rankings)


def _metric(ranking: Mapping[str, Any], name: str) -> float:
    if (match := RANK.fullmatch(name)) is None:
        return float(ranking[name])
    k, cmc = int(match[1]), ranking["cmc"]
    if k > len(cmc):
        raise InputError(f"--fail-below {name}: ranks are measured up to {len(cmc)}")
    return float(cmc[k - 1])
