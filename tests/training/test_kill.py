"""kill -9 at any instant, in mid-write too, must not change what a run ends with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@pytest.mark.parametrize("kills", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_fits_end_with_the_same_bits(kills, studio_root, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("kill_driver.py")),
            str(studio_root),
            str(tmp_path),
            str(kills),
            "seed 1",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[1]) == kills
    assert int(words[3]) >= kills // 2 - 1  # kills in mid-write
    assert "same True" in done.stdout
    # no half-written file is left behind
    assert "files ['attack.safetensors', 'checkpoint']" in done.stdout
