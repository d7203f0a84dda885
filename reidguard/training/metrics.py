"""What becomes of the figures of each step: a line in a file, a point in TensorBoard."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from reidguard.errors import CheckpointError, InputError
from reidguard.storage import atomic_write
from reidguard.types import Progress, ProgressCallback

__all__ = ["MetricsFile", "TensorBoard"]

LEARNING = "learning"  # the phase whose steps are written down


class MetricsFile:
    """A line of JSON for each step, each step once, in order. A progress callback.

    A resumed run repeats the steps since its last checkpoint; their old lines are dropped. Use it
    in a ``with`` statement, which closes the file.

    Args:
        path: The file, such as metrics.jsonl.
        then: Called with every progress afterwards.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsFile(Path(folder) / "metrics.jsonl") as metrics:
        ...         metrics(Progress("learning", 0, 2))
        ...         metrics(Progress("learning", 1, 2, {"loss": 0.5}))
        ...     line = json.loads(metrics.path.read_text("utf-8"))
        >>> line["step"], line["loss"]
        (1, 0.5)
    """

    def __init__(self, path: Path | str, then: ProgressCallback | None = None) -> None:
        self.path = Path(path)
        self.then = then
        self.seconds_per_step: float | None = None
        self._stream: TextIO | None = None
        self._began = (0.0, 0)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __call__(self, told: Progress) -> None:
        """Take note of a step.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if told.phase == LEARNING:
            if self._stream is None:
                self._stream = self._open(_kept(told))
                self._began = (time.perf_counter(), _kept(told))
            if told.metrics:
                self._write(self._stream, told)
        if self.then is not None:
            self.then(told)

    def _open(self, step: int) -> TextIO:
        kept = []
        with suppress(OSError, ValueError, KeyError, TypeError):  # no file, or a line cut short
            for line in self.path.read_text("utf-8").splitlines():
                if json.loads(line)["step"] > step:
                    break
                kept.append(line)
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        return self.path.open("a", encoding="utf-8")

    def _write(self, stream: TextIO, told: Progress) -> None:
        record = {"step": told.done, **told.metrics, "time": round(time.time(), 3)}
        try:
            print(json.dumps(record), file=stream, flush=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror or os.strerror(error.errno or 0)}; "
                "free some space and repeat the command"
            ) from error
        began, first = self._began
        self.seconds_per_step = (time.perf_counter() - began) / (told.done - first)


class TensorBoard:
    """Writes the figures of each step for TensorBoard. A progress callback.

    Needs ``pip install "reidguard[tensorboard]"``. A resumed run repeats the steps since its last
    checkpoint; it tells TensorBoard to forget the old ones. Use it in a ``with`` statement, which
    closes the file.

    Args:
        folder: Where event files go; ``tensorboard --logdir FOLDER`` shows them.
        then: Called with every progress afterwards.

    Raises:
        InputError: If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str, then: ProgressCallback | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                'TensorBoard is not installed: pip install "reidguard[tensorboard]"'
            ) from error
        self.folder = Path(folder)
        self.then = then
        self._make: Any = SummaryWriter
        self._writer: Any = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __call__(self, told: Progress) -> None:
        """Take note of a step."""
        if told.phase == LEARNING:
            if self._writer is None:
                self._writer = self._make(str(self.folder), purge_step=_kept(told) + 1)
            for name, value in told.metrics.items():
                self._writer.add_scalar(name, value, told.done)
        if self.then is not None:
            self.then(told)


def _kept(told: Progress) -> int:
    """The last step that a run which begins with this does not repeat."""
    return told.done - 1 if told.metrics else told.done
