"""Losses on a map inside the surrogate: dispersion reduction, FIA and NAA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.nn.maps import find_layer, map_at, recorded
from reidguard.objectives.base import ATTACK_LOSSES, AttackLoss, normalized_features
from reidguard.schema import checked
from reidguard.types import Embedder

__all__ = ["DispersionLoss", "FeatureImportanceLoss", "NeuronAttributionLoss"]


@dataclass(eq=False)
class _LayerLoss(AttackLoss):
    """Base of the losses on the map of one layer."""

    caches_clean = False

    layer: str | None = None
    _found: WeakKeyDictionary[nn.Module, nn.Module] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def layer_of(self, model: Any, images: Tensor) -> nn.Module:
        """Return the layer of a model, by the name or by default.

        Raises:
            InputError: If there is none, or the model is an ensemble.
        """
        if hasattr(model, "members"):
            raise InputError(
                f"{type(self).__name__} looks inside one network: with several surrogates give "
                'ensemble="loss", "gradient" or "left_out"'
            )
        root: nn.Module | None = next(iter(getattr(model, "modules", list)()), None)
        if root is None or root not in self._found:
            layer = find_layer(model, self.layer, images.detach())
            if root is not None:
                self._found[root] = layer
            return layer
        return self._found[root]


@ATTACK_LOSSES.register("dispersion")
@dataclass(eq=False)
class DispersionLoss(_LayerLoss):
    """Dispersion reduction: the mean standard deviation of each image's map inside the network.

    ``L = mean over images of std(f_k(x̃))``, over channels and places (Lu et al., CVPR 2020). Needs
    neither labels nor clean features; a pass ends at the layer.

    Args:
        layer: Name of the layer; by default the last stage before the final resolution.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25", size=(64, 32)).eval()
        >>> loss = DispersionLoss("conv3")
        >>> loss.representation(model, torch.rand(2, 3, 64, 32)).shape
        torch.Size([2, 1])
    """

    def reference(self, model: Embedder, images: Tensor) -> Tensor:
        """Return (N, 1) zeros: nothing of the clean images is used."""
        return images.new_zeros(len(images), 1)

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return (N, 1): the standard deviation of each image's map."""
        return map_at(model, self.layer_of(model, images), images).std(1, keepdim=True)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean; only the first argument is used. See :class:`AttackLoss`."""
        return adversarial.mean()


@dataclass(eq=False)
class _AttributionLoss(_LayerLoss):
    """Base of the losses that weigh a map by how much each of its values counts.

    What it counts for is ``l(z) = −‖φ(z) − φ(x)‖² / 2``, the similarity to the clean image as
    retrieval sees it (the cosine, up to a constant, on the unit sphere): an embedder has no logit
    of a true class.
    """

    @abstractmethod
    def variants(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images at which the gradients of ``l`` by the map are added up."""

    def reference(self, model: Embedder, images: Tensor) -> Tensor:
        """Return (N, D): the sum of gradients by the map, scaled to length 1 for each image."""
        layer = self.layer_of(model, images)
        with torch.no_grad():
            target = normalized_features(model, images)
        total: Tensor | None = None
        for variant in self.variants(images.detach()):
            with torch.enable_grad(), recorded(layer, leaf=True) as maps:
                features = normalized_features(model, variant)
                similarity = -(features - target).square().sum() / 2
                (gradient,) = torch.autograd.grad(similarity, maps[-1])
            total = gradient if total is None else total + gradient
        assert total is not None
        return F.normalize(total.flatten(1))

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return (N, D): each image's map."""
        return map_at(model, self.layer_of(model, images), images)


@ATTACK_LOSSES.register("fia")
@dataclass(eq=False)
class FeatureImportanceLoss(_AttributionLoss):
    """Feature importance-aware attack (FIA): the map, weighed by its aggregate gradient.

    ``L = mean over images of Σ Δ ⊙ f_k(x̃)`` with Δ the sum over random masks M of
    ``∂l(x ⊙ M)/∂f_k``, scaled to length 1 (Wang et al., ICCV 2021). Needs no labels. The masks of
    a draw are the same for all images of a batch, and a masked value is black.

    Args:
        layer: Name of the layer; by default the last stage before the final resolution.
        draws: Masks for each batch; each is a forward and a backward pass.
        drop: Probability with which a value of an image is masked.

    Example:
        >>> loss = FeatureImportanceLoss("conv3", draws=10)
        >>> float(loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.5, -0.25]]), torch.tensor([0])))
        0.75
    """

    draws: int = 30
    drop: float = 0.3

    def __post_init__(self) -> None:
        self.draws = checked(int, "draws", self.draws, low=1, high=10**4)
        self.drop = checked(float, "drop", self.drop, low=0, high=0.99)

    def variants(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the images under one mask after another, drawn by the global generator."""
        for _ in range(self.draws):
            kept = torch.rand(1, *images.shape[1:]) >= self.drop
            yield images * kept.to(images)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean of the weighted sums; labels are not used. See :class:`AttackLoss`."""
        return (adversarial * clean.detach()).sum(1).mean()


@ATTACK_LOSSES.register("naa")
@dataclass(eq=False)
class NeuronAttributionLoss(_AttributionLoss):
    """Neuron attribution-based attack (NAA): the attributions of the map's values.

    With ``A = (f_k(x̃) − f_k(0)) ⊙ IA`` and IA the mean of ``∂l(z)/∂f_k`` over images z on the line
    from black to x, scaled to length 1, ``L = mean over images of Σ max(A, 0) − γ Σ max(−A, 0)``
    (Zhang et al., CVPR 2022, with linear transformations). Needs no labels.

    Args:
        layer: Name of the layer; by default the last stage before the final resolution.
        points: Images on the line; each is a forward and a backward pass.
        gamma: γ, the weight of negative attributions.

    Example:
        >>> loss = NeuronAttributionLoss(gamma=2.0)
        >>> float(loss(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([0])))
        0.0
    """

    points: int = 30
    gamma: float = 1.0

    def __post_init__(self) -> None:
        self.points = checked(int, "points", self.points, low=1, high=10**4)
        self.gamma = checked(float, "gamma", self.gamma, low=0, high=1e6)

    def variants(self, images: Tensor) -> Iterator[Tensor]:
        """Yield images of rising brightness, the given ones last."""
        for number in range(1, self.points + 1):
            yield images * (number / self.points)

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return (N, D): each image's map, less that of a black image."""
        maps = super().representation(model, images)
        with torch.no_grad():
            black = super().representation(model, torch.zeros_like(images))
        return maps - black

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean of the sums; labels are not used. See :class:`AttackLoss`."""
        attribution = adversarial * clean.detach()
        positive, negative = attribution.clamp(min=0), (-attribution).clamp(min=0)
        return (positive.sum(1) - self.gamma * negative.sum(1)).mean()
