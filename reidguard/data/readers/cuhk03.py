"""CUHK03 (Li et al., CVPR 2014): ``cuhk-03.mat``, or the images and lists that torchreid makes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.cuhk03_matlab import (
    FILES,
    Row,
    extract_images,
    find_matlab_file,
    split_of_matlab_file,
)
from reidguard.data.readers.layout import check_choice, check_files, find_root
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.errors import DataError, InputError
from reidguard.records import read_record
from reidguard.schema import checked
from reidguard.types import ReIDSample

__all__ = ["read_cuhk03"]

LICENCE = "academic research only"
BOXES = ("detected", "labeled")
PUBLISHED = {
    "detected": Published(
        "cuhk03-detected", LICENCE, Count(7365, 767), Count(1400, 700), Count(5332, 700)
    ),
    "labeled": Published(
        "cuhk03-labeled", LICENCE, Count(7368, 767), Count(1400, 700), Count(5328, 700)
    ),
}
NAME = re.compile("[1-5]_[0-9]{3}_[12]_[0-9]{2}")
LAYOUTS = [
    Layout({f"images_{boxes}": NAME, f"splits_new_{boxes}.json": None}, ("CUHK03",))
    for boxes in BOXES
]
MATLAB_LAYOUTS = [Layout({file: None}, ("CUHK03",)) for file in FILES]
TRAIN_SHIFT = 10_000  # training lists number from 0, and test identities keep their own numbers


@dataclass(frozen=True)
class Split:
    """One split of the lists, as torchreid writes it."""

    train: list[Row]
    query: list[Row]
    gallery: list[Row]


@register_dataset("cuhk03", *LAYOUTS, *MATLAB_LAYOUTS)
def read_cuhk03(
    root: Path | str, *, boxes: str = "detected", protocol: str = "new", trial: int = 0
) -> ReIDDataset:
    """List CUHK03, from ``cuhk-03.mat`` or from the folders that torchreid makes of it.

    ``splits_new_detected.json`` lists images of ``images_detected`` with identity and camera. In
    the new protocol there are 767 identities to train on and 700 to test; in the classic one 100 to
    test, in each of 20 splits, and queries and gallery are the same images. Training identity n of
    a list is 10,000 + n here, and a test identity n is n + 1; cameras are 1 and 2.

    Args:
        root: The folder that holds ``images_detected`` or ``images_labeled`` and the lists, or
            ``cuhk03_release/cuhk-03.mat`` with ``cuhk03_new_protocol_config_detected.mat`` beside
            that folder; or one above it, if there it is called ``cuhk03``. The images of
            ``cuhk-03.mat`` are written into the user's cache first, which needs
            ``pip install "reidguard[cuhk03]"``.
        boxes: "detected" by a detector, or "labeled" by hand.
        protocol: "new" or "classic".
        trial: Number of the split, from 0; the new protocol has one.

    Raises:
        DataError: If a list, a folder or a listed image is missing, or a list is damaged.
        InputError: If an option has a wrong value.
    """
    check_choice("boxes", boxes, BOXES)
    check_choice("protocol", protocol, ("new", "classic"))
    trial = checked(int, "trial", trial, low=0, high=19)
    root = find_root(root, *LAYOUTS, *MATLAB_LAYOUTS)
    path, folder = root / f"splits_{protocol}_{boxes}.json", root / f"images_{boxes}"
    matlab = find_matlab_file(root)
    rows: Mapping[str, Sequence[Row]]
    if folder.is_dir() or matlab is None:
        rows = _listed(path, folder, trial)
    else:
        path, root = matlab, extract_images(matlab, boxes)
        folder = root
        rows = split_of_matlab_file(matlab, folder, boxes, protocol, trial)
    splits = {}
    for split in SPLITS:
        shift = TRAIN_SHIFT if split == "train" else 1
        # The lists have the paths of the machine that wrote them, of which the names remain.
        splits[split] = [
            ReIDSample(folder / re.split(r"[\\/]", name)[-1], pid + shift, camid + 1)
            for name, pid, camid in rows[split]
        ]
        check_files([sample.path for sample in splits[split]], listed_in=path)
    published = PUBLISHED[boxes]
    notes = [f"{protocol} protocol, {boxes} boxes"]
    if protocol == "classic":
        published = published._replace(name=f"{published.name}-classic", sized=False)
        notes = [f"{notes[0]}, split {trial} of 20; average over them to compare"]
    return build_dataset(published, splits, root=root, notes=notes)


def _listed(path: Path, folder: Path, trial: int) -> Mapping[str, Sequence[Row]]:
    """Return the rows of a split of torchreid's lists."""
    if not folder.is_dir():
        raise DataError(
            f"the folder {folder} is missing; expected there: images such as 1_001_1_01.png, which "
            "torchreid extracts from cuhk-03.mat, or that file itself"
        )
    cure = "let torchreid make it again"
    lists = read_record(path, list[Split], cure=cure, error=DataError)
    if trial >= len(lists):
        raise InputError(f"{path} has {len(lists)} splits, so there is no trial {trial}")
    return {split: getattr(lists[trial], split) for split in SPLITS}
