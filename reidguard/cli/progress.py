"""Progress on standard error: bars on a terminal, a line every 10 seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich import progress as bars
from rich.console import Console

from reidguard.errors import printable
from reidguard.records import environment_number
from reidguard.training import Progress

__all__ = ["Display", "note"]

EVERY = 10.0  # seconds between two lines where standard error is no terminal


def note(text: str) -> None:
    """Print a remark on standard error; of several processes, only the first prints it."""
    if environment_number("RANK", 0) == 0:
        print("reidguard:", printable(text, keep="\n"), file=sys.stderr)


class Display:
    """A progress callback that shows one phase after the other; of several processes the first's.

    Args:
        stream: Standard error by default. A terminal gets bars, anything else lines.

    Attributes:
        title: Shown before each phase's name.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.title = ""
        self._bar: bars.Progress | None = None
        self._phase: str | None = None
        self._done = 0
        self._start = (0.0, 0)
        self._shown = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, progress: Progress) -> None:
        """Show the library's progress."""
        self._update(progress.phase, progress.done, progress.total, progress.metrics)

    def phase(self, name: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) for a phase of that name."""
        return lambda done, total: self._update(name, done, total, {})

    def close(self) -> None:
        """End the current phase, which an error may have left incomplete."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._phase = None, None

    def _update(self, phase: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if environment_number("RANK", 0) > 0:
            return
        now, phase = time.monotonic(), f"{self.title}{phase}"
        if phase != self._phase or done < self._done:
            self.close()
            self._phase, self._start, self._shown = phase, (now, done), now
            if self.stream.isatty():
                self._bar = _new_bar(self.stream, phase, total)
        self._done = done
        values = [f"{name} {value:.4g}" for name, value in metrics.items()]
        if self._bar is not None:
            self._bar.update(bars.TaskID(0), completed=done, metrics=", ".join(values))
        elif now - self._shown >= EVERY or done == total:
            self._shown = now
            self._print_line(f"{phase} {done}/{total}", done, total, values, now)
        if done == total:
            self.close()

    def _print_line(self, head: str, done: int, total: int, values: list[str], now: float) -> None:
        began, first = self._start
        seconds = now - began
        parts = [head, *values, f"{seconds:.0f} s"]
        if first < done < total:
            parts.append(f"about {seconds / (done - first) * (total - done):.0f} s left")
        print(", ".join(parts), file=self.stream, flush=True)


def _new_bar(stream: TextIO, phase: str, total: int) -> bars.Progress:
    bar = bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[metrics]}", markup=False),
        console=Console(file=stream),
    )
    bar.add_task(phase, total=total, metrics="")
    bar.start()
    return bar
