"""Draw patterns.png, the family of fixed patterns: python docs/images/draw_patterns.py."""

from pathlib import Path

import torch
from PIL import Image

import reidguard as rg

GAP = 8


def main() -> None:
    budget = rg.Budget(1.0)  # ±1 becomes white and black
    tiles = []
    for pattern in rg.fixed_patterns(budget).values():
        tile = (255 * (pattern.pattern(256, 128)[0] + 1) / 2).byte()
        tiles += [tile, torch.full((3, 256, GAP), 255, dtype=torch.uint8)]
    row = torch.cat(tiles[:-1], 2).permute(1, 2, 0).contiguous()
    image = Image.fromarray(row.numpy()).quantize(8)
    image.save(Path(__file__).with_name("patterns.png"), optimize=True)


if __name__ == "__main__":
    main()
