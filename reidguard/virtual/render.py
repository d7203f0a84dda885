"""Rendering of one image: a person in front of a camera."""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reidguard.errors import InputError
from reidguard.schema import MAX_SEED, checked
from reidguard.virtual.body import Part, body
from reidguard.virtual.clothes import paint
from reidguard.virtual.domains import Domain, find_domain
from reidguard.virtual.geometry import Sweeps, View, cast
from reidguard.virtual.look import Look, make_look
from reidguard.virtual.scene import HEIGHT, WIDTH, Camera, Light, make_camera
from reidguard.virtual.sensor import blur, develop

__all__ = ["render_person"]

Array = NDArray[np.float64]

IDENTITY, CAMERA, SHOT = 0, 1, 2
STEP = 10  # degrees between viewpoints


def _rng(domain: str, seed: int, *key: int) -> np.random.Generator:
    """Return an independent random stream for each key."""
    code = zlib.crc32(domain.encode())
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(code, *key)))
    )


@functools.lru_cache(maxsize=4096)
def _look(domain: str, seed: int, identity: int) -> Look:
    return make_look(find_domain(domain), _rng(domain, seed, IDENTITY, identity))


@functools.lru_cache(maxsize=32)
def _camera(domain: str, seed: int, camera: int) -> Camera:
    return make_camera(find_domain(domain), _rng(domain, seed, CAMERA, camera))


@dataclass(frozen=True)
class _Window:
    """The image's crop, in metres to the right of and above the feet, in the camera's view."""

    view: View
    left: float
    top: float
    pixel: float  # metres
    height: int
    width: int

    def grid(self, fine: int) -> tuple[Array, Array]:
        step = self.pixel / fine
        u: Array = self.left + (np.arange(self.width * fine, dtype=float) + 0.5) * step
        v: Array = self.top - (np.arange(self.height * fine, dtype=float) + 0.5) * step
        return u, v


MAX_HEIGHT = 1024  # of an image, in pixels


def render_person(
    domain: str,
    identity: int,
    camera: int,
    viewpoint: float | None = None,
    *,
    shot: int = 0,
    height: int = 128,
    seed: int = 0,
) -> NDArray[np.uint8]:
    """Render one image. The same arguments give the same pixels, in any order of calls.

    Args:
        domain: One of :data:`VIRTUAL_DOMAINS`.
        identity: Number of the identity, from 1; each domain and seed has other identities.
        camera: Number of the camera, from 1.
        viewpoint: Degrees from which the body is seen: 0 from the front, 90 from the person's
            left, 180 from the back. None draws it for each shot, in steps of 10.
        shot: Number of the image; position, phase of the gait, noise and so on depend on it.
        height: Height of the image; a multiple of 32 from 64. The width is half of it.
        seed: Seed of identities and cameras.

    Returns:
        (height, height / 2, 3) uint8 RGB.

    Raises:
        InputError: If the domain is unknown or a number is out of range.

    Example:
        >>> render_person("plaza", identity=7, camera=1, viewpoint=30).shape
        (128, 64, 3)
    """
    place = find_domain(domain)
    identity = checked(int, "identity", identity, low=0, high=MAX_SEED)
    camera = checked(int, "camera", camera, low=1, high=MAX_SEED)
    shot = checked(int, "shot", shot, low=0, high=MAX_SEED)
    seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
    height = checked(int, "height", height, low=64, high=MAX_HEIGHT)
    if height % 32:
        raise InputError(f"height must be a multiple of 32 from 64, not {height}")
    if viewpoint is not None:
        viewpoint = checked(float, "viewpoint", viewpoint, low=-1e6, high=1e6)
    cam = _camera(domain, seed, camera)
    rng = _rng(domain, seed, SHOT, identity, camera, shot)
    look = _look(domain, seed, identity)
    if viewpoint is None:
        turned = _rng(domain, seed, SHOT, identity, camera).random() < place.turned
        turn = cam.flow + (math.pi if turned else 0.0)
        viewpoint = STEP * round(math.degrees(turn + rng.normal(0, 0.35)) / STEP)
    return _Shot(place, cam, look, math.radians(-viewpoint % 360), rng, height, seed).pixels


class _Shot:
    def __init__(
        self,
        domain: Domain,
        camera: Camera,
        look: Look,
        heading: float,
        rng: np.random.Generator,
        height: int,
        seed: int,
    ) -> None:
        self.domain, self.camera, self.rng = domain, camera, rng
        place = rng.uniform(camera.near, camera.far)
        half = place * (WIDTH / 2 - 45) / camera.focal
        self.at = (rng.uniform(-half, half), -place)
        pitch = math.atan2(camera.height - 0.85, place)
        view = View.at(pitch)
        self.window = self._crop(look, view, height)
        sun = camera.light.sun * (0.3 if rng.random() < domain.shade else rng.uniform(0.85, 1.1))
        self.light = replace(camera.light, sun=sun)
        image = self._backdrop()
        parts = body(look, heading, rng.random(), 0.0 if rng.random() < 0.15 else 1.0)
        solids = Sweeps.of(*(part.solid for part in parts))
        shadow = self._shadow(solids)
        image = self._ground_shadow(image, shadow)
        crowd, front = rng.random() < domain.crowd, rng.random() < domain.occluded
        if crowd:
            image = self._passer_by(image, seed, behind=True)
        image = self._figure(image, look, parts, solids, shadow)
        if front:
            image = self._occlude(image, seed)
        _, _, scale = camera.project(*self.at)
        lines = camera.sensor.resolution * 128 * (scale * 1.7 / 110)
        self.pixels = develop(
            image, camera.sensor, math.exp(rng.normal(0, 0.09)), lines, rng,
            np.exp(rng.normal(0, 0.02, 3)),
        )  # fmt: skip

    def _crop(self, look: Look, view: View, height: int) -> _Window:
        """Draw the detector's box: rarely centred, sometimes too small."""
        rng, domain = self.rng, self.domain
        tall = look.height * view.up[1] + 0.16 * abs(view.up[2])
        above, below = rng.uniform(*domain.margin, 2)
        if rng.random() < domain.cut:
            if rng.random() < 0.7:
                below = -rng.uniform(0.03, 0.22)
            else:
                above = -rng.uniform(0.02, 0.08)
        size = tall * (1 + above + below)
        pixel = size / height
        middle = rng.normal(0, domain.shift) * size
        top = tall * (1 + above) - 0.08 * abs(view.up[2])
        return _Window(view, middle - size / 4, top, pixel, height, height // 2)

    def _backdrop(self) -> Array:
        u, v = self.window.grid(1)
        column, row, scale = self.camera.project(*self.at)
        x = (column + u * scale - 0.5).clip(0, WIDTH - 1.001)
        y = (row - v * scale - 0.5).clip(0, HEIGHT - 1.001)
        i, j = x.astype(np.intp), y.astype(np.intp)
        p, q = x - i, (y - j)[:, None]
        first = int(i[0])  # of the columns that are needed
        image = self.camera.backdrop[:, :, first : int(i[-1]) + 2]
        i = i - first
        top, bottom = image[:, j], image[:, j + 1]
        lines = top * (1 - q) + bottom * q
        out: Array = lines[:, :, i] * (1 - p) + lines[:, :, i + 1] * p
        return out

    def _shadow(self, solids: Sweeps) -> _ShadowMap | None:
        """Return the shadow map, or None if the sun is too weak for shadows."""
        total = self.light.sun.sum() * self.light.towards[1]
        weak = total < 0.15 * (total + self.light.ambient.sum())
        return None if weak else _ShadowMap(solids, self.light)

    def _ground_shadow(self, image: Array, shadow: _ShadowMap | None) -> Array:
        view, light = self.window.view, self.light
        sine = -view.forward[1]
        u, v = self.window.grid(1)
        # The point of the ground behind pixel (u, v), in metres from the feet.
        x, z = u[None], (-v / max(sine, 0.03))[:, None]
        # Beyond this distance there is no visible shadow; the margin is for its blur.
        far, sigma = 2.5, 0.8 * self.window.height / 128
        near = np.flatnonzero(np.abs(z) < far)
        if not near.size:
            return image
        margin = math.ceil(2.5 * sigma)
        rows = slice(max(0, near[0] - margin), near[-1] + 1 + margin)
        z = z[rows]
        contact = 0.55 * np.exp(-(x * x / 0.05 + z * z / 0.07))
        lit = 1.0 - contact
        if shadow is not None:
            total = light.sun.sum() * light.towards[1]
            fraction = float(total / (total + light.ambient.sum()))
            sun = shadow.lit(np.broadcast_to(x, (len(z), len(u))), np.zeros((len(z), 1)), z)
            lit = lit * (1 - fraction * (1 - blur(sun, sigma)))
        fade = (1 - np.abs(z) / far).clip(0, 1)
        image = image.copy()
        image[:, rows] *= 1 - fade * (1 - lit)
        return image

    def _figure(
        self,
        image: Array,
        look: Look,
        parts: Sequence[Part],
        solids: Sweeps,
        shadow: _ShadowMap | None,
        du: float = 0.0,
        dv: float = 0.0,
        zoom: float = 1.0,
    ) -> Array:
        """Draw a person into the image; du, dv shift it in metres."""
        window, light = self.window, self.light
        u, v = window.grid(2)
        u, v = (u - du) / zoom, (v - dv) / zoom
        depth, index = cast(solids, window.view, u, v)
        hit = index >= 0
        if not hit.any():
            return image
        # From here on, only the rectangle of whole pixels that contains the person.
        across, down = (np.flatnonzero(hit.any(axis=axis)) // 2 for axis in (0, 1))
        left, right, top, bottom = across[0], across[-1] + 1, down[0], down[-1] + 1
        fine = (slice(2 * top, 2 * bottom), slice(2 * left, 2 * right))
        depth, index, hit, u, v = depth[fine], index[fine], hit[fine], u[fine[1]], v[fine[0]]
        # Points of the same cover are sorted together, to be painted at once.
        order = sorted(range(len(parts)), key=lambda i: parts[i].cover)
        rank = np.empty(len(parts), np.int16)
        rank[order] = np.arange(len(parts), dtype=np.int16)
        point = np.flatnonzero(hit)
        which = rank[index.ravel()[point]]
        counts = np.bincount(which, minlength=len(parts))
        point = point[np.argsort(which, kind="stable")]
        row, column = np.divmod(point, len(u))
        x, y, z = window.view.points(u[column], v[row], depth.ravel()[point])
        solids = solids.repeat(order, counts)
        local = solids.place(x, y, z)
        normal = solids.normal(*local)
        rest = np.repeat(np.transpose([parts[i].rest for i in order]), counts, axis=1)
        a, b, c = (p / look.height + q for p, q in zip(local, rest, strict=True))
        colour = np.empty((3, len(point)))
        end = 0
        for cover, group in itertools.groupby(order, key=lambda i: parts[i].cover):
            start, end = end, end + int(sum(counts[rank[i]] for i in group))
            here = slice(start, end)
            colour[:, here] = paint(look, cover, a[here], b[here], c[here])
        lit = 1.0 if shadow is None else shadow.lit(x, y, z, normal)
        colour *= light.shade(normal, lit) * (0.72 + 0.28 * (y / 0.7).clip(0, 1))
        full = np.zeros((4, *hit.shape))  # premultiplied light, and coverage
        for channel, value in zip(full, colour, strict=False):
            channel.reshape(-1)[point] = value
        full[3] = hit
        small = 0.25 * (
            (full[:, ::2, ::2] + full[:, ::2, 1::2]) + (full[:, 1::2, ::2] + full[:, 1::2, 1::2])
        )
        image = image.copy()
        image[:, top:bottom, left:right] *= 1 - small[3]
        image[:, top:bottom, left:right] += small[:3]
        return image

    def _passer_by(self, image: Array, seed: int, *, behind: bool) -> Array:
        """Draw another person, partly inside the image."""
        rng = self.rng
        other = _look(self.domain.name, seed, int(rng.integers(10**6, 10**6 + 400)))
        parts = body(other, rng.uniform(-math.pi, math.pi), rng.random())
        side = float(rng.choice([-1, 1]))
        if behind:
            du, dv, zoom = side * rng.uniform(0.25, 0.5), rng.uniform(0.02, 0.2), 0.92
        else:
            du, dv, zoom = side * rng.uniform(0.38, 0.55), -rng.uniform(0.05, 0.25), 1.08
        solids = Sweeps.of(*(part.solid for part in parts))
        return self._figure(image, other, parts, solids, None, du, dv, zoom)

    def _occlude(self, image: Array, seed: int) -> Array:
        rng, window = self.rng, self.window
        kind = rng.random()
        if kind < 0.4:
            return self._passer_by(image, seed, behind=False)
        u, v = window.grid(1)
        colour = rng.uniform(0.1, 0.7, 3)
        colour = ((0.4 * colour + 0.6 * colour.mean()) ** 2.2)[:, None, None]
        if kind < 0.7:  # a post
            at, half = float(rng.choice([-1, 1])) * rng.uniform(0.1, 0.4), rng.uniform(0.03, 0.07)
            across = ((u - at) / half)[None]
            round_ = np.sqrt(np.maximum(1 - across * across, 0))
            normal = (across, 0 * across, round_)
            solid = np.broadcast_to((np.abs(across) < 1) * 1.0, (len(v), len(u)))
        else:  # a wall, a hedge, a counter
            top = rng.uniform(0.15, 0.5)
            grain = 0.7 + 0.6 * rng.random((len(v), len(u)))
            colour = colour * blur(grain, 0.8)
            normal = tuple(np.full((1, 1), c) for c in (0.0, 0.2, 0.98))  # type: ignore[assignment]
            solid = np.broadcast_to(((v < top) * 1.0)[:, None], (len(v), len(u)))
        alpha = blur(solid, 0.6 * window.height / 128)
        hidden: Array = image * (1 - alpha) + alpha * colour * self.light.shade(normal, 0.8)
        return hidden


class _ShadowMap:
    """Shadow map: depth of the body in the view of the sun, on a coarse grid."""

    def __init__(self, solids: Sweeps, light: Light) -> None:
        self.view = View.along((-light.towards[0], -light.towards[1], -light.towards[2]))
        across, down = solids.span(self.view.right), solids.span(self.view.up)
        self.step = 0.026
        self.left = across[0].min() - self.step
        self.top = down[1].max() + self.step
        wide = int((across[1].max() - self.left) / self.step) + 2
        high = int((self.top - down[0].min()) / self.step) + 2
        u: Array = self.left + np.arange(wide, dtype=float) * self.step
        v: Array = self.top - np.arange(high, dtype=float) * self.step
        self.depth, _ = cast(solids, self.view, u, v)

    def lit(
        self, x: Array, y: Array, z: Array, normal: tuple[Array, Array, Array] | None = None
    ) -> Array:
        """Return the fraction of sunlight at world positions; with normals, on the body."""
        if normal is not None:  # moved off the surface, which would shade itself
            x, y, z = (p + 0.02 * n for p, n in zip((x, y, z), normal, strict=True))
        r, up, f = self.view.right, self.view.up, self.view.forward
        s = x * f[0] + (y * f[1] + z * f[2])
        i = (x * r[0] + (y * r[1] + z * r[2]) - self.left) / self.step
        j = (self.top - (x * up[0] + (y * up[1] + z * up[2]))) / self.step
        high, wide = self.depth.shape
        i, j = np.rint(i).astype(np.intp), np.rint(j).astype(np.intp)
        inside = (i >= 0) & (i < wide) & (j >= 0) & (j < high)
        ahead = self.depth[j.clip(0, high - 1), i.clip(0, wide - 1)]
        lit: Array = np.where(inside & (ahead < s - 0.025), 0.0, 1.0)
        return lit
