"""``reidguard audit``."""

import json
import shutil

import pytest

from reidguard.cli import main
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, audit
from reidguard.models import load_model

QUICK = ["--queries", "6", "--attack-steps", "2", "--learning-steps", "2", "--probes", "2"]


@pytest.fixture(scope="module")
def audited(target, trained, tmp_path_factory):
    """A run folder; the model is its own surrogate."""
    out = tmp_path_factory.mktemp("runs") / "audit"
    surrogate = ["--surrogate", str(trained / "model.safetensors")]
    assert main(["audit", *target, *QUICK, *surrogate, "--out", str(out)]) == 0
    return out


def test_a_gate_on_a_finished_audit(audited, target, trained, tmp_path):
    copy = shutil.copytree(audited, tmp_path / "copy")
    surrogate = ["--surrogate", str(trained / "model.safetensors")]
    call = ["audit", *target, *QUICK, *surrogate, "--out", str(copy)]
    assert main([*call, "--fail-below", "mAP=100"]) == 3
    verdict = json.loads((copy / "verdict.json").read_text())
    report = json.loads((copy / "audit.json").read_text())
    assert verdict["warnings"] == report["warnings"]
    values = [point["mAP"] for point in report["curve"] if 0 < point["eps"] <= 8 / 255]
    values += [row[side] for row in report["transfer"] for side in ("white_box", "surrogate")]
    assert verdict["metrics"][0]["measured"] == 100 * min(values)


def test_the_report_equals_that_of_the_library(audited, trained, studio_root):
    model = load_model(trained / "model.safetensors")
    report = audit(
        model,
        load_dataset("virtual", studio_root),
        surrogate=model,
        queries=6,
        attack_steps=2,
        learning_steps=2,
        probes=2,
        protocol=Protocol(image_size=(64, 32)),
    )
    assert json.loads((audited / "audit.json").read_text()) == report.to_dict()
    assert (audited / "audit.md").read_text().startswith(report.to_markdown())
    manifest = json.loads((audited / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["settings"]["attack_steps"] == 2


def test_a_trained_network_raises_no_warning(audited):
    """One with ReLUs and batch norms; compared with itself, transfer is white-box."""
    content = json.loads((audited / "audit.json").read_text())
    assert content["warnings"] == []
    assert [finding["level"] for finding in content["findings"]] == ["ok"] * 6
    assert all(row["white_box"] == row["surrogate"] for row in content["transfer"])


def test_the_same_command_again_reuses(audited, target, trained, capsys):
    surrogate = ["--surrogate", str(trained / "model.safetensors")]
    before = {p.name: p.read_bytes() for p in audited.iterdir()}
    assert main(["audit", *target, *QUICK, *surrogate, "--out", str(audited)]) == 0
    output = capsys.readouterr()
    assert "already finished" in output.err
    assert (audited / "audit.md").read_text().rpartition("`reidguard")[0] in output.out
    assert {p.name: p.read_bytes() for p in audited.iterdir()} == before


def test_without_a_folder_it_only_prints(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["audit", *target, *QUICK]) == 0
    output = capsys.readouterr()
    assert "Audit on virtual:studio (6 queries): " in output.out
    assert "no surrogate" in output.out
    assert "auditing 6/6" in output.err
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_errors(target, audited, refused):
    assert "give --surrogate, too" in refused("audit", *target, "--surrogate-set", "size=64x32")
    assert "at least 1" in refused("audit", *target, "--queries", "0")
    assert "above 0" in refused("audit", *target, *QUICK, "--eps", "0")
    assert "holds a run with other settings" in refused("audit", *target, "--out", audited)
