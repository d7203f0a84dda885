"""A camera and what it sees when nobody passes: ground, walls, sky and clutter, in perspective.

The backdrop is rendered once per camera, wider than any image; an image shows a window of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.body import body
from reidguard.virtual.clothes import paint
from reidguard.virtual.domains import Domain
from reidguard.virtual.geometry import WORLD, Box, Sweep, Sweeps, Vec, unit
from reidguard.virtual.look import make_look
from reidguard.virtual.sensor import Sensor, blur, make_sensor

__all__ = ["Camera", "Light", "make_camera"]

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
Painter = Callable[[Array, Array, Array], Array]

HEIGHT, WIDTH = 240, 360
PERSON = 110  # pixels of the backdrop that a person of 1.7 m covers at the middle distance


@dataclass(frozen=True)
class Light:
    """Sun or lamp from one direction, and light from everywhere."""

    towards: Vec  # the sun
    sun: Array  # (3,)
    ambient: Array  # (3,)

    def shade(self, n: tuple[Array, Array, Array], lit: Array | float) -> Array:
        """Irradiance (3, ...) on surfaces with normals n, ``lit`` being the share of sun."""
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
        """Column and row of a point on the ground, and pixels per metre there."""
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
        self.table = rng.random((64, 64))
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
        self.solids: list[tuple[Sweeps | Box, Painter]] = []
        self._clutter()
        self._ground()
        self._walls()
        for solid, painter in self.solids:
            self._draw(solid, painter)
        self.image = blur(self.image, rng.uniform(0.3, 1.3))

    def noise(self, x: Array, y: Array) -> Array:
        """Smooth noise in [0, 1], one lattice point per unit."""
        x0, y0 = np.floor(x), np.floor(y)
        u, v = x - x0, y - y0
        u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
        i, j = x0.astype(np.intp) % 64, y0.astype(np.intp) % 64
        k, m = (i + 1) % 64, (j + 1) % 64
        t = self.table
        out: Array = (t[j, i] * (1 - u) + t[j, k] * u) * (1 - v) + (
            t[m, i] * (1 - u) + t[m, k] * u
        ) * v
        return out

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
        colour = self._ground_colour(x, z)
        lit = np.ones(x.size)
        if domain.sun[1] > 1:  # shadows of what stands about
            y = np.full(x.size, 1e-3)
            toward = [np.full(1, v) for v in cam.light.towards]
            reach = 3.5 / math.tan(math.asin(cam.light.towards[1]))
            for solid, _ in self.solids:
                at = solid.origin if isinstance(solid, Sweeps) else solid.centre
                close = np.flatnonzero((x - at[0]) ** 2 + (z - at[2]) ** 2 < (reach + 0.5) ** 2)
                hit = np.isfinite(solid.enter(x[close], y[close], z[close], *toward))
                lit[close[hit]] = 0.0
        for solid, _ in self.solids:  # and the gloom beneath it
            low = solid.span((0.0, 1.0, 0.0))[0] if isinstance(solid, Sweeps) else 0.0
            if low < 0.25:
                at = solid.origin if isinstance(solid, Sweeps) else solid.centre
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
        if domain.ceiling:
            above = self.dy > 1e-6
            dx, dy, dz = self._rays(above)
            t = (max(3.4, cam.height + 1.0) - cam.height) / dy
            x, z = dx * t, dz * t
            lamp = (np.abs((x / 2.4) % 1 - 0.5) < 0.09) & (np.abs((z / 3.0) % 1 - 0.5) < 0.3)
            base = np.array(domain.sky)[:, None] ** 2.2 * 0.6
            self.image[:, above] = np.where(lamp[None], 2.0, base)
            self.depth[above] = t

    def _ground_colour(self, x: Array, z: Array) -> Array:
        rng, kind = self.rng, self.domain.ground
        base = np.array(self.domain.ground_colour) * rng.uniform(0.8, 1.15)
        base = (base * rng.uniform(0.94, 1.06, 3)).clip(0, 1) ** 2.2
        turn = rng.uniform(-0.7, 0.7)
        u, v = math.cos(turn) * x + math.sin(turn) * z, math.cos(turn) * z - math.sin(turn) * x
        tone = 0.8 + 0.4 * self.noise(3 * x, 3 * z) * self.noise(0.7 * x, 0.7 * z + 9)
        size = {"slabs": rng.uniform(0.5, 1.1), "tiles": rng.uniform(0.3, 0.6),
                "gloss": rng.uniform(0.7, 1.2)}.get(kind, 1.0)  # fmt: skip
        i, j = np.floor(u / size), np.floor(v / size)
        joint = (u / size - i < 0.05) | (v / size - j < 0.05)
        if kind == "path":
            edge = rng.uniform(1.2, 2.6)
            middle = rng.uniform(-0.7, 0.7)
            lawn = np.abs(x - middle + 0.3 * np.sin(0.5 * z)) > edge
            colour = base[:, None] * (0.75 + 0.5 * self.noise(9 * x, 9 * z))
            grass = np.array([0.09, 0.17, 0.05])[:, None] * (0.5 + self.noise(14 * x, 9 * z))
            grass = grass * (0.7 + 0.6 * self.noise(x, z))
            return np.asarray(np.where(lawn[None], grass, colour) * tone)
        if kind == "plain":
            return np.asarray(base[:, None] * (0.95 + 0.1 * self.noise(0.5 * x, 0.5 * z)))
        each = self.table[j.astype(np.intp) % 64, i.astype(np.intp) % 64]
        if kind == "tiles":
            checker = (i + j) % 2 == 0
            tone = tone * np.where(checker, 1.0, rng.uniform(0.55, 0.95))
        colour = base[:, None] * (tone * (0.8 + 0.35 * each) * np.where(joint, 0.6, 1.0))
        if kind == "tiles":  # the line for the blind
            line = np.abs(u - rng.uniform(-2, 2)) < 0.2
            colour = np.where(line[None], np.array([0.55, 0.42, 0.06])[:, None], colour)
        return np.asarray(colour)

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
            tint = domain.wall_colours[int(rng.integers(len(domain.wall_colours)))]
            base = (np.array(tint) * rng.uniform(0.75, 1.15, 3) ** 0.5).clip(0, 1) ** 2.2
            if kind in ("hedge", "trees"):
                base = (
                    np.array([0.06, 0.12, 0.035]) * rng.uniform(0.7, 2.2) * rng.uniform(0.8, 1.3, 3)
                )
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
            colour = self._wall_colour(kind, base, along[here], y[here])
            self.image[:, here] = colour * light
            self.depth[here] = t[here]

    def _wall_colour(self, kind: str, base: Array, x: Array, y: Array) -> Array:
        rng = self.rng
        flat = base[:, None]
        tone = 0.85 + 0.3 * self.noise(1.5 * x, 1.5 * y)
        if kind == "brick":
            row = np.floor(y / 0.16)
            u = x / 0.5 + 0.5 * (row % 2)
            joint = (y / 0.16 - row < 0.14) | (u - np.floor(u) < 0.05)
            each = self.table[row.astype(np.intp) % 64, np.floor(u).astype(np.intp) % 64]
            return np.asarray(flat * tone * np.where(joint, 1.5, 0.75 + 0.5 * each))
        if kind in ("windows", "shops"):
            wide = rng.uniform(1.4, 3.0)
            high = 3.2 if kind == "windows" else 5.0
            sill = 0.9 if kind == "windows" else 0.25
            u, v = (x / wide) % 1, y % high
            pane = (np.abs(u - 0.5) < (0.3 if kind == "windows" else 0.44)) & (v > sill) & (
                v < high - 0.6
            )  # fmt: skip
            which = self.table[
                np.floor(x / wide).astype(np.intp) % 64, np.floor(y / high).astype(np.intp) % 64
            ]
            if kind == "windows":
                glass = np.array([0.10, 0.13, 0.17])[:, None] * (0.5 + 1.6 * which)
                glass = glass * (0.8 + 0.5 * self.noise(x, y))
            else:  # goods on display
                i, j = np.floor(x / 0.35).astype(np.intp) % 61, np.floor(v / 0.55).astype(np.intp)
                goods = np.stack([self.table[(7 * j + c) % 64, i] for c in (3, 11, 29)]) ** 2
                glass = (0.15 + 0.75 * goods) * (0.5 + which)
            frame = np.abs(np.abs(u - 0.5) - 0.3) < 0.02 if kind == "windows" else u < 0.05
            colour = np.where(pane[None], glass, flat * tone)
            return np.asarray(np.where(frame[None], 0.5 * flat, colour))
        if kind in ("tiles", "panels"):
            size = rng.uniform(0.25, 0.4) if kind == "tiles" else rng.uniform(0.9, 1.8)
            i, j = np.floor(x / size), np.floor(y / size)
            joint = (x / size - i < 0.06) | (y / size - j < 0.06)
            each = self.table[j.astype(np.intp) % 64, i.astype(np.intp) % 64]
            colour = flat * tone * np.where(joint, 0.6, 0.8 + 0.3 * each)
            band = np.abs(y - rng.uniform(0.9, 2.0)) < rng.uniform(0.08, 0.3)
            stripe = rng.uniform(0.1, 0.7, 3)[:, None] ** 2.2
            poster = (np.abs((x / 2.6) % 1 - 0.5) < 0.22) & (np.abs(y - 1.7) < 0.55)
            inside = np.stack([self.noise(3 * x + 7 * c, 3 * y) for c in range(3)]) ** 1.5
            colour = np.where(band[None], stripe, colour)
            return np.asarray(np.where((poster & (each > -1))[None], inside, colour))
        if kind == "shutters":
            return np.asarray(flat * (0.7 + 0.4 * np.abs(np.sin(18 * y))) * tone)
        if kind in ("hedge", "trees"):
            leaf = self.noise(7 * x, 7 * y) * self.noise(17 * x + 5, 17 * y)
            return np.asarray(flat * (0.4 + 3.0 * leaf) * (0.7 + 0.6 * self.noise(x, y)))
        return np.asarray(flat * tone)

    def _clutter(self) -> None:
        rng, domain, cam = self.rng, self.domain, self.camera
        kinds = list(domain.clutter)
        share = np.array([domain.clutter[k] for k in kinds])
        for _ in range(int(rng.integers(*domain.things, endpoint=True))):
            kind = kinds[int(rng.choice(len(kinds), p=share / share.sum()))]
            z = -rng.uniform(cam.far * 1.0, cam.far * 1.0 + 4.5)
            half = -z * WIDTH / 2 / cam.focal
            self._thing(kind, rng.uniform(-half, half), z)

    def _plain(self, colour: object, grain: float = 6.0) -> Painter:
        base = np.asarray(colour, np.float64)[:, None]
        return lambda x, y, z: base * (0.75 + 0.5 * self.noise(grain * (x + z), grain * y))

    def _stick(self, a: Vec, b: Vec, ra: float, rb: float, painter: Painter) -> None:
        rel = (b[0] - a[0], b[1] - a[1], b[2] - a[2])
        self.solids.append((Sweeps.of(Sweep(a, (0, 0, 0), rel, ra, rb)), painter))

    def _thing(self, kind: str, x: float, z: float) -> None:
        rng = self.rng
        colour = rng.uniform(0.15, 0.8, 3)
        colour = (0.45 * colour + 0.55 * colour.mean()) ** 2.2
        if kind == "post":
            self._stick((x, 0, z), (x, rng.uniform(1, 4.5), z), 0.06, 0.05, self._plain(colour))
        elif kind == "pillar":
            self._stick((x, 0, z), (x, 6.0, z), 0.32, 0.32, self._plain(colour * 0.7 + 0.1, 2))
        elif kind == "tree":
            high = rng.uniform(1.8, 3.0)
            bark = self._plain((0.07, 0.05, 0.03), 12)
            self._stick((x, 0, z), (x + rng.normal(0, 0.15), high, z), 0.14, 0.09, bark)
            leaf = self._plain(np.array([0.08, 0.16, 0.04]) * rng.uniform(0.7, 1.9), 9)
            for _ in range(4):
                p = (x + rng.normal(0, 0.6), high + rng.uniform(0, 1.2), z + rng.normal(0, 0.4))
                self._stick(p, p, rng.uniform(0.5, 0.9), 0.5, leaf)
        elif kind in ("bush", "plant"):
            leaf = self._plain(np.array([0.06, 0.13, 0.04]) * rng.uniform(0.7, 1.6), 12)
            low = 0.0
            if kind == "plant":
                low = 0.5
                self._stick((x, 0, z), (x, 0.4, z), 0.2, 0.26, self._plain(colour))
            for _ in range(3):
                p = (x + rng.normal(0, 0.25), low + rng.uniform(0.1, 0.5), z + rng.normal(0, 0.2))
                self._stick(p, p, rng.uniform(0.25, 0.45), 0.2, leaf)
        elif kind == "bench":
            wood = self._plain((0.16, 0.09, 0.05), 9)
            turn = rng.uniform(-1.2, 1.2)
            self.solids.append((Box((x, 0.45, z), (0.8, 0.04, 0.22), turn), wood))
            self.solids.append((Box((x, 0.78, z - 0.2), (0.8, 0.16, 0.03), turn), wood))
            self.solids.append((Box((x, 0.2, z), (0.6, 0.2, 0.03), turn), wood))
        elif kind in ("kiosk", "machine", "bin"):
            half = {"kiosk": (0.9, 1.15, 0.7), "machine": (0.45, 0.95, 0.35)}.get(
                kind, (0.22, 0.42, 0.22)
            )
            face = self._face(colour, rng.uniform(0.1, 0.9, 3) ** 2.2)
            yaw = rng.uniform(-0.6, 0.6)
            self.solids.append((Box((x, half[1], z), half, yaw), face))
        elif kind == "bicycle":
            frame = self._plain(colour)
            for s in (-0.5, 0.5):
                for i in range(10):  # a wheel of short sticks
                    a, b = 2 * math.pi * i / 10, 2 * math.pi * (i + 1) / 10
                    p = (x + s + 0.33 * math.cos(a), 0.34 + 0.33 * math.sin(a), z)
                    q = (x + s + 0.33 * math.cos(b), 0.34 + 0.33 * math.sin(b), z)
                    self._stick(p, q, 0.025, 0.025, self._plain((0.02, 0.02, 0.02)))
            top = ((x - 0.5, 0.34, z), (x - 0.2, 0.75, z), (x + 0.35, 0.78, z), (x + 0.5, 0.34, z))
            for p, q in itertools.pairwise(top):
                self._stick(p, q, 0.025, 0.025, frame)
            self._stick(top[2], (x + 0.33, 1.0, z), 0.03, 0.05, frame)
        elif kind == "person":
            look = make_look(self.domain, rng)
            figure = body(look, rng.uniform(-3, 3), rng.random(), float(rng.random() < 0.7))
            for part in figure:
                o = part.solid.origin
                moved = replace(part.solid, origin=(o[0] + x, o[1], o[2] + z))

                def painter(p: Array, q: Array, r: Array, part=part, look=look) -> Array:  # type: ignore[no-untyped-def]
                    h, rest = look.height, part.rest
                    return paint(look, part.cover, p / h + rest[0], q / h + rest[1],
                                 r / h + rest[2])  # fmt: skip

                self.solids.append((Sweeps.of(moved), painter))

    def _face(self, colour: Array, other: Array) -> Painter:
        def painter(x: Array, y: Array, z: Array) -> Array:
            panel = (np.abs(y - 0.25) < 0.35) & (np.abs(x) < 0.3)
            return np.where(panel[None], other[:, None], colour[:, None])

        return painter

    def _draw(self, solid: Sweeps | Box, painter: Painter) -> None:
        """Draw within the rectangle that its bounding box covers."""
        cam = self.camera
        if isinstance(solid, Sweeps):
            spans = [(low.item(), high.item()) for low, high in map(solid.span, WORLD)]
        else:
            r = math.hypot(solid.half[0], solid.half[2])
            reach = (r, solid.half[1], r)
            spans = [(c - h, c + h) for c, h in zip(solid.centre, reach, strict=True)]
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
