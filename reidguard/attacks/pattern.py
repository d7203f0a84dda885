"""Fixed patterns: perturbations that use no model and no images, the baseline of transfer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from reidguard.attacks.base import Attack, register_attack
from reidguard.errors import InputError, did_you_mean
from reidguard.schema import MAX_SEED, MAX_SIDE, checked
from reidguard.types import Budget

__all__ = ["PatternAttack", "fixed_patterns"]

MIN_PERIOD = 2.0  # pixels; a shorter one cannot be told from a longer one
WIDTH = 0.75  # standard deviation of a Gabor kernel, in periods
DENSITY = 4  # Gabor kernels in a square of one period


def _checkerboard(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    return (-1.0) ** ((2 * u).floor() + (2 * v).floor())


def _stripes(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    return (-1.0) ** (2 * u).floor()


def _tint(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    return torch.ones_like(u)


def _gabor(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of Gabor kernels at random places: cosines of one direction under a Gaussian."""
    # Places lie on a torus that is larger than the image, so that a phase shifts the pattern.
    extent = [float(w.max() - w.min()) + 4 * WIDTH for w in (u, v)]
    count = math.ceil(DENSITY * extent[0] * extent[1])
    draws = torch.rand(3, count, generator=generator, dtype=torch.float64, device="cpu")
    noise = torch.zeros_like(u)
    for place_u, place_v, sign in draws.T.tolist():
        du, dv = (
            (w - place * side + side / 2) % side - side / 2
            for w, place, side in ((u, place_u, extent[0]), (v, place_v, extent[1]))
        )
        kernel = torch.exp((du**2 + dv**2) / (-2 * WIDTH**2)) * torch.cos(2 * math.pi * du)
        noise += kernel if sign < 0.5 else -kernel
    return noise


def _perlin(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    """Gradient noise: a lattice of random unit gradients, one a period apart, blended smoothly."""
    extent = max(float(w.max() - w.min()) for w in (u, v))
    nodes = math.ceil(extent) + 2
    angle = (
        2
        * math.pi
        * torch.rand(nodes, nodes, generator=generator, dtype=torch.float64, device="cpu")
    )
    row, column = u.floor(), v.floor()
    fraction_u, fraction_v = u - row, v - column
    noise = torch.zeros_like(u)
    for i in (0, 1):
        for j in (0, 1):
            at = angle[(row + i).long() % nodes, (column + j).long() % nodes]
            du, dv = fraction_u - i, fraction_v - j
            weight = _fade(1 - du.abs()) * _fade(1 - dv.abs())
            noise += weight * (at.cos() * du + at.sin() * dv)
    return noise


def _fade(t: Tensor) -> Tensor:
    """Return Perlin's 6t⁵ − 15t⁴ + 10t³."""
    return t**3 * (t * (6 * t - 15) + 10)


KINDS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "checkerboard": _checkerboard,
    "stripes": _stripes,
    "tint": _tint,
    "gabor": _gabor,
    "perlin": _perlin,
}


@lru_cache(maxsize=64)  # noise takes as long as a small network's pass
def _signs(
    kind: str,
    period: float,
    phase: tuple[float, ...],
    angle: float,
    size: tuple[int, int],
    seed: int,
    image_size: tuple[int, int],
) -> Tensor:
    """Return (height, width) float64 values of ±1."""
    rows, columns = (
        (torch.arange(count, dtype=torch.float64, device="cpu") + 0.5)
        * (reference / count / period)
        for count, reference in zip(image_size, size, strict=True)
    )
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    turn = math.radians(angle)
    u = math.cos(turn) * y + math.sin(turn) * x + phase[0]
    v = math.cos(turn) * x - math.sin(turn) * y + phase[1]
    field = KINDS[kind](u, v, torch.Generator("cpu").manual_seed(seed))
    return torch.where(field >= 0, 1.0, -1.0).double()


@register_attack("pattern")
class PatternAttack(Attack):
    """Adds a fixed pattern of ±ε to every image; nothing is learnt.

    It knows neither the model nor the data. What a learnt attack does beyond the best of such
    patterns (:func:`fixed_patterns`) is what it has learnt. Each pixel is at +ε or −ε, as the sign
    of the pattern says, times the channel's factor.

    Args:
        budget: The ball; 8/255 by default.
        kind: "checkerboard", "stripes", "tint" (one colour), "gabor" or "perlin" (procedural noise,
            as in Co et al., CCS 2019).
        period: Length of a cycle in pixels of ``size``, at least 2: two squares of a checkerboard,
            two stripes, the wavelength of Gabor noise, the lattice of Perlin noise. A tint has
            none.
        phase: Shift along the two axes, in periods.
        angle: Degrees by which the axes are turned. At 0 stripes are horizontal, at 90 vertical.
        color: Factor of red, green and blue, each in [−1, 1].
        size: Height and width to which ``period`` refers. The pattern is stretched to images of
            another size, and stays sharp.
        seed: Fixes the random draws of Gabor and Perlin noise.

    Raises:
        InputError: If an option has a wrong value.

    Example:
        >>> attack = PatternAttack(Budget(8 / 255), "checkerboard", period=4, size=(4, 4))
        >>> (255 * attack.pattern(4, 4)[0, 0]).round().int()
        tensor([[ 8,  8, -8, -8],
                [ 8,  8, -8, -8],
                [-8, -8,  8,  8],
                [-8, -8,  8,  8]], dtype=torch.int32)
    """

    def __init__(
        self,
        budget: Budget | None = None,
        kind: str = "checkerboard",
        *,
        period: float = 32.0,
        phase: Sequence[float] = (0.0, 0.0),
        angle: float = 0.0,
        color: Sequence[float] = (1.0, 1.0, 1.0),
        size: tuple[int, int] = (256, 128),
        seed: int = 0,
    ) -> None:
        super().__init__(budget)
        if kind not in KINDS:
            raise InputError(
                f"unknown kind of pattern {kind!r}: {did_you_mean(kind, KINDS)}"
                f"choose one of {', '.join(KINDS)}"
            )
        self.kind = kind
        self.period = checked(float, "period", period, low=MIN_PERIOD, high=1e6)
        self.phase = _numbers("phase", phase, 2, low=-1e6, high=1e6)
        self.angle = checked(float, "angle", angle, low=-1e6, high=1e6)
        self.color = _numbers("color", color, 3, low=-1, high=1)
        self.size = checked(tuple[int, int], "size", size, low=1, high=MAX_SIDE)
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED)

    def pattern(self, height: int, width: int) -> Tensor:
        """Return what is added to images of this size: (1, 3, height, width) float32, in ±ε."""
        shape = checked(tuple[int, int], "height and width", (height, width), low=1, high=MAX_SIDE)
        signs = _signs(self.kind, self.period, self.phase, self.angle, self.size, self.seed, shape)
        color = torch.tensor(self.color, dtype=torch.float64, device="cpu").view(1, 3, 1, 1)
        return (self.budget.eps * color * signs).float()

    def perturb(self, x: Tensor) -> Tensor:
        """Return x plus the pattern, computed in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        pattern = self.pattern(x.shape[2], x.shape[3])
        return x.to(wide) + pattern.to(x.device, wide, non_blocking=True)


def _numbers(name: str, values: Sequence[float], count: int, **limits: float) -> tuple[float, ...]:
    numbers = checked(tuple[float, ...], name, values, **limits)
    if len(numbers) != count:
        raise InputError(f"{name} must be {count} numbers, not {values!r}")
    return numbers


def fixed_patterns(budget: Budget | None = None) -> dict[str, PatternAttack]:
    """Return a fixed family of patterns by name, whose strongest member is a baseline.

    A table of transfer should have its row: see :func:`~reidguard.evaluate_grid`.

    Example:
        >>> list(fixed_patterns())[:2]
        ['checkerboard, squares of 8', 'checkerboard, squares of 16']
    """
    family = {
        f"checkerboard, squares of {side}": PatternAttack(budget, "checkerboard", period=2 * side)
        for side in (8, 16, 32)
    }
    for direction, angle in (("horizontal", 0.0), ("vertical", 90.0)):
        family[f"{direction} stripes of 8"] = PatternAttack(
            budget, "stripes", period=16, angle=angle
        )
    for name, color in (("+−+", (1, -1, 1)), ("−+−", (-1, 1, -1))):
        family[f"tint {name}"] = PatternAttack(budget, "tint", color=color)
    for kind in ("gabor", "perlin"):
        family[f"{kind} noise of 32"] = PatternAttack(budget, kind, period=32)
    return family
