"""Every mistake a user can make ends in one of these, and each message names the cure.

The classes also derive from the built-in exception that a Python programmer would expect, so
``except ValueError`` keeps working around code that calls this library.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "InputError",
    "ReIDGuardError",
    "RegistryError",
    "TrainingError",
    "did_you_mean",
]


class ReIDGuardError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(ReIDGuardError, ValueError):
    """An argument has the wrong shape, type, range or value."""


class RegistryError(ReIDGuardError, LookupError):
    """A name is unknown to a registry, or is already taken."""


class DataError(ReIDGuardError, ValueError):
    """A dataset is missing, incomplete, damaged, or does not fit the protocol."""


class CheckpointError(ReIDGuardError, ValueError):
    """A file of weights or a run cannot be read, written, trusted or matched."""


class TrainingError(ReIDGuardError, RuntimeError):
    """Learning cannot go on, for instance because the loss is not finite."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "did you mean 'x'? ", or nothing if no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
