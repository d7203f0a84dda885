"""Progress callbacks that log the metrics of each step to JSONL and TensorBoard."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from reidguard.errors import CheckpointError, InputError
from reidguard.files import atomic_write
from reidguard.records import Count, parse_json, read_file, to_path
from reidguard.types import Progress, ProgressCallback

__all__ = ["MetricsFile", "TensorBoard"]

MAX_LOG = 2**31  # bytes
LEARNING = "learning"  # the phase whose steps are logged


@dataclass(frozen=True)
class Step:
    """What is read again of a line of metrics.jsonl."""

    step: Count
    loss: float | None = None
    test_loss: float | None = None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl as far as it is complete; nothing if it is missing.

    Raises:
        CheckpointError: If a line is damaged that is not the last one, which a killed run cuts.
    """
    if not path.exists():
        return []
    lines = read_file(path, limit=MAX_LOG).splitlines()
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            step = parse_json(line, Step, f"line {number} of {path}", cure="repeat the run")
        except CheckpointError:
            if number < len(lines):
                raise
        else:
            steps.append({k: v for k, v in vars(step).items() if v is not None})
    return steps


class StepLog:
    """A progress callback that logs steps to an output, which it opens at the first one.

    Args:
        then: Called with every progress afterwards.
    """

    def __init__(self, then: ProgressCallback | None) -> None:
        self.then = then
        self._output: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._output is not None:
            self._close(failed=exception[0] is not None)
            self._output = None

    def __call__(self, progress: Progress) -> None:
        """Log a step.

        Raises:
            CheckpointError: If it cannot be written.
        """
        if progress.phase == LEARNING:
            if self._output is None:
                # A resumed run repeats the steps after this one.
                last = progress.done - 1 if progress.metrics else progress.done
                self._output = self._open(last)
            if progress.metrics:
                self._log(progress)
        if self.then is not None:
            self.then(progress)

    def _open(self, last: int) -> Any:
        """Return the output, without what it has of steps after ``last``."""
        raise NotImplementedError

    def _log(self, progress: Progress) -> None:
        """Write the metrics of a step."""
        raise NotImplementedError

    def _close(self, failed: bool) -> None:
        """Close the output."""
        self._output.close()


class MetricsFile(StepLog):
    """A progress callback that writes a line of JSON for each step, each step once, in order.

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
        super().__init__(then)
        self.path = to_path(path)
        self.seconds_per_step: float | None = None
        self._began = (0.0, 0)

    def _open(self, last: int) -> Any:
        lines = []
        with suppress(CheckpointError):  # no file, or a line cut short
            for line in read_file(self.path, limit=MAX_LOG).splitlines():
                if parse_json(line, Step, self.path).step > last:
                    break
                lines.append(line)
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        self._began = (time.perf_counter(), last)
        return self.path.open("a", encoding="utf-8")

    def _log(self, progress: Progress) -> None:
        record = {"step": progress.done, **progress.metrics, "time": round(time.time(), 3)}
        try:
            print(json.dumps(record), file=self._output, flush=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror or os.strerror(error.errno or 0)}; "
                "free some space and repeat the command"
            ) from error
        began, first = self._began
        self.seconds_per_step = (time.perf_counter() - began) / (progress.done - first)


class TensorBoard(StepLog):
    """A progress callback that writes the metrics of each step for TensorBoard.

    Needs ``pip install "reidguard[tensorboard]"``. A resumed run repeats the steps since its last
    checkpoint; TensorBoard drops the old ones. Use it in a ``with`` statement, which closes the
    file.

    Args:
        folder: Folder of event files; ``tensorboard --logdir FOLDER`` shows them.
        then: Called with every progress afterwards.

    Raises:
        InputError: If TensorBoard is not installed.

    Example:
        >>> from reidguard import DeltaAttack
        >>> attack = DeltaAttack()
        >>> _ = attack.fit(model, data, progress=TensorBoard("runs/delta"))  # doctest: +SKIP
    """

    def __init__(self, folder: Path | str, then: ProgressCallback | None = None) -> None:
        super().__init__(then)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                'TensorBoard is not installed: pip install "reidguard[tensorboard]"'
            ) from error
        self.folder = to_path(folder)
        self._make: Any = SummaryWriter

    def _open(self, last: int) -> Any:
        return self._make(str(self.folder), purge_step=last + 1)

    def _log(self, progress: Progress) -> None:
        for name, value in progress.metrics.items():
            self._output.add_scalar(name, value, progress.done)
