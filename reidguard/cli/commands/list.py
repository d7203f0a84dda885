"""``reidguard list``."""

import inspect
import re
from typing import Annotated, Any, Literal, TypedDict

import reidguard
from reidguard.cli.options import Flag, Options, command
from reidguard.registry import Registry

REGISTRIES = {
    "attacks": "ATTACKS",
    "defenses": "DEFENSES",
    "models": "MODELS",
    "learners": "LEARNERS",
    "objectives": "ATTACK_LOSSES",
    "datasets": "DATASETS",
}
EXAMPLES = """\
  reidguard list
  reidguard list attacks
"""


class Kind(TypedDict, total=False):
    """What to list."""

    kind: Annotated[
        Literal["attacks", "defenses", "models", "learners", "objectives", "datasets"],
        Flag("what to list", shown="all", positional=True),
    ]


def run(options: Options) -> None:
    """Print names and the first line of their documentation."""
    if options.kind is not None:
        _print_registry(options.kind)
        return
    for number, kind in enumerate(REGISTRIES):
        print(f"{chr(10) if number else ''}{kind}:")
        _print_registry(kind, indent="  ")


def _print_registry(kind: str, indent: str = "") -> None:
    registry: Registry[Any] = getattr(reidguard, REGISTRIES[kind])
    names = registry.list()
    for name in names:
        summary = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
        # Cross-references and code without their markup.
        summary = re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", summary).replace("`", "")
        print(f"{indent}{name:{max(map(len, names))}}  {summary}".rstrip())


app = command("list", run, {"options": (Kind,)}, examples=EXAMPLES)
