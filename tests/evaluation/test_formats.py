"""What results are written as, word for word, from results made by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
import torch

from reidguard.errors import InputError
from reidguard.evaluation import EvaluationResult, GridCell, GridResult
from reidguard.evaluation.audit_report import AuditReport, Finding, make_finding
from reidguard.evaluation.autoattack_result import AutoAttackResult, MemberResult, WorstCase
from reidguard.evaluation.results import AttackedResult, levels, linf_dict, ranking_metric
from reidguard.evaluation.verify import VerifyReport
from reidguard.metrics import RankingResult
from reidguard.storage import library_versions


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def ranking(ap, inp, first, depth=12):
    """Of three queries, the last of which has no match."""
    answered = torch.tensor(first) > 0
    cmc = [float((torch.tensor(first)[answered] <= k).double().mean()) for k in range(1, depth + 1)]
    return RankingResult(
        mAP=sum(ap[:2]) / 2,
        cmc=double(*cmc),
        mINP=sum(inp[:2]) / 2,
        ap=double(*ap),
        inp=double(*inp),
        first_match=torch.tensor(first),
        skipped=torch.tensor([2]),
    )


NAN = float("nan")
CLEAN = ranking([1.0, 0.5, NAN], [0.5, 0.25, NAN], [1, 3, 0])
ATTACKED = ranking([0.25, 0.0625, NAN], [0.125, 0.0625, NAN], [4, 12, 0])


def table(text):
    """The rows of all tables of a Markdown text, without padding, rules and borders."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [" | ".join(cell.strip() for cell in line[1:-1].split(" | ")) for line in lines]
    return [row for row in rows if not row.startswith("---")]


@pytest.fixture
def evaluation():
    attacked = AttackedResult(ATTACKED, 31.25, 0.87654, 7.5 / 255, 0.98765)
    saved = AttackedResult(CLEAN, float("inf"), 1.0, 7 / 255, 0.9999)
    return EvaluationResult(
        clean=CLEAN,
        attacked=attacked,
        attacked_8bit=saved,
        attack={"name": "SMA", "eps": 7.5 / 255},
        dataset={"name": "few", "query_every": 1, "fingerprints": {}},
        counts={"query": 3, "gallery": 12345},
        skipped=("a.png",),
        protocol={"metric": "cosine"},
        weights="w" * 8,
        seconds={"gallery": 1.23456},
    )


def test_an_evaluation_as_a_table(evaluation):
    text = evaluation.to_markdown()
    title, empty, *_, last = text.split("\n")
    assert title == "few under SMA, ε = 7.5/255 (3 query, 12,345 gallery)"
    assert empty == last == ""
    assert table(text) == [
        "queries | mAP | rank-1 | rank-5 | rank-10 | mINP | L∞ ·255 | PSNR | SSIM | MS-SSIM",
        "clean | 75.0 | 50.0 | 100.0 | 100.0 | 37.5 | 0 | ∞ | 1.000 | 1.000",
        "attacked, float | 15.6 | 0.0 | 50.0 | 50.0 | 9.4 | 7.50 | 31.2 | 0.877 | 0.988",
        "attacked, 8-bit | 75.0 | 50.0 | 100.0 | 100.0 | 37.5 | 7.00 | ∞ | 1.000 | 1.000",
    ]


def test_what_the_title_names(evaluation):
    def title(**changes):
        return replace(evaluation, **changes).to_markdown().split("\n")[0]

    clean = {"attack": None, "attacked": None, "attacked_8bit": None}
    assert title(**clean) == "few (3 query, 12,345 gallery)"
    assert table(replace(evaluation, **clean).to_markdown()) == [
        "queries | mAP | rank-1 | rank-5 | rank-10 | mINP",
        "clean | 75.0 | 50.0 | 100.0 | 100.0 | 37.5",
    ]
    attack = {**evaluation.attack, "with_labels": True}
    part = {"name": "few", "query_every": 4}
    assert title(attack=attack, dataset=part) == (
        "few under SMA, ε = 7.5/255, given the true identities "
        "(3 query, 12,345 gallery; one query in 4)"
    )
    assert title(dataset={**part, "query_every": 2}).endswith("gallery; one query in 2)")
    attack = {**evaluation.attack, "side": "gallery"}
    assert title(attack=attack).startswith("few under SMA, ε = 7.5/255, on the gallery (3")


def test_a_short_curve_and_lpips_in_the_table(evaluation):
    short = ranking([1.0, 0.5, NAN], [0.5, 0.25, NAN], [1, 3, 0], depth=5)
    attacked = AttackedResult(short, 31.25, 0.87654, 7.5 / 255, 0.98765, lpips=0.12345)
    both = {"attacked": attacked, "attacked_8bit": replace(attacked, lpips=0.25)}
    rows = table(replace(evaluation, clean=short, **both).to_markdown())
    assert rows[0].startswith("queries | mAP | rank-1 | rank-5 | mINP |")
    assert [row.split(" | ")[-1] for row in rows[:3]] == ["LPIPS", "0.000", "0.123"]
    least = ranking([1.0, 0.5, NAN], [0.5, 0.25, NAN], [1, 3, 0], depth=1)
    rows = table(replace(evaluation, clean=least, attacked=None, attacked_8bit=None).to_markdown())
    assert rows[0] == "queries | mAP | rank-1 | mINP"


def test_an_evaluation_as_json(evaluation):
    values = json.loads(evaluation.to_json())
    assert values == {
        "clean": {"mAP": 0.75, "mINP": 0.375, "cmc": CLEAN.cmc.tolist()},
        "attacked": {
            "mAP": 0.15625,
            "mINP": 0.09375,
            "cmc": ATTACKED.cmc.tolist(),
            "psnr": 31.25,
            "ssim": 0.87654,
            "ms_ssim": 0.98765,
            "linf": 7.5 / 255,
            "linf_255": 7.5,
        },
        "attacked_8bit": {
            "mAP": 0.75,
            "mINP": 0.375,
            "cmc": CLEAN.cmc.tolist(),
            "psnr": None,
            "ssim": 1.0,
            "ms_ssim": 0.9999,
            "linf": 7 / 255,
            "linf_255": 7.0,
        },
        "attack": {"name": "SMA", "eps": 7.5 / 255},
        "dataset": {"name": "few", "query_every": 1, "fingerprints": {}},
        "counts": {"query": 3, "gallery": 12345},
        "skipped": ["a.png"],
        "protocol": {"metric": "cosine"},
        "weights": "w" * 8,
        "seconds": {"gallery": 1.235},
        "versions": library_versions(),
    }
    assert '\n  "clean"' in evaluation.to_json()
    clean = replace(evaluation, attack=None, attacked=None, attacked_8bit=None).to_dict()
    assert clean["attacked"] is clean["attacked_8bit"] is clean["attack"] is None
    attacked = replace(evaluation.attacked, lpips=0.1)
    assert replace(evaluation, attacked=attacked).to_dict()["attacked"]["lpips"] == 0.1


def test_a_result_is_written_in_the_format_of_its_extension(evaluation, tmp_path):
    named = replace(evaluation, dataset={"name": "Größe", "query_every": 1})
    named.save(tmp_path / "a.json")
    named.save(str(tmp_path / "a.md"))
    assert (tmp_path / "a.json").read_text("utf-8") == named.to_json() + "\n"
    assert "Größe" in (tmp_path / "a.json").read_text("utf-8")
    assert (tmp_path / "a.md").read_text("utf-8") == named.to_markdown()
    with pytest.raises(InputError, match=r"a\.txt must end in one of \.json, \.md"):
        named.save(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="not JSON compliant"):
        replace(evaluation, counts={"query": NAN}).to_json()


def test_small_formats():
    assert linf_dict(0.1) == {"linf": 0.1, "linf_255": 25.5}
    assert levels(8 / 255) == "8.00"
    values = {"mAP": 0.5, "mINP": 0.25, "cmc": [0.125, 1.0]}
    assert [ranking_metric(values, name) for name in ("mAP", "mINP", "rank1")] == [
        0.5,
        0.25,
        0.125,
    ]


def test_a_budget_report_as_text():
    report = VerifyReport(4, 7.5 / 255, 7.25 / 255, 7, 0.123, True, True)
    assert str(report) == (
        "inside the budget of 7.5/255 on 4 images: L∞ 7.250/255 as float, 7/255 as 8-bit; "
        "12.3 % of pixels moved; all values in [0, 1]"
    )
    outside = replace(report, in_range=False, passed=False)
    assert str(outside).startswith("OUTSIDE the budget")
    assert str(outside).endswith("NOT all values in [0, 1]")
    assert report.to_dict() == {
        "images": 4,
        "eps": 7.5 / 255,
        "linf": 7.25 / 255,
        "levels": 7,
        "moved": 0.123,
        "in_range": True,
        "passed": True,
    }


# --- the grid -----------------------------------------------------------------------------------


def cell(attack, setting, clean, attacked, *, meta_test=False, eps=7.5 / 255):
    def kind(mean, linf):
        return {"mAP": mean, "mINP": mean / 4, "cmc": [mean / 2, 1.0], "linf_255": linf,
                "psnr": 30.5, "ssim": 0.875, "ms_ssim": 0.9375}  # fmt: skip

    evaluation = {
        "clean": {"mAP": clean, "mINP": clean / 4, "cmc": [clean / 2, 1.0]},
        "attacked": kind(attacked, 7.5),
        "attacked_8bit": kind(attacked / 2, 7),
        "attack": {"name": "SMA", "eps": eps},
        "counts": {"query": 5},
    }
    return GridCell(attack, "net", "set", setting, meta_test, evaluation)


GRID = GridResult(
    (
        cell("x", "source", 0.5, 0.125),
        cell("x", "cross-dataset", 0.5, 0.125, meta_test=True),
        cell("x", "cross-dataset", 0.0, 0.0),
    )
)


def test_a_grid_as_csv():
    first, second, third = csv.DictReader(io.StringIO(GRID.to_csv()))
    quality = {"psnr": "30.5", "ssim": "0.875", "ms_ssim": "0.9375"}

    def kind(name, mean, rank1, minp, **others):
        values = {"mAP": mean, "rank1": rank1, "mINP": minp, **others}
        return {f"{name}_{key}": value for key, value in values.items()}

    assert first == {
        "attack": "x",
        "eps_255": "7.5",
        "setting": "source",
        "model": "net",
        "dataset": "set",
        "meta_test": "false",
        "queries": "5",
        **kind("clean", "0.5", "0.25", "0.125"),
        **kind("attacked", "0.125", "0.0625", "0.03125", linf_255="7.5", **quality, drop="0.75"),
        **kind(
            "attacked_8bit", "0.0625", "0.03125", "0.015625", linf_255="7", **quality, drop="0.875"
        ),
    }
    assert second["meta_test"] == "true"
    assert second["attacked_drop"] == "0.75"
    assert third["attacked_drop"] == third["attacked_8bit_drop"] == ""
    assert GRID.to_csv().startswith("attack,eps_255,setting,model,dataset,meta_test,queries,clean_")
    assert len(GridResult(GRID.cells[:1]).to_csv().splitlines()) == 2


def test_a_grid_as_tables():
    text = GRID.to_markdown()
    metrics = "clean mAP | rank-1 | attacked mAP | rank-1 | 8-bit mAP | rank-1"
    assert table(text) == [
        f"attack | setting | cells | {metrics} | mDR %",
        "x | source | 1 | 50.0 | 25.0 | 12.5 | 6.2 | 6.2 | 3.1 | 75.0",
        "x | cross-dataset | 2 | 25.0 | 12.5 | 6.2 | 3.1 | 3.1 | 1.6 | 75.0",
        "setting | model | dataset | queries | mAP | rank-1 | mINP | L∞ ·255 | SSIM | drop %",
        "source | net | set | clean | 50.0 | 25.0 | 12.5 | 0 | 1.000 | -",
        "source | net | set | attacked, float | 12.5 | 6.2 | 3.1 | 7.50 | 0.875 | 75.0",
        "source | net | set | attacked, 8-bit | 6.2 | 3.1 | 1.6 | 7.00 | 0.875 | 87.5",
        "cross-dataset* | net | set | clean | 50.0 | 25.0 | 12.5 | 0 | 1.000 | -",
        "cross-dataset* | net | set | attacked, float | 12.5 | 6.2 | 3.1 | 7.50 | 0.875 | 75.0",
        "cross-dataset* | net | set | attacked, 8-bit | 6.2 | 3.1 | 1.6 | 7.00 | 0.875 | 87.5",
        "cross-dataset | net | set | clean | 0.0 | 0.0 | 0.0 | 0 | 1.000 | -",
        "cross-dataset | net | set | attacked, float | 0.0 | 0.0 | 0.0 | 7.50 | 0.875 | -",
        "cross-dataset | net | set | attacked, 8-bit | 0.0 | 0.0 | 0.0 | 7.00 | 0.875 | -",
    ]
    assert "\n\nx, ε = 7.5/255\n\n" in text
    alone = GridResult(GRID.cells[:1]).to_markdown()
    assert table(alone) == table(text)[3:7]  # its mean would say the same
    note = "* the attack's meta-test set was this dataset, so it is not unseen"
    assert text.endswith(f"\n\n{note}\n")
    latex = GRID.to_latex()
    assert latex.endswith(f"\n\n{note}\n")
    assert latex.count(r"\begin{tabular}") == 2
    # Columns of names are those of text, even where the names are numbers.
    numbers = [
        replace(c, attack="1", model="2", dataset="3")
        for c in (GRID.cells[0], GRID.cells[2], GRID.cells[2])
    ]
    without = GridResult(tuple(numbers))
    assert note not in without.to_markdown()
    assert without.to_latex().endswith("\\end{tabular}\n")
    assert r"\begin{tabular}{llrrrrrrrr}" in without.to_latex()
    assert r"\begin{tabular}{llllrrrrrr}" in without.to_latex()


def test_a_grid_as_json():
    values = GRID.to_dict()
    assert values["versions"] == library_versions()
    assert values["means"] == GRID.means()
    assert values["cells"][1] == {
        "attack": "x",
        "model": "net",
        "dataset": "set",
        "setting": "cross-dataset",
        "meta_test": True,
        "drop": 0.75,
        "drop_8bit": 0.875,
        "evaluation": GRID.cells[1].evaluation,
    }
    assert GRID.means()[1] == {
        "attack": "x",
        "setting": "cross-dataset",
        "cells": 2,
        "clean": {"mAP": 0.25, "rank1": 0.125},
        "attacked": {"mAP": 0.0625, "rank1": 0.03125},
        "attacked_8bit": {"mAP": 0.03125, "rank1": 0.015625},
        "mDR": 0.75,
        "mDR_8bit": 0.875,
    }
    assert GRID.cells[0].eps == 7.5 / 255
    assert GRID.cells[0].metric("attacked", "mINP") == 0.03125
    assert list(GRID.FORMATS) == [".json", ".csv", ".md", ".tex"]


# --- the suite ----------------------------------------------------------------------------------


MEMBERS = (
    MemberResult("clean", 1, 2, 0, 0, 0.75, 0.0, 0, 0),
    MemberResult("self-metric", 2, 2, 1, 1, 0.5, 8 / 255, 208, 200),
    MemberResult("square", 0, 0, 0, 0, None, 0.0, 0, 0, note="left out"),
)
WORST = WorstCase(double(0.5, 0.05, NAN), torch.tensor([1, 12, 0]),
                  torch.tensor([False, True, False]), 8 / 255)  # fmt: skip
SAVED = WorstCase(double(0.5, 0.25, NAN), torch.tensor([1, 4, 0]),
                  torch.tensor([False, False, False]), 7 / 255)  # fmt: skip


def suite_result(**changes):
    facts = {
        "suite": {"eps": 8 / 255, "broken_rank": 10, "broken_ap": 0.1},
        "early_stop": False,
        "dataset": {"name": "few", "query_every": 1},
        "counts": {"query": 3, "gallery": 12345},
        **changes.pop("facts", {}),
    }
    values = {
        "clean": CLEAN,
        "worst": WORST,
        "worst_8bit": SAVED,
        "members": MEMBERS,
        "broken_by": (None, "self-metric", None),
        "audit": None,
        "findings": (),
        "facts": facts,
    }
    return AutoAttackResult(**{**values, **changes})


def test_the_worst_case_in_numbers():
    assert WORST.mAP == pytest.approx(0.275)
    assert WORST.broken_fraction == 0.5
    assert [WORST.rank_k(k) for k in (1, 11, 12)] == [0.5, 0.5, 1.0]


def test_a_suite_s_result_as_tables():
    text = suite_result().to_markdown()
    parts = text.split("\n\n")
    assert parts[0] == "few under retrieval-autoattack, ε = 8/255 (3 query, 12,345 gallery)"
    assert table(parts[1]) == [
        "queries | mAP | rank-1 | rank-5 | rank-10 | broken | L∞ ·255",
        "clean | 75.0 | 50.0 | 100.0 | 100.0 | 0.0 | 0",
        "robust, float | 27.5 | 50.0 | 50.0 | 50.0 | 50.0 | 8.00",
        "robust, 8-bit | 37.5 | 50.0 | 100.0 | 100.0 | 0.0 | 7.00",
    ]
    assert parts[2] == "Broken: no match among the first 10 and an average precision below 0.1."
    assert table(parts[3]) == [
        "member | restarts | queries | broken alone | broken first | mAP alone | L∞ ·255 | "
        "forward / backward | note",
        "clean | 1 | 2 | 0 | 0 | 75.0 | 0.00 | 0 / 0 | ",
        "self-metric | 2 | 2 | 1 | 1 | 50.0 | 8.00 | 208 / 200 | ",
        "square | 0 | 0 | 0 | 0 | - | 0.00 | 0 / 0 | left out",
    ]
    assert parts[4:] == ["Audit: left out; masked gradients were not checked for.\n"]


def test_a_suite_s_result_with_early_stop_and_warnings():
    finding = {"name": "curve", "level": "warning", "measured": "m", "cure": "c"}
    audited = {
        "warnings": ["curve"],
        "findings": [finding, {**finding, "name": "transfer", "level": "ok"}],
        "facts": {"queries": 7},
    }
    own = Finding("black_box", "warning", "seen", "limit", {}, "cured")
    clean_broken = (replace(MEMBERS[0], broken=1), *MEMBERS[1:])
    result = suite_result(
        audit=audited,
        findings=(own,),
        members=clean_broken,
        facts={"early_stop": True, "dataset": {"name": "few", "query_every": 2}},
    )
    parts = result.to_markdown().split("\n\n")
    assert parts[0].endswith("ε = 8/255 (3 query, 12,345 gallery; one query in 2)")
    rows = table(parts[1])
    assert rows[1].endswith("| 50.0 | 0")
    assert rows[2].startswith("robust, float | - | 50.0")
    assert parts[2].endswith(
        "Broken queries were attacked no further, so robust mAP is not measured."
    )
    assert parts[4:] == [
        "Audit (7 queries): 1 warning.",
        "WARNING: seen. cured",
        "WARNING: mAP falls as ε rises? m. c\n",
    ]
    assert result.warnings == ("curve", "black_box")
    assert suite_result(findings=(own,)).warnings == ("black_box",)


def test_a_suite_s_result_as_json():
    result = suite_result()
    values = result.to_dict()
    member = {"name": "clean", "restarts": 1, "queries": 2, "broken": 0, "first": 0, "mAP": 0.75,
              "linf": 0.0, "linf_255": 0.0, "forward": 0, "backward": 0, "note": ""}  # fmt: skip
    assert values["members"][0] == member
    assert {key: values[key] for key in ("clean", "robust", "robust_8bit")} == {
        "clean": {"mAP": 0.75, "cmc": [0.5, 0.5] + [1.0] * 8},
        "robust": {"mAP": WORST.mAP, "cmc": [0.5] * 10, "broken": 0.5, "linf": 8 / 255,
                   "linf_255": 8.0},
        "robust_8bit": {"mAP": 0.375, "cmc": [0.5] * 3 + [1.0] * 7, "broken": 0.0,
                        "linf": 7 / 255, "linf_255": 7.0},
    }  # fmt: skip
    assert values["warnings"] == values["suite_findings"] == []
    assert values["audit"] is None
    assert values["dataset"] == result.facts["dataset"]
    assert values["versions"] == library_versions()
    stopped = suite_result(facts={"early_stop": True}).to_dict()
    assert stopped["robust"]["mAP"] is stopped["robust_8bit"]["mAP"] is None
    few = suite_result(facts={"suite": {"eps": 8 / 255, "broken_rank": 4, "broken_ap": 0.1}})
    assert few.to_dict()["robust"]["cmc"] == [0.5] * 4
    assert few.to_dict()["clean"]["cmc"] == [0.5, 0.5, 1.0, 1.0]
    assert table(few.to_markdown())[0] == "queries | mAP | rank-1 | broken | L∞ ·255"


# --- the audit ----------------------------------------------------------------------------------


def report(*findings):
    return AuditReport(
        findings=findings,
        curve=(
            {"eps": 0.0, "mAP": 1.0, "rank1": 0.5},
            {"eps": 8 / 255, "mAP": 0.25, "rank1": 0.125},
        ),
        transfer=({"attack": "SMA", "white_box": 0.5, "surrogate": 0.25, "gain": 0.25},),
        facts={"dataset": "few", "queries": 7, "eps": 8 / 255},
    )


def test_an_audit_as_tables():
    ok = make_finding("zero_gradients", "ok", "none", "above 10 %", {"fraction": 0.0})
    warning = make_finding("curve", "warning", "rises", "above 2", {"gain": 1.0})
    error = make_finding("non_finite_gradients", "error", "all", "above 0 %", {"fraction": 1.0})
    unchecked = Finding("transfer", "unchecked", "no surrogate")
    assert (ok.cure, unchecked.cure) == ("", "")
    assert "more steps and restarts" in " ".join(warning.cure.split())
    result = report(error, ok, warning, unchecked)
    text = result.to_markdown()
    parts = text.split("\n\n")
    assert parts[0] == "Audit on few (7 queries): 2 warnings"
    assert table(parts[1]) == [
        "check | measured | warns | verdict",
        "gradients are finite | all | above 0 % | ERROR",
        "gradients are not zero | none | above 10 % | ok",
        "mAP falls as ε rises | rises | above 2 | WARNING",
        "white-box attacks are stronger than transfer | no surrogate | - | not checked",
    ]
    assert ":" not in parts[1]  # a colon would align the numbers of a column
    assert table(parts[2]) == [
        "SMA, ε ·255 | 0 | 8",
        "mAP | 100.0 | 25.0",
        "rank-1 | 50.0 | 12.5",
    ]
    assert table(parts[3]) == [
        "mAP at ε = 8/255, made on | the model | the surrogate",
        "SMA | 50.0 | 25.0",
    ]
    assert parts[4:] == [
        f"ERROR: gradients are finite? {error.cure}",
        f"WARNING: mAP falls as ε rises? {warning.cure}\n",
    ]
    values = result.to_dict()
    assert values["warnings"] == ["non_finite_gradients", "curve"]
    assert values["findings"][3] == {
        "name": "transfer",
        "level": "unchecked",
        "measured": "no surrogate",
        "limit": "",
        "evidence": {},
        "cure": "",
    }
    assert values["curve"] == list(result.curve)
    assert values["transfer"] == list(result.transfer)
    assert values["facts"] == result.facts
    assert values["versions"] == library_versions()


def test_an_audit_without_warnings_and_tables():
    quiet = replace(report(), curve=(), transfer=())
    parts = quiet.to_markdown().split("\n\n")
    assert parts[0] == "Audit on few (7 queries): no sign of masked gradients"
    assert len(parts) == 2
    one = report(make_finding("randomness", "warning", "m", "l", {}))
    assert one.to_markdown().startswith("Audit on few (7 queries): 1 warning\n")
