"""``reidguard list``."""

from __future__ import annotations

import inspect
import re
from typing import Any

from reidguard.attacks import ATTACKS
from reidguard.cli.options import Options, Parser, did_you_mean
from reidguard.data import DATASETS
from reidguard.defenses import DEFENSES
from reidguard.errors import InputError
from reidguard.learners import LEARNERS
from reidguard.models import MODELS
from reidguard.objectives import ATTACK_LOSSES
from reidguard.registry import Registry

REGISTRIES: dict[str, Registry[Any]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "models": MODELS,
    "learners": LEARNERS,
    "objectives": ATTACK_LOSSES,
    "datasets": DATASETS,
}

EXAMPLES = """\
  reidguard list
  reidguard list attacks
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("list", summary, EXAMPLES)
    made.usage = "reidguard list [KIND]"
    made.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(REGISTRIES)}")
    made.defaults["kind"] = None
    return made


def run(options: Options) -> int:
    """Print names and the first line of their documentation."""
    if options.kind is not None and options.kind not in REGISTRIES:
        raise InputError(
            f"there is no list of {options.kind!r}: "
            f"{did_you_mean(options.kind, REGISTRIES)}there are {', '.join(REGISTRIES)}"
        )
    kinds = list(REGISTRIES) if options.kind is None else [options.kind]
    for number, kind in enumerate(kinds):
        registry = REGISTRIES[kind]
        indent = ""
        if options.kind is None:
            print(f"{chr(10) if number else ''}{kind}:")
            indent = "  "
        names = registry.list()
        for name in names:
            about = (inspect.getdoc(registry.get(name)) or "").partition("\n")[0]
            print(f"{indent}{name:{max(map(len, names))}}  {_plain(about)}".rstrip())
    return 0


def _plain(text: str) -> str:
    """Take the markup of cross-references and code out of a line of documentation."""
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", text).replace("`", "")
