"""Options of models that the names and shapes of a file's tensors show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reidguard.models.ibn import IBN_SUFFIX
from reidguard.models.transformer_options import transformer_options

__all__ = ["options_shown"]

# Blocks of the four stages, and whether these are bottlenecks.
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
# A name that no other backbone has.
OTHERS = (
    (r"denseblock4\.denselayer16\.", "densenet121"),
    (r"patch_embed\..*layers\.2\.blocks\.17\.attn\.", "swin_base_patch4_window7_224"),
)


def options_shown(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the options of models that the names and shapes in a file speak of, by their names.

    Each dictionary is tried with every model, as far as it has options of that name and type.
    """
    if transformer := transformer_options(tensors):
        return [transformer]
    shown: dict[str, Any] = {}
    if backbone := _backbone(tensors):
        shown["backbone"] = backbone
    if any(re.match(r"(.*\.)?(heads\.bnneck|b\d+_pool)\.", name) for name in tensors):
        shown["version"] = "0.1"  # of fast-reid
    return [shown] if shown else []


def _backbone(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the backbone that the names of tensors speak of, if it is a known one."""
    blocks = {m.groups() for n in tensors if (m := re.search(r"layer([1-4])\.(\d+)\.", n))}
    stages = tuple(sum(stage == str(i) for stage, _ in blocks) for i in (1, 2, 3, 4))
    resnet = RESNETS.get((stages, any(".conv3." in name for name in tensors)))
    if resnet is None:
        names = " ".join(tensors)
        return next((name for pattern, name in OTHERS if re.search(pattern, names)), None)
    if any(".bn1.IN." in name for name in tensors):
        return resnet + IBN_SUFFIX
    if any(".conv2.fc1." in name for name in tensors):
        return {"resnet50": "resnest50d", "resnet101": "resnest101e"}.get(resnet)
    if any(".se_module." in name for name in tensors):
        second = next((t for n, t in tensors.items() if n.endswith("layer1.0.conv2.weight")), None)
        grouped = second is not None and second.dim() == 4 and second.shape[1] < second.shape[0]
        return (
            f"legacy_se{resnet.replace('net', 'next')}_32x4d" if grouped else f"legacy_se{resnet}"
        )
    return resnet
