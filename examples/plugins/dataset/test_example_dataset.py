"""The reader keeps reidguard's contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from reidguard_example_dataset import read_flat

from reidguard import load_dataset
from reidguard.testing import DATASET_CHECKS, check_missing_folder, small_dataset


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    with small_dataset() as people:
        for split in ("train", "query", "gallery"):
            for number, sample in enumerate(people.split(split)):
                name = f"{split}_{sample.pid:04}_{sample.camid}_{number:03}.png"
                (tmp_path / name).write_bytes(sample.path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("check", DATASET_CHECKS)
def test_contract(check, flat: Path):
    check(lambda: load_dataset("example_flat", flat))


def test_missing_folder():
    check_missing_folder(read_flat)
