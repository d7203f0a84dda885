"""The functional colour attack: one learned colour look-up table for all images (Eqs. 2-3)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import ImageFilter
from torch import Tensor, nn

from reidguard.attacks.base import register_attack
from reidguard.attacks.universal.base import UniversalAttack
from reidguard.files import atomic_write
from reidguard.schema import checked
from reidguard.types import Budget

__all__ = ["ColorAttack"]

MAX_RESOLUTION = 256  # one node for each grey level


class _Interpolate(torch.autograd.Function):
    """Trilinear look-up, twice differentiable in the table.

    torch's own sampling has no second derivative, which exact meta-learning needs. The map is
    linear in the table: its derivative is its transpose (:class:`_Splat`), whose derivative is the
    map itself.
    """

    @staticmethod
    def forward(table: Tensor, places: Tensor, part: Tensor) -> Tensor:
        return _sample(table, places, part)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        table, places, part = inputs
        ctx.save_for_backward(places, part)
        ctx.resolution = table.shape[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        places, part = ctx.saved_tensors
        return _splat(grad, places, part, ctx.resolution), None, None


class _Splat(torch.autograd.Function):
    """Transpose of the look-up: adds each pixel's value to the corners of its cell."""

    @staticmethod
    def forward(values: Tensor, places: Tensor, part: Tensor, resolution: int) -> Tensor:
        pages = _pages(values.new_zeros(()).expand(3, *[resolution] * 3), len(places))
        grad_pages, _ = torch.ops.aten.grid_sampler_2d_backward(
            torch.cat([values, values * part], 1), pages, places, 0, 1, True, [True, False]
        )
        low, rise = (
            half.view(3, resolution - 1, resolution, resolution)
            for half in grad_pages.sum(0).split(3)
        )
        table = values.new_zeros(3, resolution, resolution, resolution)
        table[:, :-1] = low - rise
        table[:, 1:] += rise
        return table

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        places, part = ctx.saved_tensors
        return _interpolate(grad, places, part), None, None, None


_interpolate = cast("Callable[[Tensor, Tensor, Tensor], Tensor]", _Interpolate.apply)
_splat = cast("Callable[[Tensor, Tensor, Tensor, int], Tensor]", _Splat.apply)

# On a CPU, torch samples pictures about twice as fast as volumes. So the table is laid out
# as a picture: one page of (green, blue) after another for each step of red. A page holds six
# channels, the three colours and their rise to the next page; red is interpolated by hand.


def _pages(table: Tensor, count: int) -> Tensor:
    """The table as a picture (count, 6, (R-1)·R, R), one for all images."""
    resolution = table.shape[-1]
    both = torch.cat([table[:, :-1], table[:, 1:] - table[:, :-1]])
    picture = both.reshape(6, (resolution - 1) * resolution, resolution)
    return picture.expand(count, *picture.shape)  # so that the images are worked on in parallel


def _locate(x: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Each colour's place on the picture, (N, H, W, 2) in [-1, 1], and its part of a red step."""
    red, green, blue = x.unbind(1)
    steps = red * (resolution - 1)
    page = steps.detach().floor().clamp_(0, resolution - 2)
    height = (resolution - 1) * resolution
    row = torch.add(page * resolution, green, alpha=resolution - 1)
    places = torch.stack([2 * blue - 1, row * (2 / (height - 1)) - 1], -1)
    return places, (steps - page).unsqueeze(1)


def _sample(table: Tensor, places: Tensor, part: Tensor) -> Tensor:
    pages = _pages(table, len(places))
    values = F.grid_sample(
        pages, places, mode="bilinear", padding_mode="border", align_corners=True
    )
    return torch.addcmul(values[:, :3], values[:, 3:], part)


def interpolate_colors(table: Tensor, x: Tensor) -> Tensor:
    """Look colours up in a table by trilinear interpolation.

    Args:
        table: (3, R, R, R): the output channels at each (red, green, blue) node.
        x: (N, 3, H, W) in [0, 1], same dtype.

    Returns:
        (N, 3, H, W). Twice differentiable in ``table``; once in ``x``.
    """
    if table.shape[-1] == 1:
        return table.view(1, 3, 1, 1).expand_as(x)
    places, part = _locate(x, table.shape[-1])
    look_up = _sample if x.requires_grad else _interpolate
    return look_up(table, places, part)


@register_attack("color")
class ColorAttack(UniversalAttack):
    """Changes every colour by at most ε, the same way in all images and places.

    A grid of R×R×R colours Θ covers the RGB cube; a pixel's new colour is the trilinear
    interpolation of its eight nodes (Eqs. 2-3, ReColorAdv's table in RGB). Θ is stored as the
    offset from the identity, in float32, so that Θ = 0 changes nothing in any dtype. The
    interpolation is convex: with every node inside ±ε, so is every pixel.

    Args:
        budget: The ball; 8/255 by default.
        resolution: R, nodes along each axis, 1 to 256; the paper uses 25. A table of few nodes
            changes similar colours alike; that of one node is a tint: it adds one colour to every
            pixel.

    Example:
        >>> attack = ColorAttack(resolution=5)
        >>> x = torch.rand(1, 3, 8, 4)
        >>> torch.equal(attack(x), x)
        True
    """

    offset: nn.Parameter
    """(3, R, R, R): change of (red, green, blue) at each node, indexed [channel, r, g, b]."""

    def __init__(self, budget: Budget | None = None, resolution: int = 25) -> None:
        super().__init__(budget)
        self.resolution = checked(int, "resolution", resolution, low=1, high=MAX_RESOLUTION)
        self.offset = nn.Parameter(torch.zeros(3, *[self.resolution] * 3))

    def perturb(self, x: Tensor) -> Tensor:
        """Return f(x), computed in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            colours = x.to(wide)
            return colours + interpolate_colors(self.offset.to(wide), colours)

    def _identity(self, nodes: int) -> Tensor:
        axis = torch.linspace(0, 1, nodes, dtype=self.offset.dtype, device="cpu")
        colors = torch.meshgrid(axis, axis, axis, indexing="ij")
        return torch.stack(colors).to(self.offset.device, non_blocking=True)

    @torch.no_grad()
    def clip_parameters(self) -> None:
        """Keep every node's colour within ε of its own and, of several nodes, in [0, 1]."""
        if self.resolution > 1:
            identity = self._identity(self.resolution)
            self.offset.copy_((identity + self.offset).clamp(0, 1) - identity)
        self.offset.clamp_(-self.budget.eps, self.budget.eps)

    @property
    def lut(self) -> Tensor:
        """(3, R, R, R) target colours in [0, 1], indexed [channel, red, green, blue].

        A table of one node is that of two with the same change. Its colours may leave [0, 1] by ε,
        which every reader of tables clips after interpolation, as the attack does.
        """
        offset = self.offset.clamp(-self.budget.eps, self.budget.eps)
        if self.resolution == 1:
            return self._identity(2) + offset
        return (self._identity(self.resolution) + offset).clamp(0, 1)

    def _red_fastest(self) -> Tensor:
        # .cube files and Pillow list the nodes with red changing fastest.
        return self.lut.detach().cpu().permute(3, 2, 1, 0).reshape(-1, 3)

    def to_pillow(self) -> ImageFilter.Color3DLUT:
        """Return the table as a Pillow filter: ``image.filter(attack.to_pillow())``."""
        nodes = max(self.resolution, 2)
        return ImageFilter.Color3DLUT(nodes, self._red_fastest().flatten().tolist())

    def save_cube(self, path: Path | str) -> None:
        """Write the table as a ``.cube`` file, which photo and video editors read."""
        rows = "\n".join(
            "{:.6f} {:.6f} {:.6f}".format(*row) for row in self._red_fastest().tolist()
        )
        with atomic_write(path) as temporary:
            temporary.write_text(
                f'TITLE "reidguard colour attack, eps {self.budget}"\n'
                f"LUT_3D_SIZE {max(self.resolution, 2)}\n{rows}\n",
                "utf-8",
            )
