"""Make the packages of this folder known to reidguard for their tests, installed or not."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import reidguard as rg
from reidguard.testing import small_dataset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
PACKAGES = sorted(path.parent for path in HERE.glob("*/pyproject.toml"))
REGISTRIES = (
    rg.ATTACKS,
    rg.ATTACK_LOSSES,
    rg.DATASETS,
    rg.DEFENSES,
    rg.DETECTION_SCORES,
    rg.LEARNERS,
    rg.MODELS,
)

sys.path[:0] = [str(package) for package in PACKAGES]  # the tests import the modules


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Write what an installation leaves beside the modules: names and entry points."""
    folder = tmp_path_factory.mktemp("site-packages")
    for package in PACKAGES:
        project = tomllib.loads((package / "pyproject.toml").read_text("utf-8"))["project"]
        name = project["name"].replace("-", "_")
        info = folder / f"{name}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        lines = []
        for group, entries in project["entry-points"].items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    rg.MODELS.get("ide")  # the library's networks, which are imported on first use, are to stay
    before = [(registry, dict(registry._factories)) for registry in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for registry in REGISTRIES:
            patch.setattr(registry, "_plugins_loaded", False)
        yield
    for registry, factories in before:
        registry._factories = factories


@pytest.fixture
def flat_people(tmp_path: Path) -> Iterator[Path]:
    """A CSV file that lists the images of a small dataset."""
    with small_dataset() as people:
        path = tmp_path / "people.csv"
        with path.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["path", "pid", "camid", "split"])
            for split in ("train", "query", "gallery"):
                for sample in people.split(split):
                    rows.writerow([sample.path, sample.pid, sample.camid, split])
        yield path
