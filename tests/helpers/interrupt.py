"""Interruptions of training, and what killed processes leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from reidguard.files import temporary_folder
from reidguard.training import Progress


class Killed(BaseException):
    """An interruption; like KeyboardInterrupt it is no Exception."""


def kill_at(step: int) -> Callable[[Progress], None]:
    """Return a progress callback that raises :class:`Killed` after a training step."""

    def callback(progress: Progress) -> None:
        if progress.done == step and progress.metrics:
            raise Killed

    return callback


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
