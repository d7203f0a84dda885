"""``--fail-below``: exit code 3, a verdict as JSON, and refusals before anything slow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reidguard.cli import main
from reidguard.cli.gate import BELOW, judge, thresholds
from reidguard.errors import InputError


def options(command: str, **fail_below: Any) -> Any:
    return SimpleNamespace(command=command, fail_below=fail_below, get=lambda name: None)


def ranking(mean_ap: float, *cmc: float) -> dict[str, Any]:
    return {"mAP": mean_ap, "mINP": mean_ap / 2, "cmc": list(cmc)}


def evaluation(clean: Any, changed: Any = None) -> dict[str, Any]:
    return {"evaluation": {"clean": clean, "attacked_8bit": changed}}


CLEAN = ranking(0.6, 0.8, 0.9)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"mAP": 60}, 0),  # not below: equal is enough
        ({"mAP": 60.01}, BELOW),
        ({"rank1": 80, "rank2": 90.0, "mINP": 30}, 0),
        ({"mAP": 10, "rank2": 91}, BELOW),
    ],
)
def test_an_evaluation(limits, code, tmp_path, capsys):
    assert judge(options("evaluate", **limits), evaluation(CLEAN), tmp_path) == code
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["exit_code"] == code
    assert verdict["passed"] == (code == 0)
    assert [metric["fail_below"] for metric in verdict["metrics"]] == [*map(float, limits.values())]
    wrong = [m["metric"] for m in verdict["metrics"] if m["measured"] < m["fail_below"]]
    assert wrong == [m["metric"] for m in verdict["metrics"] if not m["passed"]]
    printed = capsys.readouterr().out
    assert f"verdict: {'passed' if code == 0 else 'failed'}\n" in printed
    assert printed.count(" is below ") == len(wrong)


def test_images_of_a_folder_count_and_not_the_clean_queries(tmp_path):
    content = evaluation(CLEAN, ranking(0.1, 0.2))
    assert judge(options("evaluate", mAP=60), content, None) == BELOW
    assert judge(options("evaluate", mAP=10, rank1=20), content, None) == 0


def test_the_worst_case_is_the_lower_of_float_and_8bit():
    robust = {"robust": ranking(0.3, 0.5), "robust_8bit": ranking(0.4, 0.45), "warnings": []}
    assert judge(options("autoattack", mAP=30, rank1=45), robust, None) == 0
    assert judge(options("autoattack", mAP=31), robust, None) == BELOW
    assert judge(options("autoattack", rank1=46), robust, None) == BELOW


def test_warnings_do_not_pass(tmp_path):
    robust = {"robust": CLEAN, "robust_8bit": CLEAN, "warnings": ["zero_gradients"]}
    assert judge(options("autoattack", mAP=10), robust, tmp_path) == BELOW
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["warnings"] == ["zero_gradients"]
    assert verdict["metrics"][0]["passed"]
    assert not verdict["passed"]


def test_an_audit_counts_radii_up_to_eps_and_transfer():
    curve = [
        {"eps": eps / 255, "mAP": mean_ap, "rank1": mean_ap + 0.1}
        for eps, mean_ap in ((0, 0.1), (4, 0.5), (8, 0.4), (16, 0.2))
    ]
    content = {"curve": curve, "transfer": [], "facts": {"eps": 8 / 255}, "warnings": []}
    assert judge(options("audit", mAP=40, rank1=50), content, None) == 0
    assert judge(options("audit", mAP=41), content, None) == BELOW
    content["transfer"] = [{"attack": "SMA", "white_box": 0.45, "surrogate": 0.35}]
    assert judge(options("audit", mAP=40), content, None) == BELOW
    content |= {"curve": curve[3:], "transfer": []}
    with pytest.raises(InputError, match="nothing was measured up to --eps"):
        judge(options("audit", rank1=40), content, None)


def test_a_metric_that_is_not_a_number_does_not_pass():
    assert judge(options("evaluate", mAP=1), evaluation(ranking(math.nan, 1.0)), None) == BELOW


def test_without_thresholds_there_is_no_verdict(tmp_path, capsys):
    assert judge(options("evaluate"), {}, tmp_path) == 0
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_rank_beyond_the_curve(capsys):
    with pytest.raises(InputError, match="ranks are measured up to 2"):
        judge(options("evaluate", rank3=10), evaluation(CLEAN), None)


@pytest.mark.parametrize(
    ("command", "argument", "said"),
    [
        ("evaluate", "map=60", "metrics are mAP, rank1, rank5, rank10, mINP"),
        ("evaluate", "rank0=60", "does not measure it"),
        ("evaluate", "mAP=0.6", "percentages from 1 to 100"),
        ("evaluate", "mAP=101", "percentages from 1 to 100"),
        ("evaluate", "mAP=true", "percentages from 1 to 100"),
        ("evaluate", "mAP=high", "percentages from 1 to 100"),
        ("audit", "rank5=60", "audit does not measure it"),
        ("autoattack", "mINP=60", "autoattack does not measure it"),
    ],
)
def test_refused_before_anything_is_loaded(command, argument, said, refused):
    assert said in refused(
        command, "--data", "market1501:/nowhere", "--model", "ide", "--fail-below", argument
    )


def test_robust_map_is_not_measured_with_early_stop(refused):
    call = ["autoattack", "--data", "market1501:/nowhere", "--model", "ide", "--early-stop"]
    assert "--early-stop does not measure robust mAP" in refused(*call, "--fail-below", "mAP=20")
    early = SimpleNamespace(
        command="autoattack", fail_below={"rank1": 20}, get=lambda name: name == "early_stop"
    )
    assert thresholds(early) == {"rank1": 20.0}


def test_a_gate_on_the_command_line(target, tmp_path, capsys):
    out = tmp_path / "gate"
    call = ["evaluate", *target, "--query-every", "8", "--out", str(out)]
    assert main([*call, "--fail-below", "mAP=1", "--fail-below", "rank50=1"]) == 0
    assert json.loads((out / "verdict.json").read_text())["passed"]
    assert main([*call, "--fail-below", "rank1=100", "--fail-below", "mINP=100"]) == BELOW
    verdict = json.loads((out / "verdict.json").read_text())
    measured = json.loads((out / "result.json").read_text())["evaluation"]["clean"]
    assert verdict["metrics"][1]["measured"] == 100 * measured["mINP"]
    assert "verdict: failed" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["status"] == "finished"
    assert main(call) == 0  # the same run without a gate
    assert Path(out / "verdict.json").is_file()
