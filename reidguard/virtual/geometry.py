"""Ray casting of swept balls: spheres, ellipsoids, capsules and rounded cones.

A :class:`Sweep` is the union of the balls on a segment, with a radius that is linear between its
ends, in a frame that may be stretched along its axes. The entry of a ray is the solution of three
quadratics (two end balls and their common tangent cone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["WORLD", "Box", "Sweep", "Sweeps", "Vec", "View", "cast", "cross", "dot", "unit"]

Array = NDArray[np.float64]
Vec = tuple[float, float, float]
Axes = tuple[Vec, Vec, Vec]
Triple = tuple[Array, Array, Array]
Many = Array | Sequence[Array]  # three numbers for each solid

WORLD: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
NO_STRETCH: Vec = (1.0, 1.0, 1.0)


@overload
def dot(a: Vec, b: Vec) -> float: ...
@overload
def dot(a: Many, b: Many | Vec) -> Array: ...
def dot(a: Any, b: Any) -> Any:
    """Return the inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vec, b: Vec) -> Vec:
    """Return the vector product."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def unit(a: Vec) -> Vec:
    """Return the vector of length 1 in the same direction."""
    length = math.sqrt(dot(a, a))
    return (a[0] / length, a[1] / length, a[2] / length)


@dataclass(frozen=True)
class Sweep:
    """The balls on the segment from ``a`` to ``b``, in the frame ``scale * axes @ (x - origin)``.

    Args:
        origin: World position of the local zero.
        a: First end, in local units.
        b: Second end; the same as ``a`` for a single ball.
        ra: Radius at ``a``.
        rb: Radius at ``b``.
        axes: World directions of the local axes, orthonormal.
        scale: Local units per metre along each axis; 2 halves the solid's size along it.
    """

    origin: Vec
    a: Vec
    b: Vec
    ra: float
    rb: float
    axes: Axes = WORLD
    scale: Vec = NO_STRETCH


class Sweeps:
    """Solids as columns of one array; the numbers of a single solid broadcast to any shape.

    Args:
        rows: (36, n), a column for each solid, as :meth:`of` and :meth:`repeat` make it.
    """

    def __init__(self, rows: Array) -> None:
        self._rows = rows
        x, y, z, self.scale, self.origin, self.a, self.b, self.ba, self.offset, self.start = rows[
            :30
        ].reshape(10, 3, -1)
        self.axes = x, y, z
        self.ra, self.rb, self.ra2, self.far, self.shift, self.k = rows[30:]

    @classmethod
    def of(cls, *parts: Sweep) -> Sweeps:
        """Combine solids."""
        base = np.array([
            (*s.axes[0], *s.axes[1], *s.axes[2], *s.scale, *s.origin, *s.a, *s.b,
             s.ra, s.rb, s.ra**2, s.rb**2) for s in parts
        ]).T  # fmt: skip
        x, y, z, _, origin, a, b = base[:21].reshape(7, 3, -1)
        ra, rb, ra2, rb2 = base[21:]
        ba, loss = b - a, ra - rb
        offset = [dot(axis, origin) for axis in (x, y, z)]
        length = dot(ba, ba)
        k = length - loss * loss
        start = np.where((k <= 0) & (rb > ra), b, a)
        # One end ball may hold the other: then all is that ball, and no ball lies between them.
        k = np.where(k > 0, k, np.inf)
        last = [ra, rb, ra2, length - rb2, ra * loss, k]
        return cls(np.concatenate([base[:21], ba, offset, start, last]))

    def repeat(self, order: Sequence[int], counts: NDArray[np.intp]) -> Sweeps:
        """Return solid ``order[0]`` ``counts[0]`` times, and so on: one for each of many points."""
        return Sweeps(np.repeat(self._rows[:, order], counts, axis=1))

    def direction(self, d: Many | Vec) -> Triple:
        """Return a world direction in the local frames."""
        s, e = self.scale, self.axes
        return s[0] * dot(e[0], d), s[1] * dot(e[1], d), s[2] * dot(e[2], d)

    def place(self, x: Array, y: Array, z: Array) -> Triple:
        """Return world positions along the local axes, in metres (not stretched)."""
        p, q, r = (
            axis[0] * x + (axis[1] * y + (axis[2] * z - offset))
            for axis, offset in zip(self.axes, self.offset, strict=True)
        )
        return p, q, r

    def enter(self, x: Array, y: Array, z: Array, dx: Array, dy: Array, dz: Array) -> Array:
        """Return where rays enter, in units of their direction; inf where they miss.

        Origins and directions are world coordinates and broadcast against each other.
        """
        local = self.place(x, y, z)
        px, py, pz = (k * v - a for k, v, a in zip(self.scale, local, self.a, strict=True))
        ex, ey, ez = (
            k * (axis[0] * dx + (axis[1] * dy + axis[2] * dz))
            for k, axis in zip(self.scale, self.axes, strict=True)
        )
        bx, by, bz = self.ba
        constants = self._constants(
            ex * ex + ey * ey + ez * ez,
            ex * bx + ey * by + ez * bz,
        )
        with np.errstate(invalid="ignore"):
            s = _enter(
                constants,
                px * ex + py * ey + pz * ez,
                px * px + py * py + pz * pz,
                px * bx + py * by + pz * bz,
            )
        return np.where(np.isnan(s), np.inf, s)

    def _constants(self, dd: Array, yd: Array) -> tuple[Array, ...]:
        """Return what :func:`_enter` needs of solids and rays, from d·d and d·b."""
        a2 = dd - yd * yd / self.k
        a2 = np.where(np.abs(a2) < 1e-12, 1e-12, a2)
        return dd, yd, yd / self.k, a2, self.ra2, self.far, self.shift, self.k

    def normal(self, p: Array, q: Array, r: Array) -> Triple:
        """Return unit normals in the world, at surface points from :meth:`place`."""
        k, ba = self.scale, self.ba
        p, q, r = (k[i] * v - self.start[i] for i, v in enumerate((p, q, r)))
        t = ((p * ba[0] + q * ba[1] + r * ba[2] - self.shift) / self.k).clip(0, 1)
        p, q, r = p - t * ba[0], q - t * ba[1], r - t * ba[2]
        p, q, r = p * k[0], q * k[1], r * k[2]
        one = 1 / np.sqrt(p * p + q * q + r * r + 1e-30)
        p, q, r = p * one, q * one, r * one
        e = self.axes
        nx, ny, nz = (e[0][i] * p + e[1][i] * q + e[2][i] * r for i in range(3))
        return nx, ny, nz

    def span(self, along: Vec) -> tuple[Array, Array]:
        """Return the lowest and highest coordinate along a world direction of length 1."""
        e, k = self.axes, self.scale
        back = (dot(e[0], along) / k[0], dot(e[1], along) / k[1], dot(e[2], along) / k[2])
        reach = np.sqrt(dot(back, back))
        start = dot(self.origin, along)
        one, two = start + dot(back, self.a), start + dot(back, self.b)
        ra, rb = self.ra * reach, self.rb * reach
        return np.minimum(one - ra, two - rb), np.maximum(one + ra, two + rb)


def _ball(dd: Array, pd: Array, c: Array) -> Array:
    """Return the smaller root of dd s² + 2 pd s + c, NaN where it has none."""
    root: Array = (pd + np.sqrt(pd * pd - dd * c)) / -dd
    return root


def _enter(constants: Sequence[Array], pd: Array, pp: Array, y0: Array) -> Array:
    """Return the smallest entry, NaN where there is none, from inner products in the local frame.

    With p from ``a`` to the ray's origin, d its direction and b the segment: dd = d·d, pd = p·d,
    pp = p·p, y0 = p·b, yd = d·b.
    """
    dd, yd, yk, a2, ra2, far, shift, k = constants
    pa = pp - ra2
    near: Array = np.fmin(_ball(dd, pd, pa), _ball(dd, pd - yd, pp - 2 * y0 + far))
    # Of all balls, the one nearest to a point x has t = (y - ra rr) / k; its distance is a quadric.
    q0 = y0 - shift
    b2 = pd - yk * q0
    # This root, whatever the sign of a2, is where the quadric falls: where the ray goes in.
    root = (b2 + np.sqrt(b2 * b2 - a2 * (pa - q0 * q0 / k))) / -a2
    t = q0 + root * yd
    np.copyto(near, root, where=(t >= 0) & (t <= k) & ~(root >= near))
    return near


@dataclass(frozen=True)
class Box:
    """A box with one vertical pair of faces turned by ``yaw`` about the vertical."""

    origin: Vec
    half: Vec
    yaw: float = 0.0

    def _turn(self, x: Array, y: Array, z: Array) -> Triple:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return c * x - s * z, y, s * x + c * z

    def enter(self, x: Array, y: Array, z: Array, dx: Array, dy: Array, dz: Array) -> Array:
        """As :meth:`Sweeps.enter`."""
        near, far = np.asarray(-np.inf), np.asarray(np.inf)
        position, direction = self.place(x, y, z), self._turn(dx, dy, dz)
        for p, d, h in zip(position, direction, self.half, strict=True):
            inverse = 1 / np.where(np.abs(d) < 1e-12, 1e-12, d)
            one, two = (-h - p) * inverse, (h - p) * inverse
            near = np.maximum(near, np.minimum(one, two))
            far = np.minimum(far, np.maximum(one, two))
        hit: Array = np.where(near < far, near, np.inf)
        return hit

    def normal(self, *p: Array) -> Triple:
        """As :meth:`Sweeps.normal`."""
        face = np.argmax([np.abs(v) / h for v, h in zip(p, self.half, strict=True)], axis=0)
        n = [np.where(face == i, np.sign(v), 0.0) for i, v in enumerate(p)]
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return cos * n[0] + sin * n[2], n[1], -sin * n[0] + cos * n[2]

    def place(self, x: Array, y: Array, z: Array) -> Triple:
        """As :meth:`Sweeps.place`."""
        return self._turn(x - self.origin[0], y - self.origin[1], z - self.origin[2])

    def span(self, along: Vec) -> tuple[Array, Array]:
        """As :meth:`Sweeps.span`, of a box that holds it in any yaw."""
        r = math.hypot(self.half[0], self.half[2])
        middle, reach = dot(self.origin, along), dot((r, self.half[1], r), along)
        return np.asarray(middle - abs(reach)), np.asarray(middle + abs(reach))


@dataclass(frozen=True)
class View:
    """Parallel rays: the ray of (u, v) starts at ``u right + v up`` and runs ``forward``."""

    right: Vec
    up: Vec
    forward: Vec

    @staticmethod
    def at(pitch: float) -> View:
        """Return the view along -z and down by ``pitch`` (radians)."""
        c, s = math.cos(pitch), math.sin(pitch)
        return View((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, -s, -c))

    @staticmethod
    def along(forward: Vec) -> View:
        """Return the view along a direction that is not vertical."""
        right = unit(cross(forward, (0.0, 1.0, 0.0)))
        return View(right, cross(right, forward), forward)

    def points(self, u: Array, v: Array, s: Array) -> Triple:
        """Return the world positions at distance s on the rays of (u, v)."""
        r, p, f = self.right, self.up, self.forward
        x, y, z = (u * r[i] + v * p[i] + s * f[i] for i in range(3))
        return x, y, z


def cast(solids: Sweeps, view: View, u: Array, v: Array) -> tuple[Array, NDArray[np.int16]]:
    """Find the first solid on each parallel ray.

    Args:
        solids: n of them.
        view: Direction of the rays.
        u: (W,) columns in metres, evenly spaced, rising.
        v: (H,) rows in metres, evenly spaced, falling.

    Returns:
        (H, W) distances along the view (inf where nothing is hit), and indices (-1 there).
    """
    depth = np.full((len(v), len(u)), np.inf)
    index = np.full((len(v), len(u)), -1, np.int16)
    # Each solid is intersected with the pixels of a rectangle. The pixels of all rectangles are
    # concatenated in one array, so that n solids cost no more calls than one.
    (low, high), (floor, ceiling) = solids.span(view.right), solids.span(view.up)
    left, wide = _cells((low - u[0]) / (u[1] - u[0]), (high - u[0]) / (u[1] - u[0]), len(u))
    top, tall = _cells((ceiling - v[0]) / (v[1] - v[0]), (floor - v[0]) / (v[1] - v[0]), len(v))
    solid = np.repeat(np.arange(len(top)), tall)  # of each line of each rectangle
    row = np.arange(len(solid)) - (tall.cumsum() - tall - top)[solid]
    width = wide[solid]
    column = np.arange(width.sum()) - np.repeat(width.cumsum() - width - left[solid], width)
    # The local position is r u + p v - c, so that inner products need no vectors per pixel.
    r, p, f = (solids.direction(d) for d in (view.right, view.up, view.forward))
    c = [x + a for x, a in zip(solids.direction(solids.origin), solids.a, strict=True)]
    ba, down, across = solids.ba, v[row], u[column]
    lines = [
        dot(p, f)[solid] * down - dot(c, f)[solid],
        dot(p, ba)[solid] * down - dot(c, ba)[solid],
        (dot(p, p)[solid] * down - 2 * dot(p, c)[solid]) * down + dot(c, c)[solid],
        2 * dot(r, p)[solid] * down,
    ]
    pd, y0, pp, twice = np.repeat(lines, width, axis=1)
    constants = [*solids._constants(dot(f, f), dot(f, ba)), dot(r, f), dot(r, ba), dot(r, r),
                 2 * dot(r, c)]  # fmt: skip
    *constants, rf, rb, rr, rc = np.repeat(constants, wide * tall, axis=1)
    pd, y0 = rf * across + pd, rb * across + y0
    pp = (rr * across - rc) * across + pp + across * twice
    with np.errstate(invalid="ignore"):
        entry = _enter(constants, pd, pp, y0)
        end = 0
        for i in np.flatnonzero(wide * tall).tolist():
            here = (slice(top[i], top[i] + tall[i]), slice(left[i], left[i] + wide[i]))
            start, end = end, end + tall[i] * wide[i]
            s = entry[start:end].reshape(tall[i], wide[i])
            # Joints share balls: there the earlier part stays, whatever the rounding.
            nearer = s < depth[here] - 1e-9
            np.copyto(depth[here], s, where=nearer)
            np.copyto(index[here], i, where=nearer)
    return depth, index


def _cells(first: Array, last: Array, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first cell within 0 to size, and the number of cells, of each range."""
    start = np.floor(first).clip(0, size).astype(np.intp)
    stop = (np.ceil(last) + 1).clip(0, size).astype(np.intp)
    return start, np.maximum(stop - start, 0)
