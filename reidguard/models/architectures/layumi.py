"""The networks of layumi's Person_reID_baseline_pytorch (Zheng et al.)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.pcb import PCB, REDUCED
from reidguard.models.backbones import BackboneModel, blank_pass
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["FTNet", "LayumiPCB"]

SQUARE = "swin_base_patch4_window7_224"  # the only backbone that it gives square images


@register_model("layumi_ft_net")
class FTNet(BackboneModel):
    """layumi's ft_net: a backbone's mean feature, a linear layer and batch norm, by cosine.

    Source: the code of layumi/Person_reID_baseline_pytorch. Images are resized bicubically. Its
    tests add the feature of the mirrored image.

    Args:
        backbone: A timm network: "resnet50" (its ft_net; "resnet50_ibn_a" with ``--ibn``),
            "densenet121", "swin_base_patch4_window7_224", "swinv2_base_window8_256",
            "convnext_base", "hrnet_w18" or another one.
        num_classes: Training identities, one number or one per domain.
        last_stride: 2, or 1 as with its ``--stride 1``, of ResNets and DenseNets.
        embedding: Length of the feature; 0 leaves the linear layer out, as ``--linear_num 0`` does.
        size: Height and width that images are resized to. None for its own: (224, 224) for the
            first Swin, (256, 128) for the others.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, or cannot work at this size or stride.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> import torch
        >>> model = FTNet("resnet18", size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        last_stride: int = 2,
        embedding: int = 512,
        size: tuple[int, int] | None = None,
        pretrained: bool = False,
    ) -> None:
        embedding = checked(int, "embedding", embedding, low=0, high=10**6)
        dense = str(backbone).startswith("densenet")
        own_size = (224, 224) if backbone == SQUARE else (256, 128)
        super().__init__(
            backbone,
            own_size if size is None else size,
            metric="cosine",
            num_classes=num_classes,
            last_stride=2 if dense else last_stride,
            pretrained=pretrained,
        )
        self.input_spec = InputSpec(size=self.input_spec.size, interpolation="bicubic")
        if dense:
            _change_densenet(self.backbone, checked(int, "last_stride", last_stride, low=1, high=2))
        if hasattr(self.backbone, "head"):  # may normalise
            self.backbone.head = nn.Identity()
        shown = blank_pass(
            self.backbone, backbone, cast(Any, self.input_spec.size), "forward_features"
        )
        width = int(self._mean(shown).shape[1])
        layers: list[nn.Module] = [nn.Linear(width, embedding)] if embedding else []
        self.neck = nn.Sequential(*layers, nn.BatchNorm1d(embedding or width))
        self.build_classifiers(embedding or width)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, D) features."""
        features: Tensor = self.neck(self._mean(self.backbone.forward_features(inputs)))
        return features

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain, with dropout (0.5) in training."""
        return super().logits(F.dropout(features, 0.5, self.training), domain)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take its names, of Swins also those of timm before 0.9, and plain backbones."""
        if not any(name.startswith("classifier.add_block.") for name in state):
            return super().adapt_state(state)
        shift = int("model.layers.0.downsample.norm.weight" in state)  # once at a stage's end
        state = rename(
            state,
            [
                (
                    r"model\.layers\.(\d)\.downsample\.",
                    lambda m: f"backbone.layers.{int(m[1]) + shift}.downsample.",
                ),
                (r"model\.", "backbone."),
                (r"classifier\.add_block\.", "neck."),
                *head_rule(r"classifier\.classifier\.0\.", self.num_classes),
            ],
        )
        # Older versions of timm save constants of a Swin, which now are computed.
        constant = re.compile(r"backbone\.layers\..*\.(attn_mask|relative_position_index)$")
        return {name: tensor for name, tensor in state.items() if not constant.match(name)}

    def _mean(self, output: Tensor) -> Tensor:
        """Return (N, C), the mean over all places or tokens."""
        if output.dim() == 3:
            return output.mean(1)
        nhwc = getattr(self.backbone, "output_fmt", "") == "NHWC"
        return output.mean((1, 2) if nhwc else (2, 3))


def _change_densenet(network: nn.Module, last_stride: int) -> None:
    """Leave the last ReLU out, as its code does, and set the stride of the last pooling."""
    features = cast(Any, network).features
    features.norm5.act = nn.Identity()
    features.transition3.pool.stride = last_stride


@register_model("layumi_pcb")
class LayumiPCB(PCB):
    """layumi's PCB: six stripes of a ResNet without its last stride, compared by cosine.

    The feature is that of the original PCB: all stripes before the reduction, each of length 1. The
    reduction is a linear layer with batch norm and without a ReLU. Images are resized bicubically.

    Source: Sun et al., ECCV 2018, in the code of layumi/Person_reID_baseline_pytorch. Its tests add
    the feature of the mirrored image.

    Args:
        backbone: Name of a timm ResNet.
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, has no maps or too few rows.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> import torch
        >>> model = LayumiPCB("resnet18", size=(96, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 3072])
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (384, 192),
        pretrained: bool = False,
    ) -> None:
        super().__init__(
            backbone, num_classes=num_classes, feature="pooled", size=size, pretrained=pretrained
        )
        self.input_spec = InputSpec(size=self.input_spec.size, interpolation="bicubic")
        channels = cast(Any, self.parts[0])[0].in_channels
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, REDUCED, 1), nn.BatchNorm2d(REDUCED), nn.Dropout(0.5))
            for _ in self.parts
        )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take its names, and plain backbones."""
        head = r"classifier(\d+)\.classifier\.0\."
        if not any(re.match(r"classifier\d+\.add_block\.", name) for name in state):
            return super().adapt_state(state)
        state = rename(
            state,
            [
                (r"model\.", "backbone."),
                (r"classifier(\d+)\.add_block\.", r"parts.\1."),
                *head_rule(head, self.num_classes, r"\1."),
                (head, r"classifier.?.\1."),
            ],
        )
        # A linear layer there is a 1×1 convolution here.
        return {
            n: t[:, :, None, None] if n.startswith("parts.") and t.dim() == 2 else t
            for n, t in state.items()
        }
