"""UnrealPerson (Zhang et al., CVPR 2021): synthetic people for training only."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import find_root, parse_folder
from reidguard.data.readers.statistics import SYNTHETIC, Count, Published, build_dataset
from reidguard.types import ReIDSample

__all__ = ["read_unrealperson"]

PUBLISHED = Published(
    "unrealperson",
    SYNTHETIC,
    Count(1256381, 6799),
)
FOLDERS = {f"unreal_v{scene}.{kind}": (scene, kind) for scene in (1, 2, 3, 4) for kind in (1, 2, 3)}
EXAMPLE = "333_c001_78.jpg"
NAME = re.compile(r"(?P<pid>[0-9]{1,5})_c(?P<camera>[0-9]{1,3})_[0-9]+")
LAYOUTS = [Layout({f"{folder}/images": NAME}, ("UnrealPerson",)) for folder in FOLDERS]


@register_dataset("unrealperson", *LAYOUTS)
def read_unrealperson(root: Path | str) -> ReIDDataset:
    """List UnrealPerson; there is no test set.

    ``unreal_v3.1/images/333_c001_78.jpg`` shows identity 333 of the models of kind 1, seen by
    camera 1 of scene 3. Numbers repeat between kinds and between scenes: here identity p of kind k
    becomes 100,000·k + p, and camera c of scene s becomes 1,000·s + c. The published experiments
    draw 120,000 of these images at random; which ones is not published.

    Args:
        root: The folder that holds ``unreal_v1.1`` to ``unreal_v4.3`` (scene, kind), or its
            parent, if there it is called ``UnrealPerson``. Some of the twelve may be absent, which
            is noted.

    Raises:
        DataError: If none is there, one lacks its images, or a name does not follow the pattern.
    """
    root = find_root(root, *LAYOUTS)
    train = []
    absent = []
    for name, (scene, kind) in FOLDERS.items():
        if not (root / name).is_dir():
            absent.append(name)
            continue
        train += [
            ReIDSample(path, 100_000 * kind + int(m["pid"]), 1000 * scene + int(m["camera"]))
            for path, m in parse_folder(root / name / "images", NAME, example=EXAMPLE)
        ]
    notes = [f"absent of the twelve folders: {', '.join(absent)}"] if absent else []
    return build_dataset(PUBLISHED, {"train": train}, root=root, notes=notes)
