"""Features of blurred images: a model behind a fixed, differentiable transform of its input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError
from reidguard.models.base import ReIDModel, ReIDOutput
from reidguard.models.front import FrontModel
from reidguard.nn.cameras import with_cameras
from reidguard.schema import check_instance, checked
from reidguard.types import InputSpec, Metric, check_images

__all__ = ["BlurModel"]


class BlurModel(FrontModel):
    """A model that sees each image shrunk, enlarged again and blurred.

    The transform is linear in the image and part of the model, so every attack that is bound to it
    or learnt on it differentiates exactly through it, resizing included; nothing has to be
    approximated (as by BPDA, Athalye et al., ICML 2018). Images
    are resized bilinearly to ``scale`` of their size, with antialiasing, and back, and then
    convolved with a Gaussian of ``sigma`` pixels, cut off at 3 σ, whose weights are renormalised at
    the image's edges. It is compared as the model is, and its classifiers are the model's. A file
    that :meth:`save` writes has the model and the blur.

    Args:
        model: It is not copied.
        sigma: Standard deviation of the Gaussian in pixels; 0 for none.
        scale: Fraction of height and width that the image is shrunk to; 1 for none.

    Raises:
        InputError: If it is no :class:`ReIDModel`, or a number is out of range.

    Example:
        >>> from reidguard.testing import small_model
        >>> x = torch.full((1, 3, 32, 16), 0.5)
        >>> model = small_model()
        >>> blurred = BlurModel(model, sigma=1.0, scale=0.5)
        >>> torch.allclose(blurred.features(x), model.features(x), atol=1e-5)  # one colour stays
        True
        >>> blurred.save("blurred.safetensors")  # doctest: +SKIP
    """

    def __init__(self, model: ReIDModel, sigma: float = 1.0, scale: float = 0.5) -> None:
        check_instance(ReIDModel, "model", model)
        super().__init__(model.metric)
        self.model = model
        self.cameras = model.cameras
        self.num_classes = model.num_classes
        self.head_prefixes = tuple(f"model.{prefix}" for prefix in model.head_prefixes)
        self.sigma = checked(float, "sigma", sigma, low=0, high=100)
        self.scale = checked(float, "scale", scale, above=0, high=1)

    @property
    def input_spec(self) -> InputSpec:
        """Resizing and normalisation, which are the model's."""
        spec: InputSpec = self.model.input_spec
        return spec

    @input_spec.setter
    def input_spec(self, spec: InputSpec) -> None:
        if "model" in self._modules:  # the base class's constructor sets it before there is one
            self.model.input_spec = spec

    @property
    def metric(self) -> Metric:
        """How features are compared, which is the model's."""
        metric: Metric = self.model.metric
        return metric

    @metric.setter
    def metric(self, metric: Metric) -> None:
        if "model" in self._modules:
            self.model.metric = metric

    def extra_repr(self) -> str:
        """Return what differs from the model, which fingerprints see, too."""
        return f"sigma={self.sigma}, scale={self.scale}"

    def transform(self, x: Tensor) -> Tensor:
        """Return the (N, 3, H, W) images that the model sees.

        Raises:
            InputError: If ``x`` is no such tensor.
        """
        check_images(x)
        size = tuple(x.shape[2:])
        if self.scale < 1:
            small = [max(1, round(self.scale * side)) for side in size]
            x = F.interpolate(x, small, mode="bilinear", align_corners=False, antialias=True)
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return gaussian_blur(x, self.sigma) if self.sigma > 0 else x

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the (N, D) features of the transformed images; see :meth:`ReIDModel.features`."""
        return with_cameras(self.model, cameras).features(self.transform(x))

    def logits(self, features: Tensor, domain: str) -> Tensor:
        """Return the (N, identities) scores of one of the model's classifiers."""
        return self.model.logits(features, domain)

    def forward(
        self,
        x: Tensor,
        domain: str | None = None,
        cameras: Tensor | Sequence[int] | None = None,
    ) -> ReIDOutput:
        """Return the model's training outputs; see :meth:`ReIDModel.forward`."""
        return with_cameras(self.model, cameras)(self.transform(x), domain=domain)

    def _card(self) -> dict[str, Any]:
        """Return the model's card with the blur's numbers; see :meth:`ReIDModel.save`."""
        if isinstance(self.model, BlurModel):
            raise InputError("a file has one blur: blur the model inside, with a larger sigma")
        blur = {"sigma": self.sigma, "scale": self.scale}
        return {**self.model._card(), "training": self.provenance, "blur": blur}


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Convolve with a Gaussian cut off at 3 σ, its weights renormalised at the edges.

    Args:
        images: (N, C, H, W).
        sigma: Standard deviation in pixels, above 0.
    """
    for axis in (2, 3):
        images = torch.movedim(images, axis, -1)
        kernel = _kernel(images.shape[-1], sigma).to(images)
        images = torch.movedim(images @ kernel, -1, axis)
    return images


def _kernel(length: int, sigma: float) -> Tensor:
    """Return the (length, length) matrix of a blur along one axis: its columns add up to 1."""
    places = torch.arange(length, dtype=torch.float64)
    apart = (places[:, None] - places[None, :]).abs()
    weights = torch.exp(-((apart / sigma) ** 2) / 2)
    weights = weights.masked_fill(apart > math.ceil(3 * sigma), 0)
    return weights / weights.sum(0)
