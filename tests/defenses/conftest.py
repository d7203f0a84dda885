"""One normal model and one attack that was learnt on it, for all tests of defenses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reidguard.attacks import DeltaAttack
from reidguard.data import ReIDDataset, load_dataset, write_synthetic
from reidguard.models import ReIDModel, create_model
from reidguard.training import train_model
from reidguard.types import Budget

SIZE = (64, 32)
SHORT: dict[str, Any] = {"image_size": SIZE, "identities": 8, "images_per_identity": 4}


@pytest.fixture(scope="session")
def short() -> dict[str, Any]:
    """Arguments of small batches."""
    return {**SHORT, "lr": 1e-3}


@pytest.fixture(scope="session")
def normal(synthetic_dataset: ReIDDataset) -> ReIDModel:
    """A small model that finds people; do not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("ide", backbone="test_resnet", size=SIZE, num_classes=16)
    return train_model(model, synthetic_dataset, steps=40, lr=1e-3, **SHORT).eval()


@pytest.fixture(scope="session")
def delta(synthetic_dataset: ReIDDataset, normal: ReIDModel) -> DeltaAttack:
    """Learnt on the normal model; do not change it."""
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    return attack.fit(normal, synthetic_dataset, steps=20, **SHORT)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> ReIDDataset:
    """Other people, fewer of them, under another name."""
    root = write_synthetic(tmp_path_factory.mktemp("data") / "other", identities=10, seed=5)
    dataset = load_dataset("synthetic", root)
    dataset.name = "elsewhere"
    return dataset


@pytest.fixture(scope="session")
def tiny(short: dict[str, Any]) -> dict[str, Any]:
    """Arguments of still smaller batches."""
    return {**short, "identities": 4, "images_per_identity": 3}
