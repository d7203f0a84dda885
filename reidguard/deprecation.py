"""How a public name or argument goes: it works for one more minor release, and says so.

>>> @deprecated(since="0.2", removal="0.3", instead="evaluate")
... def measure(x):
...     return x
>>> import warnings
>>> with warnings.catch_warnings(record=True) as told:
...     warnings.simplefilter("always")
...     _ = measure(1)
>>> print(told[0].message)
measure is deprecated since reidguard 0.2 and goes in 0.3: use evaluate instead
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from typing_extensions import deprecated as _marked

from reidguard.errors import InputError

__all__ = ["DEPRECATIONS", "Deprecation", "deprecated", "renamed_arguments"]

T = TypeVar("T", bound=Callable[..., Any])


class Deprecation(NamedTuple):
    """What goes, and when."""

    what: str
    since: str
    removal: str
    instead: str

    def __str__(self) -> str:
        return (
            f"{self.what} is deprecated since reidguard {self.since} and goes in {self.removal}: "
            f"use {self.instead} instead"
        )


DEPRECATIONS: list[Deprecation] = []
"""Everything that is deprecated now. A test fails once a version ought to have removed one."""


def deprecated(*, since: str, removal: str, instead: str) -> Callable[[T], T]:
    """Mark a function, a method or a class that goes: each call is a DeprecationWarning.

    Type checkers and editors are told as well (PEP 702, ``__deprecated__``).

    Args:
        since: The version that deprecates it.
        removal: The version that removes it, at least one minor release later.
        instead: What to use, for the message.
    """

    def mark(thing: T) -> T:
        told = _filed(thing.__qualname__, since, removal, instead)
        return _marked(str(told), category=DeprecationWarning)(thing)

    return mark


def renamed_arguments(*, since: str, removal: str, **names: str) -> Callable[[T], T]:
    """Let a function take keyword arguments under their old names, too, with a DeprecationWarning.

    Args:
        since: The version that renames them.
        removal: The version that removes the old names.
        **names: ``old="new"``, for each argument.

    Raises:
        InputError: In a call, if an argument is given under both names.

    Example:
        >>> @renamed_arguments(since="0.2", removal="0.3", epsilon="eps")
        ... def radius(eps):
        ...     return eps
        >>> radius(eps=8)
        8
    """

    def mark(function: T) -> T:
        told = {
            old: _filed(f"{function.__qualname__}({old}=)", since, removal, f"{new}=")
            for old, new in names.items()
        }

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for old, new in names.items():
                if old in kwargs:
                    if new in kwargs:
                        raise InputError(f"{old}= is the old name of {new}=: give {new}= alone")
                    warnings.warn(str(told[old]), DeprecationWarning, stacklevel=2)
                    kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        known = inspect.signature(function).parameters
        unknown = [new for new in names.values() if new not in known]
        if unknown:
            raise InputError(f"{function.__qualname__} has no argument {', '.join(unknown)}")
        return call  # type: ignore[return-value]

    return mark


def _filed(what: str, since: str, removal: str, instead: str) -> Deprecation:
    if _minor(removal) <= _minor(since):
        raise InputError(
            f"{what} must stay for one minor release: deprecated in {since}, it cannot go in "
            f"{removal}"
        )
    deprecation = Deprecation(what, since, removal, instead)
    DEPRECATIONS.append(deprecation)
    return deprecation


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)
