"""Blur and shift against loops, JPEG against Pillow's own."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from reidguard.detection.transforms import blur, jpeg, shift


def smooth_images(height, width):
    """Two 8-bit images with gradients and edges, as photographs have."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(x / 5) + y / height, torch.cos((x + y) / 7), (x > y).float()])
    waves = (waves - waves.amin()) / (waves.amax() - waves.amin())
    return (torch.stack([waves, waves.flip(0) ** 2]) * 255).round() / 255


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("size", [(32, 16), (21, 30)])
def test_jpeg_is_that_of_pillow(quality, size):
    """Up to rare ties: libjpeg computes in whole numbers, so a wave may round the other way."""
    images = smooth_images(*size)
    ours = (jpeg(images, quality) * 255).round()
    for image, result in zip(images, ours, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
        changed = (theirs - image * 255).abs().mean()
        inside = slice(0, size[0] - size[0] % 8), slice(0, size[1] - size[1] % 8)
        difference = (result - theirs).abs()[:, inside[0], inside[1]]
        assert float(difference.mean()) < 0.75
        assert float(difference.mean()) < 0.4 * float(changed)
        assert float(difference.median()) <= 1


def test_gradients_pass_the_roundings_of_jpeg():
    """Straight through: what is left is orthonormal maps and the colour transform, the identity."""
    images = (0.2 + 0.6 * smooth_images(16, 8)).requires_grad_()
    weights = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((jpeg(images, 75) * weights).sum(), images)
    torch.testing.assert_close(gradient, weights, rtol=1e-3, atol=1e-3)


def test_blur_equals_loops():
    image = torch.rand(1, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = blur(image, 0.7)
    half = math.ceil(3 * 0.7)
    line = [math.exp(-0.5 * (i / 0.7) ** 2) for i in range(-half, half + 1)]
    line = [value / sum(line) for value in line]
    for y in range(6):
        for x in range(5):
            expected = sum(
                line[half + i] * line[half + j]
                * image[0, :, min(max(y + i, 0), 5), min(max(x + j, 0), 4)]
                for i in range(-half, half + 1)
                for j in range(-half, half + 1)
            )  # fmt: skip
            torch.testing.assert_close(result[0, :, y, x], expected)


@pytest.mark.parametrize("move", [(0, 0), (2, 0), (-1, 3), (0, -2), (9, -9)])
def test_shift_equals_loops(move):
    image = torch.rand(2, 3, 6, 5)
    result = shift(image, *move)
    for y in range(6):
        for x in range(5):
            source = min(max(y - move[0], 0), 5), min(max(x - move[1], 0), 4)
            assert torch.equal(result[:, :, y, x], image[:, :, source[0], source[1]])
