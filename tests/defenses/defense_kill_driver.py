"""Kills `reidguard defend` with SIGKILL again and again; a program, run by test_defense_kill.py."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from reidguard import storage
from reidguard.cli import main as reidguard

write_whole_file = storage.safetensors.torch.save_file


def run(arguments, out, dying_write):
    """Defend; with ``dying_write`` die in the middle of that write."""
    torch.set_num_threads(1)
    writes = 0

    def write_half_and_die(tensors, path, metadata):
        nonlocal writes
        writes += 1
        write_whole_file(tensors, path, metadata=metadata)
        if writes == dying_write:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    storage.safetensors.torch.save_file = write_half_and_die
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (the process ends)
    return reidguard([*arguments, "--out", str(out)])


def child(*arguments):
    pid = os.fork()
    if pid == 0:
        try:
            code = run(*arguments)
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(code)
    return pid


def main():
    work, kills, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    draw = random.Random(1)
    began = time.monotonic()
    assert os.waitpid(child(arguments, work / "alone", None), 0)[1] == 0
    length = time.monotonic() - began
    done = in_write = 0
    while done < kills:
        dying_write = draw.randint(1, 2) if done % 2 else None
        pid = child(arguments, work / "killed", dying_write)
        if dying_write is None:
            time.sleep(draw.uniform(0, length / 3))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            done += 1
            in_write += dying_write is not None
        else:
            assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
            break  # it got to its end
    assert os.waitpid(child(arguments, work / "killed", None), 0)[1] == 0
    print(f"kills {done} in_write {in_write}")


if __name__ == "__main__":
    main()
