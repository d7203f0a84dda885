"""Training augmentation of batches, with an explicit generator."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.contexts import fixed_defaults
from reidguard.errors import InputError
from reidguard.input_spec import channel_values
from reidguard.schema import MAX_SIDE, checked
from reidguard.types import BatchShard, check_images

__all__ = ["Augment", "NoisyAugment"]

TRIES = 10  # rectangles drawn per image before giving up on one that fits


@dataclass(frozen=True)
class Augment:
    """Random crop, horizontal flip and random erasing; the defaults are MetaDefense's.

    Each image has its own draws, made on the CPU, so the same generator state gives the same
    augmentation on any device. The number of draws depends on the batch size only.

    Args:
        flip: Probability of a horizontal flip.
        crop: "resized" cuts a random rectangle and stretches it to the image's size; "pad" shifts
            the image by up to ``padding`` pixels over black; "none" leaves it.
        crop_area: Least and greatest area of the rectangle, as a fraction of the image.
        crop_aspect: Least and greatest height / width of the rectangle, in pixels. An image in
            which no drawn rectangle fits is not cropped.
        padding: Pixels, for "pad".
        erase: Probability of erasing a rectangle (Zhong et al., AAAI 2020).
        erase_area: Least and greatest erased fraction of the image.
        erase_aspect: Least height / width of the erased rectangle; the greatest is its inverse.
        erase_value: RGB in [0, 1] that fills it: ImageNet's mean, which models normalise to 0.

    Example:
        >>> images = torch.rand(2, 3, 256, 128)
        >>> augmented = Augment()(images, torch.Generator().manual_seed(1))
        >>> again = Augment()(images, torch.Generator().manual_seed(1))
        >>> augmented.shape, torch.equal(augmented, again)
        (torch.Size([2, 3, 256, 128]), True)
    """

    flip: float = 0.5
    crop: Literal["resized", "pad", "none"] = "resized"
    crop_area: tuple[float, float] = (0.64, 1.0)
    crop_aspect: tuple[float, float] = (2.0, 3.0)
    padding: int = 10
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.2)
    erase_aspect: float = 0.3
    erase_value: tuple[float, float, float] = (0.485, 0.456, 0.406)

    def __post_init__(self) -> None:
        for name in ("flip", "erase"):
            checked(float, name, getattr(self, name), low=0, high=1)
        if self.crop not in ("resized", "pad", "none"):
            raise InputError(f'crop must be "resized", "pad" or "none", not {self.crop!r}')
        for name in ("crop_area", "erase_area"):
            _check_range(name, getattr(self, name), most=1)
        _check_range("crop_aspect", self.crop_aspect, most=MAX_SIDE)
        checked(float, "erase_aspect", self.erase_aspect, above=0, high=1)
        checked(int, "padding", self.padding, low=0, high=MAX_SIDE)
        colour = checked(tuple[float, ...], "erase_value", self.erase_value, low=0, high=1)
        if len(colour) != 3:
            raise InputError(f"erase_value must be RGB in [0, 1], not {self.erase_value}")

    @fixed_defaults()
    def __call__(
        self, images: Tensor, generator: torch.Generator, shard: BatchShard | None = None
    ) -> Tensor:
        """Return augmented copies.

        Args:
            images: Float (N, 3, H, W) in [0, 1].
            generator: A CPU generator; it is advanced.
            shard: The rows of a joint batch that the images are: the draws of the whole joint
                batch are made, and those of these rows used.

        Returns:
            Images of the same shape, dtype and device, in [0, 1].
        """
        check_images(images)
        height, width = images.shape[2:]
        n = len(images) if shard is None else shard.total
        mirrored = torch.rand(n, generator=generator) < self.flip
        boxes = self._crop_boxes(n, height, width, generator)
        erased = torch.rand(n, generator=generator) < self.erase
        holes, fits = _rectangles(
            n,
            height,
            width,
            area=self.erase_area,
            aspect=(self.erase_aspect, 1 / self.erase_aspect),
            generator=generator,
        )
        holes[~(fits & erased)] = 0
        if shard is not None:
            rows = shard.rows.cpu()
            boxes, mirrored, holes = boxes[rows], mirrored[rows], holes[rows]
        images = _cut(images, boxes, mirrored, padding="zeros" if self.crop == "pad" else "border")
        inside = _inside(holes, height, width).to(images.device, non_blocking=True)
        return torch.where(inside, channel_values(self.erase_value, images), images)

    def _crop_boxes(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Return (N, 4): top, left, height, width in pixels; "pad" may start outside the image."""
        full = torch.tensor([0, 0, height, width]).expand(n, 4)
        if self.crop == "pad":
            shift = torch.randint(-self.padding, self.padding + 1, (n, 2), generator=generator)
            return full + F.pad(shift, (0, 2))
        if self.crop == "resized":
            boxes, fits = _rectangles(
                n, height, width, area=self.crop_area, aspect=self.crop_aspect, generator=generator
            )
            return torch.where(fits[:, None], boxes, full)
        return full


@dataclass(frozen=True)
class NoisyAugment(Augment):
    """Augmentation that ends with Gaussian noise, for models whose ranking is certified.

    Each pixel value gets a draw of ``N(0, noise²)``, and the image is cut to [0, 1], as
    :func:`~reidguard.certify` does. The other draws are those of :class:`Augment`, whose arguments
    come first.

    Args:
        noise: Standard deviation in [0, 1] pixel units.

    Example:
        >>> images = torch.full((2, 3, 64, 32), 0.5)
        >>> noisy = NoisyAugment.after(None, 0.1)(images, torch.Generator().manual_seed(0))
        >>> round(float(noisy.std()), 2)
        0.1
    """

    noise: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(float, "noise", self.noise, above=0, high=10)

    @classmethod
    def after(cls, augment: Augment | None, noise: float) -> NoisyAugment:
        """Return the augmentation that adds noise after another one; None leaves the images."""
        if augment is None:
            augment = Augment(flip=0.0, crop="none", erase=0.0)
        values = {f.name: getattr(augment, f.name) for f in fields(Augment)}
        return cls(**values, noise=noise)

    @fixed_defaults()
    def __call__(
        self, images: Tensor, generator: torch.Generator, shard: BatchShard | None = None
    ) -> Tensor:
        """Return augmented copies with noise; arguments and result are those of Augment."""
        images = super().__call__(images, generator, shard)
        n = len(images) if shard is None else shard.total
        noise = torch.randn(n, *images.shape[1:], generator=generator)
        noise = noise if shard is None else noise[shard.rows.cpu()]
        return (images + self.noise * noise.to(images, non_blocking=True)).clamp(0, 1)


def _check_range(name: str, value: object, *, most: float) -> None:
    pair = checked(tuple[float, ...], name, value, above=0, high=most)
    if len(pair) != 2 or pair[0] > pair[1]:
        raise InputError(f"{name} must be (low, high) with 0 < low <= high, not {value!r}")


def _rectangles(
    n: int,
    height: int,
    width: int,
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw n rectangles of uniform area and aspect.

    Returns:
        (N, 4) int64 top, left, height, width: the first of ``TRIES`` that fits into the image; and
        (N,) bool, whether one fits.
    """
    draws = torch.rand(n, TRIES, 4, generator=generator, dtype=torch.float64)
    areas = height * width * (area[0] + (area[1] - area[0]) * draws[..., 0])
    aspects = aspect[0] + (aspect[1] - aspect[0]) * draws[..., 1]
    h = (areas * aspects).sqrt().round()
    w = (areas / aspects).sqrt().round()
    valid = (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
    top = (draws[..., 2] * (height - h + 1)).floor()
    left = (draws[..., 3] * (width - w + 1)).floor()
    first = valid.int().argmax(1)  # the first maximum; 0 where none is valid
    rows = torch.arange(n)
    boxes = torch.stack((top, left, h, w), -1)[rows, first].long()
    return boxes, valid[rows, first]


def _cut(images: Tensor, boxes: Tensor, mirrored: Tensor, *, padding: str) -> Tensor:
    """Resize each image's box to the whole image, bilinearly; mirror some."""
    n, _, height, width = images.shape
    top, left, h, w = boxes.to(torch.float64).unbind(1)
    zero = torch.zeros_like(top)
    # Output x in [-1, 1] maps to input scale·x + shift; pixel centres are at (2j + 1)/W - 1.
    scale_x = torch.where(mirrored, -w, w) / width
    theta = torch.stack(
        (
            torch.stack((scale_x, zero, (2 * left + w) / width - 1), 1),
            torch.stack((zero, h / height, (2 * top + h) / height - 1), 1),
        ),
        1,
    )
    theta = theta.to(images.device, images.dtype, non_blocking=True)
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    cut = F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return cut.clamp(0, 1)  # interpolation weights sum to 1 only up to rounding


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return a mask (N, 1, H, W) of the pixels inside each box."""
    top, left, h, w = boxes.view(-1, 4, 1).unbind(1)
    y = torch.arange(height)
    x = torch.arange(width)
    rows = (y >= top) & (y < top + h)
    columns = (x >= left) & (x < left + w)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
