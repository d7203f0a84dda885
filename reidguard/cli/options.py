"""Options on the command line: definitions become parameters of cyclopts, text becomes values."""

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Annotated, Any, ForwardRef, TypedDict, get_origin

from cyclopts import App, ArgumentCollection, Group, Parameter, Token
from cyclopts.validators import LimitedChoice
from msgspec import Meta

from reidguard.errors import CheckpointError, InputError, did_you_mean
from reidguard.records import convert, parse_json, read_file, to_path
from reidguard.schema import Option, options_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["MACHINE", "Flag", "Options", "command", "errors_name", "pathname", "read_config"]


@contextmanager
def errors_name(flag: str) -> Iterator[None]:
    """Turn a constructor's TypeError or ValueError into an InputError that names the option."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError | CheckpointError):
            raise
        raise InputError(f"{flag}: {error}") from error


def flag(name: str) -> str:
    """Return an option as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


def fraction(text: str) -> float:
    """Read a number or a fraction, such as "0.03" or "8/255"."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{text!r} is no number: write 0.03 or 8/255") from None


def integer(text: str) -> int:
    """Read a whole number."""
    if not re.fullmatch(r"[+-]?\d{1,18}", text):
        raise InputError(f"{text!r} is not a whole number")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """Read "256x128", height first."""
    if not (match := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise InputError(f"{text!r} is no size: write HEIGHTxWIDTH in pixels, such as 256x128")
    return int(match[1]), int(match[2])


def pathname(text: str) -> Path:
    """Read a path; ~ is the home folder."""
    return to_path(text)


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
        return key, parse_json(value, Any, text)
    except CheckpointError:
        return key, value


MAX_CONFIG = 2**20  # bytes
Number = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Scalar = bool | Number | float | str
# in a --config file
Setting = Scalar | list[str] | dict[str, Scalar | list[Scalar] | None]

# How a value of each type is written in the help, and read.
TYPES: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("N", integer),
    float: ("X", fraction),
    tuple[int, int]: ("HxW", image_size),
    tuple[int, ...]: ("N,N,...", lambda text: tuple(map(integer, text.split(",")))),
    tuple[float, ...]: ("X,X,...", lambda text: tuple(map(fraction, text.split(",")))),
    Path: ("PATH", pathname),
}
HAS_METAVAR = "metavar" in inspect.signature(Parameter).parameters  # from cyclopts 5 on
# Options of the library that the command line fills in itself or has no use for.
OMITTED = ("checkpoint", "side")


@dataclass(frozen=True)
class Flag(Option):
    """An option as the command line has it.

    Args:
        shown: The default in words.
        required: Whether leaving it out is an error.
        positional: Whether it is given without its name.
    """

    shown: str = ""
    required: bool = False
    positional: bool = False


class Options(SimpleNamespace):
    """The values of a command's options: those given, and the defaults of the others.

    Attributes:
        command: The command's name.
        argv: The command line without the program's name, for messages and manifests.
        explicit: Names of the options that the command line or the file set.
        run: Runs the command; returns its exit code, None for 0.
        expected: Settings that the run must have, the device apart; None for any.
    """

    command: str
    argv: list[str]
    explicit: frozenset[str]
    run: "Callable[[Options], int | None]"
    expected: "Mapping[str, Any] | None" = None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an option's value, or the default where the command has no such option."""
        return getattr(self, name, default)

    def of(self, group: type, *, explicit: bool = False) -> dict[str, Any]:
        """Return the options of a group; with ``explicit`` only those that were set."""
        names = [name for name in options_of(group) if hasattr(self, name)]
        return {
            name: getattr(self, name) for name in names if not explicit or name in self.explicit
        }

    def refuse(self, names: Sequence[str], message: str) -> None:
        """Raise InputError if any of these options were set; the message's {flags} are they."""
        if needless := [flag(name) for name in names if name in self.explicit]:
            raise InputError(message.replace("{flags}", ", ".join(needless)))

    def values(self) -> dict[str, Any]:
        """Return every option's value as JSON."""
        values = {k: v for k, v in vars(self).items() if k not in Options.__annotations__}
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str, sort_keys=True))
        return plain


class General(TypedDict, total=False):
    """Options of every command."""

    debug: Annotated[bool, Option("show the traceback of an error", False)]


MACHINE = "output and machine"  # title of the last section of every help


def command(
    name: str,
    run: Callable[[Options], int | None],
    sections: Mapping[str, tuple[type, ...]],
    *,
    examples: str,
    summary: str | None = None,
    shown: Mapping[str, str] | None = None,
) -> App:
    """Return a cyclopts command whose result is the :class:`Options` to call ``run`` with.

    Args:
        name: Of the command.
        run: Does the work.
        sections: Groups of options by the title of their section in the help.
        examples: Shown below the options.
        summary: One line of help, where no other app gives it.
        shown: Defaults in words, by option, where they depend on others.
    """
    options: dict[str, Flag] = {}
    groups: dict[str, list[Group]] = {}
    positionals = Group("arguments", sort_key=0)
    last = {MACHINE: (*sections.get(MACHINE, ()), General)}
    for rank, (title, definitions) in enumerate({**sections, **last}.items(), 1):
        section = Group(title, sort_key=rank)
        for key, option in ((k, o) for d in definitions for k, o in options_of(d).items()):
            if key in OMITTED or key in options or isinstance(option.type, ForwardRef):
                continue
            options[key] = option if isinstance(option, Flag) else Flag(**vars(option))
            groups[key] = [positionals if options[key].positional else section]
    for key, words in (shown or {}).items():
        options[key] = replace(options[key], shown=words)
    for key, option in options.items():
        if option.excludes in options:
            pair = Group(f"{key} and {option.excludes}", show=False, validator=LimitedChoice())
            groups[key].append(pair)
            groups[option.excludes].append(pair)
    arguments = [key for key, option in options.items() if option.positional]

    def collect(*positional: Any, **values: Any) -> Options:
        values |= dict(zip(arguments, positional, strict=False))
        defaults = {k: {} if get_origin(o.type) is dict else o.default for k, o in options.items()}
        return Options(
            **{**defaults, **values}, command=name, explicit=frozenset(values), run=run, argv=[]
        )

    parameters = [_parameter(key, option, groups[key]) for key, option in options.items()]
    parameters.sort(key=lambda parameter: parameter.kind)  # positional ones first
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    epilogue = f"examples:\n{examples}"
    return App(name, default_command=collect, help=summary, help_epilogue=epilogue)


def _in_words(default: Any) -> str:
    if default is None or default is False:
        return ""
    if isinstance(default, tuple):
        return ("x" if isinstance(default[0], int) else ",").join(map(_in_words, default))
    if isinstance(default, float) and default and (255 * default).is_integer():
        return f"{255 * default:.0f}/255"
    return str(default)


def _parameter(name: str, option: Flag, groups: list[Group]) -> inspect.Parameter:
    """Return the parameter that cyclopts reads an option from."""
    kind = next(member for member in option.types if member is not NoneType)
    metavar, read = TYPES.get(kind, ("NAME", None))
    default = option.shown or _in_words(option.default)
    settings: dict[str, Any] = {
        "help": option.help + (f" (default: {default})" if default else ""),
        "group": groups,
        "show_default": False,
        "accepts_keys": False,
        # A flag that is on by default, or as the attack has it, can be turned off.
        "negative": () if kind is not bool or option.default is False else f"--no-{name}",
    }
    if not option.positional:
        settings["name"] = flag(name)
    if get_origin(kind) is dict:
        kind, metavar = list[str], "KEY=VALUE"
        settings["converter"] = lambda _, tokens: dict(key_value(t.value) for t in tokens)
    elif kind == tuple[str, ...]:
        settings["converter"] = lambda _, tokens: tuple(token.value for token in tokens)
    elif read is not None:
        settings["converter"] = lambda _, tokens: read(tokens[0].value)
        settings["n_tokens"] = 1
        if kind is not Path:
            settings["validator"] = lambda _, value: value is None or option.check(name, value)
    if HAS_METAVAR:
        settings["metavar"] = metavar
    place = inspect.Parameter
    return inspect.Parameter(
        name,
        place.POSITIONAL_ONLY if option.positional else place.KEYWORD_ONLY,
        default=place.empty if option.required else None,
        annotation=Annotated[kind, Parameter(**settings)],
    )


def read_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give a command the options of its ``--config`` file that the command line leaves out.

    Raises:
        InputError: If the file cannot be read, has unknown keys, or values of a wrong kind.
    """
    known = {argument.name.removeprefix("--"): argument for argument in arguments}
    config = known.pop("config", None)
    if config is None or not config.tokens:
        return
    path = pathname(config.tokens[0].value)
    # Groups of options that exclude each other: the command line's beats the file's.
    pairs = {a.name: {g for g in a.parameter.group or () if not g.show} for a in arguments}  # type: ignore[union-attr]
    taken = set[Group]().union(*(pairs[a.name] for a in arguments if a.tokens))
    for key, value in _load(path).items():
        if key not in known:
            raise InputError(
                f"{path}: unknown key {key!r}: {did_you_mean(key, known)}"
                "keys are the command's options without their dashes"
            )
        argument = known[key]
        texts = _texts(f"{path}: {key}", value, argument.hint)
        tokens = [Token(keyword=f"--{key}", value=text, source=str(path)) for text in texts]
        if argument.hint == list[str]:
            argument.tokens = tokens + argument.tokens  # the command line's pairs win
        elif not argument.tokens and not taken & pairs[argument.name]:
            argument.tokens = tokens


def _load(path: Path) -> dict[str, Setting]:
    """Read a TOML file, or a YAML file where PyYAML is installed."""
    data = read_file(path, error=InputError, limit=MAX_CONFIG)
    try:
        text = data.decode("utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
                raise ValueError("aliases are not read; repeat the value")
            content = yaml.safe_load(text)
        else:
            content = tomllib.loads(text)
    except ImportError as error:
        raise InputError(f"{path} needs PyYAML: pip install pyyaml, or write TOML") from error
    except Exception as error:  # PyYAML's errors share no base with TOML's
        raise InputError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    cure = "give each option text, a number, true or false, or a table of KEY = VALUE"
    values = convert(content, dict[str, Any], path, cure=cure, error=InputError)
    return {
        key: convert(value, Setting, f"{path}: {key}", cure=cure, error=InputError)  # type: ignore[arg-type]
        for key, value in values.items()
    }


def _texts(name: str, value: Setting, hint: Any) -> list[str]:
    """Write a value of a file as it would stand on the command line."""
    if hint is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}")
        return [str(value).lower()]
    if hint == tuple[str, ...] and isinstance(value, list):
        return value
    if isinstance(value, list) or (hint == list[str]) != isinstance(value, dict):
        wanted = "a table of KEY = VALUE" if hint == list[str] else "text or a number"
        raise InputError(f"{name} must be {wanted}, not {value!r}")
    if isinstance(value, dict):
        return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items()]
    if isinstance(value, bool):
        raise InputError(f"{name} must be text or a number, not {value!r}")
    return [str(value)]
