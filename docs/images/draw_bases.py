"""Draw bases.png, a learnt δ in each basis: python docs/images/draw_bases.py FOLDER.

FOLDER holds what ``python benchmarks/universality.py attacks --keep FOLDER`` learnt.
"""

import sys
from pathlib import Path

import torch
from PIL import Image

import reidguard as rg

GAP = 8


def main() -> None:
    tiles = []
    for name in ("pixels", "blocks", "bilinear", "dct"):
        attack = rg.load_attack(Path(sys.argv[1]) / f"{name}.safetensors")
        eps = attack.budget.eps
        delta = attack.resized(256, 128)[0].detach().clamp(-eps, eps) / eps
        tiles += [(255 * (delta + 1) / 2).byte(), torch.full((3, 256, GAP), 255, dtype=torch.uint8)]
    row = torch.cat(tiles[:-1], 2).permute(1, 2, 0).contiguous()
    # A palette keeps the file small; noise compresses badly.
    image = Image.fromarray(row.numpy()).quantize(64, kmeans=2, dither=Image.Dither.NONE)
    image.save(Path(__file__).with_name("bases.png"), optimize=True)


if __name__ == "__main__":
    main()
