"""The documentation's examples run, its lists are those of the code, and it builds."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from reidguard.attacks import ATTACKS
from reidguard.cli.app import COMMANDS
from reidguard.data.dataset import DATASETS
from reidguard.learners import LEARNERS
from reidguard.models import MODELS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


EXAMPLES = sorted(page.name for page in DOCS.glob("*.rst") if ">>> " in page.read_text("utf-8"))


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a page registers."""
    for registry in (ATTACKS, DATASETS, LEARNERS, MODELS):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_in_pages(name: str, registries: None) -> None:
    result = doctest.testfile(str(DOCS / name), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0


def test_contract_tests_in_the_page_on_extending(registries: None, tmp_path: Path) -> None:
    page = (DOCS / "extending.rst").read_text("utf-8")
    modules: dict[str, Any] = {"__name__": "extending"}
    for example in doctest.DocTestParser().get_examples(page):
        exec(example.source, modules)  # registers the names
    blocks = re.findall(r"::\n\n((?:    .*\n|\n)+)", page)
    tests = [textwrap.dedent(block) for block in blocks if "import pytest" in block]
    assert len(tests) == 4
    for number, code in enumerate(tests):
        names: dict[str, Any] = {}
        exec(code, names)
        for name, test in names.items():
            if not name.startswith("test_"):
                continue
            cases = [mark.args[1] for mark in getattr(test, "pytestmark", ())]
            for case, check in enumerate(cases[0] if cases else ()):
                folder = tmp_path / f"{number}-{case}"
                folder.mkdir()
                test(check, folder) if "tmp_path" in test.__code__.co_varnames else test(check)
            if not cases:
                test()


def test_architecture_shows_the_enforced_layers() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (layers,) = [c["layers"] for c in config["tool"]["importlinter"]["contracts"] if "layers" in c]
    enforced = [layer.replace("reidguard.", "") for layer in layers]
    page = (DOCS / "architecture.rst").read_text("utf-8")
    rows = re.findall(r"^    (\S.*?)  ", page.partition("::\n")[2], re.M)
    assert rows == enforced


def test_cli_page_lists_the_commands() -> None:
    page = (DOCS / "cli.rst").read_text("utf-8")
    assert re.findall(r"^``(\w+)``  ", page, re.M) == list(COMMANDS)


def test_api_page_lists_every_public_package() -> None:
    shown = set(re.findall(r"automodule:: reidguard\.(\w+)", (DOCS / "api.rst").read_text("utf-8")))
    there = {p.stem for p in (ROOT / "reidguard").iterdir() if (p / "__init__.py").exists()}
    assert shown >= there - {"cli"}
    assert shown >= {"errors", "registry", "types"}


@pytest.mark.slow
def test_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "DeltaAttack" in (tmp_path / "api.html").read_text("utf-8")
