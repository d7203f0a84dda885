"""Data that many tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reidguard.data import ReIDDataset, load_dataset
from reidguard.models import MODELS
from reidguard.virtual import write_virtual

MODELS.get("ide")  # imports the networks: a test that replaces the table of names must not do so


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Render small images of virtual people into a folder; do not write into it.

    The processes of pytest-xdist share the folders, so that each set is rendered once.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def call(identities: int, *, domain: str = "studio", seed: int = 0) -> Path:
        return write_virtual(
            base / f"{domain}-{identities}-{seed}",
            domain,
            train_identities=identities,
            test_identities=identities,
            cameras=3,
            images_per_camera=3,
            height=64,
            seed=seed,
        )

    return call


@pytest.fixture(scope="session")
def studio_root(render: Callable[..., Path]) -> Path:
    """Sixteen people to learn from and sixteen to search for; do not write into it."""
    return render(16)


@pytest.fixture(scope="session")
def studio(studio_root: Path) -> ReIDDataset:
    return load_dataset("virtual", studio_root)


@pytest.fixture(scope="session")
def other_dataset(render: Callable[..., Path]) -> ReIDDataset:
    """Other people, fewer of them, under another name."""
    dataset = load_dataset("virtual", render(10, seed=5))
    dataset.name = "elsewhere"
    return dataset


@pytest.fixture(scope="session")
def market() -> ReIDDataset:
    """The whole of Market-1501."""
    root = os.environ.get("REIDGUARD_DATA")
    if not root:
        pytest.skip("REIDGUARD_DATA is not set: it names the folder that holds market1501/")
    if not (Path(root) / "market1501").is_dir():
        pytest.skip(f"REIDGUARD_DATA={root} holds no market1501/")
    return load_dataset("market1501", root)
