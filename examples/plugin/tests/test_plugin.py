"""The plugin keeps reidguard's contracts."""

from __future__ import annotations

from pathlib import Path

import pytest
from reidguard_example.attack import TintAttack
from reidguard_example.dataset import read_flat
from reidguard_example.model import ExampleCNN

from reidguard import create_model
from reidguard.testing import (
    ATTACK_CHECKS,
    DATASET_CHECKS,
    MODEL_CHECKS,
    check_identity,
    check_missing_folder,
    small_dataset,
)


@pytest.mark.parametrize("check", [*ATTACK_CHECKS, check_identity])
def test_attack(check):
    check(TintAttack)


@pytest.mark.parametrize("check", MODEL_CHECKS)
def test_model(check):
    def make(num_classes):
        model = create_model("example_cnn", num_classes=num_classes, width=4, size=(32, 16))
        assert isinstance(model, ExampleCNN)
        return model

    check(make)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    with small_dataset() as people:
        for split in ("train", "query", "gallery"):
            for number, sample in enumerate(people.split(split)):
                name = f"{split}_{sample.pid:04}_{sample.camid}_{number:03}.png"
                (tmp_path / name).write_bytes(sample.path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("check", DATASET_CHECKS)
def test_dataset(check, flat: Path):
    check(lambda: read_flat(flat))


def test_missing_folder():
    check_missing_folder(read_flat)
