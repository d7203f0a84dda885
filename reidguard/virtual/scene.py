"""Scenes: a camera and its backdrop of ground, walls, sky and clutter, in perspective.

The backdrop is rendered once per camera, wider than any image; an image shows a window of it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.clutter import Clutter, Painter
from reidguard.virtual.domains import Domain
from reidguard.virtual.geometry import WORLD, Box, Sweeps, Vec, unit
from reidguard.virtual.sensor import Sensor, blur, make_sensor
from reidguard.virtual.surfaces import Noise, ground_colour, wall_base, wall_colour

__all__ = ["Camera", "Light", "make_camera"]

Array = NDArray[np.float64]

HEIGHT, WIDTH = 240, 360
PERSON = 110  # pixels of the backdrop that a person of 1.7 m covers at the middle distance


@dataclass(frozen=True)
class Light:
    """Directional light of the sun or a lamp, and ambient light."""

    towards: Vec  # the sun
    sun: Array  # (3,)
    ambient: Array  # (3,)

    def shade(self, n: tuple[Array, Array, Array], lit: Array | float) -> Array:
        """Return the irradiance (3, ...) on normals n, with the fraction ``lit`` of the sun."""
        d = self.towards
        direct = np.maximum(n[0] * d[0] + (n[1] * d[1] + n[2] * d[2]), 0) * lit
        around = 0.68 + 0.32 * n[1]
        return np.stack([a * around + s * direct
                         for a, s in zip(self.ambient, self.sun, strict=True)])  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """One fixed camera of a domain."""

    sensor: Sensor
    light: Light
    height: float  # metres above the ground
    pitch: float  # radians down
    near: float  # metres, range in which people pass
    far: float
    focal: float  # pixels of the backdrop
    flow: float  # radians, the direction most people walk in
    backdrop: Array  # (3, HEIGHT, WIDTH) linear light

    def project(self, x: float, z: float) -> tuple[float, float, float]:
        """Return column and row of a point on the ground, and pixels per metre there."""
        c, s = math.cos(self.pitch), math.sin(self.pitch)
        depth = -z * c + self.height * s
        up = -self.height * c - z * s
        scale = self.focal / depth
        return WIDTH / 2 + x * scale, HEIGHT / 2 - up * scale, scale


def make_camera(domain: Domain, rng: np.random.Generator) -> Camera:
    """Draw a camera and render its backdrop."""
    sensor = make_sensor(domain, rng)
    azimuth = rng.uniform(-math.pi, math.pi)
    elevation = math.radians(rng.uniform(*domain.sun_height))
    towards = unit((math.sin(azimuth) * math.cos(elevation), math.sin(elevation),
                    math.cos(azimuth) * math.cos(elevation)))  # fmt: skip
    light = Light(
        towards,
        rng.uniform(*domain.sun) * np.array(domain.sun_colour),
        rng.uniform(*domain.ambient) * np.array(domain.ambient_colour),
    )
    pitch = math.radians(rng.uniform(*domain.pitch))
    middle = rng.uniform(0.35, 0.65) * (domain.distance[1] - domain.distance[0])
    middle += domain.distance[0]
    camera = Camera(
        sensor=sensor,
        light=light,
        height=0.9 + middle * math.tan(pitch),
        pitch=pitch,
        near=0.8 * middle,
        far=1.3 * middle,
        focal=PERSON * math.hypot(middle, middle * math.tan(pitch)) / 1.7,
        flow=rng.uniform(math.radians(domain.flow[0]), math.radians(domain.flow[1])),
        backdrop=np.zeros((3, 1, 1)),
    )
    return replace(camera, backdrop=_Backdrop(domain, camera, rng).image)


class _Backdrop:
    def __init__(self, domain: Domain, camera: Camera, rng: np.random.Generator) -> None:
        self.domain, self.camera, self.rng = domain, camera, rng
        self.noise = Noise(rng)
        c, s = math.cos(camera.pitch), math.sin(camera.pitch)
        i = np.arange(WIDTH) + 0.5 - WIDTH / 2
        j = HEIGHT / 2 - (np.arange(HEIGHT) + 0.5)
        f = camera.focal
        self.dx = np.broadcast_to(i[None], (HEIGHT, WIDTH))
        self.dy = np.broadcast_to((j * c - f * s)[:, None], (HEIGHT, WIDTH))
        self.dz = np.broadcast_to((-j * s - f * c)[:, None], (HEIGHT, WIDTH))
        self.depth = np.full((HEIGHT, WIDTH), np.inf)
        self.image = np.empty((3, HEIGHT, WIDTH))
        self._sky()
        clutter = Clutter(domain, self.noise, rng)
        clutter.scatter(camera.far, WIDTH, camera.focal)
        self.solids = clutter.solids
        self._ground()
        if domain.ceiling:
            self._ceiling()
        self._walls()
        for solid, painter in self.solids:
            self._draw(solid, painter)
        self.image = blur(self.image, rng.uniform(0.3, 1.3))

    def _rays(self, where: NDArray[np.bool_]) -> tuple[Array, Array, Array]:
        return self.dx[where], self.dy[where], self.dz[where]

    def _sky(self) -> None:
        up = (self.dy / self.camera.focal).clip(0, 1)
        power = 1.15 if not self.domain.ceiling else 0.6
        for channel, c in zip(self.image, self.domain.sky, strict=True):
            channel[:] = power * (c**2.2) * (1.3 - 0.5 * up)

    def _ground(self) -> None:
        cam, domain = self.camera, self.domain
        below = self.dy < -1e-6
        dx, dy, dz = self._rays(below)
        t = cam.height / -dy
        x, z = dx * t, dz * t
        colour = ground_colour(domain, self.noise, self.rng, x, z)
        lit = np.ones(x.size)
        if domain.sun[1] > 1:  # shadows of the clutter
            y = np.full(x.size, 1e-3)
            toward = [np.full(1, v) for v in cam.light.towards]
            reach = 3.5 / math.tan(math.asin(cam.light.towards[1]))
            for solid, _ in self.solids:
                at = solid.origin
                close = np.flatnonzero((x - at[0]) ** 2 + (z - at[2]) ** 2 < (reach + 0.5) ** 2)
                hit = np.isfinite(solid.enter(x[close], y[close], z[close], *toward))
                lit[close[hit]] = 0.0
        for solid, _ in self.solids:  # and less ambient light beneath it
            low = solid.span((0.0, 1.0, 0.0))[0] if isinstance(solid, Sweeps) else 0.0
            if low < 0.25:
                at = solid.origin
                near = (x - at[0]) ** 2 + (z - at[2]) ** 2
                close = np.flatnonzero(near < 7)  # beyond, the factor below is 1 to the last bit
                colour[:, close] *= 1 - 0.45 * np.exp(-near[close] / 0.18)
        up = (np.zeros(x.size), np.ones(x.size), np.zeros(x.size))
        light = cam.light.shade(up, lit)
        self.image[:, below] = colour * light
        self.depth[below] = t
        if domain.ground == "gloss":
            row = (HEIGHT / 2 - 0.5 - np.arange(HEIGHT)) / HEIGHT
            self.image += 0.10 * np.maximum(0.4 + row, 0)[None, :, None] * below[None]

    def _ceiling(self) -> None:
        above = self.dy > 1e-6
        dx, dy, dz = self._rays(above)
        t = (max(3.4, self.camera.height + 1.0) - self.camera.height) / dy
        x, z = dx * t, dz * t
        lamp = (np.abs((x / 2.4) % 1 - 0.5) < 0.09) & (np.abs((z / 3.0) % 1 - 0.5) < 0.3)
        base = np.array(self.domain.sky)[:, None] ** 2.2 * 0.6
        self.image[:, above] = np.where(lamp[None], 2.0, base)
        self.depth[above] = t

    def _walls(self) -> None:
        rng, cam, domain = self.rng, self.camera, self.domain
        back = cam.far + rng.uniform(2.0, 6.0)
        slope = rng.uniform(-0.35, 0.35)
        high = 20.0 if domain.ceiling else rng.uniform(2.2, 9.0)
        planes = [(slope, -back, high)]
        half = cam.far * WIDTH / 2 / cam.focal
        if rng.random() < 0.6:
            side = float(rng.choice([-1, 1]))
            planes.append(
                (side * 12.0, -back + side * 12.0 * -(half + rng.uniform(0.2, 1.0)), high)
            )
        for slope, offset, top in planes:  # z = slope x + offset
            kind = str(rng.choice(domain.walls))
            base = wall_base(kind, domain, rng)
            turn = self.dz - slope * self.dx
            t = np.where(np.abs(turn) > 1e-9, offset / np.where(turn == 0, 1, turn), np.inf)
            t = np.where(t > 0, t, np.inf)
            y = cam.height + self.dy * np.where(np.isfinite(t), t, 0)
            x = self.dx * np.where(np.isfinite(t), t, 0)
            along = x * math.sqrt(1 + slope * slope)
            limit = top * (0.7 + 0.3 * self.noise(along, 0 * along)) if kind == "hedge" else top
            if kind == "trees":
                limit = top * (0.5 + 0.7 * self.noise(0.6 * along, 0 * along))
            here = (t < self.depth) & (y < limit) & (y > 0)
            n = unit((-slope, 0.0, 1.0))
            normal = tuple(np.full(1, v) for v in n)
            light = cam.light.shade(normal, 0.7)  # type: ignore[arg-type]
            colour = wall_colour(kind, base, self.noise, rng, along[here], y[here])
            self.image[:, here] = colour * light
            self.depth[here] = t[here]

    def _draw(self, solid: Sweeps | Box, painter: Painter) -> None:
        """Draw a solid within the rectangle that its bounding box covers."""
        cam = self.camera
        spans = [(low.item(), high.item()) for low, high in map(solid.span, WORLD)]
        c, s = math.cos(cam.pitch), math.sin(cam.pitch)
        columns, rows = [], []
        for across, high, away in itertools.product(*spans):
            depth = max(-away * c - (high - cam.height) * s, 0.1)
            up = (high - cam.height) * c - away * s
            columns.append(WIDTH / 2 + across * cam.focal / depth)
            rows.append(HEIGHT / 2 - up * cam.focal / depth)
        left, right = max(0, math.floor(min(columns))), max(0, math.ceil(max(columns)) + 1)
        top, bottom = max(0, math.floor(min(rows))), max(0, math.ceil(max(rows)) + 1)
        box = (slice(top, bottom), slice(left, right))
        dx, dy, dz = self.dx[box], self.dy[box], self.dz[box]
        if dx.size == 0:
            return
        zero = np.zeros(1)
        t = solid.enter(zero, zero + cam.height, zero, dx, dy, dz)
        seen = (t < self.depth[box]) & (t > 0)
        if not seen.any():
            return
        t = t[seen]
        x, y, z = dx[seen] * t, cam.height + dy[seen] * t, dz[seen] * t
        local = solid.place(x, y, z)
        colour = painter(*local) * cam.light.shade(solid.normal(*local), 0.9)
        self.depth[box][seen] = t
        for channel, value in zip(self.image, colour, strict=True):
            channel[box][seen] = value
