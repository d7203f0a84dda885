"""A reader of a layout of its own: all images in one folder, named SPLIT_PERSON_CAMERA_NUMBER."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard import DataError, ReIDDataset, ReIDSample

NAME = re.compile(r"(train|query|gallery)_(\d+)_(\d+)_\d+")


def read_flat(root: Path) -> ReIDDataset:
    """Read images such as train_0007_2_001.png from one folder.

    Raises:
        DataError: If the folder is missing, a name is wrong, or a split has no image.
    """
    splits: dict[str, list[ReIDSample]] = {"train": [], "query": [], "gallery": []}
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    for path in sorted(root.glob("*.png")):
        named = NAME.fullmatch(path.stem)
        if named is None:
            raise DataError(f"{path} is not named SPLIT_PERSON_CAMERA_NUMBER.png")
        splits[named[1]].append(ReIDSample(path, int(named[2]), int(named[3])))
    if empty := [split for split, samples in splits.items() if not samples]:
        raise DataError(f"{root} has no images for {', '.join(empty)}")
    return ReIDDataset(
        "example_flat",
        splits["train"],
        splits["query"],
        splits["gallery"],
        root=root,
        licence="that of your images",
    )
