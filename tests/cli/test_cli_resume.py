"""Interrupted and killed runs: the same command resumes them and ends with the same files."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers import leave_temporary
from reidguard.attacks import ColorAttack, DeltaAttack
from reidguard.cli import main
from reidguard.training import MISGD
from reidguard.types import Budget

STEPS = 16


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_same_run(run: Path, expected: Path) -> None:
    for name in ("attack.safetensors", "checkpoint.safetensors"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, expected)]
    for result in results:
        del result["seconds_per_step"], result["evaluation"]["seconds"]
    assert results[0] == results[1]
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, expected)
    ]
    assert losses[0] == losses[1]


@pytest.fixture(scope="session")
def call(target, tmp_path_factory) -> list[str]:
    steps = ["--steps", str(STEPS), "--checkpoint-every", "3", "--query-every", "8"]
    cache = ["--cache", str(tmp_path_factory.mktemp("cache"))]
    return ["attack", *target, *steps, *cache, "--threads", "1"]


@pytest.fixture(scope="session")
def uninterrupted(call, tmp_path_factory) -> Path:
    """The run folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*call, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("step", [2, 5])
def test_an_interrupted_run_is_resumed(call, uninterrupted, tmp_path, monkeypatch, capsys, step):
    """Before the first checkpoint, and between two."""
    out = tmp_path / "run"
    taken = []
    original = MISGD.step

    def interrupted(self, closure=None):
        if len(taken) == step:
            raise KeyboardInterrupt
        taken.append(original(self, closure))

    with monkeypatch.context() as patch:
        patch.setattr(MISGD, "step", interrupted)
        assert main([*call, "--out", str(out)]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("reidguard: interrupted; ")
    assert last.endswith(f"to resume: reidguard {' '.join(call)} --out {out}")
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["finished"]) == ("interrupted", None)

    assert main([*call, "--out", str(out)]) == 0
    assert f"resuming {out}" in capsys.readouterr().err
    assert steps_of(out) == list(range(1, STEPS + 1))
    assert_same_run(out, uninterrupted)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert len(manifest["resumed"]) == 1


@pytest.mark.parametrize("missing", ["result.json", "attack.safetensors", "result.md"])
def test_a_missing_file_of_a_finished_run_is_written_again(call, uninterrupted, tmp_path, missing):
    out = tmp_path / "run"
    out.mkdir()
    for path in uninterrupted.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    (out / missing).unlink()
    leave_temporary(out)
    assert main([*call, "--out", str(out)]) == 0
    assert_same_run(out, uninterrupted)
    assert sorted(os.listdir(out)) == sorted(os.listdir(uninterrupted))


def test_what_the_last_write_of_a_finished_run_left_is_removed(call, uninterrupted, tmp_path):
    """A kill may come after the manifest says that the run is finished."""
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    leave_temporary(out)
    assert main([*call, "--out", str(out)]) == 0
    assert sorted(os.listdir(out)) == sorted(os.listdir(uninterrupted))


def test_an_incomplete_line_is_written_again(call, uninterrupted, tmp_path):
    """A kill may cut the last line short; a later one may be of a step that is repeated."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("manifest.json", "metrics.jsonl"):
        (out / name).write_bytes((uninterrupted / name).read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    with (out / "metrics.jsonl").open("r+") as stream:
        stream.truncate(len(stream.read()) - 9)
    assert main([*call, "--out", str(out)]) == 0
    assert steps_of(out) == list(range(1, STEPS + 1))
    assert_same_run(out, uninterrupted)


def test_a_damaged_manifest_is_an_error(call, uninterrupted, tmp_path, refused):
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in refused(*call, "--out", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no flock")
def test_two_processes_in_one_folder(call, uninterrupted, refused):
    import fcntl

    with (uninterrupted / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "another process is working" in refused(*call, "--out", uninterrupted)


@pytest.mark.parametrize("finished", [False, True])
def test_another_file_in_place_of_the_learnt_one_is_refused(
    call, uninterrupted, tmp_path, capsys, finished
):
    """Of another budget, of another class, or the same tensors under another card."""
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    manifest = json.loads((out / "manifest.json").read_text())
    if not finished:
        (out / "result.json").unlink()
    own = (out / "attack.safetensors").read_bytes()
    for attack in (DeltaAttack(Budget(16 / 255), size=(64, 32)), ColorAttack(resolution=3)):
        attack.save(out / "attack.safetensors")
        capsys.readouterr()
        assert main([*call, "--out", str(out)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"{out / 'attack.safetensors'} is not the file that this run has learnt" in line
        assert "put that back, or delete this one" in line
    (out / "attack.safetensors").write_bytes(own)
    assert main([*call, "--out", str(out)]) == 0
    (out / "attack.safetensors").unlink()
    assert main([*call, "--out", str(out)]) == 0
    assert (out / "attack.safetensors").read_bytes() == own
    assert json.loads((out / "manifest.json").read_text())["files"] == manifest["files"]
