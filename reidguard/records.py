"""JSON records, paths and environment variables, checked where they enter the library.

A record is a frozen dataclass whose annotations declare the fields of a JSON object, or a TypedDict
where the object itself is passed on, as to a report. Reading one checks everything at once: UTF-8,
strict JSON (no NaN, no infinity, no name twice in an object, at most :data:`MAX_DEPTH` levels),
names, types and ranges. A whole number is a float; nothing else is converted. A field that the type
lacks is left out, so files of later versions can be read.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from reidguard.errors import CheckpointError, InputError, ReIDGuardError

__all__ = [
    "Count",
    "Fraction",
    "cache_folder",
    "convert",
    "environment_number",
    "find_record",
    "parse_json",
    "read_file",
    "read_record",
    "to_path",
]

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A field for a whole number that is not negative."""
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""A field for a number in [0, 1]."""

MAX_DEPTH = 32
MAX_BYTES = 2**26
CURE = "copy it again, or write it anew"


def read_record(
    path: Path | str,
    kind: type[T],
    *,
    cure: str = CURE,
    error: type[ReIDGuardError] = CheckpointError,
) -> T:
    """Read a JSON file as a record.

    Args:
        path: The file.
        kind: A dataclass, or another type that :func:`convert` takes.
        cure: What to do about a damaged file; the end of the message.
        error: Class of the exception.

    Raises:
        ReIDGuardError: Naming file, field and what was expected, if the file is missing, damaged
            or something else.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "steps.json"
        >>> _ = file.write_text('{"steps": [1, "two"]}')
        >>> read_record(file, dict[str, list[int]])
        Traceback (most recent call last):
        ...
        reidguard.errors.CheckpointError: ...steps.json is not valid (...expected int, got str)...
    """
    return parse_json(read_file(path, error=error), kind, path, cure=cure, error=error)


def find_record(path: Path, kind: type[T]) -> T | None:
    """Read a cached JSON file as a record; None if it is missing or damaged."""
    try:
        return read_record(path, kind)
    except CheckpointError:
        return None


def parse_json(
    data: bytes | str,
    kind: type[T],
    source: object,
    *,
    cure: str = CURE,
    error: type[ReIDGuardError] = CheckpointError,
) -> T:
    """Parse JSON text as a record; ``source`` names it in an error, as in :func:`read_record`."""
    try:
        value = msgspec.json.decode(data)
        json.loads(data, object_pairs_hook=_refuse_repetition)
        _check_depth(value)
    except (msgspec.MsgspecError, ValueError, RecursionError) as reason:
        raise error(f"{source} is damaged ({_in_words(reason)}); {cure}") from reason
    return convert(value, kind, source, cure=cure, error=error)


def convert(
    value: object,
    kind: type[T],
    source: object,
    *,
    cure: str = CURE,
    error: type[ReIDGuardError] = CheckpointError,
) -> T:
    """Return plain values (dicts, lists, strings, numbers) as a record.

    Args:
        value: What a parser of JSON, TOML or YAML returned.
        kind: A dataclass, or any other type of msgspec's, such as ``dict[str, int]``. A ValueError
            of a dataclass's ``__post_init__`` is an error of that field.
        source: Where the value is from, for the message.
        cure: What to do about a wrong value; the end of the message.
        error: Class of the exception.

    Raises:
        ReIDGuardError: Naming source, field and what was expected.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as reason:
        raise error(f"{source} is not valid ({_in_words(reason)}); {cure}") from reason


def read_file(
    path: Path | str, *, error: type[ReIDGuardError] = CheckpointError, limit: int = MAX_BYTES
) -> bytes:
    """Read a regular file of at most ``limit`` bytes; ~ is expanded in text.

    Raises:
        ReIDGuardError: If it is missing, unreadable, larger, or a folder, pipe or device.
    """
    path = path if isinstance(path, Path) else to_path(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a folder; give the file itself")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is a pipe or a device; give a regular file")
        if status.st_size > limit:
            raise error(
                f"{path} has {status.st_size:,} bytes, and at most {limit:,} are read; it is "
                "damaged or something else"
            )
        with open(path, "rb") as stream:  # Path.open takes twice as long
            return stream.read()
    except FileNotFoundError:
        raise error(f"there is no file {path}") from None
    except (OSError, ValueError) as reason:  # ValueError: a null character
        raise error(f"cannot read {path}: {getattr(reason, 'strerror', reason)}") from reason


def to_path(value: object) -> Path:
    """Return a path with ~ expanded; the file or folder need not exist.

    Raises:
        InputError: If it is neither text nor a path, is empty, contains a null character, is too
            long for the system, or names an unknown user's home folder.

    Example:
        >>> to_path("runs/delta").name
        'delta'
        >>> to_path(None)
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: not a path: None; give the path of a file or folder as text
    """
    try:
        if value == "":
            raise ValueError("it is empty")
        path = Path(value).expanduser()  # type: ignore[arg-type]
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return path
    except (TypeError, ValueError, RuntimeError, OSError) as reason:
        shown = repr(str(value) if isinstance(value, Path) else value)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        why = "" if isinstance(reason, TypeError) else f" ({getattr(reason, 'strerror', reason)})"
        raise InputError(
            f"not a path: {shown}{why}; give the path of a file or folder as text"
        ) from reason
    return path


def cache_folder() -> Path:
    """Return the library's folder in the user's cache: below $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: If neither is known.
    """
    return to_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "reidguard"


def environment_number(name: str, default: int) -> int:
    """Return an environment variable that holds a whole number from 0 up.

    Raises:
        InputError: If it holds anything else.

    Example:
        >>> environment_number("NO_SUCH_VARIABLE", 1)
        1
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(
            f"the environment variable {name} must be a whole number, not {text[:80]!r}; set it "
            f"as torchrun does, or unset it"
        )
    return int(text)


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{max(names, key=names.count)!r} is there twice")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        dicts = [list(v.values()) for v in level if isinstance(v, dict)]
        lists = dicts + [v for v in level if isinstance(v, list)]
        if not lists:
            return
        level = [item for items in lists for item in items]
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _in_words(error: Exception) -> str:
    """Return a parser's message with the field first, as in "steps[1]: expected int, got str"."""
    if isinstance(error, RecursionError):
        return f"it is nested more than {MAX_DEPTH} levels deep"
    message, _, place = str(error).replace("`", "").partition(" - at ")
    if message[1:2].islower():  # "JSON" stays
        message = message[0].lower() + message[1:]
    message = message.replace("invalid enum value", "unknown value")
    field = place.removeprefix("$").removeprefix(".").replace("in $.", "of ").replace(" in $", "")
    return f"{field}: {message}" if field else message
