"""Backbones from timm: built for an image size, and adapted to re-ID."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import timm
import torch
from torch import Tensor, nn

from reidguard.errors import CheckpointError, InputError, did_you_mean
from reidguard.models.base import Metric, ReIDModel, image_size
from reidguard.models.ibn import IBN_SUFFIX, add_ibn
from reidguard.nn import inference_view
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = [
    "BackboneModel",
    "Stem",
    "blank_pass",
    "build_backbone",
    "change_stem",
    "dilate_last_stage",
    "keep_resolution",
    "map_channels",
]

Stem = Literal["resnet", "fast-reid", "no-relu"]


def build_backbone(
    name: str, size: tuple[int, int], pretrained: bool = False, **changes: Any
) -> Any:
    """Build a timm network without its classifier, for images of (height, width).

    Args:
        name: Of timm; a ResNet with "_ibn_a" after it has the IBN-a layers.
        size: Height and width.
        pretrained: Start from timm's weights.
        **changes: Arguments of timm's network in place of those of the name.

    Raises:
        InputError: If timm knows no such network, or cannot build it for this size.
        CheckpointError: If pretrained weights cannot be loaded.
    """
    plain = name.removesuffix(IBN_SUFFIX) if isinstance(name, str) else name
    if not isinstance(plain, str) or not timm.is_model(plain):  # so no address of a hub either
        hint = did_you_mean(str(name), timm.list_models(), most=3)
        raise InputError(f"unknown timm backbone {name!r}: {hint}timm.list_models() has all names")
    if plain != name and pretrained:
        raise CheckpointError(
            f"timm has no weights of {name!r}: leave pretrained out and pass a file as weights"
        )
    try:
        # Transformers are built for one image size.
        cfg = timm.models.get_pretrained_cfg(plain)
        fixed = cfg is not None and cfg.fixed_input_size
        options = {"num_classes": 0, **({"img_size": size} if fixed else {}), **changes}
        network = timm.create_model(plain, pretrained=pretrained, **options)
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
    if plain != name:
        add_ibn(network, name)
    return network


class BackboneModel(ReIDModel):
    """A re-ID model on a timm network, ``self.backbone``, and that network's normalisation.

    Arguments and errors are those of its subclasses, such as :class:`~reidguard.models.IDE`.
    """

    def __init__(
        self,
        backbone: str,
        size: tuple[int, int],
        *,
        metric: Metric,
        num_classes: int | Mapping[str, int] | None,
        last_stride: int,
        stem: Stem = "resnet",
        pretrained: bool,
    ) -> None:
        size = image_size(size)
        network = build_backbone(backbone, size, pretrained)
        cfg = network.pretrained_cfg
        spec = InputSpec(size=size, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))
        super().__init__(input_spec=spec, metric=metric, num_classes=num_classes)
        change_stem(network, backbone, stem)
        keep_resolution(network, backbone, last_stride)
        self.backbone = network
        # The classifier in checkpoints of timm, such as "fc", and of torchreid.
        names = cfg.get("classifier") or ()
        names = (names,) if isinstance(names, str) else names
        names = ("classifier", *names)
        self.head_prefixes = (*self.head_prefixes, *(f"backbone.{name}." for name in names))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take checkpoints of the backbone alone."""
        if any(name.startswith("backbone.") for name in state):
            return state
        return {f"backbone.{name}": tensor for name, tensor in state.items()}


def blank_pass(network: Any, name: str, size: tuple[int, int], method: str) -> Tensor:
    """Return the output for one blank image, which shows its shape and that the size is possible.

    Args:
        network: It is only read.
        name: For the error message.
        size: Height and width.
        method: "forward" or "forward_features".

    Raises:
        InputError: If the network cannot take images of this size.
    """
    try:
        with torch.no_grad():
            try:  # shapes alone, which take no memory
                view = inference_view(network, fold=False).to("meta")
                output: Tensor = getattr(view, method)(torch.zeros(1, 3, *size, device="meta"))
            except Exception:  # code that needs data
                view = inference_view(network, fold=False)
                output = getattr(view, method)(torch.zeros(1, 3, *size))
    except Exception as error:  # whatever a backbone does with a size that it was not made for
        raise InputError(
            f"{name!r} cannot take images of {size[0]}×{size[1]} "
            f"({type(error).__name__}: {error}); choose another size, such as "
            f"{tuple(network.pretrained_cfg['input_size'][1:])}"
        ) from error
    return output


def map_channels(network: Any, name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return the channels and rows of the last maps of a CNN.

    Raises:
        InputError: If the network gives no (N, C, H, W) maps, as transformers do not.
    """
    maps = blank_pass(network, name, size, "forward_features")
    channels = int(network.num_features)
    if maps.dim() != 4 or maps.shape[1] != channels or getattr(network, "output_fmt", "") == "NHWC":
        raise InputError(
            f"{name!r} gives features of shape {tuple(maps.shape)}, where maps (1, {channels}, "
            "height, width) are needed; choose a CNN such as 'resnet50', or the model 'ide'"
        )
    return channels, int(maps.shape[2])


def change_stem(network: nn.Module, name: str, stem: Stem) -> None:
    """Give a ResNet the first layers that the weights of a known code base were learnt with.

    Args:
        network: Changed in place.
        name: For the error message.
        stem: "resnet" leaves it; "fast-reid" pools without padding and rounds up; "no-relu" leaves
            the first ReLU out.

    Raises:
        InputError: If the name is unknown, or the network has no such layers.
    """
    if stem not in get_args(Stem):
        raise InputError(f"stem must be one of {', '.join(get_args(Stem))}, not {stem!r}")
    if stem == "resnet":
        return
    if not isinstance(getattr(network, "maxpool", None), nn.MaxPool2d):
        raise InputError(f"stem={stem!r} is for ResNets, and {name!r} is none: leave it out")
    if stem == "fast-reid":
        network.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    else:
        network.act1 = nn.Identity()


def dilate_last_stage(network: nn.Module) -> None:
    """Dilate the 3×3 convolutions of a ResNet's last stage, of all blocks but the first, by 2."""
    for block in list(cast(Any, network).layer4)[1:]:
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)


def keep_resolution(network: nn.Module, name: str, last_stride: int) -> None:
    """Set the strides of a ResNet's last stage to 1, without dilation, if ``last_stride`` is 1.

    Raises:
        InputError: If it is neither 1 nor 2, or 1 is not possible with this network.
    """
    last_stride = checked(int, "last_stride", last_stride, low=1, high=2)
    if last_stride == 2:
        return
    stage = getattr(network, "layer4", None)
    if stage is None:
        raise InputError(
            f"last_stride=1 is for ResNets; {name!r} has no stage named layer4: pass last_stride=2"
        )
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
