"""Attacks on single pictures: Pillow images and image files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from reidguard.contexts import fixed_context
from reidguard.data.decoding import open_rgb
from reidguard.errors import InputError
from reidguard.nn import inference_view
from reidguard.nn.gradients import count_gradients
from reidguard.records import to_path

if TYPE_CHECKING:
    from reidguard.attacks.base import Attack

__all__ = ["attacked_picture"]

EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@fixed_context()
def attacked_picture(attack: Attack, image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    """Return the adversarial image of one picture: see :meth:`Attack.apply`."""
    from reidguard.attacks.devices import attack_device

    if not isinstance(image, Image.Image | str | os.PathLike):
        raise InputError(
            f"apply() takes a Pillow image or the path of a file, not a {type(image).__name__}; "
            "call the attack with (N, 3, H, W) tensors"
        )
    if isinstance(image, Image.Image):
        if image.mode not in EIGHT_BIT:
            raise InputError(
                f"an image of mode {image.mode!r} has no 8-bit colours: convert it with "
                '.convert("RGB") first'
            )
        picture = image.convert("RGB")
    else:
        picture = open_rgb(to_path(image))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    if pixels.numel() == 0:
        raise InputError("the image has no pixels")
    x = pixels.to(attack_device(attack)).float() / 255
    with torch.no_grad(), count_gradients(type(attack).__name__):
        saved = attack.budget.quantize(inference_view(attack)(x), x)
    return Image.fromarray(saved[0].permute(1, 2, 0).contiguous().cpu().numpy())
