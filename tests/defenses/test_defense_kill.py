"""kill -9 at any instant must not change the weights that `reidguard defend` ends with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reidguard.storage import load_tensors

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
]


def test_killed_runs_end_with_the_same_bits(normal, delta, studio_root, tmp_path):
    """With an attack that is relearnt on the way, which is part of the state."""
    normal.save(tmp_path / "normal.safetensors")
    delta.save(tmp_path / "delta.safetensors")
    call = [
        *("defend", "--data", f"virtual:{studio_root}", "--image-size", "64x32"),
        *("--model", str(tmp_path / "normal.safetensors")),
        *("--attack", str(tmp_path / "delta.safetensors")),
        *("--defense", "adversarial", "--set", "refresh_every=1", "--set", "refresh_steps=2"),
        *("--identities", "8", "--images-per-identity", "4", "--steps", "14"),
        *("--checkpoint-every", "1", "--cache", str(tmp_path / "cache"), "--threads", "1"),
    ]
    driver = Path(__file__).with_name("defense_kill_driver.py")
    done = subprocess.run(
        [sys.executable, str(driver), str(tmp_path), "10", *call],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[1]) >= 6, done.stdout
    assert int(words[3]) >= 3, done.stdout
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert (alone / name).read_bytes() == (killed / name).read_bytes()
    attack, _ = load_tensors(killed / "checkpoint.safetensors")
    assert (attack["module.attack.delta"] - delta.delta.detach()).abs().max() > 1 / 255
    assert sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in alone.iterdir())
