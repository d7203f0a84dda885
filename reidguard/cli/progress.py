"""How far a command is, on standard error: bars for people, now and then a line for logs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from reidguard.training import Progress

__all__ = ["Display", "note"]

EVERY = 10.0  # seconds between two lines where standard error is no terminal


def note(text: str) -> None:
    """Tell something that is no result; of several processes, the first tells it."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"reidguard: {text}", file=sys.stderr)


class Display:
    """Shows progress, one phase after the other.

    Args:
        stream: Standard error by default. On a terminal it gets bars, else lines.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self._bars = self.stream.isatty()
        self._bar: Any = None
        self._phase: str | None = None
        self._done = 0
        self._start = (0.0, 0)
        self._shown = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, told: Progress) -> None:
        """Show what the library tells."""
        self._update(told.phase, told.done, told.total, told.metrics)

    def phase(self, name: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) for a phase of that name."""
        return lambda done, total: self._update(name, done, total, {})

    def close(self) -> None:
        """End the phase that is shown, as when something went wrong."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._phase = None, None

    def _update(self, phase: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        if phase != self._phase or done < self._done:
            self.close()
            self._phase, self._start, self._shown = phase, (now, done), now
            if self._bars:
                self._bar = self._new_bar(phase, done, total)
        self._done = done
        if self._bar is not None:
            if metrics:
                self._bar.set_postfix({k: f"{v:.4g}" for k, v in metrics.items()}, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._shown >= EVERY or done == total:
            self._shown = now
            self._line(phase, done, total, metrics, now)
        if done == total:
            self.close()

    def _new_bar(self, phase: str, done: int, total: int) -> Any:
        try:
            known = os.get_terminal_size(self.stream.fileno()).columns > 0
        except (OSError, ValueError):
            known = False  # some terminals in containers have no width, and tqdm would be silent
        width: dict[str, Any] = {"dynamic_ncols": True} if known else {"ncols": 80}
        return tqdm(total=total, initial=done, desc=phase, file=self.stream, **width)

    def _line(
        self, phase: str, done: int, total: int, metrics: Mapping[str, float], now: float
    ) -> None:
        began, first = self._start
        parts = [f"{phase} {done}/{total}", *(f"{k} {v:.4g}" for k, v in metrics.items())]
        seconds = now - began
        parts.append(f"{seconds:.0f} s")
        if first < done < total:
            parts.append(f"about {seconds / (done - first) * (total - done):.0f} s left")
        print(", ".join(parts), file=self.stream, flush=True)
