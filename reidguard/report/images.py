"""Images of perturbations: amplified changes, and the colour cube."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from reidguard.attacks.universal.color import interpolate_colors
from reidguard.errors import InputError

__all__ = ["amplified", "as_image", "color_cube"]


def as_image(pixels: Tensor) -> Image.Image:
    """Return (3, H, W) pixels, uint8 or floats in [0, 1], as an image.

    Example:
        >>> as_image(torch.ones(3, 4, 2)).getpixel((0, 0))
        (255, 255, 255)
    """
    if pixels.dim() != 3 or pixels.shape[0] != 3:
        raise InputError(f"an image has the shape (3, H, W), not {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        pixels = (255 * pixels.detach().float()).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.cpu().permute(1, 2, 0).contiguous().numpy())


def amplified(change: Tensor, gain: float) -> Image.Image:
    """Return a change on grey: no change is mid grey, brighter is brighter.

    Args:
        change: (3, H, W) differences, in units of which 1 is the range of a pixel.
        gain: Factor by which they are amplified.

    Example:
        >>> import torch
        >>> amplified(torch.zeros(3, 2, 2), 8).getpixel((0, 0))
        (128, 128, 128)
    """
    return as_image((0.5 + gain * change.detach().float()).clamp(0, 1))


def color_cube(
    lut: Tensor | None = None, *, gain: float | None = None, dark: bool = False, size: int = 160
) -> Image.Image:
    """Draw the surface of the RGB cube along its grey diagonal, on a transparent ground.

    Red points up, green to the lower left, blue to the lower right.

    Args:
        lut: :attr:`~reidguard.attacks.ColorAttack.lut`, (3, R, R, R); None leaves colours as they
            are.
        gain: Show the change, amplified by this factor, on grey instead of the new colours.
        dark: Look from the black corner; by default from the white one.
        size: Height of the image in pixels.

    Example:
        >>> color_cube(size=100).height
        100
    """
    if size < 8:
        raise InputError(f"an image of the colour cube needs at least 8 pixels, not {size}")
    height, width = 2 * size, 2 * round(size * math.sqrt(3) / 2)  # averaged in pairs, for the edges
    y = math.sqrt(2 / 3) * (1 - (2 * torch.arange(height) + 1) / height)[:, None]
    x = math.sqrt(1 / 2) * ((2 * torch.arange(width) + 1) / width - 1)[None]
    # The cube's point of each pixel, up to a multiple of (1, 1, 1) that then fits the surface.
    up, low = y * math.sqrt(2 / 3), -y / math.sqrt(6)
    flat = torch.stack([up.expand(height, width), low - x / math.sqrt(2), low + x / math.sqrt(2)])
    least, most = flat.amin(0), flat.amax(0)
    inside = most - least <= 1
    colours = (flat - least if dark else flat + 1 - most).clamp(0, 1)
    shown = colours
    if lut is not None:
        shown = interpolate_colors(lut.detach().float().cpu(), colours[None])[0]
    if gain is not None:
        shown = (0.5 + gain * (shown - colours)).clamp(0, 1)
    cover = F.avg_pool2d(inside.float()[None], 2)
    shown = F.avg_pool2d((shown * inside)[None], 2)[0] / cover.clamp_min(0.25)
    image = as_image(shown)
    image.putalpha(Image.fromarray((255 * cover[0]).round().byte().numpy()))
    return image
