"""CUHK01 (Li et al., ACCV 2012) and CUHK03 in its new protocol (Zhong et al., CVPR 2017)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import (
    MARKET_FOLDERS,
    find_root,
    parse_folder,
    random_split,
    read_market_folders,
)
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.errors import DataError
from reidguard.records import to_path
from reidguard.types import ReIDSample

__all__ = ["read_cuhk01", "read_cuhk03_np_detected", "read_cuhk03_np_labeled"]

LICENCE = "academic research only"
LABELED = Published(
    "cuhk03-np-labeled", LICENCE, Count(7368, 767), Count(1400, 700), Count(5328, 700)
)
DETECTED = Published(
    "cuhk03-np-detected", LICENCE, Count(7365, 767), Count(1400, 700), Count(5332, 700)
)
CUHK01 = Published("cuhk01", LICENCE, Count(1940, 485), Count(972, 486), Count(972, 486))
NP_EXAMPLE = "0003_c1_22.png"
NP_NAME = re.compile(r"(?P<pid>[0-9]{1,18})_c(?P<camid>[0-9]{1,9})_[0-9]+")
CUHK01_EXAMPLE = "0001001.png"
CUHK01_NAME = re.compile(r"(?P<pid>[0-9]{4})(?P<view>[0-9]{3})")
NP_ENTRIES = dict.fromkeys(MARKET_FOLDERS.values(), re.compile("[0-9]{4}_c[12]_[0-9]{1,2}"))
NP_LAYOUTS = {boxes: Layout(NP_ENTRIES, (boxes,)) for boxes in ("labeled", "detected")}
CUHK01_LAYOUT = Layout({"campus": CUHK01_NAME}, ("CUHK01",))


@register_dataset("cuhk03-np-labeled", NP_LAYOUTS["labeled"])
def read_cuhk03_np_labeled(root: Path | str) -> ReIDDataset:
    """List CUHK03-NP with the hand-drawn boxes.

    ``0003_c1_22.png`` shows identity 3, seen by camera 1. Each of the 700 test identities has one
    query per camera.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``,
            or the folder that holds ``labeled`` beside ``detected``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    return _read_np(to_path(root), LABELED, "labeled", "detected")


@register_dataset("cuhk03-np-detected", NP_LAYOUTS["detected"])
def read_cuhk03_np_detected(root: Path | str) -> ReIDDataset:
    """List CUHK03-NP with the boxes of a detector; as :func:`read_cuhk03_np_labeled`."""
    return _read_np(to_path(root), DETECTED, "detected", "labeled")


def _read_np(root: Path, published: Published, boxes: str, other: str) -> ReIDDataset:
    if root.name.lower() == other:
        raise DataError(f"{root} holds the {other} boxes; read it as cuhk03-np-{other}")
    root = find_root(root, NP_LAYOUTS[boxes])
    splits = read_market_folders(root, NP_NAME, example=NP_EXAMPLE, published=published)
    return build_dataset(published, splits, root=root)


@register_dataset("cuhk01", CUHK01_LAYOUT)
def read_cuhk01(root: Path | str, *, seed: int = 0) -> ReIDDataset:
    """List CUHK01 and split it at random: 485 identities for training, 486 for the test.

    ``0001003.png`` is the third image of identity 1. Images 1 and 2 come from camera 1, the query;
    images 3 and 4 from camera 2, the gallery. The published protocol averages over ten random
    splits: read the dataset with ten seeds.

    Args:
        root: The folder ``campus``, or the one that holds it.
        seed: Chooses the split.

    Raises:
        DataError: If the folder is missing or empty, or a name does not follow the pattern.
    """
    folder = to_path(root)
    if folder.name.lower() != "campus":
        folder = find_root(folder, CUHK01_LAYOUT) / "campus"
    samples = [
        ReIDSample(path, int(match["pid"]), 1 if int(match["view"]) <= 2 else 2)
        for path, match in parse_folder(folder, CUHK01_NAME, example=CUHK01_EXAMPLE, expected=3884)
    ]
    return random_split(CUHK01, samples, seed, root=folder)
