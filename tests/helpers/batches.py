"""Random batches."""

from __future__ import annotations

import torch

from reidguard.types import ReIDBatch


def rng(seed: int = 0) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def random_batch(
    identities: int,
    each: int,
    size: tuple[int, int],
    *,
    seed: int = 0,
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> ReIDBatch:
    """Return a batch of uniformly random pixels.

    Args:
        identities: Number of identities.
        each: Images of each identity, which follow each other.
        size: Height and width.
        seed: Of the pixels.
        low: Smallest pixel value; above 0, an attack with a small budget is not clipped by [0, 1].
        high: Largest pixel value.
        dtype: Of the images.
    """
    count = identities * each
    pixels = torch.rand(count, 3, *size, generator=rng(seed), dtype=dtype)
    pids = torch.arange(identities).repeat_interleave(each)
    return ReIDBatch(low + (high - low) * pixels, pids, torch.zeros_like(pids), torch.arange(count))
