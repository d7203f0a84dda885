"""Looks: what stays the same in every image of an identity, drawn once per identity."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reidguard.virtual.domains import PALETTE, Domain

__all__ = ["Colour", "Look", "make_look"]

Colour = tuple[float, float, float]

SKIN = (
    (0.86, 0.66, 0.55),
    (0.80, 0.58, 0.45),
    (0.66, 0.45, 0.32),
    (0.48, 0.31, 0.21),
    (0.32, 0.20, 0.14),
)
HAIR = (
    (0.05, 0.045, 0.045),
    (0.11, 0.08, 0.06),
    (0.25, 0.16, 0.09),
    (0.55, 0.40, 0.20),
    (0.50, 0.22, 0.10),
    (0.55, 0.55, 0.56),
)
HAIR_WEIGHTS = (0.3, 0.27, 0.19, 0.12, 0.05, 0.07)
SHORT_HAIR = {"short": 5, "bald": 1, "curly": 1, "crop": 3}
INNER_PATTERNS = {"plain": 3, "stripes": 1, "two-tone": 1}
SLEEVES = {"tee": 0.9, "tank": 0.0, "dress": 0.7}


@dataclass(frozen=True)
class Look:
    """Build, hair, clothes and bag of an identity.

    Colours are linear reflectances; lengths are fractions of the body height.
    """

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
    inner: tuple[Colour, Colour]  # of the garment below an open jacket
    inner_pattern: str
    opening: float  # half the width of the visible strip of the inner garment
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


def _linear(colour: Any) -> Colour:
    r, g, b = (min(max(float(c), 0.015), 0.95) ** 2.2 for c in colour)
    return r, g, b


def _dye(rng: np.random.Generator, weights: Mapping[str, float]) -> Colour:
    """Draw a palette colour with individual variation."""
    name = _pick(rng, weights)
    return _linear(np.array(PALETTE[name]) * rng.uniform(0.8, 1.2) + rng.normal(0, 0.045, 3))


def _pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    names, bounds = _bounds(tuple(weights.items()))
    return names[bisect.bisect_right(bounds, rng.random())]


@functools.lru_cache(maxsize=256)
def _bounds(weights: tuple[tuple[str, float], ...]) -> tuple[list[str], list[float]]:
    """Return names and their cumulative weights: the draw of ``Generator.choice``, but faster."""
    values = np.array([weight for _, weight in weights])
    bounds = np.cumsum(values / values.sum())
    return [name for name, _ in weights], (bounds / bounds[-1]).tolist()


def _logo(domain: Domain, rng: np.random.Generator) -> tuple[float, float, float, float]:
    if rng.random() >= domain.logos:
        return 0.0, 0.0, 0.0, 0.0
    big = rng.random() < 0.5
    x = 0.0 if big else float(rng.choice([-0.045, 0.045]))
    y = rng.uniform(0.68, 0.74)
    if not big:
        return x, y, 0.018, 0.018
    return x, y, rng.uniform(0.03, 0.055), rng.uniform(0.02, 0.045)


def make_look(domain: Domain, rng: np.random.Generator) -> Look:
    """Draw an identity with the domain's statistics."""
    female = rng.random() < 0.5
    upper = _pick(rng, domain.uppers)
    colours = (_dye(rng, domain.upper_colours), _dye(rng, domain.upper_colours))
    lower = "skirt" if upper == "dress" else _pick(rng, domain.lowers)
    if lower == "skirt" and not female and upper != "dress":
        lower = "trousers"
    hem = {"shorts": rng.uniform(0.27, 0.36), "skirt": rng.uniform(0.22, 0.38)}.get(lower, 0.05)
    if lower == "trousers" and rng.random() < domain.cropped:
        hem = rng.uniform(0.09, 0.15)
    lower_colours = (_dye(rng, domain.lower_colours), _dye(rng, domain.upper_colours))
    pattern = _pick(rng, domain.patterns)
    logo = _logo(domain, rng)
    hair = HAIR[int(rng.choice(6, p=HAIR_WEIGHTS))]
    return Look(
        height=float(np.clip(rng.normal(1.65 if female else 1.77, 0.07), 1.45, 1.98)),
        width=rng.uniform(0.86, 1.22),
        shoulders=(0.93 if female else 1.06) * rng.uniform(0.95, 1.05),
        hips=(1.06 if female else 0.96) * rng.uniform(0.95, 1.06),
        skin=_linear(SKIN[int(rng.choice(5, p=domain.skins))] * rng.uniform(0.94, 1.06, 3)),
        hair=_linear(hair * rng.uniform(0.85, 1.15, 3)),
        hair_style=_pick(rng, domain.long_hair if female else SHORT_HAIR),
        glasses=bool(rng.random() < 0.15),
        beard=bool(not female and rng.random() < 0.2),
        hat=_pick(rng, domain.hats),
        hat_colour=_dye(rng, domain.upper_colours),
        upper=upper,
        sleeve=SLEEVES.get(upper, 2.0),
        colours=colours,
        pattern=pattern,
        pitch=rng.uniform(0.028, 0.065),
        sleeve_colour=_dye(rng, domain.upper_colours) if rng.random() < 0.25 else colours[0],
        back_colour=_dye(rng, domain.upper_colours) if rng.random() < 0.12 else colours[0],
        inner=(_dye(rng, domain.upper_colours), _dye(rng, domain.upper_colours)),
        inner_pattern=_pick(rng, INNER_PATTERNS),
        opening=rng.uniform(0.018, 0.05) if upper in ("jacket", "coat", "vest") else 0.0,
        logo=logo,
        logo_colour=_dye(rng, domain.upper_colours),
        loose=rng.uniform(0.95, 1.12),
        lower=lower,
        hem=hem,
        lower_colours=lower_colours,
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
