"""RandPerson (Wang et al., ACM MM 2020) and UnrealPerson (Zhang et al., CVPR 2021).

Both are synthetic and made to train on: they have no query and no gallery.
"""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.images import list_images
from reidguard.data.readers.layout import find_root, parse_folder
from reidguard.data.readers.statistics import PUBLISHED, published_dataset
from reidguard.types import ReIDSample

__all__ = ["read_randperson", "read_unrealperson"]

SUBSET = "randperson_subset"
RAND_EXAMPLE = "000000_s00_c00_f000264.jpg"
RAND_NAME = re.compile(
    r"(?P<person>[0-9]{1,18})_s(?P<scene>[0-9]{1,9})_c(?P<camera>[0-9]{1,2})_f[0-9]+"
)
UNREAL_FOLDERS = tuple(f"unreal_v{scene}.{kind}" for scene in (1, 2, 3, 4) for kind in (1, 2, 3))
UNREAL_EXAMPLE = "333_c001_78.jpg"
UNREAL_NAME = re.compile(r"(?P<person>[0-9]{1,5})_c(?P<camera>[0-9]{1,3})_[0-9]+")


@register_dataset("randperson")
def read_randperson(root: Path | str) -> ReIDDataset:
    """List the 132,145 images of RandPerson that its authors train on; there is no test set.

    ``000000_s03_c01_f000264.jpg`` shows person 0 before camera 1 of scene 3. The set numbers
    people from 0; here person n becomes n + 1. Each scene numbers its cameras anew; here camera c
    of scene s becomes 100·s + c.

    Args:
        root: The folder with the images, or one that holds it as ``randperson_subset``, once or
            twice nested, as the archive unpacks.

    Raises:
        DataError: If the folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    facts = PUBLISHED["randperson"]
    folder = Path(root)
    while (folder / SUBSET).is_dir() and not list_images(folder):
        folder /= SUBSET
    images = parse_folder(folder, RAND_NAME, example=RAND_EXAMPLE, expected=facts.train.images)
    train = [
        ReIDSample(path, int(m["person"]) + 1, 100 * int(m["scene"]) + int(m["camera"]))
        for path, m in images
    ]
    return published_dataset("randperson", facts, {"train": train}, root=folder)


@register_dataset("unrealperson")
def read_unrealperson(root: Path | str) -> ReIDDataset:
    """List UnrealPerson; there is no test set.

    ``unreal_v3.1/images/333_c001_78.jpg`` shows person 333 of the models of kind 1 before camera 1
    of scene 3. A person is a kind and a number, a camera is a scene and a number: here person p of
    kind k becomes 100,000·k + p, and camera c of scene s becomes 1,000·s + c. The published
    experiments draw 120,000 of these images at random; which ones is not published.

    Args:
        root: The folder that holds ``unreal_v1.1`` to ``unreal_v4.3`` (scene, kind), or its
            parent, if there it is called ``UnrealPerson``. Some of the twelve may be absent, which
            is noted.

    Raises:
        DataError: If none is there, one lacks its images, or a name does not follow the pattern.
    """
    facts = PUBLISHED["unrealperson"]
    root = find_root(Path(root), ["unrealperson"], UNREAL_FOLDERS)
    train = []
    absent = []
    for name in UNREAL_FOLDERS:
        if not (root / name).is_dir():
            absent.append(name)
            continue
        scene, kind = (int(number) for number in name.removeprefix("unreal_v").split("."))
        images = parse_folder(root / name / "images", UNREAL_NAME, example=UNREAL_EXAMPLE)
        train += [
            ReIDSample(path, 100_000 * kind + int(m["person"]), 1000 * scene + int(m["camera"]))
            for path, m in images
        ]
    notes = [f"absent of the twelve folders: {', '.join(absent)}"] if absent else []
    return published_dataset("unrealperson", facts, {"train": train}, root=root, notes=notes)
