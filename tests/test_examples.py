"""The examples run as a user would run them, and what they say holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), dtype=int)


def test_attack_timm_model(tmp_path: Path) -> None:
    script = EXAMPLES / "attack_timm_model.py"
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout
    assert "inside the budget of 8/255 on 48 images" in told
    rows = dict(re.findall(r"^\| (clean|attacked, float|attacked, 8-bit) \| ([\d.]+)", told, re.M))
    assert float(rows["clean"]) > 60  # the network has learnt something, so there is more to lose
    assert float(rows["attacked, 8-bit"]) < 0.7 * float(rows["clean"])
    assert (tmp_path / "delta.safetensors").is_file()
    # The saved images are the 8-bit ones, under the queries' names, within the budget.
    again = re.search(r"mAP ([\d.]+)$", told.strip())
    assert again is not None
    assert again[1] == rows["attacked, 8-bit"]
    originals = sorted((tmp_path / "people" / "query").glob("*.png"))
    assert len(originals) == 48
    moved = [
        abs(pixels(tmp_path / "images" / path.name) - pixels(path)).max() for path in originals
    ]
    assert max(moved) == 8
