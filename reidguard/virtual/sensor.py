"""Camera sensor: from linear light to 8 bits, with blur, noise, colours and compression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.domains import Domain

__all__ = ["Sensor", "blur", "compress", "develop", "make_sensor", "resize"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sensor:
    """Parameters of a camera's lens, sensor and image processing."""

    gain: float
    matrix: Array  # (3, 3), white balance included
    gamma: float
    contrast: float
    haze: float
    blur: float  # sigma in pixels at 128 lines
    noise: float
    quality: int  # as in JPEG
    resolution: float  # of the sensor in lines, relative to 128 at the middle distance


def make_sensor(domain: Domain, rng: np.random.Generator) -> Sensor:
    """Draw the sensor of a camera of a domain."""
    warm, tint = rng.uniform(*domain.warmth), rng.uniform(*domain.tint)
    balance = np.array([1 + warm, 1 + tint, 1 - warm])
    saturation = rng.uniform(*domain.saturation)
    grey = np.full((3, 3), 1 / 3)
    mix = rng.normal(0, 0.03, (3, 3))  # dyes of the colour filters
    mix -= mix.mean(axis=1, keepdims=True)
    matrix = grey + saturation * (np.eye(3) - grey) + mix
    return Sensor(
        gain=math.exp(rng.uniform(*np.log(domain.gain))),
        matrix=matrix * balance[:, None],
        gamma=rng.uniform(*domain.gamma),
        contrast=rng.uniform(*domain.contrast),
        haze=rng.uniform(*domain.haze),
        blur=rng.uniform(*domain.blur),
        noise=rng.uniform(*domain.noise),
        quality=int(rng.integers(domain.quality[0], domain.quality[1] + 1)),
        resolution=rng.uniform(*domain.resolution),
    )


def develop(light: Array, sensor: Sensor, exposure: float, lines: float, rng: np.random.Generator,
            drift: Array) -> NDArray[np.uint8]:  # fmt: skip
    """Convert light to an 8-bit image.

    Args:
        light: (3, H, W) linear.
        sensor: The camera's sensor.
        exposure: Factor of this image; 1 is the camera's normal exposure.
        lines: Number of sensor lines of the image; fewer than H blur it.
        rng: Generator of the noise.
        drift: (3,) factors of the white balance error in this image.

    Returns:
        (H, W, 3) uint8.
    """
    high, wide = light.shape[1:]
    light = blur(light, sensor.blur * high / 128)
    small = (max(8, round(min(lines, high))), max(4, round(min(lines, high) * wide / high)))
    if small[0] < high:
        light = resize(blur(light, 0.42 * high / small[0]), small)
    m = sensor.matrix * drift[:, None] * (sensor.gain * exposure)
    rgb = np.stack([m[i, 0] * light[0] + (m[i, 1] * light[1] + m[i, 2] * light[2])
                    for i in range(3)])  # fmt: skip
    rgb = np.maximum(rgb, 0)
    grain = rng.standard_normal(rgb.shape)
    rgb += sensor.noise * np.sqrt(0.05 + rgb) * grain * (0.5 + 0.5 * small[0] / high)
    rgb = np.maximum(rgb, 0) / (1 + 0.18 * rgb * rgb)  # the shoulder, before it clips
    toe = 0.008  # the curve is not vertical at black, or noise would be all one saw there
    rgb = np.power(rgb + toe, sensor.gamma) - toe**sensor.gamma
    rgb = (sensor.haze + (1 - sensor.haze) * rgb).clip(0, 1)
    rgb += sensor.contrast * rgb * (1 - rgb) * (2 * rgb - 1)
    if small[0] < high:
        rgb = resize(rgb, (high, wide))
    rgb = compress(rgb, sensor.quality)
    pixels = np.rint(255 * rgb.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def blur(image: Array, sigma: float) -> Array:
    """Blur the last two axes by a Gaussian; edges are repeated."""
    if sigma < 0.2:
        return image
    reach = max(1, math.ceil(2.5 * sigma))
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(reach + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    for axis in (-1, -2):
        at = np.arange(-reach, image.shape[axis] + reach).clip(0, image.shape[axis] - 1)
        wide = image.take(at, axis)
        size = image.shape[axis]

        def shifted(i: int, wide: Array = wide, axis: int = axis, size: int = size) -> Array:
            start = slice(reach + i, reach + i + size)
            part: Array = wide[..., start] if axis == -1 else wide[..., start, :]
            return part

        image = taps[0] / total * image
        for i in range(1, reach + 1):
            pair = shifted(i) + shifted(-i)
            pair *= taps[i] / total
            image += pair
    return image


def resize(image: Array, size: tuple[int, int]) -> Array:
    """Resize the last two axes bilinearly."""
    for axis, n in ((-2, size[0]), (-1, size[1])):
        old = image.shape[axis]
        if old == n:
            continue
        at = ((np.arange(n) + 0.5) * (old / n) - 0.5).clip(0, old - 1)
        low = np.minimum(at.astype(np.intp), old - 2)
        weight = at - low
        if axis == -2:
            weight = weight[:, None]
        image = image.take(low, axis) * (1 - weight) + image.take(low + 1, axis) * weight
    return image


_K = np.arange(8)
DCT = np.cos(np.pi * (2 * _K[None] + 1) * _K[:, None] / 16) * np.where(_K == 0, 0.125, 0.25)[
    :, None
] ** 0.5  # fmt: skip
# Coarser with frequency, like the tables that cameras use; luminance, then chrominance.
_F = _K[:, None] + _K[None]
TABLES = tuple(np.minimum(low + step * _F**1.6, 110) / 255 for low, step in ((11, 2.4), (16, 8.0)))


def _transform(blocks: Array, matrix: Array) -> Array:
    """Multiply (8, 8, n) by a matrix from both sides, in one fixed order of additions."""
    for _ in range(2):
        out = matrix[:, 0, None, None] * blocks[0]
        for k in range(1, 8):
            out += matrix[:, k, None, None] * blocks[k]
        blocks = out.swapaxes(0, 1)
    return blocks


def _quantise(planes: Array, table: Array) -> Array:
    """Round the coefficients of (m, H, W) to multiples of those of the table."""
    m, high, wide = planes.shape
    split = planes.reshape(m, high // 8, 8, wide // 8, 8).transpose(2, 4, 0, 1, 3)
    steps = table[..., None]
    blocks = _transform(split.reshape(8, 8, -1), DCT)  # the many last, where numpy is fast
    blocks = _transform(np.rint(blocks / steps) * steps, DCT.T)
    return blocks.reshape(split.shape).transpose(2, 3, 0, 4, 1).reshape(m, high, wide)


def compress(rgb: Array, quality: int) -> Array:
    """Quantise (3, H, W) in [0, 1] as JPEG does: 8×8 blocks, chrominance at half resolution."""
    factor = (50 / quality) if quality < 50 else (100 - quality) / 50
    factor = max(factor, 0.02)
    r, g, b = rgb
    y = 0.299 * r + (0.587 * g + 0.114 * b)
    chroma = np.stack([(b - y) * 0.564, (r - y) * 0.713])
    half = 0.25 * (
        chroma[:, ::2, ::2] + chroma[:, ::2, 1::2] + chroma[:, 1::2, ::2] + chroma[:, 1::2, 1::2]
    )
    y = _quantise(y[None] - 0.5, TABLES[0] * factor)[0] + 0.5
    half = _quantise(half, TABLES[1] * factor)
    cb, cr = half.repeat(2, axis=1).repeat(2, axis=2)
    return np.stack([y + 1.402 * cr, y - 0.344 * cb - 0.714 * cr, y + 1.772 * cb])
