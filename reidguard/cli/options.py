"""Options: kinds of values, unknown names refused, a TOML file below the command line."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from reidguard.errors import InputError, ReIDGuardError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Options",
    "Parser",
    "amount",
    "did_you_mean",
    "epsilon",
    "image_size",
    "key_value",
    "not_negative",
    "pathname",
    "positive",
    "probability",
    "rate",
]


def epsilon(text: str) -> float:
    """Read "8/255" or "0.03"."""
    value = _number(text)
    if math.isnan(value):
        raise InputError(f"{text!r} is no radius: write 8/255 or 0.03")
    from reidguard.types import Budget  # here, since it imports torch, which help should not

    return Budget(value).eps


def image_size(text: str) -> tuple[int, int]:
    """Read "256x128", height first."""
    if not (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise InputError(f"{text!r} is no size: write HEIGHTxWIDTH in pixels, such as 256x128")
    return int(match[1]), int(match[2])


def positive(text: str) -> int:
    """Read a whole number from 1."""
    if not re.fullmatch(r"0*[1-9]\d{0,17}", text):
        raise InputError(f"{text!r} is not a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """Read a whole number from 0."""
    if not re.fullmatch(r"\d{1,18}", text):
        raise InputError(f"{text!r} is not a whole number from 0")
    return int(text)


def rate(text: str) -> float:
    """Read a positive number, also as a fraction such as 1/255."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise InputError(f"{text!r} is not a number above 0, such as 3e-4 or 1/255")
    return value


def amount(text: str) -> float:
    """Read a number from 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise InputError(f"{text!r} is not a number from 0, such as 5e-4")
    return value


def probability(text: str) -> float:
    """Read a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise InputError(f"{text!r} is not a number from 0 to 1")
    return value


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return float("nan")


def pathname(text: str) -> Path:
    """Read a path; ~ is the home folder."""
    if not text:
        raise InputError("an empty path names nothing")
    return Path(text).expanduser()


def key_value(text: str) -> tuple[str, Any]:
    """Read "key=value": numbers, fractions, true, false, HxW, JSON lists, or else a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise InputError(f"{text!r} is not of the form KEY=VALUE")
    if match := re.fullmatch(r"(\d+)x(\d+)", value):
        return key, (int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(\d+)/(\d*[1-9]\d*)", value):
        return key, int(match[1]) / int(match[2])
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


class Options(argparse.Namespace):
    """The values of all options of a command, and how they came about."""

    argv: list[str]
    """The command's own arguments, for messages and manifests."""
    given: frozenset[str]
    """Names of the options that the command line or the file set."""

    def values(self) -> dict[str, Any]:
        """Return every option's value as JSON."""
        skipped = ("argv", "given")
        return {k: _plain(v) for k, v in sorted(vars(self).items()) if k not in skipped}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


class Parser(argparse.ArgumentParser):
    """Reads one command's options.

    Args:
        command: Its name.
        summary: What it does, in a line.
        examples: Shown below the options.
    """

    def __init__(self, command: str, summary: str, examples: str) -> None:
        super().__init__(
            prog=f"reidguard {command}",
            usage=f"reidguard {command} [options]",
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            # Absent means not given; read() fills in, so that it knows who said what.
            argument_default=argparse.SUPPRESS,
        )
        self.command = command
        self.defaults: dict[str, Any] = {}
        self._required: list[str] = []
        self._exclusive: list[tuple[str, ...]] = []
        self._group: argparse._ActionsContainer = self
        self.flag("--debug", "show the traceback of an error")

    def section(self, title: str) -> None:
        """Put the options that follow under a title."""
        self._group = self.add_argument_group(title)

    def option(
        self,
        name: str,
        help: str,
        kind: Callable[[str], Any] = str,
        *,
        metavar: str,
        default: Any = None,
        shown: str | None = None,
        required: bool = False,
    ) -> None:
        """Add an option with a value.

        Args:
            name: With its dashes.
            help: What it does.
            kind: From text to value; its InputError becomes the option's.
            metavar: What the help calls the value.
            default: The value where nobody gives one.
            shown: The default as the help says it, if that differs.
            required: Whether leaving it out is an error.
        """
        shown = str(default) if shown is None and default is not None else shown
        action = self._group.add_argument(
            name,
            type=_typed(kind),
            metavar=metavar,
            help=(help + (f" (default: {shown})" if shown else "")).replace("%", "%%"),
        )
        self.defaults[action.dest] = default
        if required:
            self._required.append(action.dest)
            self.usage = f"{self.usage} {name} {metavar}".replace(" [options]", "") + " [options]"

    def pairs(self, name: str, help: str) -> None:
        """Add an option KEY=VALUE that may be given many times and yields a dict."""
        action = self._group.add_argument(
            name, type=_typed(key_value), action="append", metavar="KEY=VALUE", help=help
        )
        self.defaults[action.dest] = {}

    def flag(self, name: str, help: str) -> None:
        """Add an option without a value."""
        action = self._group.add_argument(name, action="store_true", help=help)
        self.defaults[action.dest] = False

    def exclusive(self, *names: str) -> None:
        """Of these options at most one may be given; the command line's beats the file's."""
        self._exclusive.append(names)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's complaint into ours, which main() prints."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def read(self, argv: Sequence[str]) -> Options:
        """Parse arguments, on top of those in the file of ``--config``.

        Raises:
            InputError: For everything that is unknown, missing, double or malformed.
        """
        said = self._parse(list(argv))
        written = self._parse_file(said["config"]) if "config" in said else {}
        for group in self._exclusive:
            names = [name for name in group if name in said]
            if names:
                written = {k: v for k, v in written.items() if k not in group}
            both = names or [name for name in group if name in written]
            if len(both) > 1:
                raise InputError(f"{_flags(both)} exclude each other: give one of them")
        merged = {**self.defaults, **written, **said}
        for dest, default in self.defaults.items():
            if default == {} and isinstance(default, dict):
                merged[dest] = dict([*written.get(dest, []), *said.get(dest, [])])
        missing = [dest for dest in self._required if merged[dest] is None]
        if missing:
            self.error(f"{_flags(missing)} must be given")
        options = Options(**merged)
        options.argv = [self.command, *argv]
        options.given = frozenset({*written, *said})
        return options

    def _parse(self, tokens: list[str]) -> dict[str, Any]:
        known = self._option_string_actions
        for token in tokens:
            name = token.partition("=")[0]
            if token == "--":
                break
            if re.match(r"--?[A-Za-z]", token) and name not in known:
                long = [option for option in known if option.startswith("--")]
                raise InputError(
                    f"unknown option {name}: {did_you_mean(name, long)}{self.prog} --help lists all"
                )
        return vars(self.parse_args(tokens))

    def _parse_file(self, path: Path) -> dict[str, Any]:
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}") from error
        known = {
            option.removeprefix("--"): action
            for option, action in self._option_string_actions.items()
            if option.startswith("--") and option not in ("--config", "--help")
        }
        tokens = []
        for key, value in content.items():
            if key not in known:
                raise InputError(
                    f"{path}: unknown key {key!r}: {did_you_mean(key, known)}"
                    f"keys are the options of {self.prog} without their dashes"
                )
            try:
                tokens += _tokens(f"--{key}", value, known[key])
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
        try:
            return self._parse(tokens)
        except ReIDGuardError as error:
            raise InputError(f"{path}: {error}") from error


def _typed(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except InputError as error:
            # argparse would replace any other ValueError by "invalid value"
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _flags(names: Iterable[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _tokens(option: str, value: Any, action: argparse.Action) -> list[str]:
    """Write a TOML value as it would stand on the command line."""
    name = option.removeprefix("--")
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}")
        return [option] if value else []
    if isinstance(action, argparse._AppendAction):
        if not isinstance(value, dict):
            raise InputError(f"{name} must be a table: [{name}] and below it KEY = VALUE")
        pairs = {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
        return [f"{option}={k}={v}" for k, v in pairs.items()]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{name} must be text or a number, not {value!r}")
    return [f"{option}={value}"]
