"""Clothes, skin and hair: the reflectance of a person's surface.

Patterns are painted in rest coordinates, those of the body standing straight with hanging arms: x
to the person's left, y up, z to the front, in fractions of the body height. So a stripe stays on
its thread however the limb swings and from wherever it is seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reidguard.virtual.look import Colour, Look

__all__ = ["paint"]

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

# Where a pattern shows its second colour, from x, y and the pitch; other patterns are plain.
PATTERNS: dict[str, Callable[[Array, Array, float], Mask]] = {
    "stripes": lambda x, y, p: (y / p) % 1 < 0.45,
    "thin": lambda x, y, p: (y / (0.6 * p)) % 1 < 0.3,
    "pinstripes": lambda x, y, p: (x / (0.8 * p)) % 1 < 0.35,
    "checks": lambda x, y, p: ((x / p) % 1 < 0.5) ^ ((y / p) % 1 < 0.5),
    "plaid": lambda x, y, p: ((x / p) % 1 < 0.3) | ((y / p) % 1 < 0.3),
    "dots": lambda x, y, p: ((x / p) % 1 - 0.5) ** 2 + ((y / p) % 1 - 0.5) ** 2 < 0.09,
    "two-tone": lambda x, y, p: y < 0.66,
    "yoke": lambda x, y, p: y > 0.73,
    "band": lambda x, y, p: np.abs(y - 0.685) < 0.028,
    "sides": lambda x, y, p: np.abs(x) > 0.06,
    "diagonal": lambda x, y, p: x * 0.8 + (y - 0.66) > 0,
}
SLEEVE_PATTERNS = ("stripes", "thin", "checks", "plaid", "dots", "band", "two-tone", "yoke")
LEG_PATTERNS = ("checks", "pinstripes", "plaid")


# Painted one over the other; the first covers everything.
Layers = list[tuple[Mask | slice, Colour]]
EVERYWHERE = slice(None)
EYES: Colour = (0.02, 0.015, 0.015)
GLASSES: Colour = (0.012, 0.012, 0.012)
LIPS: Colour = (0.30, 0.09, 0.08)


def paint(look: Look, cover: str, x: Array, y: Array, z: Array) -> Array:
    """Return the reflectance of a cover at rest coordinates.

    Args:
        look: The identity.
        cover: Of a :class:`~reidguard.virtual.body.Part`.
        x: (n,), to the person's left.
        y: (n,), up.
        z: (n,), to the front.

    Returns:
        (3, n) linear reflectances.
    """
    colour = np.empty((3, x.size))
    if cover in COVERS:
        layers = COVERS[cover](look, x, y, z)
    else:
        plain = {"skin": look.skin, "hair": look.hair}.get(cover, look.hat_colour)
        layers = [(EVERYWHERE, plain)]
    for where, value in layers:
        for channel, v in zip(colour, value, strict=True):
            channel[where] = v
    if cover in ("upper", "sleeve", "lower", "leg", "bag"):
        colour *= _folds(look, x, y, z)
    elif cover == "hair":
        colour *= 1 + 0.25 * np.sin(260 * x + 40 * np.sin(30 * y))
    return colour


def _pattern(name: str, pitch: float, x: Array, y: Array) -> Mask:
    return PATTERNS[name](x, y, pitch) if name in PATTERNS else np.zeros(x.shape, bool)


def _folds(look: Look, x: Array, y: Array, z: Array) -> Array:
    a, b, c, d, *_ = look.waves
    wave = np.sin(70 * y + 45 * x + a + 2 * np.sin(40 * z + b))
    folds: Array = 1 + 0.07 * wave + 0.05 * np.sin(110 * x - 60 * y + 50 * z + c + d)
    return folds


def _scale(colour: Colour, factor: float) -> Colour:
    return (factor * colour[0], factor * colour[1], factor * colour[2])


def _upper(look: Look, x: Array, y: Array, z: Array) -> Layers:
    front = z > 0
    ground, other = look.colours
    layers: Layers = [(EVERYWHERE, ground)]
    if look.back_colour != ground:
        layers.append((~front, look.back_colour))
    layers.append((_pattern(look.pattern, look.pitch, x, y), other))
    if look.logo[3]:
        lx, ly, wide, high = look.logo
        layers.append((front & (np.abs(x - lx) < wide) & (np.abs(y - ly) < high), look.logo_colour))
    if look.opening:
        strip = front & (np.abs(x) < look.opening * (0.5 + (0.85 - y) * 1.6).clip(0.4, 1.3))
        layers.append((strip, look.inner[0]))
        inner = _pattern(look.inner_pattern, look.pitch, x, y)
        layers.append((strip & inner, look.inner[1]))
    elif look.upper == "shirt":
        layers.append(((front & (np.abs(x) < 0.006)) | (y > 0.80), look.logo_colour))
    elif look.upper == "tank":
        layers.append(((y > 0.745) & (np.abs(x) > 0.062), look.skin))
    elif look.upper == "hoodie":
        pocket = front & (y < 0.63) & (y > 0.565) & (np.abs(x) < 0.055)
        layers.append((pocket, _scale(ground, 0.6)))
    if look.upper in ("tee", "tank", "dress"):
        layers.append((front & (x * x + (y - 0.83) ** 2 < 0.0022), look.skin))
    if look.upper == "dress":
        layers.append((np.abs(y - 0.595) < 0.012, look.logo_colour))
    if look.bag == "backpack":
        straps = front & (np.abs(np.abs(x) - 0.058) < 0.013) & (y > 0.64)
        layers.append((straps, look.bag_colours[0]))
    elif look.bag == "shoulder":
        strap = np.abs((y - 0.66) - look.bag_side * -1.35 * x) < 0.018
        layers.append((strap & (y > 0.5), look.bag_colours[0]))
    return layers


def _sleeve(look: Look, x: Array, y: Array, z: Array) -> Layers:
    ground, other = look.colours
    layers: Layers = [(EVERYWHERE, look.sleeve_colour)]
    if look.sleeve_colour == ground:
        if look.back_colour != ground:
            layers.append((z < -0.004, look.back_colour))
        if look.pattern in SLEEVE_PATTERNS:
            layers.append((_pattern(look.pattern, look.pitch, x, y), other))
    if look.sleeve > 1.5 and look.upper in ("hoodie", "jacket"):
        layers.append((y < 0.49, _scale(look.sleeve_colour, 0.6)))
    if look.sleeve < 1.5:
        layers.append((y < 0.766 - 0.16 * look.sleeve, look.skin))
    return layers


def _lower(look: Look, x: Array, y: Array, z: Array) -> Layers:
    ground, other = look.lower_colours
    layers: Layers = [(EVERYWHERE, ground)]
    if look.lower_pattern == "side":
        layers.append((np.abs(x) > 0.082, other))
    elif look.lower == "skirt":
        layers.append((_pattern(look.lower_pattern, look.pitch, x, y), other))
    belt = np.abs(y - 0.555) < 0.009
    return [*layers, (belt, look.shoe)]


def _leg(look: Look, x: Array, y: Array, z: Array) -> Layers:
    if look.lower == "skirt":
        return [(EVERYWHERE, look.skin)]
    ground, other = look.lower_colours
    layers: Layers = [(EVERYWHERE, ground)]
    if look.lower_pattern == "side":
        layers.append((np.abs(x) - 0.045 * look.width > 0.012, other))
    elif look.lower_pattern == "knee":
        layers.append(((np.abs(y - 0.29) < 0.03) & (z > 0.0), other))
    elif look.lower_pattern == "faded":
        layers.append(((z > 0) & (y > 0.3), _scale(ground, 1.7)))
    elif look.lower_pattern in LEG_PATTERNS:
        layers.append((_pattern(look.lower_pattern, 0.7 * look.pitch, x, y), other))
    if look.lower == "shorts":
        return [*layers, (y < look.hem, look.skin), (y < 0.11, look.sock)]
    return [*layers, (y < look.hem, look.sock)]


def _face(look: Look, x: Array, y: Array, z: Array) -> Layers:
    """Paint the head, whose centre is at y = 0.93."""
    front = z > 0.035
    side = np.abs(np.abs(x) - 0.021)
    layers: Layers = [
        (EVERYWHERE, look.skin),
        (front & (side < 0.0085) & (np.abs(y - 0.935) < 0.006), EYES),
        (front & (side < 0.012) & (np.abs(y - 0.949) < 0.004), look.hair),
    ]
    if look.glasses:
        layers.append((front & (np.abs(y - 0.935) < 0.011) & (np.abs(x) < 0.04), GLASSES))
    nose = front & (np.abs(x) < 0.004) & (np.abs(y - 0.92) < 0.012)
    mouth = front & (np.abs(x) < 0.014) & (np.abs(y - 0.897) < 0.004)
    layers += [(nose, _scale(look.skin, 0.6)), (mouth, LIPS)]
    if look.beard:
        layers.append(((z > 0.01) & (y < 0.905), look.hair))
    if look.hat in ("beanie", "brim") and look.hair_style != "bald":
        layers.append((z < 0.0, look.hair))
    elif look.hair_style == "bald":
        r, g, b = (0.5 * (skin + hair) for skin, hair in zip(look.skin, look.hair, strict=True))
        layers.append(((z < 0.0) & (y < 0.94), (r, g, b)))
    return layers


def _shoe(look: Look, x: Array, y: Array, z: Array) -> Layers:
    return [(EVERYWHERE, look.shoe), (y < 0.012, look.sole)]


def _bag(look: Look, x: Array, y: Array, z: Array) -> Layers:
    ground, other = look.bag_colours
    if look.bag != "backpack":
        return [(EVERYWHERE, ground), (np.abs(y - 0.50) < 0.008, other)]
    pocket = (np.abs(y - 0.62) < 0.025) & (np.abs(x) < 0.04)
    return [(EVERYWHERE, ground), (np.abs(y - 0.675) < 0.008, other), (pocket, other)]


COVERS: dict[str, Callable[[Look, Array, Array, Array], Layers]] = {
    "upper": _upper,
    "sleeve": _sleeve,
    "lower": _lower,
    "leg": _leg,
    "face": _face,
    "shoe": _shoe,
    "bag": _bag,
}
