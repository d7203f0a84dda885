"""The recipes of the documentation: what no doctest runs."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper.__main__ import main as paper
from reidguard.cli.app import parse
from reidguard.testing import small_dataset

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.rst").read_text("utf-8")


def section(title: str) -> str:
    """Return the text below a heading, up to the next one."""
    start = PAGE.index(f"{title}\n{'-' * len(title)}\n")
    return PAGE[start:].split("\n---", 2)[1]


def code(text: str) -> str:
    (block,) = re.findall(r"\.\. code-block:: python\n\n((?: +.*\n|\n)+)", text)
    return textwrap.dedent(block)


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, and of a network of random weights
def test_an_exported_network_gives_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    source = code(section("Export to ONNX and compare"))
    source = source.replace(', weights="osnet_x0_25_market1501.pth"', "")
    source, _, evaluation = source.partition("people = ")
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(compile(source, "recipes.rst", "exec"), names)
    difference = re.search(r"tensor\(([\d.e-]+)", capsys.readouterr().out)
    assert difference is not None
    assert float(difference[1]) < 1e-3 * names["model"].features(names["x"]).abs().max().item()
    with small_dataset() as people:
        evaluation = re.sub(r".*load_dataset\(.*\n", "people\n", "people = " + evaluation)
        evaluation = re.sub(r"rg\.load_attack\(.*\)", "rg.DeltaAttack()", evaluation)
        names["people"] = people
        exec(compile(evaluation, "recipes.rst", "exec"), names)
    first, second = re.findall(r"\| clean +\|.*", capsys.readouterr().out)
    assert first == second  # one line of the table for each network


def test_commands_are_valid() -> None:
    text = re.sub(r" *\\\n *", " ", PAGE)
    commands = re.findall(r"^ +(reidguard .+)$", text, re.M)
    assert commands
    for command in commands:
        words = shlex.split(command)[1:]
        if not any("…" in word for word in words):
            parse(words)


def test_table_1_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert "python -m benchmarks.paper table1\n" in section("Table 1 of the paper, step by step")
    assert paper(["table1"]) == 0
    printed = capsys.readouterr().out
    for dataset in ("dukemtmc-reid", "market1501", "personx-456"):
        assert dataset in printed
