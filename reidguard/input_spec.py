"""The preprocessing of images inside a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError
from reidguard.schema import MAX_SIDE, checked

__all__ = ["PREPROCESSING", "InputSpec"]

# Choices of an InputSpec besides size and normalisation; the first is the default.
PREPROCESSING: dict[str, tuple[str | int, ...]] = {
    "channels": ("rgb", "bgr"),
    "value_range": (1, 255),
    "interpolation": ("bilinear", "bicubic", "nearest"),
}


def channel_values(values: Sequence[float], images: Tensor) -> Tensor:
    """Return one number per channel, (3, 1, 1), in the dtype and on the device of images.

    Unlike ``images.new_tensor(values)`` it does not wait for a GPU.
    """
    host = torch.tensor(values, dtype=images.dtype, device="cpu")
    return host.to(images.device, non_blocking=True).view(3, 1, 1)


@dataclass(frozen=True)
class InputSpec:
    """Preprocessing of [0, 1] RGB images inside a model. Saved with the weights.

    Images are resized, their channels put in the network's order, their values brought to its
    range, and normalised: ``(value_range · x − mean) / std``.

    Args:
        size: Height and width that the network was trained on; None keeps the image's own.
        mean: Per-channel mean to subtract, in the network's order and range; ImageNet's by default.
        std: Per-channel standard deviation to divide by, likewise.
        channels: "rgb" or "bgr" (OpenCV's order, of many networks in production).
        value_range: Largest value of a pixel before normalisation, 1 or 255.
        interpolation: "bilinear", "bicubic" (both antialiased when shrinking, as Pillow does) or
            "nearest".

    Raises:
        InputError: If a value is wrong, or mean and std are in units of 1 and the range is 255.

    Example:
        >>> spec = InputSpec(size=(256, 128))
        >>> spec.apply(torch.rand(2, 3, 128, 64)).shape
        torch.Size([2, 3, 256, 128])
        >>> raw = {"mean": (0, 0, 0), "std": (1, 1, 1)}
        >>> spec = InputSpec(size=None, channels="bgr", value_range=255, **raw)
        >>> spec.apply(torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1)).flatten()
        tensor([  0.,  51., 255.])
    """

    size: tuple[int, int] | None = (256, 128)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: Literal["rgb", "bgr"] = "rgb"
    value_range: Literal[1, 255] = 1
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"

    def __post_init__(self) -> None:
        if self.size is not None:
            size = checked(tuple[int, int], "size", self.size, low=1, high=MAX_SIDE)
            object.__setattr__(self, "size", size)
        mean = checked(tuple[float, ...], "mean", self.mean, low=-1e6, high=1e6)
        std = checked(tuple[float, ...], "std", self.std, low=1e-6, high=1e6)
        if len(mean) != 3 or len(std) != 3:
            raise InputError(
                f"mean and std need three numbers each, not {self.mean!r} and {self.std!r}"
            )
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        for name, choices in PREPROCESSING.items():
            value = getattr(self, name)
            if isinstance(value, bool) or value not in choices:
                words = " or ".join(map(repr, choices))
                raise InputError(f"{name} must be {words}, not {value!r}")
        if self.value_range == 255 and max(std) < 1:
            raise InputError(
                f"std {std} is in units of 1, but value_range is 255: give mean and std in units "
                "of 255, such as mean=(0, 0, 0), std=(1, 1, 1) for a network that normalises itself"
            )

    def apply(self, images: Tensor) -> Tensor:
        """Resize and normalise (N, 3, H, W) images, in the network's channel order and range."""
        if self.size is not None and tuple(images.shape[2:]) != tuple(self.size):
            # The CPU resizes no half precision with antialiasing, and weights would be coarse.
            wide = images.to(torch.promote_types(images.dtype, torch.float32))
            if self.interpolation == "nearest":
                wide = F.interpolate(wide, self.size, mode="nearest-exact")
            else:
                wide = F.interpolate(
                    wide, self.size, mode=self.interpolation, align_corners=False, antialias=True
                )
            images = wide.to(images.dtype)
        if self.channels == "bgr":
            images = images.flip(1)
        # (value_range · images - mean) / std in one pass, constants rounded once
        scale = channel_values([self.value_range / s for s in self.std], images)
        shift = channel_values([-m / s for m, s in zip(self.mean, self.std, strict=True)], images)
        return torch.addcmul(shift, images, scale)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; what is as most networks have it is left out."""
        size = list(self.size) if self.size is not None else None
        values: dict[str, Any] = {"size": size, "mean": list(self.mean), "std": list(self.std)}
        for name, choices in PREPROCESSING.items():
            if (value := getattr(self, name)) != choices[0]:
                values[name] = value
        return values
