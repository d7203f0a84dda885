"""``reidguard list``."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import reidguard
from reidguard.cli.names import read_names
from reidguard.cli.options import Flag, Options, command
from reidguard.registry import Registry

REGISTRIES = {
    "attacks": "ATTACKS",
    "defenses": "DEFENSES",
    "models": "MODELS",
    "learners": "LEARNERS",
    "objectives": "ATTACK_LOSSES",
    "datasets": "DATASETS",
    "detection": "DETECTION_SCORES",
}
EXAMPLES = """\
  reidguard list
  reidguard list attacks
"""


class Kind(TypedDict, total=False):
    """What to list."""

    kind: Annotated[
        Literal["attacks", "defenses", "models", "learners", "objectives", "datasets", "detection"],
        Flag("what to list", shown="all", positional=True),
    ]


def run(options: Options) -> None:
    """Print names and the first line of their documentation."""
    if options.kind is not None:
        _print_names(options.kind)
        return
    for number, kind in enumerate(REGISTRIES):
        print(f"{chr(10) if number else ''}{kind}:")
        _print_names(kind, indent="  ")


def _print_names(kind: str, indent: str = "") -> None:
    for line in lines(summaries(kind)):
        print(f"{indent}{line}")


def summaries(kind: str) -> dict[str, str]:
    """Return the names of a kind and the first lines of their documentation.

    They are read from the sources, or else imported.
    """
    folder = "data" if kind == "datasets" else kind
    names = read_names(Path(reidguard.__file__).parent / folder, f"reidguard.{kind}")
    return imported(kind) if names is None else names


def imported(kind: str) -> dict[str, str]:
    """:func:`summaries` by the registry, which imports everything."""
    registry: Registry[Any] = getattr(reidguard, REGISTRIES[kind])
    names = registry.list()
    return {n: (inspect.getdoc(registry.get(n)) or "").partition("\n")[0] for n in names}


def lines(names: dict[str, str]) -> Iterator[str]:
    """Yield one line for each name, without the markup of cross-references and code."""
    for name, summary in names.items():
        text = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", summary).replace("`", "")
        yield f"{name:{max(map(len, names))}}  {text}".rstrip()


app = command("list", run, {"options": (Kind,)}, examples=EXAMPLES)
