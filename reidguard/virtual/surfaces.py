"""Surfaces: the colours of ground and walls, from noise and patterns in metres."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.domains import Domain

__all__ = ["Noise", "ground_colour", "wall_base", "wall_colour"]

Array = NDArray[np.float64]


class Noise:
    """A table of 64 × 64 uniform numbers, periodic in both directions."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.table = rng.random((64, 64))

    def __call__(self, x: Array, y: Array) -> Array:
        """Return smooth noise in [0, 1] with one lattice point per unit."""
        x0, y0 = np.floor(x), np.floor(y)
        u, v = x - x0, y - y0
        u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
        i, j = x0.astype(np.intp) % 64, y0.astype(np.intp) % 64
        k, m = (i + 1) % 64, (j + 1) % 64
        t = self.table
        low, high = t[j, i] * (1 - u) + t[j, k] * u, t[m, i] * (1 - u) + t[m, k] * u
        noise: Array = low * (1 - v) + high * v
        return noise

    def cell(self, row: Array, column: Array) -> Array:
        """Return a number for each whole-numbered cell."""
        cell: Array = self.table[row.astype(np.intp) % 64, column.astype(np.intp) % 64]
        return cell


def ground_colour(
    domain: Domain, noise: Noise, rng: np.random.Generator, x: Array, z: Array
) -> Array:
    """Return the (3, n) colours of points on the ground."""
    kind = domain.ground
    base = np.array(domain.ground_colour) * rng.uniform(0.8, 1.15)
    base = ((base * rng.uniform(0.94, 1.06, 3)).clip(0, 1) ** 2.2)[:, None]
    turn = rng.uniform(-0.7, 0.7)
    sizes = {
        "slabs": rng.uniform(0.5, 1.1),
        "tiles": rng.uniform(0.3, 0.6),
        "gloss": rng.uniform(0.7, 1.2),
    }
    if kind == "plain":
        return np.asarray(base * (0.95 + 0.1 * noise(0.5 * x, 0.5 * z)))
    tone = 0.8 + 0.4 * noise(3 * x, 3 * z) * noise(0.7 * x, 0.7 * z + 9)
    if kind == "path":
        edge = rng.uniform(1.2, 2.6)
        middle = rng.uniform(-0.7, 0.7)
        lawn = np.abs(x - middle + 0.3 * np.sin(0.5 * z)) > edge
        colour = base * (0.75 + 0.5 * noise(9 * x, 9 * z))
        grass = np.array([0.09, 0.17, 0.05])[:, None] * (0.5 + noise(14 * x, 9 * z))
        grass = grass * (0.7 + 0.6 * noise(x, z))
        return np.asarray(np.where(lawn[None], grass, colour) * tone)
    u, v = math.cos(turn) * x + math.sin(turn) * z, math.cos(turn) * z - math.sin(turn) * x
    size = sizes[kind]
    i, j = np.floor(u / size), np.floor(v / size)
    joint = (u / size - i < 0.05) | (v / size - j < 0.05)
    if kind == "tiles":
        tone = tone * np.where((i + j) % 2 == 0, 1.0, rng.uniform(0.55, 0.95))
    colour = base * (tone * (0.8 + 0.35 * noise.cell(j, i)) * np.where(joint, 0.6, 1.0))
    if kind == "tiles":
        guide = np.abs(u - rng.uniform(-2, 2)) < 0.2  # a tactile paving strip
        colour = np.where(guide[None], np.array([0.55, 0.42, 0.06])[:, None], colour)
    return np.asarray(colour)


def wall_base(kind: str, domain: Domain, rng: np.random.Generator) -> Array:
    """Draw the (3,) mean colour of a wall."""
    tint = domain.wall_colours[int(rng.integers(len(domain.wall_colours)))]
    base: Array = (np.array(tint) * rng.uniform(0.75, 1.15, 3) ** 0.5).clip(0, 1) ** 2.2
    if kind in ("hedge", "trees"):
        base = np.array([0.06, 0.12, 0.035]) * rng.uniform(0.7, 2.2) * rng.uniform(0.8, 1.3, 3)
    return base


def wall_colour(
    kind: str, base: Array, noise: Noise, rng: np.random.Generator, x: Array, y: Array
) -> Array:
    """Return the (3, n) colours of points on a wall, x along it and y up."""
    flat = base[:, None]
    if kind in ("hedge", "trees"):
        leaf = noise(7 * x, 7 * y) * noise(17 * x + 5, 17 * y)
        return np.asarray(flat * (0.4 + 3.0 * leaf) * (0.7 + 0.6 * noise(x, y)))
    tone = 0.85 + 0.3 * noise(1.5 * x, 1.5 * y)
    if kind == "brick":
        row = np.floor(y / 0.16)
        u = x / 0.5 + 0.5 * (row % 2)
        joint = (y / 0.16 - row < 0.14) | (u - np.floor(u) < 0.05)
        bricks = 0.75 + 0.5 * noise.cell(row, np.floor(u))
        return np.asarray(flat * tone * np.where(joint, 1.5, bricks))
    if kind in ("windows", "shops"):
        return _glazed(kind, flat, tone, noise, rng.uniform(1.4, 3.0), x, y)
    if kind in ("tiles", "panels"):
        size = rng.uniform(0.25, 0.4) if kind == "tiles" else rng.uniform(0.9, 1.8)
        i, j = np.floor(x / size), np.floor(y / size)
        joint = (x / size - i < 0.06) | (y / size - j < 0.06)
        colour = flat * tone * np.where(joint, 0.6, 0.8 + 0.3 * noise.cell(j, i))
        band = np.abs(y - rng.uniform(0.9, 2.0)) < rng.uniform(0.08, 0.3)
        stripe = rng.uniform(0.1, 0.7, 3)[:, None] ** 2.2
        colour = np.where(band[None], stripe, colour)
        poster = (np.abs((x / 2.6) % 1 - 0.5) < 0.22) & (np.abs(y - 1.7) < 0.55)
        picture = np.stack([noise(3 * x + 7 * c, 3 * y) for c in range(3)]) ** 1.5
        return np.asarray(np.where(poster[None], picture, colour))
    if kind == "shutters":
        return np.asarray(flat * (0.7 + 0.4 * np.abs(np.sin(18 * y))) * tone)
    return np.asarray(flat * tone)


def _glazed(
    kind: str, flat: Array, tone: Array, noise: Noise, wide: float, x: Array, y: Array
) -> Array:
    """Return the colours of a wall with windows, or with shop windows full of goods."""
    shop = kind == "shops"
    high = 5.0 if shop else 3.2
    sill = 0.25 if shop else 0.9
    u, v = (x / wide) % 1, y % high
    pane = (np.abs(u - 0.5) < (0.44 if shop else 0.3)) & (v > sill) & (v < high - 0.6)
    brightness = noise.cell(np.floor(x / wide), np.floor(y / high))
    if shop:
        i, j = np.floor(x / 0.35) % 61, np.floor(v / 0.55)
        goods = np.stack([noise.cell(7 * j + c, i) for c in (3, 11, 29)]) ** 2
        glass = (0.15 + 0.75 * goods) * (0.5 + brightness)
        frame = u < 0.05
    else:
        glass = np.array([0.10, 0.13, 0.17])[:, None] * (0.5 + 1.6 * brightness)
        glass = glass * (0.8 + 0.5 * noise(x, y))
        frame = np.abs(np.abs(u - 0.5) - 0.3) < 0.02
    colour = np.where(pane[None], glass, flat * tone)
    return np.asarray(np.where(frame[None], 0.5 * flat, colour))
