"""Content of the files in a run folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Manifest"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of manifest.json: the command, its settings, and how far it is."""

    command: list[str]
    status: Literal["new", "running", "interrupted", "failed", "finished"]
    started: str | None = None
    resumed: list[str] = field(default_factory=list)
    finished: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any]
    options: dict[str, Any]
