"""Body: the solids of a person in a pose of the gait.

Lengths are fractions of the body height, in body coordinates: x to the person's left, y up, z to
the front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from reidguard.virtual.geometry import Axes, Sweep, Vec, cross, unit
from reidguard.virtual.look import Look

__all__ = ["Part", "body"]


@dataclass(frozen=True)
class Part:
    """A solid, its cover, and the position of its origin at rest."""

    solid: Sweep
    cover: str
    rest: Vec


# Around the head's centre: cover, ends a and b, radii there, and stretch.
HeadPart = tuple[str, Vec, Vec, float, float, Vec]
ORIGIN: Vec = (0.0, 0.0, 0.0)
ONES: Vec = (1.0, 1.0, 1.0)
HEAD: Vec = (0.0, 0.93, 0.012)
FACE: HeadPart = ("face", (0, 0.008, 0), (0, -0.03, 0.012), 0.058, 0.043, (1.16, 1, 1))
SHORT: HeadPart = ("hair", (0, 0.016, -0.012), (0, 0, -0.022), 0.062, 0.054, (1.1, 1, 0.95))
SCALPS: dict[str, HeadPart] = {  # without a hat, or under a cap
    **dict.fromkeys(("short", "bun", "tail", "long", "bob"), SHORT),
    "crop": ("hair", (0, 0.014, -0.009), (0, 0, -0.016), 0.060, 0.052, (1.1, 1, 0.95)),
    "curly": ("hair", (0, 0.026, -0.016), (0, 0.01, -0.026), 0.078, 0.07, ONES),
}
LENGTHS: dict[str, HeadPart] = {
    "long": ("hair", (0, 0, -0.026), (0, -0.15, -0.05), 0.058, 0.05, (1, 1, 1.35)),
    "bob": ("hair", (0, 0, -0.02), (0, -0.055, -0.02), 0.062, 0.06, (1, 1.2, 1.1)),
    "tail": ("hair", (0, 0.02, -0.06), (0, -0.10, -0.085), 0.026, 0.014, ONES),
    "bun": ("hair", (0, 0.06, -0.045), (0, 0.06, -0.045), 0.032, 0.032, ONES),
}
HATS: dict[str, list[HeadPart]] = {
    "cap": [
        ("hat", (0, 0.03, -0.004), (0, 0.03, -0.008), 0.062, 0.06, (1.08, 1.35, 0.95)),
        ("hat", (0, 0.03, 0.05), (0, 0.024, 0.08), 0.042, 0.036, (1, 5, 1)),
    ],
    "beanie": [("hat", (0, 0.03, -0.008), (0, 0.045, -0.012), 0.066, 0.05, (1.08, 1.05, 0.95))],
    "hood": [("upper", (0, 0.016, -0.018), (0, -0.05, -0.03), 0.07, 0.066, ONES)],
    "brim": [
        ("hat", (0, 0.045, -0.004), (0, 0.05, -0.004), 0.06, 0.05, ONES),
        ("hat", (0, 0.033, 0), (0, 0.033, 0), 0.105, 0.105, (1, 8, 1)),
    ],
}
WIDTHS = {"trousers": 1.12, "wide": 1.4, "leggings": 0.98}  # of the lower garment's legs
CUFFS = {"wide": 1.55, "trousers": 1.2}


def body(look: Look, heading: float, phase: float, stride: float = 1.0) -> list[Part]:
    """Return the solids of a person who stands on the ground at the origin.

    Args:
        look: The identity.
        heading: Radians the body is turned about the vertical; 0 faces +z, the camera.
        phase: Of the gait, 0 to 1.
        stride: Length of the steps; 0 stands still.

    Returns:
        The parts, in world metres.
    """
    return _Figure(look, heading, phase, stride).parts


class _Figure:
    def __init__(self, look: Look, heading: float, phase: float, stride: float) -> None:
        self.look = look
        c, s = math.cos(heading), math.sin(heading)
        self.axes: Axes = ((c, 0.0, -s), (0.0, 1.0, 0.0), (s, 0.0, c))
        self.parts: list[Part] = []
        turn = 2 * math.pi * phase
        stride *= look.swing * (0.7 if look.lower == "skirt" or look.upper == "coat" else 1.0)
        self._trunk()
        self._head()
        wrists = {}
        for side in (-1, 1):
            self._leg(side, stride, turn + (0 if side > 0 else math.pi))
            wrists[side] = self._arm(side, stride, turn + (math.pi if side > 0 else 0))
        self._bag(wrists[look.bag_side])

    def _turn(self, d: Vec) -> Vec:
        """Return a body direction in the world."""
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
        scale: Vec = ONES,
        *,
        axes: Axes | None = None,
        rest: Vec | None = None,
    ) -> None:
        """Add a part around ``at``; ends and radii are given before the stretch ``scale``."""
        h = self.look.height
        x, y, z = (h * v for v in self._turn(at))
        pa = (a[0] * h * scale[0], a[1] * h * scale[1], a[2] * h * scale[2])
        pb = (b[0] * h * scale[0], b[1] * h * scale[1], b[2] * h * scale[2])
        solid = Sweep((x, y, z), pa, pb, ra * h, rb * h, axes or self.axes, scale)
        self.parts.append(Part(solid, cover, rest or at))

    def _trunk(self) -> None:
        look, add = self.look, self._add
        w, top, low = look.width, look.shoulders, look.hips
        deep = 1 / (0.58 + 0.14 * (w - 0.86))
        thick = look.loose * (1.06 if look.upper in ("coat", "jacket", "hoodie") else 1.0)
        chest, waist = 0.089 * w * top * thick, 0.076 * w * low * thick
        add("upper", ORIGIN, (0, 0.735, 0), (0, 0.60, 0.004), chest, waist, (1, 1.5, deep))
        hem = 0.50 if look.upper not in ("tee", "tank") else 0.515
        waist, hips = 0.078 * w * low * thick, 0.088 * w * low * thick
        add("upper", ORIGIN, (0, 0.60, 0.004), (0, hem, 0), waist, hips, (1, 3.5, 1 / 0.66))
        for side in (-1, 1):  # from the neck down to the shoulder
            shoulder = (0.094 * side * w * top, 0.774, -0.004)
            add("upper", ORIGIN, (0.028 * side, 0.808, -0.006), shoulder, 0.026, 0.034 * thick)
        waist, hips = 0.076 * w * low, 0.083 * w * low
        add("lower", ORIGIN, (0, 0.55, 0), (0, 0.49, 0), waist, hips, (1, 1.6, 1 / 0.68))
        if look.upper == "coat":
            waist, knees = 0.09 * w * low * thick, 0.108 * w * thick
            add("upper", ORIGIN, (0, 0.56, 0), (0, 0.33, 0), waist, knees, (1, 5.0, 1 / 0.85))
        if look.lower == "skirt":
            cover = "lower" if look.upper != "dress" else "upper"
            waist, seam = 0.08 * w * low, 0.092 * w * look.flare
            add(cover, ORIGIN, (0, 0.56, 0), (0, look.hem, 0), waist, seam, (1, 5.0, 1 / 0.95))
        if look.upper == "hoodie":
            left, right = (-0.03, 0.825, -0.035), (0.03, 0.825, -0.035)
            add("upper", ORIGIN, left, right, 0.04, 0.04, (1, 1.3, 1.2))
        add("skin", ORIGIN, (0, 0.80, 0), (0, 0.87, 0.008), 0.031, 0.029)

    def _head(self) -> None:
        look = self.look
        parts = [FACE]
        if look.hat in ("none", "cap") and look.hair_style in SCALPS:
            parts.append(SCALPS[look.hair_style])
        if look.hair_style in LENGTHS:
            parts.append(LENGTHS[look.hair_style])
        for cover, a, b, ra, rb, scale in [*parts, *HATS.get(look.hat, [])]:
            self._add(cover, HEAD, a, b, ra, rb, scale)

    def _limb(self, at: Vec, length: float, swing: float, splay: float) -> tuple[Vec, Axes]:
        """Return the far end of a limb in body coordinates, and its axes in the world."""
        c = math.cos(splay)
        down = (math.sin(splay), -math.cos(swing) * c, math.sin(swing) * c)
        end = (at[0] + length * down[0], at[1] + length * down[1], at[2] + length * down[2])
        up = (-down[0], -down[1], -down[2])
        left = unit(cross(up, (0.0, math.sin(swing), math.cos(swing))))
        return end, (self._turn(left), self._turn(up), self._turn(cross(left, up)))

    def _leg(self, side: int, stride: float, turn: float) -> None:
        look, add = self.look, self._add
        w = look.width * (0.5 + 0.5 * look.hips)
        swing = 0.42 * stride * math.sin(turn)
        bend = stride * (0.12 + 0.85 * max(0.0, math.cos(turn + 0.35)) ** 2)
        hip = (0.045 * side * w, 0.49, 0.0)
        knee, thigh = self._limb(hip, 0.225, swing, 0.01 * side)
        ankle, shin = self._limb(knee, 0.22, swing - bend, 0.0)
        tight = WIDTHS.get(look.lower, 0.95)
        radius = 0.036 * w * tight
        add("leg", hip, ORIGIN, (0, -0.225, 0), 0.052 * w, radius, axes=thigh)
        if look.lower == "shorts":
            end = (0, look.hem - 0.49, 0)
            add("leg", hip, (0, -0.02, 0), end, 0.054 * w, 0.052 * w, (1, 3, 1), axes=thigh)
        rest = (hip[0], hip[1] - 0.225, 0.0)
        cuff = 0.026 * w * CUFFS.get(look.lower, 0.85)
        radius = 0.035 * w * tight
        add("leg", knee, ORIGIN, (0, -0.205, -0.004), radius, cuff, axes=shin, rest=rest)
        lift = 0.5 * (swing - bend) + (0.15 if swing > 0 else 0.0)
        _, foot = self._limb(ankle, 0.01, lift, 0.0)
        heel, toe = (0, -0.022, -0.014), (0, -0.026, 0.068)
        rest = (hip[0], 0.045, 0.0)
        add("shoe", ankle, heel, toe, 0.025, 0.02, (1.05, 1.15, 1), axes=foot, rest=rest)

    def _arm(self, side: int, stride: float, turn: float) -> Vec:
        """Add an arm and return its wrist."""
        look, add = self.look, self._add
        w = 0.5 + 0.5 * look.width
        thick = 1.13 if look.sleeve > 1 else 1.0
        carries = look.bag == "hand" and side == look.bag_side
        swing = (0.1 if carries else 0.45) * stride * math.sin(turn)
        bend = 0.05 if carries else 0.25 + 0.25 * stride * max(0.0, math.sin(turn))
        shoulder = (0.106 * side * look.width * look.shoulders, 0.766, -0.002)
        elbow, upper = self._limb(shoulder, 0.17, swing, 0.12 * side * look.width)
        wrist, fore = self._limb(elbow, 0.145, swing + bend, 0.03 * side)
        ra, rb = 0.033 * w * thick, 0.026 * w * thick
        add("sleeve", shoulder, ORIGIN, (0, -0.17, 0), ra, rb, axes=upper)
        if 0.3 < look.sleeve < 1.5:
            end = (0, -0.17 * look.sleeve + 0.03, 0)
            add("sleeve", shoulder, ORIGIN, end, 0.036 * w, 0.037 * w, (1, 1.5, 1), axes=upper)
        rest = (shoulder[0], shoulder[1] - 0.17, shoulder[2])
        ra, rb = 0.026 * w * thick, 0.019 * w * thick
        add("sleeve", elbow, ORIGIN, (0, -0.145, 0), ra, rb, axes=fore, rest=rest)
        palm, fingers = (0, -0.012, 0), (0, -0.045, 0.008)
        add("skin", wrist, palm, fingers, 0.02, 0.016, (1.5, 1, 1), axes=fore)
        return wrist

    def _bag(self, wrist: Vec) -> None:
        look, add = self.look, self._add
        if look.bag == "backpack":
            z = -0.085 * look.width
            top, bottom = (0, 0.735, z), (0, 0.62, z - 0.005)
            add("bag", ORIGIN, top, bottom, 0.068, 0.076, (1, 1.6, 1.25))
            left, right = (-0.02, 0.62, z - 0.05), (0.02, 0.62, z - 0.05)
            add("bag", ORIGIN, left, right, 0.04, 0.04, (1, 1, 1.6))
        elif look.bag == "shoulder":
            at = (look.bag_side * (0.105 * look.width + 0.02), 0.48, -0.01)
            add("bag", at, (0, 0.01, -0.035), (0, 0.01, 0.035), 0.055, 0.055, (2.0, 1.1, 1.0))
        elif look.bag == "hand":
            at = (wrist[0], wrist[1] - 0.11, wrist[2])
            add("bag", at, (0, 0, -0.04), (0, 0, 0.04), 0.055, 0.055, (1.8, 1.0, 1.0))
