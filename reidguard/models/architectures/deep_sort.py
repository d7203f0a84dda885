"""The CNN of the tracker deep_sort, as ZQPei/deep_sort_pytorch has it ("ckpt.t7")."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.backbones import BackboneModel
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.models.layers import initialise

__all__ = ["DeepSort"]

NECK = 256


@register_model("deep_sort")
class DeepSort(BackboneModel):
    """A ResNet-18 for small images: its first convolution is 3×3, with stride 1 and a bias.

    The feature is the pooled one, 512 numbers, compared by cosine. In training a branch of linear
    layer, batch norm, ReLU and dropout leads to one classifier per domain.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
    """

    head_prefixes: tuple[str, ...] = ("classifier.", "neck.")

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (128, 64),
    ) -> None:
        super().__init__(
            "resnet18",
            size,
            metric="cosine",
            num_classes=num_classes,
            last_stride=2,
            pretrained=False,
        )
        self.backbone.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        initialise(self.backbone)
        if self.num_classes:
            self.neck = nn.Sequential(nn.Linear(512, NECK), nn.BatchNorm1d(NECK))
        self.build_classifiers(NECK)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 512) features."""
        features: Tensor = self.backbone(inputs)
        return features

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain, through the training branch."""
        hidden = F.dropout(F.relu(self.neck(features)), 0.5, self.training)
        return super().logits(hidden, domain)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the tracker's files."""
        return rename(
            state,
            [
                (r"conv\.0\.", "backbone.conv1."),
                (r"conv\.1\.", "backbone.bn1."),
                (r"(?=layer\d\.)", "backbone."),
                *head_rule(r"classifier\.4\.", self.num_classes),
                (r"classifier\.(?=[01]\.)", "neck."),
            ],
        )
