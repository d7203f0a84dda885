"""torchreid's ResNet-50 with a layer of 512 features, and with mid-level features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reidguard.models.backbones import BackboneModel
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.models.layers import dense_layer, initialise

__all__ = ["ResNet50FC512", "ResNet50Mid"]


class _TorchreidResNet50(BackboneModel):
    """timm's ResNet-50 under names that torchreid's files can be given, by Euclidean distance."""

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None,
        last_stride: int,
        size: tuple[int, int],
        pretrained: bool,
    ) -> None:
        super().__init__(
            "resnet50",
            size,
            metric="euclidean",
            num_classes=num_classes,
            last_stride=last_stride,
            pretrained=pretrained,
        )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take torchreid's files, and plain ResNet-50s."""
        return rename(
            state,
            [
                *head_rule(r"classifier\.(?=(weight|bias)$)", self.num_classes),
                (r"(?!(backbone|fc\.\d|fc_fusion|classifier)\.)", "backbone."),
            ],
        )


@register_model("resnet50_fc512")
class ResNet50FC512(_TorchreidResNet50):
    """ResNet-50 without the last stride, then linear layer, batch norm and ReLU.

    The feature has 512 numbers, compared by Euclidean distance.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.
    """

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, last_stride=1, size=size, pretrained=pretrained)
        self.fc = dense_layer(2048, 512)
        initialise(self.fc)
        self.build_classifiers(512)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 512) features."""
        features: Tensor = self.fc(self.backbone(inputs))
        return features


@register_model("resnet50mid")
class ResNet50Mid(_TorchreidResNet50):
    """ResNet-50 whose feature has its mid-level ones, too (Yu et al., arXiv:1711.08106).

    The pooled maps of the first two blocks of the last stage go through a linear layer, batch norm
    and ReLU to 1024 numbers. The 2048 of the last block follow. Compared by Euclidean distance.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.
    """

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        super().__init__(num_classes=num_classes, last_stride=2, size=size, pretrained=pretrained)
        self.fc_fusion = dense_layer(2 * 2048, 1024)
        initialise(self.fc_fusion)
        self.build_classifiers(1024 + 2048)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 3072) features."""
        net = self.backbone
        x = net.maxpool(net.act1(net.bn1(net.conv1(inputs))))
        x = net.layer3(net.layer2(net.layer1(x)))
        pooled = []
        for block in net.layer4:
            x = block(x)
            pooled.append(x.mean((2, 3)))
        return torch.cat([self.fc_fusion(torch.cat(pooled[:2], 1)), pooled[2]], 1)
