"""Tracklets: MARS (Zheng et al., ECCV 2016) and iLIDS-VID (Wang et al., ECCV 2014)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from reidguard.data.dataset import ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import check_files, find_root
from reidguard.data.readers.matlab import load_matrix
from reidguard.data.readers.statistics import NO_TEXT, Published, build_dataset
from reidguard.errors import DataError, InputError, a_few
from reidguard.records import read_file, read_record
from reidguard.schema import checked
from reidguard.types import ReIDSample

__all__ = ["read_ilids_vid", "read_mars"]

MARS = Published("mars", NO_TEXT, sized=False)
ILIDS = Published("ilids-vid", NO_TEXT, sized=False)
MARS_NAME = re.compile(r"(?:[0-9]{4}|00-1)C[0-9]T[0-9]{4}F[0-9]{3,4}")
MARS_INFO = ("train_name.txt", "test_name.txt", "tracks_train_info.mat", "tracks_test_info.mat")
MARS_LAYOUT = Layout(
    {
        **dict.fromkeys(("bbox_train/*", "bbox_test/*"), MARS_NAME),
        **dict.fromkeys(f"info/{name}" for name in (*MARS_INFO, "query_IDX.mat")),
    },
    ("MARS",),
)
SEQUENCES = "i-LIDS-VID/sequences"
PERSON = re.compile(r"person(?P<pid>[0-9]{1,9})")
ILIDS_LAYOUT = Layout(
    {f"{SEQUENCES}/cam{camera}/*": re.compile(".*", re.DOTALL) for camera in (1, 2)},
    ("iLIDS-VID",),
)
ILIDS_MATRIX = "train-test people splits/train_test_splits_ilidsvid.mat"


@register_dataset("mars", MARS_LAYOUT)
def read_mars(root: Path | str, *, frames: int = 15) -> ReIDDataset:
    """List MARS: tracklets before six cameras, whose mean features are compared.

    ``bbox_test/0002/0002C1T0001F001.jpg`` shows identity 2, seen by camera 1. Identity 0 marks
    distractors, and −1 junk, which is left out and counted. The tracklets are those of
    ``info/tracks_test_info.mat``, the queries those of ``info/query_IDX.mat``, which SciPy reads.

    Args:
        root: The folder that holds ``bbox_train``, ``bbox_test`` and ``info``, or one above it, if
            there it is called ``mars``.
        frames: Frames of each tracklet that are read, evenly spaced as torchreid does; 0 for all.

    Raises:
        DataError: If a list, a folder or a listed image is missing, or they do not fit together.
        InputError: If ``frames`` is negative, or SciPy is missing.
    """
    frames = checked(int, "frames", frames, low=0, high=10**6)
    root = find_root(root, MARS_LAYOUT)
    queries = {int(n) - 1 for n in load_matrix(root / "info/query_IDX.mat", "query_IDX").flatten()}
    numbers = count(1)
    splits: dict[str, list[ReIDSample]] = {s: [] for s in ("train", "query", "gallery", "junk")}
    for part in ("train", "test"):
        names = _names(root / "info" / f"{part}_name.txt")
        path = root / "info" / f"tracks_{part}_info.mat"
        tracks = load_matrix(path, f"track_{part}_info")
        listed = []
        for place, (first, last, pid, camid) in enumerate(_rows(tracks, len(names), path)):
            images = [root / f"bbox_{part}" / n[:4] / n for n in names[first - 1 : last]]
            split = "query" if place in queries else "gallery"
            split = "junk" if pid < 0 else "train" if part == "train" else split
            splits[split] += _tracklet(images, pid, camid, next(numbers), frames)
            listed += images
        check_files(listed, listed_in=path)
    return build_dataset(MARS, splits, root=root, notes=_notes(splits, frames))


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"the list {path} is missing; expected: lines like 0001C1T0001F001.jpg")
    names = read_file(path, error=DataError).decode("utf-8", "replace").split()
    wrong = [name for name in names if not MARS_NAME.fullmatch(name.removesuffix(".jpg"))]
    if wrong or not names:
        raise DataError(
            f"{path} has other lines than 0001C1T0001F001.jpg: {a_few(wrong)}; copy it again"
        )
    return names


def _rows(tracks: Any, names: int, path: Path) -> list[list[int]]:
    """Return first and last name, identity and camera of each tracklet."""
    rows = [[int(value) for value in row] for row in tracks]
    for row in rows:
        if len(row) != 4 or not 1 <= row[0] <= row[1] <= names or row[2] < -1 or row[3] < 1:
            raise DataError(
                f"{path} lists a tracklet {row} of {names:,} names; expected: first and last name, "
                "identity, camera; copy it again"
            )
    return rows


@register_dataset("ilids-vid", ILIDS_LAYOUT)
def read_ilids_vid(root: Path | str, *, trial: int = 0, frames: int = 15) -> ReIDDataset:
    """List iLIDS-VID: one tracklet of each identity and of two cameras.

    ``cam1/person001/...png`` shows identity 1, seen by camera 1, the query; camera 2 is the
    gallery. The published protocol averages over ten splits into halves: read the dataset with
    trials 0 to 9. They are those of ``splits.json``, as torchreid writes it, or else of the
    authors' ``train_test_splits_ilidsvid.mat``, which SciPy reads.

    Args:
        root: The folder that holds ``i-LIDS-VID`` and the splits, or one above it, if there it is
            called ``ilids-vid``.
        trial: Number of the split, from 0.
        frames: As for :func:`read_mars`.

    Raises:
        DataError: If a folder or the splits are missing, or they do not fit together.
        InputError: If an option has a wrong value, or SciPy is missing.
    """
    frames = checked(int, "frames", frames, low=0, high=10**6)
    trial = checked(int, "trial", trial, low=0, high=9)
    root = find_root(root, ILIDS_LAYOUT)
    people: dict[str, dict[int, Path]] = {}
    for camera in (1, 2):
        folder = root / SEQUENCES / f"cam{camera}"
        if not folder.is_dir():
            raise DataError(f"the folder {folder} is missing; expected there: person001 and so on")
        for place in sorted(folder.iterdir()):
            if PERSON.fullmatch(place.name):
                people.setdefault(place.name, {})[camera] = place
    train, test = _halves(root, sorted(people), trial)
    numbers = count(1)
    splits: dict[str, list[ReIDSample]] = {"train": [], "query": [], "gallery": []}
    for name in (*train, *test):
        for camera, split in ((1, "query"), (2, "gallery")):
            if camera not in people.get(name, {}):
                raise DataError(f"{root / SEQUENCES / f'cam{camera}' / name} is missing; copy it")
            match = PERSON.fullmatch(name)
            assert match is not None
            images = list_images(people[name][camera])
            splits["train" if name in train else split] += _tracklet(
                images, int(match["pid"]), camera, next(numbers), frames
            )
    notes = [f"split {trial}; average over ten splits to compare", *_notes(splits, frames)]
    return build_dataset(ILIDS, splits, root=root, notes=notes)


def _halves(root: Path, people: Sequence[str], trial: int) -> tuple[list[str], list[str]]:
    """Return the folders' names of the training and of the test identities."""
    path = root / "splits.json"
    if path.is_file():
        cure = "let torchreid make it again"
        lists = read_record(path, list[dict[str, list[str]]], cure=cure, error=DataError)
        if trial >= len(lists):
            raise InputError(f"{path} has {len(lists)} splits, so there is no trial {trial}")
        return lists[trial].get("train", []), lists[trial].get("test", [])
    path = root / ILIDS_MATRIX
    rows = load_matrix(path, "ls_set")
    if trial >= len(rows) or sorted(int(n) for n in rows[trial]) != list(range(1, len(people) + 1)):
        raise DataError(
            f"row {trial + 1} of {path} is no permutation of the {len(people)} identities; copy "
            "the images and the splits again"
        )
    order = [people[int(number) - 1] for number in rows[trial]]
    half = len(order) // 2
    return sorted(order[half:]), sorted(order[:half])  # the first half is the test


def _tracklet(
    images: Sequence[Path], pid: int, camid: int, number: int, frames: int
) -> list[ReIDSample]:
    """Return the samples of some evenly spaced frames, or of all."""
    step = len(images) // frames if frames else 0
    chosen = images[: step * frames : step] if step > 1 else images[: frames or None]
    return [ReIDSample(path, pid, camid, tracklet=number) for path in chosen]


def _notes(splits: dict[str, list[ReIDSample]], frames: int) -> list[str]:
    numbers = [
        f"{len({s.tracklet for s in splits[split]}):,} ({split})"
        for split in ("train", "query", "gallery")
    ]
    which = f"up to {frames} evenly spaced frames of each" if frames else "all frames"
    return [
        f"tracklets: {', '.join(numbers)}; {which} (frames=...); their mean feature is compared"
    ]
