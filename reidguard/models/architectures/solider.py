"""SOLIDER: a Swin transformer with a semantic weight (Chen et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from reidguard.errors import InputError, did_you_mean
from reidguard.models.architectures.bn_neck import NeckFeature, checked_neck
from reidguard.models.architectures.transreid import HALF, bn_neck
from reidguard.models.base import ReIDModel, ReIDOutput, image_size
from reidguard.models.checkpoint_formats import name_head
from reidguard.models.factory import register_model
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["SOLIDER"]

WINDOW, PATCH, STAGES = 7, 4, 4
DROP_PATH = 0.1  # of the last block, in training; it rises linearly from 0

# Width of the first stage and blocks of the third; the other stages have two.
NETWORKS = {"swin_tiny": (96, 6), "swin_small": (96, 18), "swin_base": (128, 18)}
HEAD_WIDTH = 32


class _ShiftedWindows(nn.Module):
    """Attention inside windows of maps that are padded first and, if ``shift``, rolled then.

    timm's own block rolls before it pads, which differs where windows do not fit.
    """

    def __init__(self, width: int, shift: bool) -> None:
        super().__init__()
        self.shift = WINDOW // 2 if shift else 0
        self.w_msa = WindowAttention(width, width // HEAD_WIDTH, window_size=(WINDOW, WINDOW))
        # Files of the authors have it.
        index = cast(Tensor, self.w_msa.relative_position_index)
        self.w_msa.register_buffer("relative_position_index", index, persistent=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, H, W, C) of the same shape."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        padded, mask = (x.shape[1], x.shape[2]), None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            mask = self._mask(padded, x)
        windows = window_partition(x, (WINDOW, WINDOW)).flatten(1, 2)
        windows = self.w_msa(windows, mask=mask).view(-1, WINDOW, WINDOW, x.shape[3])
        x = window_reverse(windows, (WINDOW, WINDOW), *padded)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _mask(self, size: tuple[int, int], like: Tensor) -> Tensor:
        """Return (windows, 49, 49): -100 between places that only the roll made neighbours."""
        rows, columns = (self._regions(side, like) for side in size)
        regions = (3 * rows[:, None] + columns[None, :])[None, :, :, None]
        windows = window_partition(regions, (WINDOW, WINDOW)).flatten(1)
        return (windows[:, None, :] != windows[:, :, None]).to(like.dtype) * -100

    def _regions(self, side: int, like: Tensor) -> Tensor:
        """Return 0, 1 or 2 for each place: before the last window, in it, and rolled around."""
        places = torch.arange(side, device=like.device)
        return (places >= side - WINDOW).long() + (places >= side - self.shift).long()


class _Feedforward(nn.Module):
    """Two linear layers with a GELU between, under the names that the authors' files have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return vectors of the same shape."""
        result: Tensor = self.layers(x)
        return result


class _Block(nn.Module):
    def __init__(self, width: int, shift: bool, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _ShiftedWindows(width, shift)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = _Feedforward(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        changed: Tensor = x + self.drop_path(self.ffn(self.norm2(x)))
        return changed


class _Merging(nn.Module):
    """Joins 2×2 neighbours, channel by channel (timm's own joins place by place)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, H/2, W/2, 2C) of (N, H, W, C), sides rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        count, height, width, channels = x.shape
        x = x.reshape(count, height // 2, 2, width // 2, 2, channels)
        merged: Tensor = self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))
        return merged


class _Stage(nn.Module):
    def __init__(self, width: int, drop_paths: list[float], last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            _Block(width, number % 2 == 1, drop) for number, drop in enumerate(drop_paths)
        )
        self.downsample = None if last else _Merging(width)


class _PatchEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, H/4, W/4, C), sides rounded up."""
        x = F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        patches: Tensor = self.norm(self.projection(x).permute(0, 2, 3, 1))
        return patches


class _SemanticSwin(nn.Module):
    """A Swin transformer; after each stage, maps are scaled and shifted by the semantic weight."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        depths = (2, 2, depth, 2)
        drops = torch.linspace(0, DROP_PATH, sum(depths), device="cpu").tolist()
        widths = [width * 2**number for number in range(STAGES)]
        self.patch_embed = _PatchEmbed(width)
        self.stages = nn.ModuleList()
        self.semantic_embed_w, self.semantic_embed_b = nn.ModuleList(), nn.ModuleList()
        for number, channels in enumerate(widths):
            start = sum(depths[:number])
            stage_drops = drops[start : start + depths[number]]
            self.stages.append(_Stage(channels, stage_drops, number == STAGES - 1))
            self.add_module(f"norm{number}", nn.LayerNorm(channels))
            following = widths[min(number + 1, STAGES - 1)]
            for layers in (self.semantic_embed_w, self.semantic_embed_b):
                layers.append(nn.Linear(2, following).requires_grad_(False))
        self.num_features = widths[-1]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, weight: float) -> Tensor:
        """Return the (N, C) mean of the last maps."""
        x = self.patch_embed(x)
        pair = torch.cat((x.new_full((1,), weight), x.new_full((1,), 1 - weight)))
        for number, stage in enumerate(self.stages.children()):
            for block in cast(_Stage, stage).blocks.children():
                x = block(x)
            if cast(_Stage, stage).downsample is not None:
                x = cast(Any, stage).downsample(x)
                scale = F.softplus(self.semantic_embed_w[number](pair))
                x = x * scale + self.semantic_embed_b[number](pair)
        pooled: Tensor = cast(Any, self).norm3(x).mean((1, 2))
        return pooled


@register_model("solider")
class SOLIDER(ReIDModel):
    """SOLIDER's Swin transformer, compared by cosine. Parameters have the authors' names.

    Args:
        backbone: "swin_tiny", "swin_small" or "swin_base".
        num_classes: Training identities, one number or one per domain.
        semantic_weight: In [0, 1]: how much semantic information, against appearance, is in the
            feature; 0.2 in the authors' re-ID networks.
        neck: Whether the feature at test time is that before the batch norm, as in the authors'
            tests, or after it.
        size: Height and width that images are resized to.

    Raises:
        InputError: If an argument has a wrong value.

    Example:
        >>> model = SOLIDER("swin_tiny", size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 768])
    """

    def __init__(
        self,
        backbone: str = "swin_base",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        semantic_weight: float = 0.2,
        neck: NeckFeature = "before",
        size: tuple[int, int] = (384, 128),
    ) -> None:
        spec = InputSpec(size=image_size(size), mean=HALF, std=HALF)
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        self.semantic_weight = checked(float, "semantic_weight", semantic_weight, low=0, high=1)
        self.neck = checked_neck(neck)
        if backbone not in NETWORKS:
            hint = did_you_mean(str(backbone), list(NETWORKS))
            raise InputError(
                f"unknown backbone {backbone!r}: {hint}choose one of {', '.join(NETWORKS)}"
            )
        self.base = _SemanticSwin(*NETWORKS[backbone])
        self.bottleneck = bn_neck(self.base.num_features)
        self.build_classifiers(self.base.num_features, bias=False)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, C) features."""
        pooled: Tensor = self.base(inputs, self.semantic_weight)
        return pooled if self.neck == "before" else self.bottleneck(pooled)

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, embeddings before the neck and logits.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        pooled = self.base(self.prepare(x), self.semantic_weight)
        necked = self.bottleneck(pooled)
        return ReIDOutput(
            pooled if self.neck == "before" else necked,
            pooled,
            None if chosen is None else self.logits(necked, chosen),
        )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take checkpoints of the backbone alone, and the classifier of the authors' files."""
        if not any(name.startswith("base.") for name in state):
            return {f"base.{name}": tensor for name, tensor in state.items()}
        return name_head(state, self.num_classes)
