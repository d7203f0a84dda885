"""fast-reid's networks: bag of tricks, AGW, SBS and MGN (He et al., 2020)."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.architectures.agw import add_non_local
from reidguard.models.architectures.bn_neck import (
    GeM,
    NeckModel,
    Origin,
    published_stem,
    without_normalisation,
)
from reidguard.models.backbones import (
    build_backbone,
    change_stem,
    dilate_last_stage,
    keep_resolution,
    map_channels,
)
from reidguard.models.base import ReIDModel, ReIDOutput, identity_layer, image_size
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.types import InputSpec

__all__ = ["MGN", "FastReID"]

Method = Literal["bot", "agw", "sbs"]
Version = Literal["1", "0.1"]

SCALE = 64  # of the cosines that are SBS's and MGN's logits
REDUCED = 256
#: MGN's parts: the whole image for each of three branches, two halves, three thirds.
PARTS = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")


class FastReID(NeckModel):
    """A network of fast-reid. The feature is the one after the BN neck, compared by cosine.

    Source: the code of JDAI-CV/fast-reid, tags v0.1.1 and v1.3.0. Images are resized bicubically.

    Args:
        method: "bot", the bag of tricks; "agw" with non-local blocks and GeM pooling, p = 3; "sbs"
            likewise with p learnt. Logits of "sbs" are cosines times 64.
        backbone: "resnet50", "resnet50_ibn_a", "resnet101_ibn_a" (its R50, R50-ibn, R101-ibn),
            "resnest50d" (its S50, without non-local blocks) or another ResNet of timm.
        num_classes: Training identities, one number or one per domain.
        version: "1" for weights of its versions 1.0 and later. "0.1" for those of its model zoo:
            ResNets pool with padding, AGW learns p, ResNeSt is not dilated and has non-local
            blocks. Files of the two have different names, and the wrong one is an error.
        last_stride: 1 as published, or 2.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If an argument is unknown, or the backbone has no such stages.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> model = FastReID("sbs", "resnet18_ibn_a", size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        method: Method,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        version: Version = "1",
        last_stride: int = 1,
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        version = _checked_version(version)
        origin = _origin(version)
        super().__init__(
            backbone,
            size,
            metric="cosine",
            num_classes=num_classes,
            last_stride=last_stride,
            stem=published_stem(origin, backbone),
            pretrained=pretrained,
        )
        self.input_spec = InputSpec(size=self.input_spec.size, interpolation="bicubic")
        self.origins = (origin,)
        self.method: Method = method
        self.embedded = "after" if method == "sbs" else "before"
        resnest = "resnest" in backbone
        if resnest and version == "1" and last_stride == 1:
            dilate_last_stage(self.backbone)
        if method != "bot" and not (resnest and version == "1"):
            add_non_local(self.backbone, backbone, _non_local(backbone))
        pool: nn.Module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if method != "bot":
            pool = GeM(learnt=method == "sbs" or version == "0.1")
        self.build_neck(backbone, pool)

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one domain."""
        if self.method == "sbs":
            return cosine_logits(features, self.classifier[domain])
        return super().logits(features, domain)


def cosine_logits(features: Tensor, classifier: nn.Module) -> Tensor:
    """Return 64 times the cosines of features and the classifier's weights."""
    weight = cast(nn.Linear, classifier).weight
    return SCALE * F.linear(F.normalize(features), F.normalize(weight))


def _checked_version(version: object) -> Version:
    if isinstance(version, int | float) and not isinstance(version, bool):
        version = f"{version:g}"  # as a command line reads it
    if version not in get_args(Version):
        raise InputError(f"version must be '1' or '0.1', not {version!r}")
    return cast(Version, version)


def _origin(version: Version) -> Origin:
    return "fast-reid" if version == "1" else "fast-reid 0.1"


def _non_local(backbone: str) -> tuple[int, int, int, int]:
    if re.match(r"resnet(18|34)(?!\d)", backbone):
        return (0, 0, 0, 0)
    return (0, 2, 9, 0) if re.match(r"resnet101", backbone) else (0, 2, 3, 0)


def _register(method: Method, default_size: tuple[int, int]) -> None:
    @register_model(f"fastreid_{method}")
    def fastreid(
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        version: Version = "1",
        last_stride: int = 1,
        size: tuple[int, int] = default_size,
        pretrained: bool = False,
    ) -> FastReID:
        """A network of fast-reid: ResNet or ResNeSt, pooling and BN neck, compared by cosine."""
        return FastReID(
            method,
            backbone,
            num_classes=num_classes,
            version=version,
            last_stride=last_stride,
            size=size,
            pretrained=pretrained,
        )


_register("bot", (256, 128))
_register("agw", (256, 128))
_register("sbs", (384, 128))


@register_model("fastreid_mgn")
class MGN(ReIDModel):
    """fast-reid's MGN: three branches of a ResNet's last stages, eight parts, compared by cosine.

    The feature has 256 numbers of each part: the whole maps of each branch, two halves of the
    second branch's and three thirds of the third's. Images are resized bicubically. In training
    there are eight arrays of logits (cosines times 64) and five embeddings: the whole maps, and the
    halves and the thirds joined.

    Source: Wang et al., *Learning Discriminative Features with Multiple Granularities for Person
    Re-Identification*, ACM MM 2018, as in the code of JDAI-CV/fast-reid, tags v0.1.1 and v1.3.0.

    Args:
        backbone: "resnet50_ibn_a" as published, or another ResNet of timm.
        num_classes: Training identities, one number or one per domain.
        version: "1" for weights of its versions 1.0 and later; "0.1" for those of its model zoo,
            which pool with padding and have a batch norm and a ReLU before the neck.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If an argument is unknown, or the backbone has no such stages.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> model = MGN("resnet18", num_classes=4, size=(96, 32)).eval()
        >>> output = model(torch.rand(2, 3, 128, 64))
        >>> output.features.shape, len(output.logits), len(output.embeddings)
        (torch.Size([2, 2048]), 8, 5)
    """

    def __init__(
        self,
        backbone: str = "resnet50_ibn_a",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        version: Version = "1",
        size: tuple[int, int] = (384, 128),
        pretrained: bool = False,
    ) -> None:
        version = _checked_version(version)
        origin = _origin(version)
        spec = InputSpec(size=image_size(size), interpolation="bicubic")
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        self.version: Version = version
        network = build_backbone(backbone, image_size(size), pretrained)
        change_stem(network, backbone, published_stem(origin, backbone))
        keep_resolution(network, backbone, 1)
        channels, rows = map_channels(network, backbone, image_size(size))
        if rows < 3 or rows == 4:  # which are cut into two and two
            raise InputError(
                f"the last maps of {backbone!r} have {rows} rows at height {size[0]}, which cannot "
                "be cut into three parts as there: take larger images"
            )
        self.backbone = nn.Sequential(
            *(getattr(network, name) for name in ("conv1", "bn1", "act1", "maxpool")),
            *(network.layer1, network.layer2, network.layer3[0]),
        )
        branch = nn.Sequential(nn.Sequential(*network.layer3[1:]), network.layer4)
        self.b1, self.b2, self.b3 = branch, copy.deepcopy(branch), copy.deepcopy(branch)
        self.parts = nn.ModuleDict({part: _part(channels, version) for part in PARTS})
        self.classifier = nn.ModuleDict()
        for domain, identities in self.num_classes.items():
            layers = {part: identity_layer(REDUCED, identities, bias=False) for part in PARTS}
            self.classifier[domain] = nn.ModuleDict(layers)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return all parts of each image in one row, (N, 2048)."""
        return torch.cat(list(self._parts(inputs).values()), 1)

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, five embeddings and eight arrays of logits.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        parts = self._parts(self.prepare(x))
        logits = None
        if chosen is not None:
            layers = cast(Mapping[str, nn.Module], self.classifier[chosen])
            logits = [cosine_logits(parts[part], layers[part]) for part in PARTS]
        groups = (["b1"], ["b2"], ["b3"], ["b21", "b22"], ["b31", "b32", "b33"])
        embeddings = [torch.cat([parts[part] for part in group], 1) for group in groups]
        return ReIDOutput(torch.cat(list(parts.values()), 1), embeddings, logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take fast-reid's names. Those of the other version stay, and so do not fit."""
        head = r"(b\d+)_head\.(?:classifier\.)?(?=weight$)"
        rules: list[Any] = [
            *head_rule(head, self.num_classes, r"\1."),
            (head, r"classifier.?.\1."),
        ]
        old = any(re.match(r"b\d+_pool\.", name) for name in state)
        if old and self.version == "0.1":
            rules += [
                (r"(b\d+)_pool\.0\.", r"parts.\1.0.0."),
                (r"(b\d+)_pool\.", r"parts.\1."),
                (r"(b\d+)_head\.bnneck\.", r"parts.\1.4."),
            ]
        elif not old and self.version == "1":
            rules += [
                (r"(b\d+)_head\.pool_layer\.", r"parts.\1.0.0."),
                (r"(b\d+)_head\.bottleneck\.0\.", r"parts.\1.1."),
                (r"(b\d+)_head\.bottleneck\.1\.", r"parts.\1.2."),
            ]
        state = rename(state, rules)
        return without_normalisation(state, self.input_spec.mean, self.input_spec.std)

    def _parts(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the (N, 256) feature of each part."""
        shared = self.backbone(inputs)
        maps = {"b1": self.b1(shared), "b2": self.b2(shared), "b3": self.b3(shared)}
        for branch, count in (("b2", 2), ("b3", 3)):
            stripes = torch.chunk(maps[branch], count, dim=2)
            maps.update({f"{branch}{i}": stripe for i, stripe in enumerate(stripes, 1)})
        return {part: self.parts[part](maps[part]) for part in PARTS}


def _part(channels: int, version: Version) -> nn.Sequential:
    """Pooling, reduction to 256 channels, and the neck."""
    reduction = nn.Conv2d(channels, REDUCED, 1, bias=False)
    nn.init.kaiming_normal_(reduction.weight, mode="fan_out", nonlinearity="relu")
    pooled = nn.Sequential(GeM(), nn.Unflatten(1, (channels, 1, 1)))
    neck = nn.BatchNorm2d(REDUCED)
    neck.bias.requires_grad_(False)
    between = [nn.BatchNorm2d(REDUCED), nn.ReLU()] if version == "0.1" else []
    return nn.Sequential(pooled, reduction, *between, neck, nn.Flatten())
