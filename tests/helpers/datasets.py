"""Small datasets of random images in files."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from helpers.batches import rng
from reidguard.data import ReIDDataset
from reidguard.types import ReIDSample


def noise_datasets(root: Path, images: int, size: tuple[int, int]) -> list[ReIDDataset]:
    """Write training sets of six and of nine identities, each with so many images of noise."""
    generator = rng(0)
    result = []
    for name, identities in (("six", 6), ("nine", 9)):
        samples = []
        for pid in range(identities):
            for number in range(images):
                path = root / f"{name}-{pid}-{number}.png"
                pixels = torch.randint(0, 256, (*size, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(path)
                samples.append(ReIDSample(path, pid + 1, number))
        result.append(ReIDDataset(name, samples))
    return result
