"""The documentation's examples run, its lists are those of the code, and it builds."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import reidguard
from reidguard.attacks import ATTACKS, MetaAttack, UniversalAttack
from reidguard.cli.app import COMMANDS
from reidguard.data import DATASETS
from reidguard.defenses import DEFENSES
from reidguard.learners import LEARNERS
from reidguard.models import MODELS
from reidguard.registry import Registry

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
    DATASETS.get("virtual")  # registers itself when first used, which is not to be undone
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


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The module that writes the API reference."""
    return extension("reference")


def extension(name: str) -> ModuleType:
    """A Sphinx extension of the documentation."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = {p.stem for p in (ROOT / "reidguard").iterdir() if (p / "__init__.py").exists()}
    assert {f"reidguard.{p}" for p in packages - {"cli"}} <= set(reference.PACKAGES)
    names = [name for names in reference.public_names().values() for name in names]
    assert set(reidguard.__all__) - {"__version__"} <= set(names)
    monkeypatch.setattr(reference, "PAGES", tmp_path)
    reference.write_pages()
    pages = [path.stem for path in tmp_path.glob("*.rst")]
    assert len({page.lower() for page in pages}) == len(pages)  # also on disks that ignore case
    listed = [
        entry
        for path in tmp_path.glob("*.rst")
        for entry in re.findall(
            r"^   ((?:reidguard|benchmarks)\.\S+)$", path.read_text("utf-8"), re.M
        )
    ]
    assert sorted([*listed, "index"]) == sorted(pages)  # each is in the contents, once


def test_every_class_and_function_says_what_it_is(reference: ModuleType) -> None:
    for package, names in reference.public_names().items():
        for name in names:
            value = getattr(importlib.import_module(package), name)
            if inspect.isclass(value) or inspect.isroutine(value):
                assert reference.summary(value)[-1] in ".:", f"{package}.{name}"


def test_every_class_and_function_has_an_example(reference: ModuleType) -> None:
    for package, names in reference.public_names().items():
        for name in names:
            value = getattr(importlib.import_module(package), name)
            if not inspect.isclass(value) and not inspect.isfunction(value):
                continue
            members = vars(value).values() if inspect.isclass(value) else ()
            texts = [inspect.getdoc(each) or "" for each in (value, *members)]
            assert any(">>>" in text for text in texts), f"{package}.{name}"


def test_the_comparison_counts_right() -> None:
    page = (DOCS / "comparison.rst").read_text("utf-8")
    own = dict(re.findall(r"^   \* - (.+)\n     - (.+)$", page, re.M))

    def built_in(registry: Registry[Any]) -> dict[str, Any]:
        """Return what the library registers: other tests register things of their own."""
        entries = {name: registry.get(name) for name in registry.list()}
        return {n: e for n, e in entries.items() if e.__module__.startswith("reidguard.")}

    attacks = built_in(ATTACKS).values()
    universal = [a for a in attacks if issubclass(a, (UniversalAttack, MetaAttack))]
    datasets = set(built_in(DATASETS)) - {"csv", "flat", "folder", "virtual"}
    assert own["attacks on embeddings"] == f"{len(attacks)} attacks"
    assert own["universal attacks"] == f"{len(universal)} attacks"
    assert own["adversarial training"] == f"{len(built_in(DEFENSES))} defenses"
    assert own["re-ID datasets"] == f"{len(datasets)} readers"
    models = {name.partition("_")[0] for name in built_in(MODELS)}
    families = own["re-ID models"].removesuffix(" and more").lower().split(", ")
    assert set(families) <= models


def test_the_notebook_is_the_script() -> None:
    module = extension("notebook")
    for name in module.NOTEBOOKS:
        script = ROOT / "examples" / f"{name}.py"
        expected = module.notebook(script.read_text("utf-8"))
        stored = json.loads(script.with_suffix(".ipynb").read_text("utf-8"))
        assert stored == expected, "the script has changed; run python docs/notebook.py"
        code = "".join(
            "".join(c["source"]) + "\n"
            for c in stored["cells"]
            if c["cell_type"] == "code" and not c["source"][0].startswith("%")
        )
        compile(code, name, "exec")


def test_the_changelog_as_a_page() -> None:
    text = extension("markdown").as_rst(
        "# T\n\n## [1.0]\n\n### Added\n\n- `x\n  y`, [a](https://b).\n"
    )
    assert text.split("\n") == [
        "", ".. rubric:: [1.0]", "   :heading-level: 2", "", ".. rubric:: Added",
        "   :heading-level: 3", "", "- ``x", "  y``, `a <https://b>`__.",
    ]  # fmt: skip


@pytest.mark.slow
def test_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(DOCS), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "perturb" in (tmp_path / "api" / "reidguard.attacks.Attack.html").read_text("utf-8")
    style = (tmp_path / "_static" / "styles" / "furo.css").read_text("utf-8")
    assert re.search(r"prefers-color-scheme: ?dark", style)  # minified or not
