"""Interruptions of training: by an exception, and by SIGKILL in a child process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reidguard import storage
from reidguard.files import temporary_folder
from reidguard.training import Progress

_save_file = storage.safetensors.torch.save_file


class Killed(BaseException):
    """An interruption; like KeyboardInterrupt it is no Exception."""


def kill_at(step: int) -> Callable[[Progress], None]:
    """Return a progress callback that raises :class:`Killed` after a training step."""

    def callback(progress: Progress) -> None:
        if progress.done == step and progress.metrics:
            raise Killed

    return callback


def kill_in_write(number: int | None) -> None:
    """Let this process die by SIGKILL in the middle of its n-th write of a safetensors file."""
    writes = 0

    def save_file(tensors: Any, path: Any, metadata: Any) -> None:
        nonlocal writes
        writes += 1
        _save_file(tensors, path, metadata=metadata)
        if writes == number:
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    storage.safetensors.torch.save_file = save_file


def leave_temporary(folder: Path) -> Path:
    """Make a temporary folder as a killed writer in ``folder`` leaves it, with half a file."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with temporary_folder(folder) as own:
        name = own.name.replace(f"-{os.getpid()}-", f"-{process.pid}-")
    (folder / name).mkdir()
    (folder / name / "half").write_bytes(b"{")
    return folder / name


def fork(function: Callable[..., int | None], *args: Any) -> int:
    """Call a function in a forked process, whose exit status is the result; return its id."""
    pid = os.fork()
    if pid == 0:
        try:
            code = function(*args) or 0
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(code)
    return pid


def status(pid: int) -> int:
    """Wait for a process and return its status."""
    return os.waitpid(pid, 0)[1]


def kill_repeatedly(
    start: Callable[[int | None], int],
    kills: int,
    *,
    draw: random.Random,
    writes: int,
    longest: float,
    finished: Callable[[], bool],
) -> tuple[int, int]:
    """Start a resumable program and kill it, again and again.

    Every second time it dies in the middle of a write, the other times at any moment.

    Args:
        start: Starts the program in a child process, which dies in the n-th write if n is given;
            returns its id.
        kills: How often it is killed.
        draw: Draws the moments.
        writes: The last write in which it may die.
        longest: Seconds after which it is killed at the latest.
        finished: Called when it ended before it was killed; returns whether to stop.

    Returns:
        The number of kills, and how many of them were in a write.
    """
    done = in_write = 0
    while done < kills:
        write = draw.randint(1, writes) if done % 2 else None
        pid = start(write)
        if write is None:
            time.sleep(draw.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
        ended = status(pid)
        if os.WIFSIGNALED(ended):
            done += 1
            in_write += write is not None
        else:
            assert os.WEXITSTATUS(ended) == 0, "a resumed run failed"
            if finished():
                break
    return done, in_write
