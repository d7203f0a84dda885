"""The part that networks with a BN neck share, and their names in other code bases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.backbones import BackboneModel, Stem, map_channels
from reidguard.models.base import ReIDOutput
from reidguard.models.checkpoint_formats import head_rule, rename

__all__ = [
    "GeM",
    "NeckFeature",
    "NeckModel",
    "checked_neck",
    "neck_origin",
    "published_stem",
]

NeckFeature = Literal["before", "after"]
Origin = Literal["fast-reid", "fast-reid 0.1", "strong baseline"]


def checked_neck(neck: NeckFeature) -> NeckFeature:
    """Return which side of the neck the feature is from.

    Raises:
        InputError: If it is neither "before" nor "after".
    """
    if neck not in get_args(NeckFeature):
        raise InputError(f"neck must be 'before' or 'after', not {neck!r}")
    return neck


class GeM(nn.Module):
    """Generalised mean over all places, (mean xᵖ)^(1/p).

    Args:
        p: The exponent.
        learnt: Whether it is a parameter.
    """

    def __init__(self, p: float = 3.0, *, learnt: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([float(p)])) if learnt else float(p)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C) of (N, C, H, W)."""
        return x.clamp(min=1e-6).pow(self.p).mean((2, 3)).pow(1 / self.p)


class NeckModel(BackboneModel):
    """A CNN, pooling, a batch norm (the "neck") and classifiers without bias, compared by cosine.

    Source: Luo et al., *Bag of Tricks and a Strong Baseline for Deep Person Re-identification*,
    CVPR workshops 2019. A subclass calls :meth:`build_neck` last in its constructor.
    """

    #: Which feature is compared at test time.
    tested: NeckFeature = "after"
    #: Which feature the triplet loss compares.
    embedded: NeckFeature = "before"
    #: Code bases whose weights this network computes the same features with.
    origins: tuple[Origin, ...] = ()

    def build_neck(self, backbone: str, pool: nn.Module) -> None:
        """Add pooling, which gives (N, C) of the maps, the neck and the classifiers."""
        size = self.input_spec.size
        assert size is not None
        channels, _ = map_channels(self.backbone, backbone, size)
        self.pool = pool
        self.neck = nn.BatchNorm1d(channels)
        self.neck.bias.requires_grad_(False)
        self.build_classifiers(channels, bias=False)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, C) features of the images."""
        pooled = self._pooled(inputs)
        features: Tensor = self.neck(pooled) if self.tested == "after" else pooled
        return features

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, embeddings and logits. The classifiers see the feature after the neck.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        pooled = self._pooled(self.prepare(x))
        both = {"before": pooled, "after": self.neck(pooled)}
        logits = None if chosen is None else self.logits(both["after"], chosen)
        return ReIDOutput(both[self.tested], both[self.embedded], logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the weights of :attr:`origins`, and plain backbones.

        Names of another code base stay as they are, and so do not fit: its networks compute other
        features with the same weights.
        """
        origin = neck_origin(state)
        if origin is None:
            return super().adapt_state(state)
        if origin not in self.origins:
            return state

        def block(match: re.Match[str]) -> str:
            stage = getattr(self.backbone, f"layer{match[2]}", None)
            places = list(getattr(stage, "non_local", ()))
            number = int(match[3])
            place = places[number] if number < len(places) else f"{number}?"
            layer = "out" if match[4] == "W" else match[4]
            return f"backbone.layer{match[2]}.non_local.{place}.{layer}."

        state = rename(
            state,
            [
                (r"(base|backbone)\.NL_(\d)\.(\d+)\.(theta|phi|g|W)\.", block),
                (r"base\.", "backbone."),
                (r"(heads\.bottleneck\.0|heads\.bnneck|bottleneck)\.", "neck."),
                (r"(heads\.pool_layer|global_pool)\.", "pool."),
                *head_rule(
                    r"(heads\.classifier\.|heads\.|classifier\.)(?=weight$)", self.num_classes
                ),
                (r"heads\.(?=(classifier\.)?weight$)", "classifier.?."),
            ],
        )
        return without_normalisation(state, self.input_spec.mean, self.input_spec.std)

    def _pooled(self, inputs: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.backbone.forward_features(inputs))
        return pooled


def neck_origin(names: Mapping[str, object]) -> Origin | None:
    """Return the code base that gives such names to networks with a neck; None if it is another.

    The survey's code (AGW) descends from the strong baseline and has its names.
    """
    if any(name.startswith("heads.") for name in names):
        old = any(name.startswith("heads.bnneck.") for name in names)
        return "fast-reid 0.1" if old else "fast-reid"
    if any(name.startswith(("base.", "bottleneck.")) for name in names):
        return "strong baseline"
    return None


def published_stem(origin: Origin, backbone: str) -> Stem:
    """Return the first layers that a code base gives to a backbone.

    fast-reid pools without padding since its version 1.0. The strong baseline leaves the first ReLU
    of plain ResNets out. Their other backbones are as everywhere.
    """
    if origin == "fast-reid":
        return "resnet" if "resnest" in backbone else "fast-reid"
    if origin == "strong baseline" and re.fullmatch(r"resnet\d+", backbone):
        return "no-relu"
    return "resnet"


def without_normalisation(
    state: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Tensor]:
    """Leave out the mean and deviation of pixels in old files of fast-reid, if they are these."""

    def equal(tensor: Tensor, values: tuple[float, ...]) -> bool:
        numbers = tensor.flatten().tolist()
        return len(numbers) == len(values) and all(
            math.isclose(number, 255 * value, rel_tol=1e-4)
            for number, value in zip(numbers, values, strict=True)
        )

    known = {"pixel_mean": mean, "pixel_std": std}
    return {n: t for n, t in state.items() if n not in known or not equal(t, known[n])}
