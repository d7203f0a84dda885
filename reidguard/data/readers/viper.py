"""VIPeR (Gray, Brennan and Tao, PETS 2007)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.readers.layout import find_root, parse_folder, split_people
from reidguard.data.readers.statistics import PUBLISHED, published_dataset
from reidguard.types import ReIDSample

__all__ = ["read_viper"]

CAMERAS = {"cam_a": 1, "cam_b": 2}
EXAMPLE = "000_45.bmp"
NAME = re.compile(r"(?P<person>[0-9]{1,18})_[0-9]+")


@register_dataset("viper")
def read_viper(root: Path | str, *, seed: int = 0) -> ReIDDataset:
    """List VIPeR and split it at random: 316 people to train, 316 to test.

    ``cam_a/000_45.bmp`` shows person 0 under 45 degrees. The set numbers people from 0; here
    person n becomes n + 1. ``cam_a`` is camera 1, which searches; ``cam_b`` is camera 2, the
    gallery. The published protocol averages over ten random splits: read the set with ten seeds.

    Args:
        root: The folder that holds ``cam_a`` and ``cam_b``, or its parent, if there it is called
            ``VIPeR`` or ``VIPeR.v1.0``.
        seed: Chooses the split.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
    """
    root = find_root(Path(root), ["viper", "viper.v1.0"], CAMERAS)
    samples = [
        ReIDSample(path, int(match["person"]) + 1, camera)
        for folder, camera in CAMERAS.items()
        for path, match in parse_folder(root / folder, NAME, example=EXAMPLE, expected=632)
    ]
    splits = split_people(samples, seed, is_query=lambda sample: sample.camid == 1)
    notes = [f"random split of seed {seed}; average over ten seeds to compare"]
    return published_dataset("viper", PUBLISHED["viper"], splits, root=root, notes=notes)
