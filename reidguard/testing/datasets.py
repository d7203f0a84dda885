"""The contract suite of datasets.

Each check takes a factory ``read() -> ReIDDataset`` and raises an AssertionError that says what
is wrong::

    @pytest.mark.parametrize("check", DATASET_CHECKS)
    def test_my_dataset(check, tmp_path):
        write_a_tiny_one(tmp_path)
        check(lambda: read_my_dataset(tmp_path))

    def test_a_missing_folder():
        check_missing_folder(read_my_dataset)

A set that is published for training alone, such as RandPerson, takes ``TRAINING_SET_CHECKS``, and
one for the test alone, such as Occluded-REID, ``TEST_SET_CHECKS``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from reidguard.data import ReIDDataset
from reidguard.data.dataset import SPLITS
from reidguard.errors import DataError

__all__ = [
    "DATASET_CHECKS",
    "TEST_SET_CHECKS",
    "TRAINING_SET_CHECKS",
    "DatasetFactory",
    "check_missing_folder",
]

DatasetFactory = Callable[[], ReIDDataset]


def check_splits(read: DatasetFactory) -> None:
    """All three splits have images, each of them once, and training shares none with the test."""
    dataset = read()
    for split in SPLITS:
        _check_split(dataset, split)
    train = {sample.path for sample in dataset.train}
    shared = [s.path for s in (*dataset.query, *dataset.gallery) if s.path in train]
    assert not shared, f"training images are tested: {shared[:3]}"


def check_training_split(read: DatasetFactory) -> None:
    """Training has images, each of them once, and the other splits have none."""
    dataset = read()
    _check_split(dataset, "train")
    assert not dataset.query, "a set for training alone has queries"
    assert not dataset.gallery, "a set for training alone has a gallery"


def check_test_splits(read: DatasetFactory) -> None:
    """Query and gallery have images, each of them once, and there are none to train on."""
    dataset = read()
    for split in ("query", "gallery"):
        _check_split(dataset, split)
    assert not dataset.train, "a set for the test alone has training images"


def _check_split(dataset: ReIDDataset, split: str) -> None:
    paths = [sample.path for sample in dataset.split(split)]
    assert paths, f"{split} is empty"
    twice = sorted({str(p) for p in paths if paths.count(p) > 1}) if len(paths) < 5000 else []
    assert not twice, f"{split} has images twice: {twice[:3]}"
    if split == "train":
        assert dataset.num_train_pids > 1, "training images show one person only"


def check_images(read: DatasetFactory) -> None:
    """Every image can be decoded."""
    try:
        read().check()
    except DataError as error:
        raise AssertionError(str(error)) from error


def check_queries(read: DatasetFactory) -> None:
    """Some query has an image of the same person by another camera, and names are distinct."""
    dataset = read()
    cameras: dict[int, set[int]] = {}
    for sample in dataset.gallery:
        cameras.setdefault(sample.pid, set()).add(sample.camid)
    answered = [s for s in dataset.query if cameras.get(s.pid, set()) - {s.camid}]
    assert answered, "no query has an answer by another camera in the gallery"
    names = dataset.query_names
    assert len(set(names)) == len(dataset.query)


def check_repeatable(read: DatasetFactory) -> None:
    """Reading again gives the same samples in the same order, and the same fingerprints."""
    first, second = read(), read()
    for split in SPLITS:
        assert first.split(split) == second.split(split), f"{split} differs from reading to reading"
        assert first.fingerprint(split) == second.fingerprint(split), f"fingerprint of {split}"


def check_summary(read: DatasetFactory) -> None:
    """Counts and licence can be written down as JSON."""
    dataset = read()
    assert dataset.name, "the dataset has no name"
    summary = dataset.summary()
    json.dumps(summary, allow_nan=False)
    assert summary["licence"] != "unknown", "say the licence: ReIDDataset(..., licence='...')"


def check_missing_folder(reader: Callable[[Path], ReIDDataset]) -> None:
    """A folder that is not there, or is empty, is a DataError that names it.

    Example:
        >>> from reidguard.data import load_dataset
        >>> check_missing_folder(lambda root: load_dataset("market1501", root))
    """
    with tempfile.TemporaryDirectory() as folder:
        for place in (Path(folder) / "nowhere", Path(folder)):
            try:
                reader(place)
            except DataError as error:
                said = str(error)
            else:
                said = ""
            assert said, "a folder without the dataset is no DataError"
            assert str(place) in said, f"the error does not name {place}: {said}"


DATASET_CHECKS: tuple[Callable[[DatasetFactory], None], ...] = (
    check_splits,
    check_images,
    check_queries,
    check_repeatable,
    check_summary,
)
"""The checks that hold for every dataset with queries and a gallery."""

TRAINING_SET_CHECKS: tuple[Callable[[DatasetFactory], None], ...] = (
    check_training_split,
    check_images,
    check_repeatable,
    check_summary,
)
"""The checks that hold for every dataset of training images alone."""

TEST_SET_CHECKS: tuple[Callable[[DatasetFactory], None], ...] = (
    check_test_splits,
    check_images,
    check_queries,
    check_repeatable,
    check_summary,
)
"""The checks that hold for every dataset of queries and a gallery alone."""
