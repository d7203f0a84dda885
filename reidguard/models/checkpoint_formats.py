"""Tensor names in the checkpoints of other code bases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["WRAPPERS", "head_rule", "known_layout", "rename", "without_wrappers"]

T = TypeVar("T")

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern from the start of a name, and what replaces it, as for :func:`re.sub`."""

# What DataParallel, Lightning and others, and torch.compile put before every name.
WRAPPERS = ("module.", "model.", "_orig_mod.")

# (a name that only this layout has, the code base that writes it, a note)
LAYOUTS = (
    (
        r"heads\.",
        "fast-reid",
        "its ResNets pool without padding after the first layer: use 'agw' with stem='fast-reid'",
    ),
    (
        r"classifiers\.\d+\.add_block\.",
        "the paper's released PCB",
        "",
    ),
    (
        r"feat_bn\.",
        "the paper's released IDE",
        "its defended models lack the first ReLU: use 'ide' with stem='no-relu' for those",
    ),
    (
        r"bottleneck\.running_mean",
        "the AGW survey's code",
        "its ResNets lack the first ReLU: use 'agw' with stem='no-relu'",
    ),
    (r"local_conv\.", "the original PCB", "compare as it does: feature='pooled'"),
    (r"conv5\.layers\.", "torchreid's PCB", "compare as it does: feature='pooled'"),
)


def known_layout(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the code base that writes such names and a note on it, or None if unknown."""
    names = list(names)
    for pattern, owner, advice in LAYOUTS:
        if any(re.match(pattern, name) for name in names):
            return owner, advice
    return None


def without_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """Strip the prefixes that wrapping modules put before all names."""
    stripped = dict(state)
    while stripped:
        prefix = next((p for p in WRAPPERS if all(name.startswith(p) for name in stripped)), None)
        if prefix is None:
            break
        stripped = {name.removeprefix(prefix): value for name, value in stripped.items()}
    return stripped


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Rename each tensor by the first rule that matches its name.

    Example:
        >>> rename({"base.conv1.weight": Tensor(2)}, [(r"base\\.", "backbone.")]).keys()
        dict_keys(['backbone.conv1.weight'])
    """
    rules = [*rules, (r"", "")]

    def new(name: str) -> str:
        return next(
            re.sub(rf"^{pattern}", replacement, name, count=1)
            for pattern, replacement in rules
            if re.match(pattern, name)
        )

    return {new(name): tensor for name, tensor in state.items()}


def head_rule(pattern: str, num_classes: Mapping[str, Any], target: str = "") -> list[Rule]:
    """Return the rule that names a file's classifier after the model's only domain, if any."""
    if len(num_classes) != 1:
        return []
    (domain,) = num_classes
    return [(pattern, f"classifier.{domain}.{target}")]
