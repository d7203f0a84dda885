"""Data that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reidguard.data import ReIDDataset, load_dataset, write_synthetic


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic set with its default parameters, drawn once; do not write into it."""
    return write_synthetic(tmp_path_factory.mktemp("data") / "synthetic")


@pytest.fixture(scope="session")
def synthetic_dataset(synthetic_root: Path) -> ReIDDataset:
    return load_dataset("synthetic", synthetic_root)


@pytest.fixture(scope="session")
def market() -> ReIDDataset:
    """The whole of Market-1501."""
    root = os.environ.get("REIDGUARD_DATA")
    if not root:
        pytest.skip("REIDGUARD_DATA is not set: it names the folder that holds market1501/")
    if not (Path(root) / "market1501").is_dir():
        pytest.skip(f"REIDGUARD_DATA={root} holds no market1501/")
    return load_dataset("market1501", root)
