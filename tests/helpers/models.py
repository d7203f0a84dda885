"""Small models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from helpers.batches import rng
from reidguard.models import CameraModel, ReIDModel, create_model
from reidguard.types import InputSpec


class TinyNet(ReIDModel):
    """A small network with a classifier of six identities."""

    def __init__(self, size: tuple[int, int] = (32, 16)) -> None:
        super().__init__(input_spec=InputSpec(size=size), metric="euclidean", num_classes=6)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Tanh())
        self.build_classifiers(8)
        nn.init.normal_(self.classifier["default"].weight, std=5.0)

    def embed(self, inputs: Tensor) -> Tensor:
        return self.body(inputs).mean((2, 3))


class CameraNet(CameraModel):
    """A small smooth network; each camera multiplies its features by a row of its own."""

    def __init__(self, num_classes: Any = None, cameras: int = 4, first_camera: int = 1) -> None:
        super().__init__(
            input_spec=InputSpec(size=(32, 16)),
            metric="euclidean",
            num_classes=num_classes,
            cameras=cameras,
            first_camera=first_camera,
        )
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Tanh(), nn.Conv2d(8, 6, 2))
        self.table = nn.Parameter(torch.randn(max(cameras, 1), 6))
        self.build_classifiers(6)

    def embed(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        features = self.body(inputs).mean((2, 3))
        return features if rows is None else features * self.table[rows]


class SmoothEmbedder(nn.Module):
    """A small frozen network in float64 whose second derivatives are not negligible."""

    metric = "euclidean"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 5, 3), nn.Tanh(), nn.Flatten()
        )
        for p in self.net.parameters():
            nn.init.normal_(p, std=0.5, generator=rng(p.numel()))
            p.requires_grad_(False)
        self.double()

    def features(self, x: Tensor) -> Tensor:
        return self.net(x)


def tiny_model(name: str = "ide", *, seed: int = 0, **options: Any) -> ReIDModel:
    """Return a seeded model on timm's smallest ResNet for 64x32 images.

    The global generator is not advanced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(name, **{"backbone": "test_resnet", "size": (64, 32), **options})
