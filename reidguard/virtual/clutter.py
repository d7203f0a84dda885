"""Clutter: the things that stand about in a scene, as solids with a colour."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.body import Part, body
from reidguard.virtual.clothes import paint
from reidguard.virtual.domains import Domain
from reidguard.virtual.geometry import Box, Sweep, Sweeps, Vec
from reidguard.virtual.look import Look, make_look
from reidguard.virtual.surfaces import Noise

__all__ = ["Clutter", "Painter"]

Array = NDArray[np.float64]
Painter = Callable[[Array, Array, Array], Array]
KIOSKS = {"kiosk": (0.9, 1.15, 0.7), "machine": (0.45, 0.95, 0.35), "bin": (0.22, 0.42, 0.22)}


class Clutter:
    """The solids of a scene and their painters, from local coordinates to (3, n) colours."""

    def __init__(self, domain: Domain, noise: Noise, rng: np.random.Generator) -> None:
        self.domain, self.noise, self.rng = domain, noise, rng
        self.solids: list[tuple[Sweeps | Box, Painter]] = []

    def scatter(self, far: float, width: int, focal: float) -> None:
        """Draw things behind ``far`` in the view of a camera, ``width`` and ``focal`` in pixels."""
        rng = self.rng
        kinds = list(self.domain.clutter)
        weights = np.array([self.domain.clutter[kind] for kind in kinds])
        for _ in range(int(rng.integers(*self.domain.things, endpoint=True))):
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            z = -rng.uniform(far, far + 4.5)
            half = -z * width / 2 / focal
            x = rng.uniform(-half, half)
            tint = rng.uniform(0.15, 0.8, 3)
            self._place(kind, x, z, (0.45 * tint + 0.55 * tint.mean()) ** 2.2)

    def _place(self, kind: str, x: float, z: float, colour: Array) -> None:
        rng = self.rng
        if kind == "post":
            self._stick((x, 0, z), (x, rng.uniform(1, 4.5), z), 0.06, 0.05, self._plain(colour))
        elif kind == "pillar":
            self._stick((x, 0, z), (x, 6.0, z), 0.32, 0.32, self._plain(colour * 0.7 + 0.1, 2))
        elif kind == "tree":
            self._tree(x, z)
        elif kind in ("bush", "plant"):
            self._bush(x, z, self._plain(colour) if kind == "plant" else None)
        elif kind == "bench":
            wood = self._plain(np.array([0.16, 0.09, 0.05]), 9)
            turn = rng.uniform(-1.2, 1.2)
            self.solids.append((Box((x, 0.45, z), (0.8, 0.04, 0.22), turn), wood))
            self.solids.append((Box((x, 0.78, z - 0.2), (0.8, 0.16, 0.03), turn), wood))
            self.solids.append((Box((x, 0.2, z), (0.6, 0.2, 0.03), turn), wood))
        elif kind in KIOSKS:
            half = KIOSKS[kind]
            panel = rng.uniform(0.1, 0.9, 3) ** 2.2
            box = Box((x, half[1], z), half, rng.uniform(-0.6, 0.6))
            self.solids.append((box, _panel_painter(colour, panel)))
        elif kind == "bicycle":
            self._bicycle(x, z, self._plain(colour))
        elif kind == "person":
            look = make_look(self.domain, rng)
            for part in body(look, rng.uniform(-3, 3), rng.random(), float(rng.random() < 0.7)):
                o = part.solid.origin
                moved = replace(part.solid, origin=(o[0] + x, o[1], o[2] + z))
                self.solids.append((Sweeps.of(moved), _cover_painter(look, part)))

    def _plain(self, colour: Array, grain: float = 6.0) -> Painter:
        base = colour[:, None]
        return lambda x, y, z: base * (0.75 + 0.5 * self.noise(grain * (x + z), grain * y))

    def _stick(self, a: Vec, b: Vec, ra: float, rb: float, painter: Painter) -> None:
        rel = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
        self.solids.append((Sweeps.of(Sweep(a, (0, 0, 0), rel, ra, rb)), painter))

    def _tree(self, x: float, z: float) -> None:
        rng = self.rng
        high = rng.uniform(1.8, 3.0)
        bark = self._plain(np.array([0.07, 0.05, 0.03]), 12)
        self._stick((x, 0, z), (x + rng.normal(0, 0.15), high, z), 0.14, 0.09, bark)
        leaf = self._plain(np.array([0.08, 0.16, 0.04]) * rng.uniform(0.7, 1.9), 9)
        for _ in range(4):
            p = (x + rng.normal(0, 0.6), high + rng.uniform(0, 1.2), z + rng.normal(0, 0.4))
            self._stick(p, p, rng.uniform(0.5, 0.9), 0.5, leaf)

    def _bush(self, x: float, z: float, pot: Painter | None) -> None:
        rng = self.rng
        leaf = self._plain(np.array([0.06, 0.13, 0.04]) * rng.uniform(0.7, 1.6), 12)
        low = 0.0
        if pot is not None:
            low = 0.5
            self._stick((x, 0, z), (x, 0.4, z), 0.2, 0.26, pot)
        for _ in range(3):
            p = (x + rng.normal(0, 0.25), low + rng.uniform(0.1, 0.5), z + rng.normal(0, 0.2))
            self._stick(p, p, rng.uniform(0.25, 0.45), 0.2, leaf)

    def _bicycle(self, x: float, z: float, frame: Painter) -> None:
        tyre = self._plain(np.array([0.02, 0.02, 0.02]))
        for side in (-0.5, 0.5):  # wheels of ten short sticks
            rim = [
                (x + side + 0.33 * math.cos(a), 0.34 + 0.33 * math.sin(a), z)
                for a in (2 * math.pi * i / 10 for i in range(11))
            ]
            for p, q in itertools.pairwise(rim):
                self._stick(p, q, 0.025, 0.025, tyre)
        top = ((x - 0.5, 0.34, z), (x - 0.2, 0.75, z), (x + 0.35, 0.78, z), (x + 0.5, 0.34, z))
        for p, q in itertools.pairwise(top):
            self._stick(p, q, 0.025, 0.025, frame)
        self._stick(top[2], (x + 0.33, 1.0, z), 0.03, 0.05, frame)


def _panel_painter(colour: Array, panel: Array) -> Painter:
    def painter(x: Array, y: Array, z: Array) -> Array:
        inside = (np.abs(y - 0.25) < 0.35) & (np.abs(x) < 0.3)
        return np.where(inside[None], panel[:, None], colour[:, None])

    return painter


def _cover_painter(look: Look, part: Part) -> Painter:
    h, rest = look.height, part.rest
    return lambda x, y, z: paint(
        look, part.cover, x / h + rest[0], y / h + rest[1], z / h + rest[2]
    )
