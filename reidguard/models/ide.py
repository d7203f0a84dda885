"""IDE: a classification network whose pooled feature is the identity embedding."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import CheckpointError, InputError
from reidguard.models.base import ReIDModel, image_size
from reidguard.models.factory import register_model
from reidguard.types import InputSpec

__all__ = ["IDE"]

NECK = 2048


@register_model("ide")
class IDE(ReIDModel):
    """IDE on any timm backbone. The feature is the backbone's pooled one, compared by Euclid.

    In training a branch of linear layer, batch norm, ReLU and dropout (0.1) leads to one
    classifier per domain; the triplet loss sees the feature itself.

    Args:
        backbone: A timm name, such as "resnet50" or "vit_small_patch16_224". Transformers have
            second-order gradients only without fused attention: call
            ``timm.layers.set_fused_attn(False)`` first.
        num_classes: Training identities, one number or one per domain.
        last_stride: 1 keeps the resolution in the last stage of a ResNet.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, or cannot work at this size or stride.
        CheckpointError: If pretrained weights are asked for and cannot be had.

    Example:
        >>> model = IDE(backbone="resnet18", size=(64, 32))
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    head_prefixes = ("classifier.", "neck.")

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        last_stride: int = 2,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        size = image_size(size)
        network = _backbone(backbone, size, pretrained)
        cfg = _cfg(network)
        spec = InputSpec(size=size, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))
        super().__init__(input_spec=spec, metric="euclidean", num_classes=num_classes)
        if last_stride not in (1, 2):
            raise InputError(f"last_stride must be 1 or 2, not {last_stride!r}")
        if last_stride == 1:
            _keep_resolution(network, backbone)
        self.backbone = network
        width = _width(network, backbone, size)
        if self.num_classes:
            dense = nn.Linear(width, NECK)
            nn.init.kaiming_normal_(dense.weight, mode="fan_out")
            nn.init.zeros_(dense.bias)
            self.neck = nn.Sequential(dense, nn.BatchNorm1d(NECK))
        self.build_classifiers(NECK)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the backbone's (N, D) pooled feature."""
        features: Tensor = self.backbone(inputs)
        return features

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain, through the training branch."""
        hidden = F.dropout(F.relu(self.neck(features)), 0.1, self.training)
        return super().logits(hidden, domain)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take checkpoints of the backbone alone, too, such as timm's own."""
        if any(name.startswith("backbone.") for name in state):
            return state
        return {f"backbone.{name}": tensor for name, tensor in state.items()}


def _backbone(name: str, size: tuple[int, int], pretrained: bool) -> nn.Module:
    if not isinstance(name, str) or not timm.is_model(name):  # so no address of a hub either
        near = difflib.get_close_matches(str(name), timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise InputError(f"unknown timm backbone {name!r}{hint} (timm.list_models() has all names)")
    try:
        # Transformers are built for one image size.
        cfg = timm.models.get_pretrained_cfg(name)
        fixed = cfg is not None and cfg.fixed_input_size
        options: dict[str, Any] = {"img_size": size} if fixed else {}
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=0, **options
        )
    except Exception as error:  # timm asserts, and its downloads fail in many ways
        if pretrained:
            raise CheckpointError(
                f"cannot get timm's weights of {name!r} ({type(error).__name__}: {error}); "
                "leave pretrained out and pass a file as weights"
            ) from error
        raise InputError(
            f"timm cannot build {name!r} for images of {size[0]}×{size[1]} "
            f"({type(error).__name__}: {error}); choose another size or backbone"
        ) from error
    return network


def _cfg(network: nn.Module) -> dict[str, Any]:
    """What timm knows about the input: input_size, mean, std."""
    return cast(dict[str, Any], network.pretrained_cfg)


def _width(network: nn.Module, name: str, size: tuple[int, int]) -> int:
    """Run one blank image: the only sure way to know the width, and that the size is possible."""
    mode = network.training
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, 3, *size))
    except Exception as error:  # whatever a backbone does with a size that it was not made for
        raise InputError(
            f"{name!r} cannot take images of {size[0]}×{size[1]} "
            f"({type(error).__name__}: {error}); choose another size, such as "
            f"{tuple(_cfg(network)['input_size'][1:])}"
        ) from error
    network.train(mode)
    if features.dim() != 2:
        raise InputError(
            f"{name!r} gives features of shape {tuple(features.shape)}, not one vector per image; "
            "use wrap_model with a function that pools them"
        )
    return int(features.shape[1])


def _keep_resolution(network: nn.Module, name: str) -> None:
    """Set the strides of a ResNet's last stage to 1, without dilation."""
    stage = getattr(network, "layer4", None)
    if stage is None:
        raise InputError(f"last_stride=1 is for ResNets; {name!r} has no stage named layer4")
    for parent in list(stage.modules()):
        for child_name, child in list(parent.named_children()):
            stride = getattr(child, "stride", 1)
            if list(child.children()) or stride in (1, (1,), (1, 1)):
                continue
            if isinstance(child, nn.Conv2d):
                child.stride = (1, 1)
            elif isinstance(child, nn.AvgPool2d) and child.padding in (1, (1, 1)):
                child.stride = 1
            elif isinstance(child, nn.AvgPool2d):
                setattr(parent, child_name, nn.Identity())  # 2×2, only there to shrink
            else:
                raise InputError(
                    f"last_stride=1 is not possible with {name!r}: its {type(child).__name__} "
                    "shrinks, too; use last_stride=2"
                )
