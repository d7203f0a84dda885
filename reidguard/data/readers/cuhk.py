"""CUHK01 (Li et al., ACCV 2012) and CUHK03 in its new protocol (Zhong et al., CVPR 2017)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.readers.layout import (
    MARKET_FOLDERS,
    find_root,
    parse_folder,
    read_market_folders,
    split_people,
)
from reidguard.data.readers.statistics import PUBLISHED, published_dataset
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = ["read_cuhk01", "read_cuhk03_np_detected", "read_cuhk03_np_labeled"]

NP_EXAMPLE = "0003_c1_22.png"
NP_NAME = re.compile(r"(?P<person>[0-9]{1,18})_c(?P<camera>[0-9]{1,9})_[0-9]+")
CUHK01_EXAMPLE = "0001001.png"
CUHK01_NAME = re.compile(r"(?P<person>[0-9]{4})(?P<view>[0-9]{3})")


@register_dataset("cuhk03-np-labeled")
def read_cuhk03_np_labeled(root: Path | str) -> ReIDDataset:
    """List CUHK03-NP with the boxes that people drew.

    ``0003_c1_22.png`` shows person 3 before camera 1. Each of the 700 test people is searched for
    once per camera.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``,
            or the folder that holds ``labeled`` beside ``detected``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    return _read_np(Path(root), "labeled")


@register_dataset("cuhk03-np-detected")
def read_cuhk03_np_detected(root: Path | str) -> ReIDDataset:
    """List CUHK03-NP with the boxes of a detector; as :func:`read_cuhk03_np_labeled`."""
    return _read_np(Path(root), "detected")


def _read_np(root: Path, boxes: str) -> ReIDDataset:
    name = f"cuhk03-np-{boxes}"
    other = {"labeled": "detected", "detected": "labeled"}[boxes]
    if root.name.lower() == other:
        raise DataError(f"{root} holds the {other} boxes; read it as cuhk03-np-{other}")
    root = find_root(root, [boxes], MARKET_FOLDERS.values())
    facts = PUBLISHED[name]
    splits = read_market_folders(root, NP_NAME, example=NP_EXAMPLE, facts=facts)
    return published_dataset(name, facts, splits, root=root)


@register_dataset("cuhk01")
def read_cuhk01(root: Path | str, *, seed: int = 0) -> ReIDDataset:
    """List CUHK01 and split it at random: 485 people to train, 486 to test.

    ``0001003.png`` is the third image of person 1. Images 1 and 2 come from camera 1, which
    searches; images 3 and 4 from camera 2, the gallery. The published protocol averages over ten
    random splits: read the set with ten seeds.

    Args:
        root: The folder ``campus``, or the one that holds it.
        seed: Chooses the split.

    Raises:
        DataError: If the folder is missing or empty, or a name does not follow the pattern.
    """
    root = Path(root)
    facts = PUBLISHED["cuhk01"]
    folder = root if root.name.lower() == "campus" else find_root(root, ["cuhk01"], ["campus"])
    if folder.name.lower() != "campus":
        folder /= "campus"
    images = parse_folder(folder, CUHK01_NAME, example=CUHK01_EXAMPLE, expected=3884)
    samples = [
        ReIDSample(path, int(m["person"]), 1 if int(m["view"]) <= 2 else 2) for path, m in images
    ]
    splits = split_people(samples, seed, is_query=lambda sample: sample.camid == 1)
    notes = [f"random split of seed {seed}; average over ten seeds to compare"]
    return published_dataset("cuhk01", facts, splits, root=folder, notes=notes)
