"""A person: the look (drawn once per identity), the body in a pose, and the clothes' colours.

Lengths are shares of the body height. Clothes are painted in rest coordinates, those of the body
standing straight with hanging arms: x to the person's left, y up, z to the front. So a stripe stays
on its thread however the limb swings and from wherever it is seen.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.domains import PALETTE, Domain
from reidguard.virtual.geometry import Axes, Sweep, Vec, cross, unit

__all__ = ["Look", "Part", "body", "make_look", "paint"]

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

SKIN = ((0.86, 0.66, 0.55), (0.80, 0.58, 0.45), (0.66, 0.45, 0.32), (0.48, 0.31, 0.21),
        (0.32, 0.20, 0.14))  # fmt: skip
HAIR = ((0.05, 0.045, 0.045), (0.11, 0.08, 0.06), (0.25, 0.16, 0.09), (0.55, 0.40, 0.20),
        (0.50, 0.22, 0.10), (0.55, 0.55, 0.56))  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What stays the same in every image of an identity. Colours are linear reflectances."""

    height: float  # metres
    width: float  # of the body, 1 is the mean
    shoulders: float  # 1 is the mean
    hips: float
    skin: Colour
    hair: Colour
    hair_style: str
    glasses: bool
    beard: bool
    hat: str
    hat_colour: Colour
    upper: str  # kind of garment
    sleeve: float  # 0 none, 1 to the elbow, 2 to the wrist
    colours: tuple[Colour, Colour]  # of the upper garment: ground and pattern
    pattern: str
    pitch: float  # of the pattern
    sleeve_colour: Colour
    back_colour: Colour
    inner: tuple[Colour, Colour]  # what an open jacket shows
    inner_pattern: str
    opening: float  # half the width of the strip that shows
    logo: tuple[float, float, float, float]  # x, y, half width, half height; no height: none
    logo_colour: Colour
    loose: float
    lower: str
    hem: float  # y where trousers or skirt end
    lower_colours: tuple[Colour, Colour]
    lower_pattern: str
    flare: float
    shoe: Colour
    sole: Colour
    sock: Colour
    bag: str
    bag_side: int
    bag_colours: tuple[Colour, Colour]
    swing: float  # of the gait
    waves: tuple[float, ...]  # of the folds


@dataclass(frozen=True)
class Part:
    """A solid, what covers it, and where its origin is at rest."""

    solid: Sweep
    cover: str
    rest: Vec


def _linear(colour: Any) -> Colour:
    r, g, b = (min(max(float(c), 0.015), 0.95) ** 2.2 for c in colour)
    return r, g, b


def _dye(rng: np.random.Generator, weights: Mapping[str, float]) -> Colour:
    """A palette colour, no two quite the same."""
    name = _pick(rng, weights)
    base = np.array(PALETTE[name]) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.045, 3)
    return _linear(base)


def _pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    names, bounds = _bounds(tuple(weights.items()))
    return names[bisect.bisect_right(bounds, rng.random())]


@functools.lru_cache(maxsize=256)
def _bounds(weights: tuple[tuple[str, float], ...]) -> tuple[list[str], list[float]]:
    """Names, and where their shares of 0 to 1 end. Drawing so is ``Generator.choice``, but fast."""
    share = np.array([weight for _, weight in weights])
    bounds = np.cumsum(share / share.sum())
    return [name for name, _ in weights], (bounds / bounds[-1]).tolist()


def make_look(domain: Domain, rng: np.random.Generator) -> Look:
    """Draw an identity with the domain's statistics."""
    female = rng.random() < 0.5
    upper = _pick(rng, domain.uppers)
    colours = (_dye(rng, domain.upper_colours), _dye(rng, domain.upper_colours))
    sleeve = {"tee": 0.9, "tank": 0.0, "dress": 0.7, "vest": 2.0}.get(upper, 2.0)
    lower = "skirt" if upper == "dress" else _pick(rng, domain.lowers)
    if lower == "skirt" and not female and upper != "dress":
        lower = "trousers"
    hem = {"shorts": rng.uniform(0.27, 0.36), "skirt": rng.uniform(0.22, 0.38)}.get(lower, 0.05)
    if lower == "trousers" and rng.random() < domain.cropped:
        hem = rng.uniform(0.09, 0.15)
    bottom = (_dye(rng, domain.lower_colours), _dye(rng, domain.upper_colours))
    pattern = _pick(rng, domain.patterns)
    logo = (0.0, 0.0, 0.0, 0.0)
    if rng.random() < domain.logos:
        big = rng.random() < 0.5
        logo = (
            0.0 if big else float(rng.choice([-0.045, 0.045])),
            rng.uniform(0.68, 0.74),
            rng.uniform(0.03, 0.055) if big else 0.018,
            rng.uniform(0.02, 0.045) if big else 0.018,
        )
    styles = domain.long_hair if female else {"short": 5, "bald": 1, "curly": 1, "crop": 3}
    hair = HAIR[int(rng.choice(6, p=[0.3, 0.27, 0.19, 0.12, 0.05, 0.07]))]
    return Look(
        height=float(np.clip(rng.normal(1.65 if female else 1.77, 0.07), 1.45, 1.98)),
        width=rng.uniform(0.86, 1.22),
        shoulders=(0.93 if female else 1.06) * rng.uniform(0.95, 1.05),
        hips=(1.06 if female else 0.96) * rng.uniform(0.95, 1.06),
        skin=_linear(SKIN[int(rng.choice(5, p=domain.skins))] * rng.uniform(0.94, 1.06, 3)),
        hair=_linear(hair * rng.uniform(0.85, 1.15, 3)),
        hair_style=_pick(rng, styles),
        glasses=bool(rng.random() < 0.15),
        beard=bool(not female and rng.random() < 0.2),
        hat=_pick(rng, domain.hats),
        hat_colour=_dye(rng, domain.upper_colours),
        upper=upper,
        sleeve=sleeve,
        colours=colours,
        pattern=pattern,
        pitch=rng.uniform(0.028, 0.065),
        sleeve_colour=_dye(rng, domain.upper_colours) if rng.random() < 0.25 else colours[0],
        back_colour=_dye(rng, domain.upper_colours) if rng.random() < 0.12 else colours[0],
        inner=(_dye(rng, domain.upper_colours), _dye(rng, domain.upper_colours)),
        inner_pattern=_pick(rng, {"plain": 3, "stripes": 1, "two-tone": 1}),
        opening=rng.uniform(0.018, 0.05) if upper in ("jacket", "coat", "vest") else 0.0,
        logo=logo,
        logo_colour=_dye(rng, domain.upper_colours),
        loose=rng.uniform(0.95, 1.12),
        lower=lower,
        hem=hem,
        lower_colours=bottom,
        lower_pattern=_pick(rng, domain.lower_patterns),
        flare=rng.uniform(0.9, 1.45),
        shoe=_dye(rng, domain.shoe_colours),
        sole=_linear(np.full(3, rng.choice([0.08, 0.5, 0.9]))),
        sock=_linear(np.full(3, rng.choice([0.1, 0.5, 0.88]))),
        bag=_pick(rng, domain.bags),
        bag_side=int(rng.choice([-1, 1])),
        bag_colours=(_dye(rng, domain.bag_colours), _dye(rng, domain.upper_colours)),
        swing=rng.uniform(0.75, 1.15),
        waves=tuple(rng.uniform(0, 6.28, 6)),
    )


def body(look: Look, heading: float, phase: float, stride: float = 1.0) -> list[Part]:
    """Put a person on the ground at the origin.

    Args:
        look: Who.
        heading: Radians the body is turned about the vertical; 0 looks along +z, to the camera.
        phase: Of the gait, 0 to 1.
        stride: 0 stands still.

    Returns:
        The parts, in world metres.
    """
    return _Figure(look, heading, phase, stride).parts


class _Figure:
    def __init__(self, look: Look, heading: float, phase: float, stride: float) -> None:
        self.look, self.h = look, look.height
        c, s = math.cos(heading), math.sin(heading)
        self.axes: Axes = ((c, 0.0, -s), (0.0, 1.0, 0.0), (s, 0.0, c))
        self.parts: list[Part] = []
        turn = 2 * math.pi * phase
        stride *= look.swing * (0.7 if look.lower == "skirt" or look.upper == "coat" else 1.0)
        self._trunk()
        self._head()
        for side in (-1, 1):
            self._leg(side, stride, turn + (0 if side > 0 else math.pi))
            self._arm(side, stride, turn + (math.pi if side > 0 else 0))
        self._bag()

    def _world(self, p: Vec) -> Vec:
        e, h = self.axes, self.h
        x, y, z = (h * (e[0][i] * p[0] + e[1][i] * p[1] + e[2][i] * p[2]) for i in range(3))
        return x, y, z

    def _turn(self, d: Vec) -> Vec:
        e = self.axes
        x, y, z = (e[0][i] * d[0] + e[1][i] * d[1] + e[2][i] * d[2] for i in range(3))
        return x, y, z

    def _add(
        self,
        cover: str,
        at: Vec,
        a: Vec,
        b: Vec,
        ra: float,
        rb: float,
        *,
        scale: Vec = (1.0, 1.0, 1.0),
        axes: Axes | None = None,
        rest: Vec | None = None,
    ) -> None:
        """Add a part around ``at``; a, b, ra, rb are shares of the height before the stretch."""
        h = self.h
        pa = (a[0] * h * scale[0], a[1] * h * scale[1], a[2] * h * scale[2])
        pb = (b[0] * h * scale[0], b[1] * h * scale[1], b[2] * h * scale[2])
        frame = self.axes if axes is None else axes
        solid = Sweep(self._world(at), pa, pb, ra * h, rb * h, frame, scale)
        self.parts.append(Part(solid, cover, at if rest is None else rest))

    def _trunk(self) -> None:
        k = self.look
        w, top, low = k.width, k.shoulders, k.hips
        o: Vec = (0.0, 0.0, 0.0)
        deep = 1 / (0.58 + 0.14 * (w - 0.86))
        thick = k.loose * (1.06 if k.upper in ("coat", "jacket", "hoodie") else 1.0)
        self._add("upper", o, (0, 0.735, 0.0), (0, 0.60, 0.004), 0.089 * w * top * thick,
                  0.076 * w * low * thick, scale=(1, 1.5, deep))  # fmt: skip
        hem = 0.50 if k.upper not in ("tee", "tank") else 0.515
        self._add("upper", o, (0, 0.60, 0.004), (0, hem, 0), 0.078 * w * low * thick,
                  0.088 * w * low * thick, scale=(1, 3.5, 1 / 0.66))  # fmt: skip
        for side in (-1, 1):  # from the neck down to the shoulder
            self._add("upper", o, (0.028 * side, 0.808, -0.006),
                      (0.094 * side * w * top, 0.774, -0.004), 0.026, 0.034 * thick)  # fmt: skip
        self._add("lower", o, (0, 0.55, 0), (0, 0.49, 0), 0.076 * w * low, 0.083 * w * low,
                  scale=(1, 1.6, 1 / 0.68))  # fmt: skip
        if k.upper == "coat":
            self._add("upper", o, (0, 0.56, 0), (0, 0.33, 0), 0.09 * w * low * thick,
                      0.108 * w * thick, scale=(1, 5.0, 1 / 0.85))  # fmt: skip
        if k.lower == "skirt":
            self._add("lower" if k.upper != "dress" else "upper", o, (0, 0.56, 0), (0, k.hem, 0),
                      0.08 * w * low, 0.092 * w * k.flare, scale=(1, 5.0, 1 / 0.95))  # fmt: skip
        if k.upper == "hoodie":
            self._add("upper", o, (-0.03, 0.825, -0.035), (0.03, 0.825, -0.035), 0.04, 0.04,
                      scale=(1, 1.3, 1.2))  # fmt: skip
        self._add("skin", o, (0, 0.80, 0.0), (0, 0.87, 0.008), 0.031, 0.029)

    def _head(self) -> None:
        k = self.look
        at = (0.0, 0.93, 0.012)
        self._add("face", at, (0, 0.008, 0), (0, -0.03, 0.012), 0.058, 0.043, scale=(1.16, 1, 1))
        shape: Vec = (1.1, 1.0, 0.95)
        if k.hat == "none" or k.hat == "cap":
            if k.hair_style in ("short", "bun", "tail", "long", "bob"):
                self._add("hair", at, (0, 0.016, -0.012), (0, 0.0, -0.022), 0.062, 0.054,
                          scale=shape)  # fmt: skip
            elif k.hair_style == "crop":
                self._add("hair", at, (0, 0.014, -0.009), (0, 0.0, -0.016), 0.060, 0.052,
                          scale=shape)  # fmt: skip
            elif k.hair_style == "curly":
                self._add("hair", at, (0, 0.026, -0.016), (0, 0.01, -0.026), 0.078, 0.07)
        if k.hair_style == "long":
            self._add("hair", at, (0, 0.0, -0.026), (0, -0.15, -0.05), 0.058, 0.05,
                      scale=(1, 1, 1.35))  # fmt: skip
        elif k.hair_style == "bob":
            self._add("hair", at, (0, 0.0, -0.02), (0, -0.055, -0.02), 0.062, 0.06,
                      scale=(1, 1.2, 1.1))  # fmt: skip
        elif k.hair_style == "tail":
            self._add("hair", at, (0, 0.02, -0.06), (0, -0.10, -0.085), 0.026, 0.014)
        elif k.hair_style == "bun":
            self._add("hair", at, (0, 0.06, -0.045), (0, 0.06, -0.045), 0.032, 0.032)
        if k.hat == "cap":
            self._add("hat", at, (0, 0.03, -0.004), (0, 0.03, -0.008), 0.062, 0.06,
                      scale=(1.08, 1.35, 0.95))  # fmt: skip
            self._add("hat", at, (0, 0.03, 0.05), (0, 0.024, 0.08), 0.042, 0.036,
                      scale=(1, 5, 1))  # fmt: skip
        elif k.hat == "beanie":
            self._add("hat", at, (0, 0.03, -0.008), (0, 0.045, -0.012), 0.066, 0.05,
                      scale=(1.08, 1.05, 0.95))  # fmt: skip
        elif k.hat == "hood":
            self._add("upper", at, (0, 0.016, -0.018), (0, -0.05, -0.03), 0.07, 0.066)
        elif k.hat == "brim":
            self._add("hat", at, (0, 0.045, -0.004), (0, 0.05, -0.004), 0.06, 0.05)
            self._add("hat", at, (0, 0.033, 0), (0, 0.033, 0), 0.105, 0.105, scale=(1, 8, 1))

    def _limb(self, at: Vec, length: float, swing: float, splay: float) -> tuple[Vec, Axes]:
        """The far end of a limb in body coordinates, and its axes in the world."""
        down = (
            math.sin(splay),
            -math.cos(swing) * math.cos(splay),
            math.sin(swing) * math.cos(splay),
        )
        end = (
            at[0] + length * down[0],
            at[1] + length * down[1],
            at[2] + length * down[2],
        )
        up = (-down[0], -down[1], -down[2])
        left = unit(cross(up, (0.0, math.sin(swing), math.cos(swing))))
        return end, (self._turn(left), self._turn(up), self._turn(cross(left, up)))

    def _leg(self, side: int, stride: float, turn: float) -> None:
        k = self.look
        w = k.width * (0.5 + 0.5 * k.hips)
        swing = 0.42 * stride * math.sin(turn)
        bend = stride * (0.12 + 0.85 * max(0.0, math.cos(turn + 0.35)) ** 2)
        hip = (0.045 * side * w, 0.49, 0.0)
        knee, thigh = self._limb(hip, 0.225, swing, 0.01 * side)
        ankle, shin = self._limb(knee, 0.22, swing - bend, 0.0)
        wide = {"trousers": 1.12, "wide": 1.4, "leggings": 0.98, "shorts": 1.0}.get(k.lower, 0.95)
        tight = wide if k.lower != "shorts" else 0.95
        rest = hip
        self._add("leg", hip, (0, 0, 0), (0, -0.225, 0), 0.052 * w,
                  0.036 * w * tight, axes=thigh, rest=rest)  # fmt: skip
        if k.lower == "shorts":
            share = 0.49 - k.hem
            self._add("leg", hip, (0, -0.02, 0), (0, -share, 0), 0.054 * w, 0.052 * w,
                      axes=thigh, rest=rest, scale=(1, 3, 1))  # fmt: skip
        rest = (hip[0], hip[1] - 0.225, 0.0)
        cuff = 0.026 * w * (1.55 if k.lower == "wide" else 1.2 if k.lower == "trousers" else 0.85)
        self._add("leg", knee, (0, 0, 0), (0, -0.205, -0.004), 0.035 * w * tight, cuff,
                  axes=shin, rest=rest)  # fmt: skip
        rest = (hip[0], 0.045, 0.0)
        lift = self._foot(swing, bend)
        _, foot = self._limb(ankle, 0.01, lift, 0.0)
        self._add("shoe", ankle, (0, -0.022, -0.014), (0, -0.026, 0.068), 0.025, 0.02,
                  axes=foot, rest=rest, scale=(1.05, 1.15, 1))  # fmt: skip

    @staticmethod
    def _foot(swing: float, bend: float) -> float:
        return 0.5 * (swing - bend) + (0.15 if swing > 0 else 0.0)

    def _arm(self, side: int, stride: float, turn: float) -> None:
        k = self.look
        w = 0.5 + 0.5 * k.width
        thick = 1.13 if k.sleeve > 1 else 1.0
        held = k.bag == "hand" and side == k.bag_side
        swing = (0.1 if held else 0.45) * stride * math.sin(turn)
        bend = 0.05 if held else 0.25 + 0.25 * stride * max(0.0, math.sin(turn))
        shoulder = (0.106 * side * k.width * k.shoulders, 0.766, -0.002)
        elbow, upper = self._limb(shoulder, 0.17, swing, 0.12 * side * k.width)
        wrist, fore = self._limb(elbow, 0.145, swing + bend, 0.03 * side)
        rest = shoulder
        self._add("sleeve", shoulder, (0, 0, 0), (0, -0.17, 0), 0.033 * w * thick,
                  0.026 * w * thick, axes=upper, rest=rest)  # fmt: skip
        if 0.3 < k.sleeve < 1.5:
            self._add("sleeve", shoulder, (0, 0, 0), (0, -0.17 * k.sleeve + 0.03, 0), 0.036 * w,
                      0.037 * w, axes=upper, rest=rest, scale=(1, 1.5, 1))  # fmt: skip
        rest = (shoulder[0], shoulder[1] - 0.17, shoulder[2])
        self._add("sleeve", elbow, (0, 0, 0), (0, -0.145, 0), 0.026 * w * thick,
                  0.019 * w * thick, axes=fore, rest=rest)  # fmt: skip
        self._add("skin", wrist, (0, -0.012, 0), (0, -0.045, 0.008), 0.02, 0.016, axes=fore,
                  scale=(1.5, 1, 1))  # fmt: skip
        self.hand = wrist if side == k.bag_side else getattr(self, "hand", wrist)

    def _bag(self) -> None:
        k = self.look
        if k.bag == "backpack":
            z = -0.085 * k.width
            self._add("bag", (0, 0, 0), (0, 0.735, z), (0, 0.62, z - 0.005), 0.068, 0.076,
                      scale=(1, 1.6, 1.25))  # fmt: skip
            self._add("bag", (0, 0, 0), (-0.02, 0.62, z - 0.05), (0.02, 0.62, z - 0.05), 0.04, 0.04,
                      scale=(1, 1, 1.6))  # fmt: skip
        elif k.bag == "shoulder":
            x = k.bag_side * (0.105 * k.width + 0.02)
            self._add("bag", (x, 0.48, -0.01), (0, 0.01, -0.035), (0, 0.01, 0.035), 0.055, 0.055,
                      scale=(2.0, 1.1, 1.0), axes=self.axes)  # fmt: skip
        elif k.bag == "hand":
            x, y, z = self.hand
            self._add("bag", (x, y - 0.11, z), (0, 0, -0.04), (0, 0, 0.04), 0.055, 0.055,
                      scale=(1.8, 1.0, 1.0))  # fmt: skip


def _column(colour: Colour) -> Array:
    return np.array(colour)[:, None]


def _weave(pattern: str, pitch: float, x: Array, y: Array) -> NDArray[np.bool_]:
    """Where a pattern shows its second colour."""
    if pattern == "stripes":
        return np.asarray((y / pitch) % 1 < 0.45)
    if pattern == "thin":
        return np.asarray((y / (0.6 * pitch)) % 1 < 0.3)
    if pattern == "pinstripes":
        return np.asarray((x / (0.8 * pitch)) % 1 < 0.35)
    if pattern == "checks":
        return np.asarray(((x / pitch) % 1 < 0.5) ^ ((y / pitch) % 1 < 0.5))
    if pattern == "plaid":
        return np.asarray(((x / pitch) % 1 < 0.3) | ((y / pitch) % 1 < 0.3))
    if pattern == "dots":
        u, v = (x / pitch) % 1 - 0.5, (y / pitch) % 1 - 0.5
        return np.asarray(u * u + v * v < 0.09)
    if pattern == "two-tone":
        return np.asarray(y < 0.66)
    if pattern == "yoke":
        return np.asarray(y > 0.73)
    if pattern == "band":
        return np.asarray(np.abs(y - 0.685) < 0.028)
    if pattern == "sides":
        return np.asarray(np.abs(x) > 0.06)
    if pattern == "diagonal":
        return np.asarray(x * 0.8 + (y - 0.66) > 0)
    return np.zeros(x.shape, bool)


def paint(look: Look, cover: str, x: Array, y: Array, z: Array) -> Array:
    """Reflectance of a cover at rest coordinates.

    Args:
        look: Who.
        cover: Of a :class:`Part`.
        x: (n,), shares of the height, as y and z.
        y: Up.
        z: To the front.

    Returns:
        (3, n) linear reflectances.
    """
    colour = np.empty((3, x.size))
    painter = {
        "upper": _upper,
        "sleeve": _sleeve,
        "lower": _lower,
        "leg": _leg,
        "face": _face,
        "shoe": _shoe,
        "bag": _bag,
    }.get(cover)
    if painter is None:
        colour[:] = _column({"skin": look.skin, "hair": look.hair}.get(cover, look.hat_colour))
    else:
        painter(look, colour, x, y, z)
    if cover in ("upper", "sleeve", "lower", "leg", "bag"):
        colour *= _folds(look, x, y, z)
    elif cover == "hair":
        colour *= 1 + 0.25 * np.sin(260 * x + 40 * np.sin(30 * y))
    return colour


def _folds(look: Look, x: Array, y: Array, z: Array) -> Array:
    a, b, c, d, *_ = look.waves
    one = np.sin(70 * y + 45 * x + a + 2 * np.sin(40 * z + b))
    folds: Array = 1 + 0.07 * one + 0.05 * np.sin(110 * x - 60 * y + 50 * z + c + d)
    return folds


def _set(colour: Array, where: NDArray[np.bool_], value: Colour) -> None:
    for channel, v in zip(colour, value, strict=True):
        channel[where] = v


def _upper(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    front = z > 0
    colour[:] = _column(k.colours[0])
    if k.back_colour != k.colours[0]:
        _set(colour, ~front, k.back_colour)
    woven = _weave(k.pattern, k.pitch, x, y)
    _set(colour, woven, k.colours[1])
    if k.logo[3]:
        lx, ly, wide, high = k.logo
        _set(colour, front & (np.abs(x - lx) < wide) & (np.abs(y - ly) < high), k.logo_colour)
    if k.opening:
        strip = front & (np.abs(x) < k.opening * (0.5 + (0.85 - y) * 1.6).clip(0.4, 1.3))
        _set(colour, strip, k.inner[0])
        _set(colour, strip & _weave(k.inner_pattern, k.pitch, x, y), k.inner[1])
    elif k.upper == "shirt":
        _set(colour, front & (np.abs(x) < 0.006), k.logo_colour)
        _set(colour, y > 0.80, k.logo_colour)
    elif k.upper == "tank":
        _set(colour, (y > 0.745) & (np.abs(x) > 0.062), k.skin)
    elif k.upper == "hoodie":
        _set(colour, front & (y < 0.63) & (y > 0.565) & (np.abs(x) < 0.055), _dim(k.colours[0]))
    if k.upper in ("tee", "tank", "dress"):
        _set(colour, front & (x * x + (y - 0.83) ** 2 < 0.0022), k.skin)
    if k.upper == "dress":
        _set(colour, np.abs(y - 0.595) < 0.012, k.logo_colour)
    if k.bag == "backpack":
        _set(colour, front & (np.abs(np.abs(x) - 0.058) < 0.013) & (y > 0.64), k.bag_colours[0])
    elif k.bag == "shoulder":
        across = np.abs((y - 0.66) - k.bag_side * -1.35 * x) < 0.018
        _set(colour, across & (y > 0.5), k.bag_colours[0])


def _dim(colour: Colour) -> Colour:
    return (0.6 * colour[0], 0.6 * colour[1], 0.6 * colour[2])


def _sleeve(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    colour[:] = _column(k.sleeve_colour)
    if k.sleeve_colour == k.colours[0]:
        if k.back_colour != k.colours[0]:
            _set(colour, z < -0.004, k.back_colour)
        if k.pattern in ("stripes", "thin", "checks", "plaid", "dots", "band", "two-tone", "yoke"):
            _set(colour, _weave(k.pattern, k.pitch, x, y), k.colours[1])
    if k.sleeve > 1.5 and k.upper in ("hoodie", "jacket"):
        _set(colour, y < 0.49, _dim(k.sleeve_colour))
    end = 0.766 - 0.16 * k.sleeve
    if k.sleeve < 1.5:
        _set(colour, y < end, k.skin)


def _lower(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    colour[:] = _column(k.lower_colours[0])
    if k.lower == "skirt" and k.lower_pattern != "side":
        _set(colour, _weave(k.lower_pattern, k.pitch, x, y), k.lower_colours[1])
    if k.lower_pattern == "side":
        _set(colour, np.abs(x) > 0.082, k.lower_colours[1])
    _set(colour, np.abs(y - 0.555) < 0.009, k.shoe)  # belt


def _leg(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    bare = k.lower in ("skirt",)
    colour[:] = _column(k.skin if bare else k.lower_colours[0])
    if bare:
        return
    side = np.abs(x) - 0.045 * k.width
    if k.lower_pattern == "side":
        _set(colour, side > 0.012, k.lower_colours[1])
    elif k.lower_pattern == "knee":
        _set(colour, (np.abs(y - 0.29) < 0.03) & (z > 0.0), k.lower_colours[1])
    elif k.lower_pattern == "faded":
        colour *= np.where((z > 0) & (y > 0.3), 1.7, 1.0)
    elif k.lower_pattern in ("checks", "pinstripes", "plaid"):
        _set(colour, _weave(k.lower_pattern, 0.7 * k.pitch, x, y), k.lower_colours[1])
    if k.lower == "shorts":
        _set(colour, y < k.hem, k.skin)
        _set(colour, y < 0.11, k.sock)
    else:
        _set(colour, y < k.hem, k.sock)


def _face(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    """Coordinates here are still those of the standing body; the head's centre is at 0.93."""
    colour[:] = _column(k.skin)
    front = z > 0.035
    eye = (np.abs(np.abs(x) - 0.021) < 0.0085) & (np.abs(y - 0.935) < 0.006)
    _set(colour, front & eye, (0.02, 0.015, 0.015))
    brow = (np.abs(np.abs(x) - 0.021) < 0.012) & (np.abs(y - 0.949) < 0.004)
    _set(colour, front & brow, k.hair)
    if k.glasses:
        _set(colour, front & (np.abs(y - 0.935) < 0.011) & (np.abs(x) < 0.04), (0.012,) * 3)
    _set(colour, front & (np.abs(x) < 0.004) & (np.abs(y - 0.92) < 0.012), _dim(k.skin))
    _set(colour, front & (np.abs(x) < 0.014) & (np.abs(y - 0.897) < 0.004), (0.30, 0.09, 0.08))
    if k.beard:
        _set(colour, (z > 0.01) & (y < 0.905), k.hair)
    if k.hat in ("beanie", "brim") and k.hair_style != "bald":
        _set(colour, z < 0.0, k.hair)
    elif k.hair_style == "bald":
        _set(colour, (z < 0.0) & (y < 0.94), tuple_mean(k.skin, k.hair))


def tuple_mean(a: Colour, b: Colour) -> Colour:
    """Half of each."""
    return (0.5 * (a[0] + b[0]), 0.5 * (a[1] + b[1]), 0.5 * (a[2] + b[2]))


def _shoe(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    colour[:] = _column(k.shoe)
    _set(colour, y < 0.012, k.sole)


def _bag(k: Look, colour: Array, x: Array, y: Array, z: Array) -> None:
    colour[:] = _column(k.bag_colours[0])
    if k.bag == "backpack":
        _set(colour, np.abs(y - 0.675) < 0.008, k.bag_colours[1])
        _set(colour, (np.abs(y - 0.62) < 0.025) & (np.abs(x) < 0.04), k.bag_colours[1])
    else:
        _set(colour, np.abs(y - 0.50) < 0.008, k.bag_colours[1])
