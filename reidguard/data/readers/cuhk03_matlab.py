"""CUHK03's original ``cuhk-03.mat``: its images as files, and its splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from reidguard.data.decoding import list_images
from reidguard.data.readers.matlab import load_matrix
from reidguard.errors import DataError, InputError
from reidguard.files import temporary_folder
from reidguard.records import cache_folder

__all__ = ["extract_images", "find_matlab_file", "split_of_matlab_file"]

FILES = ("cuhk03_release/cuhk-03.mat", "cuhk-03.mat")
# "1_001_2_06" is image 6 of identity 1 of camera pair 1, by the second camera of the pair.
NAME = re.compile("(?P<pair>[1-5])_(?P<person>[0-9]{3})_(?P<camera>[12])_[0-9]{2}")
SPLITS = ("train", "query", "gallery")
Row = tuple[str, int, int]  # path, identity from 0, camera from 0


def find_matlab_file(root: Path) -> Path | None:
    """Return the path of ``cuhk-03.mat`` in a folder; None if it is not there."""
    return next((root / file for file in FILES if (root / file).is_file()), None)


def extract_images(path: Path, boxes: str) -> Path:
    """Return a folder with the images of ``cuhk-03.mat`` as PNG files, written once.

    It is in the user's cache, and its name depends on the file's size and time.

    Raises:
        DataError: If the file is damaged, or the folder cannot be written.
        InputError: If h5py is missing.
    """
    status = path.stat()
    folder = cache_folder() / f"cuhk03-{boxes}-{status.st_size}-{status.st_mtime_ns}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder.parent) as draft, _open(path) as content:
            inner = draft / "images"
            inner.mkdir()
            for name, pixels in _images(content, boxes):
                Image.fromarray(pixels).save(inner / name)
            inner.rename(folder)
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise DataError(
            f"cannot extract the images of {path} to {folder}: {error}; copy the file again, or "
            "set XDG_CACHE_HOME to a folder with space"
        ) from error
    return folder


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path} is a MATLAB file of version 7.3, which h5py reads: "
            "pip install 'reidguard[cuhk03]'"
        ) from error
    return h5py.File(path, "r")


def _images(content: Any, boxes: str) -> Iterator[tuple[str, Any]]:
    """Yield name and pixels (H, W, 3) of each image; MATLAB's arrays are transposed in HDF5."""
    for pair, reference in enumerate(content[boxes][0], 1):
        for person, row in enumerate(content[reference][()].T, 1):
            for number, cell in enumerate(row, 1):
                pixels = content[cell][()].T
                if pixels.ndim == 3:  # others are empty cells
                    camera = 1 if number <= 5 else 2
                    yield f"{pair}_{person:03}_{camera}_{number:02}.png", pixels.astype("uint8")


def split_of_matlab_file(
    path: Path, images: Path, boxes: str, protocol: str, trial: int
) -> Mapping[str, Sequence[Row]]:
    """Return the rows of a split, in the form of torchreid's lists.

    Args:
        path: ``cuhk-03.mat``.
        images: Folder of its images.
        boxes: "detected" or "labeled".
        protocol: "new" needs ``cuhk03_new_protocol_config_detected.mat`` and so on, beside the file
            or one folder above it; "classic" splits are in the file itself.
        trial: Number of the split.

    Raises:
        DataError: If a file is missing or damaged.
        InputError: If h5py or SciPy is missing, or there is no such trial.
    """
    if protocol == "new":
        if trial != 0:
            raise InputError(f"the new protocol has 1 splits, so there is no trial {trial}")
        return _new_split(path, boxes)
    with _open(path) as content:
        try:
            tests = content["testsets"][0]
            chosen = {(int(pair), int(person)) for pair, person in content[tests[trial]][()].T}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} has no test set of trial {trial} ({error}); copy it again"
            ) from error
    people: defaultdict[bool, dict[tuple[int, int], list[str]]] = defaultdict(dict)
    for image in list_images(images):
        match = NAME.fullmatch(image.stem)
        assert match is not None
        person = int(match["pair"]), int(match["person"])
        people[person in chosen].setdefault(person, []).append(image.name)
    train, test = (
        [
            (name, number, int(name.split("_")[2]) - 1)
            for number, person in enumerate(sorted(people[is_test]))
            for name in people[is_test][person]
        ]
        for is_test in (False, True)
    )
    return {"train": train, "query": test, "gallery": test}


def _new_split(path: Path, boxes: str) -> Mapping[str, Sequence[Row]]:
    name = f"cuhk03_new_protocol_config_{boxes}.mat"
    above = path.parent.parent / name
    config = above if above.is_file() else path.parent / name
    names = [str(cell[0]) for cell in load_matrix(config, "filelist").flatten()]
    pids = [int(label) for label in load_matrix(config, "labels").flatten()]
    places = {
        split: [int(n) - 1 for n in load_matrix(config, f"{split}_idx").flatten()]
        for split in SPLITS
    }
    if any(not 0 <= p < min(len(names), len(pids)) for own in places.values() for p in own):
        raise DataError(f"{config} lists more images than it names; copy it again")
    numbers = {pid: n for n, pid in enumerate(sorted({pids[p] for p in places["train"]}))}
    return {
        split: [
            (names[p], numbers[pids[p]] if split == "train" else pids[p], int(names[p][6]) - 1)
            for p in own
        ]
        for split, own in places.items()
    }
