"""The domains: what people wear there, how the place and its cameras look."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from reidguard.errors import InputError

__all__ = ["PALETTE", "VIRTUAL_DOMAINS", "Domain", "find_domain"]

Weights = Mapping[str, float]
Range = tuple[float, float]

PALETTE = {  # as a camera without faults would show them, in sRGB
    "black": (0.10, 0.10, 0.11),
    "charcoal": (0.26, 0.27, 0.29),
    "grey": (0.50, 0.50, 0.51),
    "silver": (0.72, 0.73, 0.74),
    "white": (0.93, 0.93, 0.92),
    "navy": (0.13, 0.17, 0.33),
    "blue": (0.16, 0.32, 0.68),
    "denim": (0.28, 0.38, 0.54),
    "sky": (0.50, 0.69, 0.87),
    "teal": (0.10, 0.46, 0.47),
    "green": (0.16, 0.44, 0.22),
    "olive": (0.40, 0.40, 0.24),
    "khaki": (0.69, 0.61, 0.45),
    "brown": (0.40, 0.27, 0.18),
    "red": (0.75, 0.14, 0.16),
    "burgundy": (0.42, 0.10, 0.17),
    "orange": (0.87, 0.46, 0.14),
    "yellow": (0.90, 0.77, 0.24),
    "pink": (0.88, 0.56, 0.66),
    "purple": (0.44, 0.25, 0.54),
}

HATS = {"none": 10, "cap": 1.5, "beanie": 0.3, "brim": 0.4}
LONG_HAIR = {"long": 4, "tail": 3, "bun": 2, "bob": 2, "short": 1}
PATTERNS = {"plain": 5, "stripes": 2, "thin": 1, "pinstripes": 0.7, "checks": 1, "plaid": 1.2,
            "dots": 0.7, "two-tone": 1.5, "yoke": 1, "band": 1, "sides": 1,
            "diagonal": 0.7}  # fmt: skip
LOWER_PATTERNS = {"plain": 6, "side": 1, "knee": 0.6, "faded": 1.2, "checks": 0.3,
                  "pinstripes": 0.4, "plaid": 0.3}  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """One place with its people and cameras. Weights need not add up; ranges are (low, high)."""

    name: str
    title: str
    uppers: Weights
    lowers: Weights
    upper_colours: Weights
    lower_colours: Weights
    shoe_colours: Weights
    bag_colours: Weights
    bags: Weights
    skins: tuple[float, ...] = (0.3, 0.3, 0.2, 0.12, 0.08)
    hats: Weights = field(default_factory=lambda: HATS)
    long_hair: Weights = field(default_factory=lambda: LONG_HAIR)
    patterns: Weights = field(default_factory=lambda: PATTERNS)
    lower_patterns: Weights = field(default_factory=lambda: LOWER_PATTERNS)
    logos: float = 0.3
    cropped: float = 0.15
    # The place
    ground: str = "slabs"
    walls: tuple[str, ...] = ("brick",)
    clutter: Weights = field(default_factory=dict)
    things: tuple[int, int] = (5, 10)
    ground_colour: tuple[float, float, float] = (0.5, 0.48, 0.45)
    wall_colours: tuple[tuple[float, float, float], ...] = ((0.5, 0.4, 0.35),)
    sky: tuple[float, float, float] = (0.6, 0.75, 0.95)
    ceiling: bool = False
    # Its light
    sun: Range = (1.0, 2.0)
    sun_height: Range = (30, 65)
    sun_colour: tuple[float, float, float] = (1.0, 0.94, 0.84)
    ambient: Range = (0.5, 0.7)
    ambient_colour: tuple[float, float, float] = (0.85, 0.93, 1.1)
    shade: float = 0.3  # share of images in the shade
    # Its cameras
    pitch: Range = (6, 16)  # degrees down
    distance: Range = (7, 14)  # metres
    flow: Range = (-180, 180)  # degrees, the direction in which most people walk; 0 to the camera
    turned: float = 0.5  # share of people who walk the other way
    gain: Range = (0.8, 1.25)
    warmth: Range = (-0.15, 0.15)
    tint: Range = (-0.06, 0.06)
    saturation: Range = (0.75, 1.15)
    gamma: Range = (0.38, 0.52)
    contrast: Range = (0.0, 0.5)
    haze: Range = (0.0, 0.04)
    blur: Range = (0.35, 0.7)
    noise: Range = (0.008, 0.02)
    quality: tuple[int, int] = (60, 90)
    resolution: Range = (0.6, 1.2)  # of the sensor, relative to 128 lines
    # Its detector
    margin: Range = (0.02, 0.10)  # of the person's height, on each side
    shift: float = 0.05
    cut: float = 0.06  # share of images with the feet or the head cut off
    occluded: float = 0.10
    crowd: float = 0.10


def _domain(**values: object) -> Domain:
    return Domain(**values)  # type: ignore[arg-type]


DARK = {"black": 5, "charcoal": 3, "grey": 2, "navy": 3, "brown": 2, "burgundy": 1, "olive": 1.5,
        "khaki": 1, "white": 1, "red": 0.7, "silver": 0.7, "teal": 0.4, "denim": 0.6}  # fmt: skip
BRIGHT = {"white": 4, "black": 2.5, "grey": 1.5, "sky": 1.5, "blue": 1.5, "red": 1.5, "pink": 1.2,
          "yellow": 1, "orange": 0.8, "green": 1, "teal": 0.8, "navy": 1, "purple": 0.8,
          "silver": 1, "khaki": 0.6}  # fmt: skip
COLLEGE = {"grey": 2.5, "navy": 2, "black": 2.5, "white": 2, "green": 1.5, "burgundy": 1.2,
           "blue": 1.2, "yellow": 0.7, "orange": 0.6, "red": 1, "olive": 1, "purple": 0.7,
           "teal": 0.7, "silver": 1}  # fmt: skip
FASHION = {"black": 3, "white": 2.5, "pink": 1.5, "khaki": 1.5, "red": 1.2, "purple": 1, "sky": 1,
           "yellow": 0.8, "burgundy": 1, "charcoal": 1.2, "teal": 1, "denim": 1, "orange": 0.6,
           "silver": 1.2, "brown": 1}  # fmt: skip

VIVID = {"red": 1, "blue": 1, "yellow": 1, "green": 1, "white": 1, "black": 1, "orange": 1,
         "purple": 1, "sky": 1, "pink": 1, "teal": 1, "brown": 1, "grey": 1}  # fmt: skip

_ALL = (
    _domain(
        name="plaza",
        title="a sunny square in summer",
        uppers={"tee": 6, "tank": 1, "shirt": 2, "dress": 1.2, "long": 1},
        lowers={"trousers": 3, "shorts": 4, "skirt": 3, "leggings": 1, "wide": 0.8},
        upper_colours=BRIGHT,
        lower_colours={
            "denim": 4,
            "black": 3,
            "khaki": 2,
            "white": 1.2,
            "navy": 1.5,
            "grey": 1.5,
            "olive": 1,
            "red": 0.5,
            "pink": 0.5,
        },
        shoe_colours={"white": 3, "black": 2, "brown": 1.5, "red": 0.6, "blue": 0.6, "grey": 1},
        bag_colours={"black": 3, "red": 1, "navy": 1.5, "brown": 1.5, "khaki": 1, "pink": 0.6},
        bags={"none": 4, "backpack": 3, "shoulder": 2, "hand": 1.5},
        ground="slabs",
        walls=("windows", "brick", "plaster"),
        clutter={"post": 2, "tree": 2, "bench": 2, "kiosk": 1, "person": 2, "bicycle": 1.5},
        ground_colour=(0.62, 0.58, 0.52),
        wall_colours=((0.72, 0.60, 0.46), (0.60, 0.42, 0.34), (0.80, 0.76, 0.68)),
        sky=(0.62, 0.78, 0.98),
        sun=(1.3, 2.2),
        ambient=(0.42, 0.6),
        shade=0.25,
        pitch=(8, 16),
        gain=(0.75, 1.05),
        warmth=(-0.13, 0.13),
        contrast=(0.2, 0.6),
        blur=(0.4, 0.75),
        margin=(0.0, 0.06),
    ),
    _domain(
        name="station",
        title="an underground concourse in winter",
        uppers={"coat": 4, "jacket": 4, "vest": 1.2, "hoodie": 1, "long": 0.6},
        lowers={"trousers": 6, "leggings": 2, "wide": 1, "skirt": 0.8},
        upper_colours=DARK,
        lower_colours={
            "black": 5,
            "charcoal": 2.5,
            "denim": 3,
            "navy": 2,
            "brown": 1,
            "grey": 1,
            "khaki": 0.7,
        },
        shoe_colours={"black": 5, "brown": 2.5, "white": 1, "grey": 1},
        bag_colours={"black": 4, "brown": 2, "navy": 1, "grey": 1, "red": 0.7, "olive": 0.7},
        bags={"none": 3, "backpack": 2.5, "shoulder": 2.5, "hand": 2},
        hats={"none": 7, "beanie": 2.5, "hood": 1, "cap": 0.6},
        ground="tiles",
        walls=("tiles", "panels", "shutters"),
        clutter={"pillar": 3, "machine": 2.5, "bench": 1, "person": 2.5, "bin": 1.5},
        ground_colour=(0.42, 0.43, 0.42),
        wall_colours=((0.62, 0.66, 0.62), (0.45, 0.50, 0.55), (0.68, 0.64, 0.50)),
        sky=(0.30, 0.31, 0.30),
        ceiling=True,
        sun=(0.25, 0.6),
        sun_height=(65, 85),
        sun_colour=(0.95, 1.0, 0.93),
        ambient=(0.35, 0.62),
        ambient_colour=(0.93, 1.03, 0.95),
        shade=0.15,
        pitch=(18, 32),
        distance=(6, 11),
        gain=(1.2, 1.9),
        warmth=(-0.18, 0.10),
        tint=(-0.02, 0.10),
        saturation=(0.6, 0.95),
        contrast=(-0.2, 0.2),
        haze=(0.02, 0.09),
        blur=(0.6, 1.1),
        noise=(0.018, 0.04),
        quality=(35, 70),
        resolution=(0.45, 0.9),
        margin=(0.05, 0.16),
        occluded=0.12,
        crowd=0.16,
    ),
    _domain(
        name="campus",
        title="paths and lawns under a grey sky",
        uppers={"hoodie": 4, "tee": 2, "long": 3, "jacket": 2, "vest": 1, "shirt": 1.5},
        lowers={"trousers": 5, "leggings": 2.5, "shorts": 1.5, "wide": 1.2, "skirt": 0.6},
        upper_colours=COLLEGE,
        lower_colours={"denim": 5, "black": 3, "grey": 1.5, "khaki": 1.5, "navy": 1, "olive": 1},
        shoe_colours={"white": 3, "black": 3, "grey": 1, "blue": 0.7, "yellow": 0.4, "brown": 1},
        bag_colours={"black": 2.5, "blue": 1.2, "green": 1, "grey": 1.5, "red": 1, "purple": 0.8},
        bags={"none": 2.5, "backpack": 6, "shoulder": 1.5, "hand": 0.5},
        hats={"none": 8, "cap": 1.5, "beanie": 1, "hood": 1},
        logos=0.5,
        ground="path",
        walls=("hedge", "brick", "trees", "windows", "plaster"),
        clutter={"tree": 4, "bush": 3, "bicycle": 2.5, "post": 1, "bench": 1, "person": 1},
        things=(7, 13),
        ground_colour=(0.46, 0.45, 0.43),
        wall_colours=((0.66, 0.62, 0.54), (0.55, 0.35, 0.28), (0.72, 0.70, 0.66)),
        sky=(0.80, 0.84, 0.88),
        sun=(0.1, 0.5),
        sun_height=(35, 70),
        sun_colour=(1.0, 0.98, 0.95),
        ambient=(0.8, 1.1),
        ambient_colour=(0.94, 0.99, 1.06),
        shade=0.2,
        pitch=(2, 9),
        distance=(9, 17),
        gain=(1.2, 1.9),
        warmth=(-0.2, 0.06),
        saturation=(0.65, 1.0),
        contrast=(-0.1, 0.35),
        haze=(0.0, 0.05),
        blur=(0.35, 0.6),
        noise=(0.006, 0.016),
        quality=(70, 95),
        resolution=(0.8, 1.5),
        margin=(0.06, 0.18),
        cut=0.03,
        occluded=0.12,
    ),
    _domain(
        name="mall",
        title="shop windows under warm lamps",
        uppers={"dress": 2, "tee": 2.5, "long": 3, "shirt": 2, "jacket": 2.5, "coat": 1},
        lowers={"trousers": 3, "skirt": 3, "wide": 2, "leggings": 2, "shorts": 0.6},
        upper_colours=FASHION,
        lower_colours={
            "black": 4,
            "white": 1.5,
            "denim": 2.5,
            "khaki": 1.5,
            "pink": 0.7,
            "burgundy": 1,
            "navy": 1,
            "charcoal": 1,
            "brown": 1,
        },
        shoe_colours={"black": 3, "white": 2, "brown": 2, "red": 1, "pink": 0.6},
        bag_colours={
            "red": 1.5,
            "brown": 2,
            "black": 2,
            "white": 1,
            "pink": 1,
            "khaki": 1,
            "teal": 0.6,
        },
        bags={"none": 2.5, "hand": 4, "shoulder": 3, "backpack": 1},
        ground="gloss",
        walls=("shops", "panels", "shops"),
        clutter={"plant": 2.5, "pillar": 1.5, "kiosk": 2, "person": 2.5, "bench": 1, "bin": 1},
        ground_colour=(0.78, 0.72, 0.62),
        wall_colours=((0.70, 0.62, 0.52), (0.82, 0.78, 0.70), (0.40, 0.33, 0.30)),
        sky=(0.85, 0.78, 0.66),
        ceiling=True,
        sun=(0.3, 0.8),
        sun_height=(55, 80),
        sun_colour=(1.05, 0.92, 0.72),
        ambient=(0.6, 0.85),
        ambient_colour=(1.06, 0.97, 0.84),
        shade=0.1,
        pitch=(12, 24),
        distance=(5, 10),
        gain=(0.7, 1.15),
        warmth=(0.0, 0.30),
        tint=(-0.08, 0.03),
        saturation=(0.9, 1.35),
        contrast=(0.2, 0.7),
        blur=(0.5, 0.9),
        noise=(0.008, 0.02),
        quality=(45, 80),
        resolution=(0.55, 1.0),
        margin=(0.02, 0.12),
        shift=0.06,
        cut=0.10,
    ),
    _domain(
        name="studio",
        title="a plain bright room, for trying things out",
        uppers={"tee": 3, "long": 2, "hoodie": 1, "jacket": 1},
        lowers={"trousers": 4, "shorts": 2, "leggings": 1},
        upper_colours=VIVID,
        lower_colours=VIVID,
        shoe_colours={"white": 1, "black": 1, "red": 1, "blue": 1, "yellow": 1},
        bag_colours=VIVID,
        bags={"none": 3, "backpack": 1},
        hats={"none": 4, "cap": 1},
        logos=0.1,
        skins=(0.2, 0.2, 0.2, 0.2, 0.2),
        patterns={"plain": 6, "two-tone": 1, "stripes": 1, "band": 1},
        lower_patterns={"plain": 1},
        ground="plain",
        walls=("plaster",),
        things=(0, 0),
        ground_colour=(0.80, 0.80, 0.80),
        wall_colours=((0.86, 0.86, 0.86),),
        sky=(0.8, 0.8, 0.8),
        sun=(0.12, 0.18),
        sun_height=(50, 75),
        sun_colour=(1.0, 0.98, 0.95),
        ambient=(1.05, 1.2),
        ambient_colour=(1.0, 1.0, 1.0),
        shade=0.0,
        pitch=(3, 8),
        distance=(6, 9),
        flow=(-30, 30),
        turned=0.0,
        gain=(1.0, 1.2),
        warmth=(-0.05, 0.05),
        tint=(-0.02, 0.02),
        saturation=(0.95, 1.1),
        gamma=(0.43, 0.47),
        contrast=(0.2, 0.4),
        haze=(0.0, 0.01),
        blur=(0.3, 0.5),
        noise=(0.003, 0.006),
        quality=(88, 95),
        resolution=(1.5, 1.9),
        margin=(0.03, 0.06),
        shift=0.015,
        cut=0.0,
        occluded=0.0,
        crowd=0.0,
    ),
)
DOMAINS = {domain.name: domain for domain in _ALL}
VIRTUAL_DOMAINS = tuple(DOMAINS)


def find_domain(name: str) -> Domain:
    """The domain of a name.

    Raises:
        InputError: If there is none; the message suggests the nearest.
    """
    if name not in DOMAINS:
        near = difflib.get_close_matches(name, DOMAINS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown virtual domain {name!r}: {hint}known: {', '.join(DOMAINS)}")
    return DOMAINS[name]
