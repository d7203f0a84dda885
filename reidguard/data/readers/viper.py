"""VIPeR (Gray, Brennan and Tao, PETS 2007)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import find_root, random_split, read_images
from reidguard.data.readers.statistics import NO_TEXT, Count, Published

__all__ = ["read_viper"]

PUBLISHED = Published(
    "viper",
    NO_TEXT,
    Count(632, 316),
    Count(316, 316),
    Count(316, 316),
)
CAMERAS = {"cam_a": 1, "cam_b": 2}
EXAMPLE = "000_45.bmp"
NAME = re.compile(r"(?P<pid>[0-9]{1,18})_[0-9]+")
LAYOUT = Layout(dict.fromkeys(CAMERAS, NAME), ("VIPeR", "VIPeR.v1.0"))


@register_dataset("viper", LAYOUT)
def read_viper(root: Path | str, *, seed: int = 0) -> ReIDDataset:
    """List VIPeR and split it at random: 316 identities for training, 316 for the test.

    ``cam_a/000_45.bmp`` shows identity 0 under 45 degrees. The published numbers start at 0; here
    identity n becomes n + 1. ``cam_a`` is camera 1, the query; ``cam_b`` is camera 2, the gallery.
    The published protocol averages over ten random splits: read the dataset with ten seeds.

    Args:
        root: The folder that holds ``cam_a`` and ``cam_b``, or its parent, if there it is called
            ``VIPeR`` or ``VIPeR.v1.0``.
        seed: Chooses the split.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
    """
    root = find_root(root, LAYOUT)
    samples = [
        sample
        for folder, camera in CAMERAS.items()
        for sample in read_images(
            root / folder, NAME, example=EXAMPLE, expected=632, shift=1, camera=camera
        )
    ]
    return random_split(PUBLISHED, samples, seed, root=root)
