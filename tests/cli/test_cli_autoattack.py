"""``reidguard autoattack``."""

import json
import shutil

import pytest
import torch

from reidguard.attacks import DeltaAttack
from reidguard.cli import main
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, RetrievalAutoAttack
from reidguard.models import load_model
from reidguard.report import read_run, report_page
from reidguard.types import Budget

SIZE = (64, 32)
QUICK = ["--restarts", "1", "--steps", "2", "--squares", "2", "--audit-queries", "3"]
QUICK += ["--eps", "4/255", "--batch-size", "7", "--query-every", "4"]


@pytest.fixture(scope="module")
def universal(tmp_path_factory):
    attack = DeltaAttack(Budget(4 / 255), size=SIZE)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        attack.delta.copy_(torch.randn(attack.delta.shape, generator=generator))
        attack.clip_parameters()
    path = tmp_path_factory.mktemp("universal") / "attack.safetensors"
    attack.save(path)
    return path


@pytest.fixture(scope="module")
def call(target, universal, trained):
    surrogate = ["--surrogate", str(trained / "model.safetensors")]
    return ["autoattack", *target, *QUICK, "--universal", str(universal), *surrogate]


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "autoattack"
    assert main([*call, "--out", str(out)]) == 0
    return out


def test_the_results_equal_those_of_the_library(finished, trained, universal, studio_root):
    from reidguard.attacks import load_attack

    model = load_model(trained / "model.safetensors")
    suite = RetrievalAutoAttack(
        Budget(4 / 255),
        universal=load_attack(universal),
        surrogate=model,
        restarts=1,
        steps=2,
        squares=2,
    )
    data = load_dataset("virtual", studio_root)
    own = suite.run(
        model, data, Protocol(image_size=SIZE), audit_queries=3, batch_size=7, query_every=4
    )
    assert json.loads((finished / "result.json").read_text()) == own.to_dict()
    assert (finished / "result.md").read_text().startswith(own.to_markdown())
    names = [member["name"] for member in own.to_dict()["members"]]
    assert names[-3:] == ["universal", "transfer", "square"]
    assert json.loads((finished / "manifest.json").read_text())["status"] == "finished"


def test_a_finished_run_is_reused_and_can_still_save_images(
    finished, call, studio_root, tmp_path, capsys
):
    before = {p.name: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert main([*call, "--out", str(finished)]) == 0
    output = capsys.readouterr()
    assert "already finished" in output.err
    assert "robust, 8-bit" in output.out
    images = tmp_path / "images"
    assert main([*call, "--out", str(finished), "--save-images", str(images)]) == 0
    assert "attacking" not in capsys.readouterr().err  # they are in the state
    assert {p.name: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before
    data = load_dataset("virtual", studio_root)
    assert {p.stem for p in images.glob("*.png")} == set(data.query_names[::4])


def test_a_gate_on_a_finished_run(finished, call, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    result = json.loads((copy / "result.json").read_text())
    assert main([*call, "--out", str(copy), "--fail-below", "rank1=100"]) == 3
    verdict = json.loads((copy / "verdict.json").read_text())
    worst = min(result[name]["cmc"][0] for name in ("robust", "robust_8bit"))
    assert verdict["metrics"][0]["measured"] == 100 * worst
    assert verdict["warnings"] == result["warnings"]
    assert "verdict: failed" in capsys.readouterr().out


def test_a_report_shows_it(finished):
    result = json.loads((finished / "result.json").read_text())
    page = report_page([read_run(finished)])
    assert "the worst case over all attacks of retrieval-autoattack" in page
    assert f"leaves {100 * result['robust']['mAP']:.1f}\N{NO-BREAK SPACE}% mAP" in page
    assert "furthest-negative" in page


def test_an_interrupted_run_is_resumed(finished, call, tmp_path, monkeypatch, capsys):
    from reidguard.attacks import SquareAttack

    calls = []
    search = SquareAttack.search

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(self, *arguments)

    out = tmp_path / "run"
    monkeypatch.setattr(SquareAttack, "search", interrupted)
    assert main([*call, "--out", str(out)]) == 130
    assert "to resume: reidguard autoattack" in capsys.readouterr().err
    monkeypatch.setattr(SquareAttack, "search", search)
    assert main([*call, "--out", str(out)]) == 0
    assert (out / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_early_stop_reports_what_is_not_measured(target, tmp_path, capsys):
    call = ["autoattack", *target, *QUICK, "--early-stop"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    assert "robust mAP is not measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["robust"]["mAP"] is None


def test_errors(call, target, universal, finished, refused):
    small = ["autoattack", *target, "--universal", universal, "--eps", "2/255"]
    assert "more than the suite's 2/255" in refused(*small)
    assert "above 0" in refused("autoattack", *target, "--eps", "0")
    assert "no file" in refused("autoattack", *target, "--universal", "missing.safetensors")
    assert "other settings" in refused(*call, "--seed", "5", "--out", finished)
