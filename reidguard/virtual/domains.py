"""Domains: the statistics of clothes, places and cameras, from ``domains.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from reidguard.errors import InputError, did_you_mean
from reidguard.records import convert, parse_json

__all__ = ["PALETTE", "VIRTUAL_DOMAINS", "Domain", "find_domain"]

Weights = Mapping[str, float]
Range = tuple[float, float]

PALETTE = {  # sRGB
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
PATTERNS = {
    "plain": 5,
    "stripes": 2,
    "thin": 1,
    "pinstripes": 0.7,
    "checks": 1,
    "plaid": 1.2,
    "dots": 0.7,
    "two-tone": 1.5,
    "yoke": 1,
    "band": 1,
    "sides": 1,
    "diagonal": 0.7,
}
LOWER_PATTERNS = {
    "plain": 6,
    "side": 1,
    "knee": 0.6,
    "faded": 1.2,
    "checks": 0.3,
    "pinstripes": 0.4,
    "plaid": 0.3,
}


@dataclass(frozen=True)
class Domain:
    """The statistics of one domain.

    Weights need not sum to 1; ranges are (low, high) of a uniform distribution.
    """

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
    shade: float = 0.3  # fraction of images in the shade
    # Its cameras
    pitch: Range = (6, 16)  # degrees down
    distance: Range = (7, 14)  # metres
    flow: Range = (-180, 180)  # degrees, the direction in which most people walk; 0 to the camera
    turned: float = 0.5  # fraction of people who walk the other way
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
    cut: float = 0.06  # fraction of images with the feet or the head cut off
    occluded: float = 0.10
    crowd: float = 0.10


def _load() -> dict[str, Domain]:
    text = (files("reidguard.virtual") / "domains.json").read_bytes()
    domains = parse_json(text, dict[str, dict[str, Any]], "domains.json")
    return {
        name: convert({"name": name, **fields}, Domain, f"{name} in domains.json")
        for name, fields in domains.items()
    }


DOMAINS = _load()
VIRTUAL_DOMAINS = tuple(DOMAINS)


def find_domain(name: str) -> Domain:
    """Return the domain of a name.

    Raises:
        InputError: If there is none; the message suggests the nearest.
    """
    if name not in DOMAINS:
        hint = did_you_mean(name, DOMAINS)
        raise InputError(f"unknown virtual domain {name!r}: {hint}known: {', '.join(DOMAINS)}")
    return DOMAINS[name]
