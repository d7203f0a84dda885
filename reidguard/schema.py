"""Option schemas: groups of options from which signatures, checks, docs and settings come.

A group of options is a :class:`~typing.TypedDict` whose keys are annotated with an
:class:`Option`. Functions take a group, such as
:class:`~reidguard.options.FitOptions`, as ``**options: Unpack[FitOptions]`` and pass it to
:func:`resolve`, which checks every value and fills in the defaults. Signatures, documentation
(:func:`documented`), the command line and what a run records (:func:`settings`) come from the
same group. The module imports neither torch nor anything else that is slow to import.
"""

import inspect
import math
import operator
import os
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ForwardRef, Literal, TypeVar, Union, cast, get_args, get_origin

from reidguard.errors import InputError, did_you_mean

__all__ = [
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STEPS",
    "Option",
    "as_number",
    "as_whole_number",
    "check_instance",
    "checked",
    "documented",
    "options_of",
    "resolve",
    "select",
    "settings",
]

Function = TypeVar("Function", bound=Callable[..., Any])
T = TypeVar("T")

MAX_SEED = 2**63 - 1  # of torch's generators
MAX_SIDE = 4096  # pixels along a side of an image
MAX_STEPS = 10**6  # of an attack, which draws the random numbers of all steps at once

WORDS: dict[Any, str] = {
    bool: "True or False",
    str: "a string",
    int: "a whole number",
    float: "a finite number",
    tuple[int, int]: "two whole numbers (height, width)",
    tuple[int, ...]: "a sequence of whole numbers",
    tuple[float, ...]: "a sequence of finite numbers",
    os.PathLike[str]: "a path",
}


@dataclass(frozen=True)
class Option:
    """The meaning and the valid values of one key of a group.

    Args:
        help: One sentence, without a full stop.
        default: The value of an option that is left out. With None the default depends on the
            attack, recipe or defense; otherwise None, if the type allows it, is a value of its own.
        low: Least value, inclusive. Ranges hold for every number of a tuple.
        high: Greatest value, inclusive.
        above: Lower bound, exclusive.
        excludes: Another option of the group that excludes this one.
        recorded: Whether the result depends on the option, so that :func:`settings` has it.
        aliases: Names that other libraries have for it; an error for these suggests the option.
        type: Its type, which :func:`options_of` reads from the annotation.

    Example:
        >>> Option("steps in all", low=1, high=100, type=int).check("steps", 5)
        5
    """

    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    excludes: str | None = None
    recorded: bool = True
    aliases: tuple[str, ...] = ()
    type: Any = None

    @property
    def types(self) -> tuple[Any, ...]:
        """The members of the type if it is a union, or the type alone."""
        return get_args(self.type) if get_origin(self.type) in (Union, UnionType) else (self.type,)

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that the option takes; empty if it takes other values."""
        return tuple(n for t in self.types if get_origin(t) is Literal for n in get_args(t))

    @property
    def values(self) -> str:
        """The values in words, such as "a whole number, at least 1"."""
        if isinstance(self.type, ForwardRef):
            return self.type.__forward_arg__.replace(" | ", " or ")
        words = [WORDS[t] for t in self.types if t in WORDS] or [repr(n) for n in self.choices]
        bounds = ""
        if self.above is not None:
            bounds = f", above {_plain(self.above)}"
        elif self.low is not None:
            bounds = f", at least {_plain(self.low)}"
        if self.high is not None:
            bounds += f"{' and' if bounds else ','} at most {_plain(self.high)}"
        return " or ".join(words) + bounds

    def check(self, name: str, value: Any) -> Any:
        """Return a value in the option's type: a list as a tuple, a whole number as a float.

        Raises:
            InputError: If the type is wrong, or the value is out of range or not finite.
        """
        if isinstance(self.type, ForwardRef) or (value is None and NoneType in self.types):
            return value  # an object's own class checks it
        for kind in self.types:
            converted = _convert(kind, value)
            if converted is not None and self._in_range(converted):
                return converted
        hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
        shown = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
        raise InputError(f"{name} must be {self.values}, not {shown}: {hint}".rstrip(": "))

    def _in_range(self, value: Any) -> bool:
        return all(
            (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
            for number in (value if isinstance(value, tuple) else (value,))
        )


def checked(
    kind: type[T],
    name: str,
    value: object,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> T:
    """Return an argument of a constructor or function in its type, if it is in its range.

    Args:
        kind: ``bool``, ``int``, ``float``, ``str``, ``tuple[int, int]``, ``tuple[int, ...]`` or
            ``tuple[float, ...]``.
        name: Of the argument, for the message.
        value: The caller's.
        low: Least value, inclusive. Ranges hold for every number of a tuple.
        high: Greatest value, inclusive.
        above: Lower bound, exclusive.

    Raises:
        InputError: Naming argument, range and value, if it is of another type, out of range or not
            finite.

    Example:
        >>> checked(float, "area", 1, above=0, high=1)
        1.0
        >>> checked(int, "steps", -3, low=1)
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: steps must be a whole number, at least 1, not -3
    """
    option = Option("", low=low, high=high, above=above, type=kind)
    return cast(T, option.check(name, value))


def check_instance(kind: type, name: str, value: object) -> None:
    """Check the class of an argument.

    Raises:
        InputError: Naming the argument and both classes, if it is of another class.

    Example:
        >>> check_instance(dict, "models", 5)
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: models must be of class dict, not int
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} must be of class {kind.__name__}, not {type(value).__name__}")


def options_of(group: Any) -> dict[str, Option]:
    """Return the options of a group by name, in the order of their definition.

    Example:
        >>> from reidguard.options import FitOptions
        >>> options_of(FitOptions)["steps"].values
        'a whole number, at least 1 and at most 1,000,000,000'
    """
    annotations = {k: get_args(v) for k, v in inspect.get_annotations(group).items()}
    return {name: replace(option, type=kind) for name, (kind, option) in annotations.items()}


def resolve(group: Any, values: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Check a caller's options, and fill in the defaults of the others.

    Args:
        group: The group of options.
        values: The caller's options.
        defaults: Defaults of this attack, recipe or defense, for options whose own is None.

    Returns:
        A value for every option of the group.

    Raises:
        InputError: Naming the option, its value and its range, if a name is unknown, a value has
            the wrong type, is out of range or is not finite, or two options exclude each other.

    Example:
        >>> from reidguard.options import FitOptions
        >>> resolve(FitOptions, {"steps": 20}, lr=0.1)["lr"]
        0.1
        >>> resolve(FitOptions, {"step": 20})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: unknown option 'step': did you mean 'steps'? known: ...
    """
    options = options_of(group)
    if unknown := [name for name in values if name not in options]:
        meant = [name for name, option in options.items() if unknown[0] in option.aliases]
        hint = f"did you mean {' and '.join(map(repr, meant))}? " if meant else ""
        hint = hint or did_you_mean(unknown[0], options)
        raise InputError(f"unknown option {unknown[0]!r}: {hint}known: {', '.join(options)}")
    resolved = {name: option.default for name, option in options.items()}
    for name, value in values.items():
        resolved[name] = options[name].check(name, value)
    for name, option in options.items():
        other = option.excludes
        if other is not None and resolved[other] is not None:
            if resolved[name] is not None:
                raise InputError(
                    f"{name}={resolved[name]!r} and {other}={resolved[other]!r} exclude each "
                    "other: give one of them"
                )
        elif resolved[name] is None and option.default is None:
            resolved[name] = defaults.get(name)
    return resolved


def select(group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a group out of the resolved ones of a larger group.

    Example:
        >>> from reidguard.options import BatchOptions
        >>> select(BatchOptions, {"batch_size": 8, "query_every": 2})
        {'batch_size': 8}
    """
    return {name: values[name] for name in options_of(group)}


def settings(group: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options on which a result depends as JSON values.

    Options without a value are left out; None is a value where it is not the default.

    Example:
        >>> from reidguard.options import FitOptions
        >>> settings(FitOptions, {"steps": 5, "image_size": (64, 32), "checkpoint": "a"})
        {'steps': 5, 'image_size': [64, 32]}
    """
    plain = {}
    for name, option in options_of(group).items():
        value = values.get(name)
        if option.recorded and (value is not None or (name in values and option.default)):
            plain[name] = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
            plain[name] = list(value) if isinstance(value, tuple) else plain[name]
    return plain


def documented(group: Any, **defaults: Any) -> Callable[[Function], Function]:
    """Give a function of ``**options`` the signature and the documentation of a group.

    After the line of its docstring that starts with ``**options:``, each option is listed.

    Args:
        group: The group of options.
        defaults: Defaults of the function where the group's are None, as values or in words.

    Example:
        >>> from reidguard.options import BatchOptions
        >>> @documented(BatchOptions)
        ... def run(**options):
        ...     '''Do something.
        ...
        ...     Args:
        ...         **options: Any of the options.
        ...     '''
        >>> "batch_size" in run.__doc__
        True
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        entries = []
        for name, option in options_of(group).items():
            default = option.default if option.default is not None else defaults.get(name)
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option.type
                )
            )
            notes = option.values + ("" if default is None else f"; {default} by default")
            entries.append(f"{name}: {option.help[0].upper()}{option.help[1:]} ({notes}).")
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        lines = []
        for line in (function.__doc__ or "").splitlines():
            lines.append(line)
            if line.lstrip().startswith("**options:"):
                indent = " " * (len(line) - len(line.lstrip()))
                for entry in entries:
                    lines += textwrap.wrap(
                        entry, 99, initial_indent=indent, subsequent_indent=f"{indent}    "
                    )
        function.__doc__ = "\n".join(lines)
        return function

    return decorate


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.12g}"


def _convert(kind: Any, value: Any) -> Any:
    """Return the value in this type, or None if it is of another."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if get_origin(kind) is tuple:
        part, other = get_args(kind)
        if not isinstance(value, list | tuple) or not value or (other is part and len(value) != 2):
            return None
        parts = tuple(_convert(part, number) for number in value)
        return None if None in parts else parts
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int:
        return int(value) if isinstance(value, Integral) else None
    if kind is float:
        try:
            return float(value) if isinstance(value, Real) and math.isfinite(value) else None
        except OverflowError:  # a whole number beyond all floats
            return None
    return value if isinstance(value, get_origin(kind) or kind) else None


def as_number(value: Any) -> float | None:
    """Return any finite number, or an array or tensor that holds just one, as a float.

    None stands for everything else, such as text, True and NaN.

    Example:
        >>> from fractions import Fraction
        >>> as_number(Fraction(1, 4)), as_number("1/4")
        (0.25, None)
    """
    kind, dimensions = str(getattr(value, "dtype", "")), getattr(value, "ndim", None) or 0
    if isinstance(value, bool | str | bytes) or kind.endswith("bool") or dimensions > 0:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: of torch
        return None
    return number if math.isfinite(number) else None


def as_whole_number(value: Any) -> int | None:
    """Return a number without a fractional part as an int; None for everything else.

    Floats count below 2**53, from where on they leave out whole numbers.

    Example:
        >>> as_whole_number(7.0), as_whole_number(7.5)
        (7, None)
    """
    number = as_number(value)
    if number is None:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return int(number) if number.is_integer() and abs(number) < 2**53 else None
