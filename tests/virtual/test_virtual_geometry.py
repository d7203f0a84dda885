"""The ray-caster against marching along distances that are found by plain search."""

from __future__ import annotations

import numpy as np
import pytest

from reidguard.virtual.geometry import Box, Sweep, Sweeps, View, cast, unit


def rotation(rng: np.random.Generator) -> tuple:
    x = unit(tuple(rng.normal(size=3)))
    y = np.cross(x, rng.normal(size=3))
    y = y / np.linalg.norm(y)
    return x, tuple(y), tuple(np.cross(x, y))


def make(rng: np.random.Generator, kind: str) -> Sweep:
    a, b = rng.uniform(-0.5, 0.5, 3), rng.uniform(-0.5, 0.5, 3)
    ra, rb = rng.uniform(0.1, 0.5, 2)
    if kind == "ball":
        b, rb = a, ra
    elif kind == "capsule":
        rb = ra
    elif kind == "swallowed":  # the second ball lies within the first, or the other way round
        b = a + 0.05
        ra, rb = (0.5, 0.2) if rng.random() < 0.5 else (0.2, 0.5)
    scale = tuple(rng.uniform(0.6, 1.8, 3)) if kind != "capsule" else (1.0, 1.0, 1.0)
    return Sweep(tuple(rng.uniform(-0.3, 0.3, 3)), tuple(a), tuple(b), ra, rb, rotation(rng), scale)


def outside(part: Sweep, points: np.ndarray) -> np.ndarray:
    """Smallest distance to any ball, less its radius, in the stretched frame: < 0 inside."""
    local = (points - np.array(part.origin)) @ np.array(part.axes).T * np.array(part.scale)
    a, b = np.array(part.a), np.array(part.b)

    def gap(t: np.ndarray) -> np.ndarray:
        centre = a + t[..., None] * (b - a)
        return np.linalg.norm(local - centre, axis=-1) - (part.ra + t * (part.rb - part.ra))

    low, high = np.zeros(points.shape[:-1]), np.ones(points.shape[:-1])
    for _ in range(30):  # gap is convex in t
        one, two = low + (high - low) / 3, high - (high - low) / 3
        less = gap(one) < gap(two)
        low, high = np.where(less, low, one), np.where(less, two, high)
    ends = np.minimum(gap(np.zeros_like(low)), gap(np.ones_like(low)))
    return np.minimum(gap((low + high) / 2), ends)


def march(inside, o: np.ndarray, d: np.ndarray, points: int = 501) -> tuple[np.ndarray, np.ndarray]:
    """First entry on each ray, and how deep the ray gets at all."""
    steps = np.linspace(0.5, 5, points)
    values = np.stack([inside(o + s * d) for s in steps])
    first = (values < 0).argmax(0)
    low, high = steps[np.maximum(first - 1, 0)], steps[first]
    for _ in range(45):
        middle = (low + high) / 2
        hit = inside(o + middle[:, None] * d) < 0
        low, high = np.where(hit, low, middle), np.where(hit, middle, high)
    return np.where((values < 0).any(0), high, np.inf), values.min(0)


@pytest.mark.parametrize("kind", ["ball", "capsule", "cone", "swallowed"])
def test_entry_and_normal_agree_with_marching(kind):
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(3):
        part = make(rng, kind)
        o = rng.normal(size=(24, 3))
        o *= 3 / np.linalg.norm(o, axis=1, keepdims=True)
        d = rng.uniform(-0.6, 0.6, (24, 3)) - o
        d /= np.linalg.norm(d, axis=1, keepdims=True)
        expected, depth = march(lambda p, part=part: outside(part, p), o, d)
        solid = Sweeps.of(part)
        got = solid.enter(*o.T, *d.T)
        clear = np.abs(depth) > 4e-3  # a march may step over what a ray only grazes
        np.testing.assert_allclose(got[clear], expected[clear], atol=1e-8)
        seen = clear & np.isfinite(got)
        hits += seen.sum()
        points = o[seen] + got[seen, None] * d[seen]
        normal = np.stack(solid.normal(*solid.place(*points.T)), -1)
        step = 1e-5
        slope = np.stack([
            outside(part, points + step * e) - outside(part, points - step * e) for e in np.eye(3)
        ], -1)  # fmt: skip
        slope /= np.linalg.norm(slope, axis=1, keepdims=True)
        np.testing.assert_allclose(normal, slope, atol=1e-4)
    assert hits > 10


def test_boxes_agree_with_marching():
    rng = np.random.default_rng(3)
    box = Box((0.2, -0.1, 0.3), (0.5, 0.3, 0.2), 0.7)
    c, s = np.cos(0.7), np.sin(0.7)
    axes = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])

    def inside(p):
        return (np.abs((p - np.array(box.origin)) @ axes.T) - np.array(box.half)).max(-1)

    o = rng.normal(size=(150, 3))
    o *= 3 / np.linalg.norm(o, axis=1, keepdims=True)
    d = rng.uniform(-0.6, 0.6, o.shape) - o
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    expected, depth = march(inside, o, d)
    got = box.enter(*o.T, *d.T)
    clear = np.abs(depth) > 5e-3
    np.testing.assert_allclose(got[clear], expected[clear], atol=1e-8)
    seen = clear & np.isfinite(got)
    assert 20 < seen.sum() < clear.sum()
    points = o[seen] + got[seen, None] * d[seen]
    slope = np.stack([inside(points + 1e-6 * e) - inside(points - 1e-6 * e) for e in np.eye(3)], -1)
    np.testing.assert_allclose(
        np.stack(box.normal(*box.place(*points.T)), -1), slope / 2e-6, atol=1e-5
    )


@pytest.mark.parametrize("view", [View.at(0.0), View.at(0.4), View.along(unit((0.3, -0.8, 0.5)))])
def test_casting_within_bounds_loses_nothing(view):
    rng = np.random.default_rng(11)
    parts = [make(rng, kind) for kind in ("ball", "capsule", "cone", "swallowed") * 2]
    u, v = np.linspace(-1.2, 1.2, 40), np.linspace(1.2, -1.2, 60)
    depth, index = cast(Sweeps.of(*parts), view, u, v)
    x, y, z = view.points(u[None], v[:, None], np.zeros((60, 40)))
    forward = [np.asarray(d) for d in view.forward]
    alone = np.stack([Sweeps.of(part).enter(x, y, z, *forward) for part in parts])
    np.testing.assert_allclose(depth, alone.min(0), atol=1e-12)
    seen = np.isfinite(depth)
    assert 0.2 < seen.mean() < 1
    assert (index[~seen] == -1).all()
    np.testing.assert_array_equal(index[seen], alone.argmin(0)[seen])


def test_spans_touch_the_solid():
    rng = np.random.default_rng(5)
    for kind in ("ball", "capsule", "cone", "swallowed"):
        part = make(rng, kind)
        along = unit(tuple(rng.normal(size=3)))
        low, high = (edge.item() for edge in Sweeps.of(part).span(along))
        cloud = rng.uniform(-2, 2, (30_000, 3))
        reach = cloud[outside(part, cloud) < 0] @ np.array(along)
        assert low <= reach.min() < low + 0.12
        assert high - 0.12 < reach.max() <= high
