"""Bases of an additive perturbation: how few coefficients make a δ of any size."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from reidguard.errors import InputError, did_you_mean

__all__ = ["BASES", "bound", "check_basis", "expand"]


def _blocks(nodes: int, pixels: int) -> Tensor:
    """1 where a pixel's centre lies in the node's part of the image."""
    part = (
        ((torch.arange(pixels, dtype=torch.float64, device="cpu") + 0.5) * nodes / pixels)
        .floor()
        .long()
    )
    return torch.nn.functional.one_hot(part.clamp(max=nodes - 1), nodes).double()


def _bilinear(nodes: int, pixels: int) -> Tensor:
    """Linear interpolation between nodes, the first and last of which are on the border."""
    if nodes == 1 or pixels == 1:
        return torch.eye(nodes, dtype=torch.float64, device="cpu")[:1].expand(pixels, nodes)
    place = torch.arange(pixels, dtype=torch.float64, device="cpu") * (nodes - 1) / (pixels - 1)
    return (1 - (place[:, None] - torch.arange(nodes, device="cpu")).abs()).clamp(min=0)


def _dct(nodes: int, pixels: int) -> Tensor:
    """The lowest frequencies of the discrete cosine transform, each of amplitude 1."""
    place = (torch.arange(pixels, dtype=torch.float64, device="cpu") + 0.5) / pixels
    return torch.cos(math.pi * place[:, None] * torch.arange(nodes, device="cpu"))


BASES: dict[str, Callable[[int, int], Tensor] | None] = {
    "pixels": None,
    "blocks": _blocks,
    "bilinear": _bilinear,
    "dct": _dct,
}
"""Of each basis, a function of the numbers of nodes and pixels along one axis, which returns the
(pixels, nodes) matrix that makes values of coefficients. The basis of the image is their product.
Pixels are resized, not multiplied."""


def check_basis(basis: str) -> str:
    """Return the name of a basis.

    Raises:
        InputError: If there is none of this name.
    """
    if basis not in BASES:
        raise InputError(
            f"unknown basis {basis!r}: {did_you_mean(basis, BASES)}choose one of {', '.join(BASES)}"
        )
    return basis


def scale(basis: str, grid: tuple[int, int]) -> float:
    """Return the factor of all coefficients.

    Cosines overlap: with this factor, coefficients of ±ε and random signs add up to a δ whose root
    mean square is ε, as ±ε in every pixel does. So a step of a given size changes an image as much
    as in the other bases, whose factor is 1.
    """
    return 2 / math.sqrt(grid[0] * grid[1]) if basis == "dct" else 1.0


def bound(basis: str, grid: tuple[int, int], eps: float) -> float:
    """Return the largest coefficient: alone it changes no pixel by more than ``eps``."""
    return eps / min(scale(basis, grid), 1.0)


def expand(coefficients: Tensor, basis: str, height: int, width: int) -> Tensor:
    """Return the (1, 3, height, width) values of (1, 3, rows, columns) coefficients.

    Linear in the coefficients, so twice differentiable.
    """
    rows, columns = coefficients.shape[2:]
    with torch.autocast(coefficients.device.type, enabled=False):
        down, across = (
            _matrix(basis, nodes, pixels).to(coefficients, non_blocking=True)
            for nodes, pixels in ((rows, height), (columns, width))
        )
        return scale(basis, (rows, columns)) * (down @ coefficients @ across.T)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # the tensor is kept, and may be used in a backward pass
def _matrix(basis: str, nodes: int, pixels: int) -> Tensor:
    matrix = BASES[basis]
    assert matrix is not None, "pixels are resized"
    return matrix(nodes, pixels)
