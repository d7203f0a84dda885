"""AGW: the baseline of Ye et al.'s survey (TPAMI 2021), attention, GeM pooling and a BN neck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.architectures.bn_neck import (
    GeM,
    NeckModel,
    Origin,
    neck_origin,
    published_stem,
)
from reidguard.models.backbones import Stem
from reidguard.models.factory import register_model
from reidguard.schema import checked

__all__ = ["AGW", "GeM", "NonLocal", "add_non_local"]


class NonLocal(nn.Module):
    """Non-local attention over all places: x + BN(W(θ(x) φ(x)ᵀ g(x) / places)).

    θ, φ and g have a single channel: that is what the published code of AGW and of fast-reid
    computes, and so what AGW's published results are of. A fresh block changes nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, 1, 1)
        self.phi = nn.Conv2d(channels, 1, 1)
        self.g = nn.Conv2d(channels, 1, 1)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.out = nn.Sequential(nn.Conv2d(1, channels, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W) of the same shape."""
        theta, phi, g = (layer(x).flatten(1) for layer in (self.theta, self.phi, self.g))
        # With one channel, θ φᵀ g is θ times the number φᵀ g.
        attended = theta * (phi * g).mean(1, keepdim=True)
        changed: Tensor = self.out(attended.view(len(x), 1, *x.shape[2:]))
        return x + changed


class NonLocalStage(nn.Module):
    """A stage of residual blocks, some of them followed by a non-local block.

    The blocks keep their names, so that checkpoints of the plain network fit.
    """

    def __init__(self, blocks: nn.Sequential, channels: int, count: int) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        last = [name for name, _ in blocks.named_children()][-count:]
        self.non_local = nn.ModuleDict({name: NonLocal(channels) for name in last})

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps after the last block."""
        for name, block in self.named_children():
            if name != "non_local":
                x = block(x)
                if name in self.non_local:
                    x = self.non_local[name](x)
        return x


@register_model("agw")
class AGW(NeckModel):
    """AGW on any timm CNN. The feature is the pooled one after the BN neck, compared by cosine.

    In training the triplet loss sees the pooled feature, the classifiers (without bias) the one
    after the neck. Its published losses (label smoothing, weighted triplet and centre loss) are
    :class:`~reidguard.objectives.reid.AGWObjective`, which ``train_model`` takes by its recipe.

    With ``non_local=(0, 0, 0, 0)`` it works on CNNs without ResNet's stages; with ``p=1`` on top it
    is the "bag of tricks" baseline.

    Args:
        backbone: Name of a timm CNN.
        num_classes: Training identities, one number or one per domain.
        non_local: How many of the last blocks of each of the four stages are followed by a
            non-local block. A stage that has fewer blocks has one after each.
        p: Where GeM pooling starts.
        last_stride: 1 keeps the resolution in the last stage of a ResNet; other CNNs need 2.
        stem: Which variant of ResNet's first layers the weights were learnt with:
            "resnet"; "fast-reid", whose max pooling pads nothing and rounds up; "no-relu", without
            the first ReLU, as in the survey's own code.
        size: Height and width that images are resized to.
        pretrained: Start from timm's weights, which it may download.

    Raises:
        InputError: If the backbone is unknown, or has no maps or no such stages.
        CheckpointError: If pretrained weights cannot be loaded.

    Example:
        >>> model = AGW(backbone="resnet18", size=(64, 32)).eval()
        >>> model.features(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        num_classes: int | Mapping[str, int] | None = None,
        non_local: Sequence[int] = (0, 2, 3, 0),
        p: float = 3.0,
        last_stride: int = 1,
        stem: Stem = "resnet",
        size: tuple[int, int] = (256, 128),
        pretrained: bool = False,
    ) -> None:
        p = checked(float, "p", p, above=0, high=100)
        super().__init__(
            backbone,
            size,
            metric="cosine",
            num_classes=num_classes,
            last_stride=last_stride,
            stem=stem,
            pretrained=pretrained,
        )
        add_non_local(self.backbone, backbone, non_local)
        self.initial_p = float(p)
        known: list[Origin] = ["fast-reid 0.1", "strong baseline"]
        if "resnest" not in backbone:  # fast-reid dilates it
            known.append("fast-reid")
        self.origins = tuple(o for o in known if published_stem(o, backbone) == stem)
        self.build_neck(backbone, GeM(p))

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the networks of fast-reid or the survey that have this stem, and plain backbones."""
        adapted = super().adapt_state(state)
        # p is in a file only where it is learnt. Otherwise fast-reid's AGW pools with p = 3, its
        # baseline without attention and the survey's code by the mean.
        attention = any(name.startswith("backbone.NL_") for name in state)
        fixed_p = 3.0 if attention else 1.0
        if neck_origin(state) in self.origins and self.initial_p == fixed_p:
            adapted.setdefault("pool.p", torch.tensor([fixed_p]))
        return adapted


def add_non_local(network: nn.Module, name: str, counts: Sequence[int]) -> None:
    """Put a non-local block after each of the last blocks of a ResNet's four stages, in place.

    Args:
        network: Changed in place.
        name: For the error message.
        counts: How many of the last blocks, for each stage.

    Raises:
        InputError: If it is not four numbers, or the network has no such stages.
    """
    counts = checked(tuple[int, ...], "non_local", counts, low=0, high=1000)
    if len(counts) != 4:
        raise InputError(
            f"non_local must be four numbers, one per stage, such as (0, 2, 3, 0), not {counts}"
        )
    # timm's records of what each stage gives
    channels = {f["module"]: f["num_chs"] for f in cast(Any, network).feature_info}
    for number, count in enumerate(counts, 1):
        if not count:
            continue
        stage = getattr(network, f"layer{number}", None)
        if not isinstance(stage, nn.Sequential) or f"layer{number}" not in channels:
            raise InputError(
                f"non-local blocks stand in the stages of a ResNet; {name!r} has no layer{number}: "
                "pass non_local=(0, 0, 0, 0)"
            )
        setattr(network, f"layer{number}", NonLocalStage(stage, channels[f"layer{number}"], count))
