"""The README's Python runs, and its commands exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from reidguard.cli.app import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def test_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where the people are drawn
    torch.manual_seed(0)
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    result = names["result"]
    assert capsys.readouterr().out == result.to_markdown() + "\n"
    assert result.clean.mAP > 0.8  # the network retrieves people before the attack
    assert result.attacked_8bit.ranking.mAP < 0.05
    assert round(255 * result.attacked_8bit.linf) == 8
    assert len(list((tmp_path / "adversarial").glob("*.png"))) == len(names["people"].query)


def test_the_table_has_measured_values() -> None:
    rows = re.findall(
        r"^\| (?:`(\w+)`(, pair-wise)?|none) \| .*\| ([\d.]+) \| ([\d.]+) \|$", README, re.M
    )
    assert len(rows) == 8
    results = ROOT / "benchmarks" / "results"
    universal, instance = (
        json.loads((results / f"{name}.json").read_text("utf-8"))
        for name in ("universal", "instance")
    )
    measured = {row["attack"]: row for row in (*universal["rows"], *instance["rows"])}
    for name, loss, *shown in rows:
        entry = universal["clean"]
        if name:
            labels = (f"{name}{loss}", f"{name}, with labels")
            entry = next(measured[label]["8bit"] for label in labels if label in measured)
        assert shown == [f"{entry['mAP']:.1f}", f"{entry['rank1']:.1f}"], name


def test_the_example_is_about_ten_lines() -> None:
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line]) <= 11


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    there = set(re.findall(r"^(\w+):", makefile, re.M))
    commands = set(re.findall(r"(?:^|`)make (\w+)", README, re.M))
    assert {"test", "demo"} <= commands
    assert commands <= there


@pytest.mark.parametrize("page", ["README.md", "docs/cli.rst"])
def test_commands_are_accepted(page: str) -> None:
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    calls = [shlex.split(call) for call in re.findall(r"^ *reidguard (\w.*)$", text, re.M)]
    assert "attack" in {call[0] for call in calls}
    for command, *arguments in calls:
        assert parse([command, *arguments]) is not None  # it refuses what it does not know


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
