"""Scores of how suspicious a query image is, from a model's features.

A score is registered under a name and takes a batch of images with all that a detector knows.
Higher is more suspicious. Scores are differentiable, so that an attack can lower them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.detection.transforms import blur, jpeg, shift
from reidguard.objectives import normalized_features
from reidguard.registry import Registry
from reidguard.schema import MAX_SIDE, checked
from reidguard.types import Embedder

__all__ = [
    "DETECTION_SCORES",
    "AgreementScore",
    "BlurScore",
    "ConsistencyScore",
    "DetectionScore",
    "DetectorBatch",
    "FlipScore",
    "JpegScore",
    "NeighbourScore",
    "Reference",
    "ShiftScore",
]

TINY = 1e-12  # below which the root of a squared distance has no usable gradient


@dataclass(frozen=True, eq=False)
class Reference:
    """A model, and its features of the clean gallery.

    Attributes:
        model: Gives ``features``.
        gallery: (G, D) normalized features, as the model's retrieval compares them.

    Example:
        >>> from reidguard.testing import small_model
        >>> reference = Reference(small_model(), torch.eye(3, 96))
        >>> reference.features(torch.rand(2, 3, 32, 16)).shape
        torch.Size([2, 96])
    """

    model: Embedder
    gallery: Tensor

    def features(self, images: Tensor) -> Tensor:
        """Return (N, D) normalized features."""
        return normalized_features(self.model, images)

    def distances(self, features: Tensor) -> Tensor:
        """Return the (N, G) Euclidean distances of normalized features to the gallery."""
        gallery = self.gallery.to(features.dtype)
        squares = (features * features).sum(1, keepdim=True) + (gallery * gallery).sum(1)
        return (squares - 2 * features @ gallery.T).clamp(min=TINY).sqrt()


@dataclass(frozen=True, eq=False)
class DetectorBatch:
    """Images to be scored, and all that a detector knows.

    Example:
        >>> from reidguard.testing import small_model
        >>> reference, images = Reference(small_model(), torch.eye(3, 96)), torch.rand(2, 3, 32, 16)
        >>> batch = DetectorBatch(images, reference.features(images), reference)
        >>> FlipScore()(batch).shape
        torch.Size([2])

    Attributes:
        images: (N, 3, H, W) in [0, 1].
        features: (N, D) their normalized features by the reference's model.
        reference: The model under attack and its gallery.
        others: Further models and their galleries, of the same images.
    """

    images: Tensor
    features: Tensor
    reference: Reference
    others: tuple[Reference, ...] = ()


class DetectionScore(ABC):
    """A score of how suspicious images are; higher is more so.

    Example:
        >>> class Darkness(DetectionScore):
        ...     def __call__(self, batch):
        ...         return -batch.images.mean((1, 2, 3))
    """

    needs_others: ClassVar[bool] = False
    """Whether the score compares the model with others, of which there must be one then."""

    @abstractmethod
    def __call__(self, batch: DetectorBatch) -> Tensor:
        """Return (N,) scores; gradients flow to ``batch.images`` and ``batch.features``.

        The score of an image does not depend on the others of the batch.
        """


DETECTION_SCORES: Registry[DetectionScore] = Registry(
    "detection score", group="reidguard.detection", base=DetectionScore, functions=False
)


class ConsistencyScore(DetectionScore):
    """How far small changes of an image move its feature: mean of ``1 − cos(φ(x), φ(T(x)))``.

    Perturbations that are tuned to pixels tend to break under changes that leave a person as they
    are (compare Xu et al., 2018, on classes).

    Example:
        >>> class DarkenScore(ConsistencyScore):
        ...     def changed(self, images):
        ...         return [0.9 * images]
        >>> DarkenScore().changed(torch.ones(1, 1, 1, 1))
        [tensor([[[[0.9000]]]])]
    """

    @abstractmethod
    def changed(self, images: Tensor) -> list[Tensor]:
        """Return changed copies of (N, 3, H, W) images."""

    def __call__(self, batch: DetectorBatch) -> Tensor:
        """Return (N,) scores from 0 to 2."""
        copies = [batch.reference.features(images) for images in self.changed(batch.images)]
        moved = [1 - F.cosine_similarity(batch.features, features) for features in copies]
        return torch.stack(moved).mean(0)


@DETECTION_SCORES.register("flip")
class FlipScore(ConsistencyScore):
    """How far mirroring an image moves its feature.

    Example:
        >>> FlipScore().changed(torch.tensor([[[[1.0, 2.0]]]]))
        [tensor([[[[2., 1.]]]])]
    """

    def changed(self, images: Tensor) -> list[Tensor]:
        """Return the mirror images."""
        return [images.flip(3)]


@DETECTION_SCORES.register("blur")
class BlurScore(ConsistencyScore):
    """How far a Gaussian blur moves an image's feature.

    Args:
        sigma: Standard deviation in pixels.

    Example:
        >>> len(BlurScore(sigma=0.5).changed(torch.rand(1, 3, 8, 4)))
        1
    """

    def __init__(self, sigma: float = 1.0) -> None:
        self.sigma = checked(float, "sigma", sigma, above=0, high=64)

    def changed(self, images: Tensor) -> list[Tensor]:
        """Return the blurred images."""
        return [blur(images, self.sigma)]


@DETECTION_SCORES.register("jpeg")
class JpegScore(ConsistencyScore):
    """How far JPEG compression moves an image's feature.

    Args:
        quality: Of the compression, from 1 to 100.

    Example:
        >>> len(JpegScore(quality=50).changed(torch.rand(1, 3, 8, 4)))
        1
    """

    def __init__(self, quality: int = 75) -> None:
        self.quality = checked(int, "quality", quality, low=1, high=100)

    def changed(self, images: Tensor) -> list[Tensor]:
        """Return the images after compression."""
        return [jpeg(images, self.quality).to(images.dtype)]


@DETECTION_SCORES.register("shift")
class ShiftScore(ConsistencyScore):
    """How far small shifts, down to the right and up to the left, move an image's feature.

    Args:
        pixels: How far the content is shifted, in both axes.

    Example:
        >>> len(ShiftScore(pixels=1).changed(torch.rand(1, 3, 8, 4)))
        2
    """

    def __init__(self, pixels: int = 3) -> None:
        self.pixels = checked(int, "pixels", pixels, low=1, high=MAX_SIDE)

    def changed(self, images: Tensor) -> list[Tensor]:
        """Return the images shifted in both directions."""
        return [shift(images, step, step) for step in (self.pixels, -self.pixels)]


@DETECTION_SCORES.register("neighbours")
class NeighbourScore(DetectionScore):
    """How far the feature lies from the gallery: mean distance to the nearest gallery features.

    Args:
        neighbours: How many of the nearest count; all of a smaller gallery.

    Example:
        >>> from reidguard.testing import small_model
        >>> reference = Reference(small_model(), torch.eye(3))
        >>> score = NeighbourScore(neighbours=2)
        >>> score(DetectorBatch(torch.rand(1, 3, 32, 16), torch.zeros(1, 3), reference))
        tensor([1.])
    """

    def __init__(self, neighbours: int = 5) -> None:
        self.neighbours = checked(int, "neighbours", neighbours, low=1, high=10**6)

    def __call__(self, batch: DetectorBatch) -> Tensor:
        """Return (N,) distances."""
        count = min(self.neighbours, len(batch.reference.gallery))
        distances = batch.reference.distances(batch.features)
        return distances.topk(count, dim=1, largest=False).values.mean(1)


@DETECTION_SCORES.register("agreement")
class AgreementScore(DetectionScore):
    """How little models agree on the gallery: 1 less the correlation of their distances to it.

    The distances of an image to all gallery images, by the model and by each other one, are
    correlated (Pearson); the score is one less the mean over the other models. An attack on one
    model that does not transfer moves its distances alone.

    Example:
        >>> AgreementScore().needs_others
        True
    """

    needs_others: ClassVar[bool] = True

    def __call__(self, batch: DetectorBatch) -> Tensor:
        """Return (N,) scores from 0 to 2."""
        own = _standardized(batch.reference.distances(batch.features))
        agreement = [
            (own * _standardized(other.distances(other.features(batch.images)))).sum(1)
            for other in batch.others
        ]
        return 1 - torch.stack(agreement).mean(0)


def _standardized(rows: Tensor) -> Tensor:
    """Return rows less their mean, with a norm of 1."""
    return F.normalize(rows - rows.mean(1, keepdim=True))
