"""A trained model that all tests of the command line share, and a cache folder for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reidguard.cli import main

SMALL = ["--image-size", "64x32"]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reidguard" / "features"


@pytest.fixture(scope="session")
def data(studio_root: Path) -> list[str]:
    return ["--data", f"virtual:{studio_root}"]


@pytest.fixture(scope="session")
def train_call(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A call of ``train`` without ``--out``."""
    network = ["--model", "ide", "--model-set", "backbone=test_resnet", "--model-set", "size=64x32"]
    recipe = ["--steps", "12", "--lr", "1e-3", "--images-per-identity", "4"]
    cache = ["--cache", str(tmp_path_factory.mktemp("cache"))]
    return ["train", *data, *network, *recipe, *SMALL, *cache]


@pytest.fixture(scope="session")
def trained(train_call: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished training."""
    out = tmp_path_factory.mktemp("runs") / "model"
    assert main([*train_call, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def target(data: list[str], trained: Path) -> list[str]:
    """Options that name the dataset and the trained model."""
    return [*data, "--model", str(trained / "model.safetensors"), *SMALL]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call main(), check that it refuses in one line with exit code 2, and return that line."""

    def call(*argv: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        (line,) = output.err.splitlines()
        assert line.startswith("reidguard: error: ")
        return line

    return call
