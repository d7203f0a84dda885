"""Damaged files of every kind: read, or refused by one ReIDGuardError, in time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PEAK_MIB = 1536


@pytest.mark.parametrize("total", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(total, tmp_path):
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "fuzz.worker", str(tmp_path), str(total), "0"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=tests,
        capture_output=True,
        text=True,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for r in results:
        print(
            f"{r['parser']:20} {r['inputs']:5} inputs {r['read']:5} read {r['refused']:5} refused "
            f"{len(r['failures']):3} failures {r['seconds']:6} s {r['peak_mib']:5} MiB"
        )
    assert done.returncode == 0, done.stderr[-3000:]  # its last line names what was being read
    assert {r["parser"]: r["failures"] for r in results if r["failures"]} == {}
    assert sum(r["inputs"] for r in results) >= total
    assert max(r["peak_mib"] for r in results) <= PEAK_MIB
    assert all(r["refused"] + r["read"] == r["inputs"] for r in results)
