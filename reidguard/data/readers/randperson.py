"""RandPerson (Wang et al., ACM MM 2020): synthetic people for training only."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import parse_folder
from reidguard.data.readers.statistics import SYNTHETIC, Count, Published, build_dataset
from reidguard.records import to_path
from reidguard.types import ReIDSample

__all__ = ["read_randperson"]

PUBLISHED = Published(
    "randperson",
    SYNTHETIC,
    Count(132145, 8000),
)
SUBSET = "randperson_subset"
EXAMPLE = "000000_s00_c00_f000264.jpg"
NAME = re.compile(r"(?P<pid>[0-9]{1,18})_s(?P<scene>[0-9]{1,9})_c(?P<camera>[0-9]{1,2})_f[0-9]+")
LAYOUT = Layout({".": NAME})


@register_dataset("randperson", LAYOUT)
def read_randperson(root: Path | str) -> ReIDDataset:
    """List the 132,145 images of RandPerson that its authors train on; there is no test set.

    ``000000_s03_c01_f000264.jpg`` shows identity 0, seen by camera 1 of scene 3. The published
    numbers start at 0; here identity n becomes n + 1. Each scene numbers its cameras from 0; here
    camera c of scene s becomes 100·s + c.

    Args:
        root: The folder with the images, or one that holds it as ``randperson_subset``, once or
            twice nested, as the archive unpacks.

    Raises:
        DataError: If the folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    folder = to_path(root)
    while (folder / SUBSET).is_dir() and not list_images(folder):
        folder /= SUBSET
    images = parse_folder(folder, NAME, example=EXAMPLE, expected=PUBLISHED.train.images)
    train = [
        ReIDSample(path, int(m["pid"]) + 1, 100 * int(m["scene"]) + int(m["camera"]))
        for path, m in images
    ]
    return build_dataset(PUBLISHED, {"train": train}, root=folder)
