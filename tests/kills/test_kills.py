"""Commands that write, ended by SIGKILL and Ctrl-C: the same command ends with the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kills.scenarios import SCENARIOS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

SLOWEST = "data export by processes"  # each run starts two interpreters


def assert_resumable(work: Path, ending: str, count: int, *names: str) -> None:
    driver = Path(__file__).with_name("driver.py")
    call = [sys.executable, str(driver), str(work), ending, str(count), "seed 1", *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    print(done.stdout)
    assert [trial["scenario"] for trial in trials] == list(names)
    for trial in trials:
        assert trial["faults"] == []
        assert trial["instants"] == count
        assert trial["same"] == trial["resumed"]


def test_some_instants(tmp_path):
    assert_resumable(tmp_path, "SIGKILL", 3, "attack", "share")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("ending", "count"), [("SIGKILL", 100), ("SIGINT", 20)])
def test_many_instants(tmp_path, name, ending, count):
    count = 8 if name == SLOWEST else count
    assert_resumable(tmp_path, ending, count, name)
