"""ClonedPerson (Wang, Liang and Liao, CVPR 2022): rendered people in clothes from photographs."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import find_root, read_images
from reidguard.data.readers.statistics import SYNTHETIC, Published, build_dataset

__all__ = ["read_clonedperson"]

PUBLISHED = Published("clonedperson", SYNTHETIC, sized=False)
FOLDERS = {"train": "train", "query": "test/query", "gallery": "test/gallery"}
EXAMPLE = "700000_s02_c00_f023389.jpg"
NAME = re.compile(r"(?P<pid>[0-9]{1,18})_s[0-9]+_c(?P<camid>[0-9]{1,9})_f[0-9]+")
LAYOUT = Layout(dict.fromkeys(FOLDERS.values(), NAME), ("ClonedPerson",))


@register_dataset("clonedperson", LAYOUT)
def read_clonedperson(root: Path | str) -> ReIDDataset:
    """List ClonedPerson.

    ``700000_s02_c00_f023389.jpg`` shows identity 700000 in scene 2, seen by camera 0. As in its
    authors' reader, cameras of one number in several scenes are one camera, so that a query does
    not match them.

    Args:
        root: The folder that holds ``train``, ``test/query`` and ``test/gallery``, or one above it,
            if there it is called ``clonedperson``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
    """
    root = find_root(root, LAYOUT)
    splits = {
        split: read_images(root / folder, NAME, example=EXAMPLE)
        for split, folder in FOLDERS.items()
    }
    notes = ["cameras of one number in several scenes are one camera, as in its authors' reader"]
    return build_dataset(PUBLISHED, splits, root=root, notes=notes)
