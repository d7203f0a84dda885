"""Exceptions of this library. Each message says what to do.

The classes also derive from the built-in exception of their kind, so ``except ValueError`` catches
them, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "InputError",
    "ReIDGuardError",
    "RegistryError",
    "TrainingError",
    "ZeroGradientWarning",
]

# Control characters, line separators, marks that reorder text, and the halves of surrogate pairs
# that stand for bytes of file names that are no UTF-8.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """Return text from a file or a file's name as it can be printed, written and shown anywhere.

    Control characters (such as a terminal's escape sequences) and bytes that are no UTF-8 become
    escapes.

    Args:
        text: Any text.
        keep: Characters that stay.

    Example:
        >>> print(printable("a\\x1b[31m.png"))
        a\\x1b[31m.png
    """

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        return character if character in keep else ascii(character)[1:-1]

    return UNPRINTABLE.sub(escape, text)


class ReIDGuardError(Exception):
    """Base class of the exceptions of this library.

    A message may hold file names and text from files; what could not be printed is escaped.

    Attributes:
        reported: Whether another process, which raises it too, tells the user.

    Example:
        >>> issubclass(InputError, (ReIDGuardError, ValueError))
        True
    """

    reported = False

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n\t")


class InputError(ReIDGuardError, ValueError):
    """An argument has the wrong shape, type, range or value.

    Example:
        >>> import reidguard
        >>> reidguard.Budget(2.0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: ...
    """


class RegistryError(ReIDGuardError, LookupError):
    """A name is unknown to a registry, or already registered.

    Example:
        >>> import reidguard
        >>> reidguard.create_attack("detla")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.RegistryError: unknown attack 'detla': did you mean ...
    """


class DataError(ReIDGuardError, ValueError):
    """A dataset is missing, incomplete, damaged, or does not fit the protocol.

    Example:
        >>> import reidguard
        >>> reidguard.load_dataset("market1501:/nowhere")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.DataError: ...
    """


class CheckpointError(ReIDGuardError, ValueError):
    """A file of weights or a run cannot be read or written, is unsafe, or does not match.

    Example:
        >>> import reidguard
        >>> reidguard.load_model("nothing.safetensors")
        Traceback (most recent call last):
        ...
        reidguard.errors.CheckpointError: there is no file nothing.safetensors
    """


class TrainingError(ReIDGuardError, RuntimeError):
    """Training failed, for instance because the loss is not finite.

    Example:
        >>> issubclass(TrainingError, ReIDGuardError)
        True
    """


class ZeroGradientWarning(UserWarning):
    """Gradients of the attacked model are zero or not finite, which only looks like robustness.

    Example:
        >>> import warnings
        >>> warnings.simplefilter("error", ZeroGradientWarning)  # doctest: +SKIP
    """


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1) -> str:
    """Return "did you mean 'x'? " with the nearest known names; nothing if none is near.

    Names that begin with the given one are nearer than any other.
    """
    listed = list(known)
    near = [other for other in listed if name and other.startswith(name)][:most]
    near = near or difflib.get_close_matches(name, listed, n=most)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def a_few(names: Iterable[str], shown: int = 5) -> str:
    """Join the first few names for an error message."""
    listed = list(names)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more
