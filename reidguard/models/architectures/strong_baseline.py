"""The strong baseline of Luo et al. (CVPR workshops 2019), with the BN neck."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from reidguard.models.architectures.bn_neck import (
    NeckFeature,
    NeckModel,
    checked_neck,
    published_stem,
)
from reidguard.models.factory import register_model
from reidguard.types import InputSpec

__all__ = ["StrongBaseline"]


@register_model("strong_baseline")
class StrongBaseline(NeckModel):
    """The strong baseline: mean pooling and a BN neck, compared by cosine.

    Source: Luo et al., *Bag of Tricks and a Strong Baseline for Deep Person Re-identification*, and
    the code of michuanhaohao/reid-strong-baseline. Its plain ResNets have no first ReLU.

    Args:
        backbone: A timm CNN: "resnet18" to "resnet152", "resnet50_ibn_a", and for its SE networks
            "legacy_seresnet50", "legacy_seresnext50_32x4d", "legacy_senet154" and the like.
        num_classes: Training identities, one number or one per domain.
        neck: Which feature is compared at test time, "after" or "before" the BN neck.
        last_stride: 1 as published, or 2.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If an argument is unknown, or the backbone has no such stages.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> import torch
        >>> model = StrongBaseline("resnet18", neck="before", size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    origins = ("strong baseline",)

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        neck: NeckFeature = "after",
        last_stride: int = 1,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        checked_neck(neck)
        super().__init__(
            backbone,
            size,
            metric="cosine",
            num_classes=num_classes,
            last_stride=last_stride,
            stem=published_stem("strong baseline", backbone),
            pretrained=pretrained,
        )
        self.input_spec = InputSpec(size=self.input_spec.size)
        self.tested = neck
        self.build_neck(backbone, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
