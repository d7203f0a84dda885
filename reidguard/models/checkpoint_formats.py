"""Tensor names in the checkpoints of other code bases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor

__all__ = [
    "PREFIXES",
    "Rule",
    "advised_models",
    "head_rule",
    "known_layout",
    "name_head",
    "rename",
    "without_wrappers",
]

T = TypeVar("T")

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern from the start of a name, and what replaces it, as for :func:`re.sub`."""

# What torch.compile, FSDP, activation checkpointing and DataParallel put into names, anywhere.
WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\."
)

# What may stand before names: of Lightning and others all names, of re-ID code often some.
PREFIXES = ("model.", "backbone.", "network.")

# (a name that only this layout has, the code base that writes it, a note)
LAYOUTS = (
    (r"b\d+_pool\.", "MGN in fast-reid's model zoo", "use 'fastreid_mgn' with version='0.1'"),
    (r"b\d+_head\.", "fast-reid's MGN", "use 'fastreid_mgn'"),
    (
        r"heads\.bnneck\.",
        "fast-reid's model zoo",
        "use 'fastreid_bot', 'fastreid_agw' or 'fastreid_sbs' with version='0.1'; the latter two "
        "have the same names and differ in the size of images",
    ),
    (
        r"heads\.",
        "fast-reid",
        "use 'fastreid_bot', 'fastreid_agw' or 'fastreid_sbs'; on ResNeSt the first two have "
        "the same names and pool differently",
    ),
    (r"classifier\.add_block\.", "layumi's ft_net", "use 'layumi_ft_net' with its last_stride"),
    (r"classifier\d+\.add_block\.", "layumi's PCB", "use 'layumi_pcb'"),
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
        r"base\.(cls_token|patch_embed\.proj\.)",
        "TransReID",
        "use 'transreid', with cameras=6 for Market-1501, and parts=False if it has no b1",
    ),
    (r"base\.semantic_embed_w\.", "SOLIDER", "use 'solider' with its backbone"),
    (r"image_encoder\.", "CLIP-ReID", "use 'clip_reid', with cameras if it has cv_embed"),
    (
        r"(base\.NL_\d|global_pool)\.",
        "the AGW survey's code",
        "its ResNets lack the first ReLU: use 'agw' with stem='no-relu'",
    ),
    (
        r"bottleneck\.running_mean",
        "the strong baseline",
        "its ResNets lack the first ReLU: use 'strong_baseline'",
    ),
    (
        r"ha1\.hard_attn\.",
        "torchreid's HACNN",
        "files that were learnt with torch before 1.3 (2019), such as torchreid's published ones, "
        "need align_corners=True",
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


def advised_models(names: Iterable[str]) -> list[str]:
    """Return the models that the note on a layout names, the likeliest first.

    Example:
        >>> advised_models(["backbone.conv1.weight", "heads.weight"])
        ['fastreid_bot', 'fastreid_agw', 'fastreid_sbs']
    """
    layout = known_layout(names)
    return re.findall(r"'(\w+)'", layout[1]) if layout else []


def without_wrappers(state: Mapping[str, T]) -> dict[str, T]:
    """Remove what wrapping modules put into the names, unless two names would become one.

    Example:
        >>> without_wrappers({"module.layer1._checkpoint_wrapped_module.0.weight": 1})
        {'layer1.0.weight': 1}
    """
    stripped = {WRAPPERS.sub("", name): value for name, value in state.items()}
    return stripped if len(stripped) == len(state) else dict(state)


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


def name_head(state: Mapping[str, Tensor], num_classes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give the one classifier of a file, ``classifier.weight``, to the only domain of a model.

    Example:
        >>> name_head({"classifier.weight": Tensor(2)}, {"market1501": 751}).keys()
        dict_keys(['classifier.market1501.weight'])
    """
    return rename(state, head_rule(r"classifier\.(?=(weight|bias)$)", num_classes))
