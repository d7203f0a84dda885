"""The examples run as a user would run them, and what they say holds."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reidguard.testing import MODEL_CHECKS

EXAMPLES = Path(__file__).parents[1] / "examples"
DOCS = Path(__file__).parents[1] / "docs"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def run(name: str, folder: Path) -> str:
    """What a script of examples/ prints, run in a folder."""
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_attack_timm_model(tmp_path: Path) -> None:
    output = run("attack_timm_model.py", tmp_path)
    assert "inside the budget of 8/255 on 48 images" in output
    images = "clean|attacked, float|attacked, 8-bit"
    rows = dict(re.findall(rf"^\| ({images}) +\| +([\d.]+)", output, re.M))
    assert float(rows["clean"]) > 60  # the network has learnt something, so there is more to lose
    assert float(rows["attacked, 8-bit"]) < 0.7 * float(rows["clean"])
    out = tmp_path / "runs" / "example"
    assert (out / "delta.safetensors").is_file()
    # The saved images are the 8-bit ones, under the queries' names, within the budget.
    again = re.search(r"mAP ([\d.]+)$", output.strip())
    assert again is not None
    assert again[1] == rows["attacked, 8-bit"]
    originals = sorted((tmp_path / "cache").glob("reidguard/*/query/*.png"))
    assert len(originals) == 48
    moved = [abs(pixels(out / "images" / path.name) - pixels(path)).max() for path in originals]
    assert max(moved) == 8
    assert Image.open(tmp_path / "changes.png").size == (384, 192)


@pytest.mark.slow  # building the documentation runs it, too
def test_defend_a_model(tmp_path: Path) -> None:
    output = run("defend_a_model.py", tmp_path)
    rows = re.findall(r"^(normal|hardened)\D*([\d.]+) +([\d.]+)$", output, re.M)
    (normal, same, adaptive) = [(float(clean), float(left)) for _, clean, left in rows]
    assert normal[1] < 0.7 * normal[0]
    assert same[1] > normal[1] + 20
    assert adaptive[1] < same[1]  # what is learnt on the hardened model itself hurts more
    assert "warnings: " in output
    assert (tmp_path / "robust.safetensors").is_file()


def test_add_a_backbone(tmp_path: Path) -> None:
    output = run("add_a_backbone.py", tmp_path)
    assert output.count("passed: ") == len(MODEL_CHECKS)
    drops = re.findall(r"mAP ([\d.]+) -> ([\d.]+)$", output, re.M)
    assert len(drops) == 2
    assert all(float(left) < float(clean) for clean, left in drops)


@pytest.mark.slow  # building the documentation runs it, too
def test_read_a_report(tmp_path: Path) -> None:
    run("read_a_report.py", tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    for output in ("Summary", "Results", "Metrics over the budget", "Rank-1 match lost",
                 "Rank-1 match kept", "Provenance"):  # fmt: skip
        assert output in page


def test_pages_show_what_scripts_do(tmp_path: Path) -> None:
    """docs/executed.py, which makes the tutorials of the scripts."""
    pytest.importorskip("sphinx")
    spec = importlib.util.spec_from_file_location("executed", DOCS / "executed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    script = tmp_path / "script.py"
    script.write_text(
        '"""What it does."""\n\nx = 2\n\n# %%\n# Some *text*.\n\nprint(x * 21)\n', "utf-8"
    )
    here = Path.cwd()
    assert module.executed(script, tmp_path / "out").split("\n") == [
        "What it does.", "", ".. code-block:: python", "", "   x = 2", "",
        "Some *text*.", "", ".. code-block:: python", "", "   print(x * 21)", "",
        "It prints:", "", ".. code-block:: none", "", "   42", "",
    ]  # fmt: skip
    assert Path.cwd() == here
    script.write_text("# %%\n# Text.\n\nraise ValueError('broken')\n", "utf-8")
    with pytest.raises(ValueError, match="broken"):
        module.executed(script, tmp_path / "out")


def test_every_script_is_a_tutorial() -> None:
    shown = [
        name
        for page in (DOCS / "tutorials").glob("*.rst")
        for name in re.findall(r"executed:: (\S+)", page.read_text("utf-8"))
    ]
    assert sorted(shown) == sorted(path.name for path in EXAMPLES.glob("*.py"))
