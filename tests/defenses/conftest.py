"""One normal model and one attack that was learnt on it, for all tests of defenses."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import tiny_model
from reidguard.attacks import DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.models import ReIDModel
from reidguard.training import train_model
from reidguard.types import Budget

SIZE = (64, 32)
SHORT: dict[str, Any] = {"image_size": SIZE, "identities": 8, "images_per_identity": 4}


@pytest.fixture(scope="session")
def short() -> dict[str, Any]:
    """Arguments of small batches."""
    return {**SHORT, "lr": 1e-3}


@pytest.fixture(scope="session")
def normal(studio: ReIDDataset) -> ReIDModel:
    """A small model that finds people; do not change it."""
    model = tiny_model(num_classes=16)
    return train_model(model, studio, steps=40, lr=1e-3, **SHORT).eval()


@pytest.fixture(scope="session")
def delta(studio: ReIDDataset, normal: ReIDModel) -> DeltaAttack:
    """Learnt on the normal model; do not change it."""
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    return attack.fit(normal, studio, steps=20, **SHORT)


@pytest.fixture(scope="session")
def tiny(short: dict[str, Any]) -> dict[str, Any]:
    """Arguments of still smaller batches."""
    return {**short, "identities": 4, "images_per_identity": 3}
