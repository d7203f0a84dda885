"""Options of TransReID, CLIP-ReID and SOLIDER that the tensors of their files show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["transformer_options"]

STRIDES = (16, 12, 11)
SIZES = ((256, 128), (384, 128), (256, 256))
PATCH = 16

# Stride and image size by the number of tokens, patches and the class token.
GRIDS = {
    1 + ((height - PATCH) // stride + 1) * ((width - PATCH) // stride + 1): (
        stride,
        (height, width),
    )
    for stride in STRIDES
    for height, width in SIZES
}
VITS = {(384, 12): "deit_small_patch16_224", (768, 8): "vit_small_transreid"}  # width, blocks
SWINS = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base"}


def transformer_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of the model that the names and shapes of a file show, without defaults.

    The size and the stride are those of the authors' networks with as many patches.

    Args:
        tensors: As the file names them.

    Example:
        >>> import torch
        >>> names = {"base.pos_embed": (1, 211, 768), "base.sie_embed": (6, 1, 768)}
        >>> names["b1.1.weight"] = (768,)
        >>> transformer_options({n: torch.empty(shape) for n, shape in names.items()})
        {'cameras': 6, 'stride': 12}
    """
    shapes = {
        re.sub(r"^(?:module\.|model\.)+", "", name): tuple(tensor.shape)
        for name, tensor in tensors.items()
    }
    if projection := shapes.get("base.patch_embed.projection.weight"):
        return _some(backbone=SWINS.get((projection[0], _blocks(shapes, r"base\.stages\.2\."))))
    if tokens := shapes.get("base.pos_embed"):
        return _some(
            backbone=VITS.get((tokens[-1], _blocks(shapes, r"base\."))),
            cameras=shapes.get("base.sie_embed", (None,))[0],
            parts=None if "b1.1.weight" in shapes else False,
            **_grid(tokens[1]),
        )
    if tokens := shapes.get("image_encoder.positional_embedding"):
        return _some(cameras=shapes.get("cv_embed", (None,))[0], **_grid(tokens[0]))
    if tokens := shapes.get("image_encoder.attnpool.positional_embedding"):
        return _some(backbone="resnet50_clip", size=_grid(tokens[0]).get("size"))
    return {}


def _grid(tokens: int) -> dict[str, Any]:
    stride, size = GRIDS.get(tokens, (None, None))
    return {
        "stride": None if stride == PATCH else stride,
        "size": None if size == SIZES[0] else size,
    }


def _blocks(shapes: Mapping[str, tuple[int, ...]], before: str) -> int:
    matches = (re.match(rf"{before}blocks\.(\d+)\.", name) for name in shapes)
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def _some(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
