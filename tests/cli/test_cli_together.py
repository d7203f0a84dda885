"""Commands that several processes share, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from reidguard.attacks import load_attack
from reidguard.cli import main

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def together(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TORCHRUN, "-m", "reidguard", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def test_an_attack(target, data, tmp_path):
    """Two processes learn the same as one; the first writes, evaluates and prints."""
    call = ["attack", *target, "--images-per-identity", "4", "--steps", "3", "--query-every", "4"]
    call += ["--meta-data", data[1], "--learner", "first_order", "--checkpoint-every", "2"]
    call += ["--cache", str(tmp_path / "cache")]
    ended = together(*call, "--out", str(tmp_path / "two"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("attack:") == 1
    assert main([*call, "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    single, joint = (load_attack(tmp_path / n / "attack.safetensors") for n in ("one", "two"))
    # A step is the gradient's sign, which rounding turns where the gradient is nearly 0.
    same = torch.isclose(single.delta, joint.delta, atol=1e-6)
    assert same.float().mean() > 0.99
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text("utf-8"))
    assert manifest["status"] == "finished"


def test_commands_for_one_process_are_refused(refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "data works in one process: call it without torchrun" in refused("data", "virtual")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "defend"])
def test_a_model(command, train_call, target, trained, tmp_path):
    call = [*train_call[: train_call.index("--steps")], "--lr", "1e-4"]
    if command == "defend":
        call = ["defend", *target, "--defense", "adversarial", "--attack", "sma"]
        call += ["--attack-set", "steps=2", "--lr", "1e-4"]
    call += ["--steps", "3", "--images-per-identity", "4", "--cache", str(tmp_path / "cache")]
    ended = together(*call, "--out", str(tmp_path / "two"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("model:") == 1
    assert main([*call, "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-2)
    again = together(*call, "--out", str(tmp_path / "two"))
    assert again.returncode == 0
    assert again.stderr.count("is already finished") == 1
