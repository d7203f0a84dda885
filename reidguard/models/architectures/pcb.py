"""PCB: a part-based convolutional baseline (Sun et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.backbones import BackboneModel, map_channels
from reidguard.models.base import ReIDOutput
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.schema import checked

__all__ = ["PCB"]

REDUCED = 256
PartFeature = Literal["reduced", "pooled"]


@register_model("pcb")
class PCB(BackboneModel):
    """PCB on any timm CNN: horizontal stripes, each with a feature and a classifier of its own.

    The last maps are averaged within ``parts`` stripes. A 1×1 convolution of its own takes each to
    256 channels, followed by batch norm, ReLU and one classifier per domain. In training half of
    the pooled values are dropped, as in the paper's code. :class:`ReIDOutput` has one embedding and
    one array of logits per stripe.

    Args:
        backbone: Name of a timm CNN.
        num_classes: Training identities, one number or one per domain.
        parts: Stripes.
        feature: What is compared at test time. "reduced", the paper's code: all stripes after the
            convolution, 6 × 256, by Euclidean distance. "pooled", the original PCB: all stripes
            before it, 6 × 2048, each of length 1, by cosine.
        last_stride: 1 keeps the resolution in the last stage of a ResNet; other CNNs need 2.
        size: Height and width that images are resized to. The original PCB takes (384, 128).
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, has no maps or fewer rows than there are parts.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> model = PCB(backbone="resnet18", size=(96, 32), num_classes=4).eval()
        >>> output = model(torch.rand(2, 3, 128, 64))
        >>> output.features.shape, len(output.logits), output.logits[0].shape
        (torch.Size([2, 1536]), 6, torch.Size([2, 4]))
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        parts: int = 6,
        feature: PartFeature = "reduced",
        last_stride: int = 1,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        if feature not in get_args(PartFeature):
            raise InputError(f"feature must be 'reduced' or 'pooled', not {feature!r}")
        super().__init__(
            backbone,
            size,
            metric="euclidean" if feature == "reduced" else "cosine",
            num_classes=num_classes,
            last_stride=last_stride,
            pretrained=pretrained,
        )
        channels, rows = map_channels(self.backbone, backbone, size)
        parts = checked(int, "parts", parts, low=1)
        if parts > rows:
            raise InputError(
                f"the last maps of {backbone!r} have {rows} rows at height {size[0]}, which cannot "
                f"make {parts} parts: take larger images or fewer parts"
            )
        self.feature: PartFeature = feature
        self.parts = nn.ModuleList(_reduction(channels) for _ in range(parts))
        self.build_part_classifiers([REDUCED] * parts)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return all stripes of each image in one row."""
        pooled = self._pooled(inputs)
        return self._row(pooled, self._reduced(pooled) if self.feature == "reduced" else [])

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, and a list of embeddings and of logits with one entry per stripe.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        pooled = self._pooled(self.prepare(x))
        reduced = self._reduced(pooled)
        logits = self.part_logits(reduced, chosen)
        return ReIDOutput(self._row(pooled, reduced), reduced, logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take PCBs of the paper's code, of torchreid and of the original, and plain backbones.

        The latter two have one convolution for all stripes; here each stripe gets a copy.
        """
        names = list(state)
        heads = self.num_classes
        if any(name.startswith("classifiers.") for name in names):
            layers = dict(zip("01", ("conv1", "bn1"), strict=True))
            layers.update({str(3 + i): f"layer{i}" for i in (1, 2, 3, 4)})
            return rename(
                state,
                [
                    (r"backbone\.([014567])\.", lambda m: f"backbone.{layers[m[1]]}."),
                    (r"classifiers\.(\d+)\.add_block\.", r"parts.\1."),
                    *head_rule(r"classifiers\.(\d+)\.classifier\.0\.", heads, r"\1."),
                ],
            )
        if any(name.startswith(("local_conv.", "conv5.layers.")) for name in names):
            state = rename(
                state,
                [
                    (r"base\.", "backbone."),
                    (r"(conv1|bn1|layer\d)\.", r"backbone.\1."),
                    (r"(local_conv|conv5\.layers\.0)\.", "shared.0."),
                    (r"(feat_bn2d|conv5\.layers\.1)\.", "shared.1."),
                    *head_rule(r"(?:instance|classifier\.)(\d+)\.", heads, r"\1."),
                ],
            )
            for name in [name for name in state if name.startswith("shared.")]:
                tensor = state.pop(name)
                for i in range(len(self.parts)):
                    state[f"parts.{i}.{name.removeprefix('shared.')}"] = tensor
            return state
        return super().adapt_state(state)

    def _pooled(self, inputs: Tensor) -> Tensor:
        """The mean of each stripe, (N, C, parts, 1)."""
        maps = self.backbone.forward_features(inputs)
        stripes = F.adaptive_avg_pool2d(maps, (len(self.parts), 1))
        return F.dropout(stripes, 0.5, self.training)

    def _reduced(self, pooled: Tensor) -> list[Tensor]:
        return [part(pooled[:, :, i : i + 1]).flatten(1) for i, part in enumerate(self.parts)]

    def _row(self, pooled: Tensor, reduced: list[Tensor]) -> Tensor:
        if self.feature == "reduced":
            return torch.cat(reduced, 1)
        return F.normalize(pooled).transpose(1, 2).flatten(1)


def _reduction(channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, REDUCED, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(REDUCED), nn.ReLU())
