"""The files around the code: workflows, hooks, templates, distributions, links."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def load(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(content, dict), path
    return content


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(workflow: dict[str, Any]) -> list[str]:
    steps = [step for job in workflow["jobs"].values() for step in job.get("steps", ())]
    return [line for step in steps for line in step.get("run", "").splitlines()]


def made(lines: list[str]) -> set[str]:
    """The targets of all calls of make."""
    calls = re.findall(r"(?:^|`| )make ((?:[a-z]+ ?)+)", "\n".join(lines), re.M)
    return {target for call in calls for target in call.split()}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path: Path) -> None:
    workflow = load(path)
    assert True in workflow or "on" in workflow  # YAML 1.1 reads the key "on" as true
    assert workflow["jobs"]
    lines = commands(workflow)
    assert made(lines) <= TARGETS
    for name in re.findall(r"\.ci/\S+\.py", "\n".join(lines)):
        assert (ROOT / name).is_file()
    for job in workflow["jobs"].values():
        assert ("uses" in job) or ("timeout-minutes" in job) or path.stem == "release"
        if "uses" in job:
            assert (ROOT / job["uses"]).is_file()
        assert set(job.get("needs", "").split()) <= set(workflow["jobs"])


def test_local_ci_and_the_workflow_run_the_same_targets() -> None:
    local = made((ROOT / ".ci" / "run").read_text("utf-8").splitlines())
    assert local <= TARGETS
    local |= {"lint", "type", "imports"} if "check" in local else set()
    (hosted,) = [load(path) for path in WORKFLOWS if path.stem == "ci"]
    assert local - {"check"} <= made(commands(hosted))


def test_the_matrix_has_every_supported_python() -> None:
    (workflow,) = [load(path) for path in WORKFLOWS if path.stem == "ci"]
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    supported = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert matrix["python"] == [f"3.{minor}" for minor in supported]
    assert PROJECT["requires-python"] == f">=3.{supported[0]}"
    assert matrix["torch"] == ["oldest", "newest"]
    assert {name.partition("-")[0] for name in matrix["os"]} == {"ubuntu", "macos", "windows"}


def test_hooks_call_targets_that_exist() -> None:
    hooks = [h for r in load(ROOT / ".pre-commit-config.yaml")["repos"] for h in r["hooks"]]
    assert made([hook["entry"] for hook in hooks]) == {"lint", "type", "imports"}
    assert all(hook["language"] == "system" for hook in hooks)


def test_make_help_explains_every_target() -> None:
    explained = set(re.findall(r'@echo "make ([a-z]+) ', MAKEFILE))
    assert explained == TARGETS - {"help"}
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)
    assert set(phony.split()) == TARGETS


def test_oldest_versions_are_the_lower_bounds(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / ".ci" / "oldest.py")]
    every = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    required = [requirement.partition(";")[0] for requirement in PROJECT["dependencies"]]
    assert set(required) <= {line.replace("==", ">=") for line in every}
    some = subprocess.run([*command, "torch"], capture_output=True, text=True, check=True).stdout
    assert some.split() == [line for line in every if line.startswith("torch==")]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    assert made(re.findall("`make [a-z ]+`|^make .*", text, re.M)) <= TARGETS
    for path in re.findall(r"(?<=python )[\w/]+\.py", text):
        assert (ROOT / path).is_file()


def test_issue_templates_are_forms() -> None:
    templates = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    for template in templates:
        content = load(template)
        if template.stem == "config":
            continue
        assert {"name", "description", "body"} <= content.keys()
        ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
        assert len(ids) == len(set(ids)) > 0
    assert len(templates) >= 3


def test_citation() -> None:
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "title", "message", "authors"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in PROJECT["authors"]] == [
        author["name"] for author in citation["authors"]
    ]


def test_the_source_distribution_leaves_out_what_is_not_the_package() -> None:
    """Every tracked file at the top is either allowed there or named in MANIFEST.in."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {name.partition("/")[0] for name in listed.stdout.split()}
    manifest = (ROOT / "MANIFEST.in").read_text("utf-8")
    left_out = set(" ".join(re.findall(r"^(?:prune|exclude) (.*)$", manifest, re.M)).split())
    assert top - left_out <= script("check_dist").TOP_OF_SDIST
    assert not left_out & script("check_dist").TOP_OF_SDIST
