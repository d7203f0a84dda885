"""Ray-casting of swept balls: spheres, ellipsoids, capsules and rounded cones are all one solid.

A :class:`Sweep` is the union of the balls on a segment whose radius goes linearly from one end to
the other, seen in a frame that may be stretched along its axes. Where a ray enters it is the
solution of three quadratics (two end balls and their common tangent cone), so nothing is marched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Box", "Sweep", "Vec", "View", "cast", "cross", "dot", "unit"]

Array = NDArray[np.float64]
Vec = tuple[float, float, float]
Axes = tuple[Vec, Vec, Vec]
Triple = tuple[Array, Array, Array]
Field = Array | float

WORLD: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
NO_STRETCH: Vec = (1.0, 1.0, 1.0)


def dot(a: Vec, b: Vec) -> float:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def cross(a: Vec, b: Vec) -> Vec:
    """Vector product."""
    return (
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    )


def unit(a: Vec) -> Vec:
    """The vector of length 1 in the same direction."""
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

    def direction(self, d: Vec) -> Vec:
        """A world direction in the local frame."""
        s, e = self.scale, self.axes
        return s[0] * dot(e[0], d), s[1] * dot(e[1], d), s[2] * dot(e[2], d)

    def place(self, x: Array, y: Array, z: Array) -> Triple:
        """World positions along the local axes, in metres (not stretched)."""
        o = self.origin
        p, q, r = (axis[0] * x + (axis[1] * y + (axis[2] * z - dot(axis, o))) for axis in self.axes)
        return p, q, r

    def enter(self, x: Array, y: Array, z: Array, dx: Array, dy: Array, dz: Array) -> Array:
        """Distance at which rays enter, in units of their direction; inf where they miss.

        Origins and directions are world coordinates and broadcast against each other.
        """
        o = self.origin
        px, py, pz = (
            k * (axis[0] * x + (axis[1] * y + (axis[2] * z - dot(axis, o)))) - e
            for k, axis, e in zip(self.scale, self.axes, self.a, strict=True)
        )
        ex, ey, ez = (
            k * (axis[0] * dx + (axis[1] * dy + axis[2] * dz))
            for k, axis in zip(self.scale, self.axes, strict=True)
        )
        bx, by, bz = self._axis()[0]
        return _enter(
            self,
            ex * ex + ey * ey + ez * ez,
            px * ex + py * ey + pz * ez,
            px * px + py * py + pz * pz,
            px * bx + py * by + pz * bz,
            ex * bx + ey * by + ez * bz,
        )

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        """Unit normals at world positions on the surface."""
        ba, rr, k2 = self._axis()
        start = self.b if k2 <= 0 and self.rb > self.ra else self.a
        p, q, r = (
            k * v - e for k, v, e in zip(self.scale, self.place(x, y, z), start, strict=True)
        )
        if k2 > 0:
            t = ((p * ba[0] + q * ba[1] + r * ba[2] - self.ra * rr) / k2).clip(0, 1)
            p, q, r = p - t * ba[0], q - t * ba[1], r - t * ba[2]
        p, q, r = p * self.scale[0], q * self.scale[1], r * self.scale[2]
        one = 1 / np.sqrt(p * p + q * q + r * r + 1e-30)
        p, q, r = p * one, q * one, r * one
        e = self.axes
        nx, ny, nz = (e[0][i] * p + e[1][i] * q + e[2][i] * r for i in range(3))
        return nx, ny, nz

    def span(self, along: Vec) -> tuple[float, float]:
        """Lowest and highest coordinate along a world direction of length 1."""
        e, k = self.axes, self.scale
        back = (dot(e[0], along) / k[0], dot(e[1], along) / k[1], dot(e[2], along) / k[2])
        reach = math.sqrt(dot(back, back))
        start = dot(self.origin, along)
        one, two = start + dot(back, self.a), start + dot(back, self.b)
        ra, rb = self.ra * reach, self.rb * reach
        return min(one - ra, two - rb), max(one + ra, two + rb)

    def _axis(self) -> tuple[Vec, float, float]:
        """From a to b, the loss of radius, and the squared length less that (<= 0: a ball)."""
        ba = (self.b[0] - self.a[0], self.b[1] - self.a[1], self.b[2] - self.a[2])
        rr = self.ra - self.rb
        return ba, rr, dot(ba, ba) - rr * rr


def _ball(dd: Field, pd: Array, c: Array) -> Array:
    """Smaller root of dd s² + 2 pd s + c, where it has two."""
    disc = pd * pd - dd * c
    root: Array = (pd + np.sqrt(np.maximum(disc, 0))) / -dd
    np.copyto(root, np.inf, where=disc <= 0)
    return root


def _enter(part: Sweep, dd: Field, pd: Array, pp: Array, y0: Array, yd: Field) -> Array:
    """Smallest entry, from inner products in the local frame.

    With p from ``a`` to the ray's origin, d its direction and b the segment: dd = d·d, pd = p·d,
    pp = p·p, y0 = p·b, yd = d·b.
    """
    ba, rr, k = part._axis()
    if k <= 0 and part.ra >= part.rb:  # one end ball holds the other
        return _ball(dd, pd, pp - part.ra**2)
    far_b = _ball(dd, pd - yd, pp - 2 * y0 + (dot(ba, ba) - part.rb**2))
    if k <= 0:
        return far_b
    pa = pp - part.ra**2
    near = np.minimum(_ball(dd, pd, pa), far_b)
    # Of all balls, the one nearest to a point x has t = (y - ra rr) / k; its distance is a quadric.
    q0 = y0 - part.ra * rr
    a2 = dd - yd * yd / k
    if isinstance(a2, float):  # parallel rays
        a2 = a2 if abs(a2) > 1e-12 else 1e-12
    else:
        a2 = np.where(np.abs(a2) < 1e-12, 1e-12, a2)
    b2 = pd - (yd / k) * q0
    disc = b2 * b2 - a2 * (pa - q0 * q0 / k)
    # This root, whatever the sign of a2, is where the quadric falls: where the ray goes in.
    root = (b2 + np.sqrt(np.maximum(disc, 0))) / -a2
    t = q0 + root * yd
    side = (disc > 0) & (t >= 0) & (t <= k) & (root < near)
    np.copyto(near, root, where=side)
    return near


@dataclass(frozen=True)
class Box:
    """A box with one vertical pair of faces turned by ``yaw`` about the vertical."""

    centre: Vec
    half: Vec
    yaw: float = 0.0

    def _turn(self, x: Array, y: Array, z: Array) -> Triple:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return c * x - s * z, y, s * x + c * z

    def enter(self, x: Array, y: Array, z: Array, dx: Array, dy: Array, dz: Array) -> Array:
        """As :meth:`Sweep.enter`."""
        c = self.centre
        near, far = np.asarray(-np.inf), np.asarray(np.inf)
        position, direction = self._turn(x - c[0], y - c[1], z - c[2]), self._turn(dx, dy, dz)
        for p, d, h in zip(position, direction, self.half, strict=True):
            inverse = 1 / np.where(np.abs(d) < 1e-12, 1e-12, d)
            one, two = (-h - p) * inverse, (h - p) * inverse
            near = np.maximum(near, np.minimum(one, two))
            far = np.minimum(far, np.maximum(one, two))
        hit: Array = np.where(near < far, near, np.inf)
        return hit

    def normal(self, x: Array, y: Array, z: Array) -> Triple:
        """As :meth:`Sweep.normal`."""
        c = self.centre
        p = self._turn(x - c[0], y - c[1], z - c[2])
        face = np.argmax([np.abs(v) / h for v, h in zip(p, self.half, strict=True)], axis=0)
        n = [np.where(face == i, np.sign(v), 0.0) for i, v in enumerate(p)]
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return cos * n[0] + sin * n[2], n[1], -sin * n[0] + cos * n[2]

    def place(self, x: Array, y: Array, z: Array) -> Triple:
        """As :meth:`Sweep.place`."""
        return self._turn(x - self.centre[0], y - self.centre[1], z - self.centre[2])


@dataclass(frozen=True)
class View:
    """Parallel rays: the ray of (u, v) starts at ``u right + v up`` and runs ``forward``."""

    right: Vec
    up: Vec
    forward: Vec

    @staticmethod
    def at(pitch: float) -> View:
        """Looking along -z and down by ``pitch`` (radians)."""
        c, s = math.cos(pitch), math.sin(pitch)
        return View((1.0, 0.0, 0.0), (0.0, c, -s), (0.0, -s, -c))

    @staticmethod
    def along(forward: Vec) -> View:
        """Any direction that is not vertical."""
        right = unit(cross(forward, (0.0, 1.0, 0.0)))
        return View(right, cross(right, forward), forward)

    def points(self, u: Array, v: Array, s: Array) -> Triple:
        """World positions at distance s on the rays of (u, v)."""
        r, p, f = self.right, self.up, self.forward
        x, y, z = (u * r[i] + v * p[i] + s * f[i] for i in range(3))
        return x, y, z


def cast(parts: Sequence[Sweep], view: View, u: Array, v: Array) -> tuple[Array, NDArray[np.intp]]:
    """Find the first part on each parallel ray.

    Args:
        parts: Solids.
        view: Direction of the rays.
        u: (W,) columns in metres, evenly spaced, rising.
        v: (H,) rows in metres, evenly spaced, falling.

    Returns:
        (H, W) distances along the view (inf where nothing is hit), and indices (-1 there).
    """
    depth = np.full((len(v), len(u)), np.inf)
    index = np.full((len(v), len(u)), -1, np.intp)
    du, dv = u[1] - u[0], v[1] - v[0]
    for i, part in enumerate(parts):
        low, high = part.span(view.right)
        left, right = max(0, math.floor((low - u[0]) / du)), math.ceil((high - u[0]) / du) + 1
        low, high = part.span(view.up)
        top, bottom = max(0, math.floor((high - v[0]) / dv)), math.ceil((low - v[0]) / dv) + 1
        if right <= left or bottom <= top or left >= len(u) or top >= len(v):
            continue
        here = (slice(top, bottom), slice(left, right))
        across, down = u[left:right], v[top:bottom, None]
        r, p = part.direction(view.right), part.direction(view.up)
        # The local position is r u + p v - c, so that inner products need no vectors per pixel.
        f, c = part.direction(view.forward), part.direction(part.origin)
        c = (c[0] + part.a[0], c[1] + part.a[1], c[2] + part.a[2])
        ba = part._axis()[0]
        pd = dot(r, f) * across + (dot(p, f) * down - dot(c, f))
        y0 = dot(r, ba) * across + (dot(p, ba) * down - dot(c, ba))
        pp = (dot(r, r) * across - 2 * dot(r, c)) * across + (
            (dot(p, p) * down - 2 * dot(p, c)) * down + dot(c, c)
        )
        pp += across * (2 * dot(r, p) * down)
        s = _enter(part, dot(f, f), pd, pp, y0, dot(f, ba))
        # Joints share balls: there the earlier part stays, whatever the last bits say.
        nearer = s < depth[here] - 1e-9
        np.copyto(depth[here], s, where=nearer)
        np.copyto(index[here], i, where=nearer)
    return depth, index
