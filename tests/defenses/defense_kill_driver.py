"""Kills `reidguard defend` with SIGKILL repeatedly; a program, run by test_defense_kill.py."""

import os
import random
import sys
import time
from pathlib import Path

import torch

from reidguard.cli import main as reidguard

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.interrupt import fork, kill_in_write, kill_repeatedly, status


def run(arguments, out, write):
    """Defend; die in the middle of a write if its number is given."""
    torch.set_num_threads(1)
    kill_in_write(write)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the process ends)
    return reidguard([*arguments, "--out", str(out)])


def main():
    work, kills, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    began = time.monotonic()
    assert status(fork(run, arguments, work / "alone", None)) == 0
    length = time.monotonic() - began
    done, in_write = kill_repeatedly(
        lambda write: fork(run, arguments, work / "killed", write),
        kills,
        draw=random.Random(1),
        writes=2,
        longest=length / 3,
        finished=lambda: True,
    )
    assert status(fork(run, arguments, work / "killed", None)) == 0
    print(f"kills {done} in_write {in_write}")


if __name__ == "__main__":
    main()
