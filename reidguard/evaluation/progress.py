"""Progress of evaluations in several phases."""

from __future__ import annotations

from reidguard.data.dataset import CountCallback
from reidguard.types import Progress, ProgressCallback

__all__ = ["phase"]


def phase(progress: ProgressCallback | None, name: str) -> CountCallback:
    """Return a callback that reports counts as the progress of a phase.

    Example:
        >>> seen = []
        >>> phase(seen.append, "ranking")(1, 4)
        >>> seen[0].phase, seen[0].done, seen[0].total
        ('ranking', 1, 4)
    """

    def count(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(name, done, total))

    return count
