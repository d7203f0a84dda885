"""A page about runs, from folders written by hand."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from reidguard.errors import CheckpointError, InputError
from reidguard.report import read_run, report_page


def figure(mean_ap: float, **more: float) -> dict[str, Any]:
    return {"mAP": mean_ap, "mINP": mean_ap / 2, "cmc": [mean_ap / 2] * 10, **more}


def evaluation(eps: int | None, clean: float = 0.8, attacked: float = 0.2) -> dict[str, Any]:
    more = {"linf": eps or 0, "psnr": 30.0, "ssim": 0.9}
    return {
        "clean": figure(clean),
        "attacked": None if eps is None else figure(attacked, **more),
        "attacked_8bit": None if eps is None else figure(attacked + 0.01, **more),
        "attack": None if eps is None else {"name": "MetaAttack", "eps": eps / 255},
        "dataset": {"name": "virtual:<plaza>"},
        "weights": "abcdef0123456789",
    }


def written(folder: Path, command: str, result: Any, metrics: list[Any] | None = None) -> Path:
    folder.mkdir()
    manifest = {
        "settings": {"command": command},
        "command": ["reidguard", command, "--data", "a b"],
        "status": "finished",
        "versions": {"torch": "2"},
        "options": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    return folder


def attack(folder: Path, eps: int, attacked: float, **options: Any) -> Path:
    result = {
        "evaluation": evaluation(eps, attacked=attacked),
        "training": {"steps": 3, "learner": "maml"},
        "seconds_per_step": 0.5,
    }
    return written(folder, "attack", result, **options)


def page_of(*folders: Path, **pictures: list[str]) -> str:
    return report_page([read_run(folder) for folder in folders], pictures)


def text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html)).replace("\xa0", " ")


def test_sentences_and_figures(tmp_path):
    html = page_of(
        written(tmp_path / "net", "train", {"evaluation": evaluation(None), "training": None}),
        attack(tmp_path / "delta", 8, 0.2),
    )
    said = text(html)
    assert "net: 80.0 % mAP and 40.0 % rank-1 on the clean queries of virtual:<plaza>." in said
    assert (
        "delta: on virtual:<plaza>, the model has 80.0 % mAP and 40.0 % rank-1 on clean queries, "
        "and 20.0 % and 10.0 % under MetaAttack at ε = 8/255 (as 8-bit images: 21.0 % and 10.5 %)."
    ) in said
    rows = re.findall(r"<tr>.*?</tr>", html)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    row = [
        "delta",
        "MetaAttack, ε 8/255",
        "attacked, 8-bit",
        "21.0",
        "10.5",
        "10.5",
        "10.5",
        "8.00",
    ]
    assert [*row, "0.900"] in cells
    assert "reidguard attack --data 'a b'" in said
    assert "What the budget does" not in said  # one ε is no curve
    assert "<plaza>" not in html
    assert "://" not in html


def test_several_budgets_make_a_curve(tmp_path):
    html = page_of(
        attack(tmp_path / "one", 4, 0.4),
        attack(tmp_path / "two", 8, 0.2),
        attack(tmp_path / "three", 8, 0.1),
    )
    assert "MetaAttack (maml) on virtual:&lt;plaza&gt;, model abcdef01; means of the runs" in html
    # Clean at 0; the mean of both runs at 8.
    assert "mAP: 80 at 0, 15 at 8; rank-1: 40 at 0, 7.5 at 8." in html


def test_learning_curves(tmp_path):
    steps = [{"step": i, "loss": 3.0 - i, "test_loss": 2.0, "time": 1.0} for i in (1, 2, 3)]
    folder = attack(tmp_path / "a", 8, 0.2, metrics=[*steps, {"step": 4, "loss": float("nan")}])
    html = page_of(folder)
    assert "loss on the meta-train set: 2 at 1, 0 at 3" in html
    assert "loss on the meta-test set, after the inner step: 2 at 1, 2 at 3" in html
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"step": 5, "lo')  # killed while writing
    assert "2 at 1, 0 at 3" in page_of(folder)


def test_a_run_that_goes_on_is_said_to(tmp_path):
    folder = written(tmp_path / "a", "attack", None, metrics=[{"step": 1, "loss": 1.0}])
    assert "a: not finished (finished); 1 steps are noted." in text(page_of(folder))


def test_grids_and_the_demo(tmp_path):
    cells = [
        {"attack": "meta", "model": "A", "dataset": "x", "setting": "source"},
        {"attack": "meta", "model": "B", "dataset": "x", "setting": "cross-model"},
        {"attack": "meta", "model": "C", "dataset": "x", "setting": "cross-model"},
    ]
    hurt = [0.2, 0.4, 0.6]
    content = {
        "cells": [
            {**cell, "evaluation": evaluation(8, attacked=left)}
            for cell, left in zip(cells, hurt, strict=True)
        ]
    }
    grid = tmp_path / "grid"
    grid.mkdir()
    (grid / "grid.json").write_text(json.dumps(content))
    said = text(page_of(grid))
    # (0.8 - 0.2) / 0.8, and the mean of 0.5 and 0.25.
    assert "lost: source 75.0 % (mean of 1); cross-model 37.5 % (mean of 2)." in said
    assert "grid, cross-model: meta on B, x" in said


def test_audits(tmp_path):
    finding = {
        "name": "zero_gradients",
        "level": "warning",
        "measured": "<all>",
        "limit": "none",
        "cure": "Do something.",
    }
    result = {
        "warnings": ["zero_gradients"],
        "findings": [finding],
        "curve": [{"eps": 0, "mAP": 0.5, "rank1": 0.6}, {"eps": 8, "mAP": 0.1, "rank1": 0.0}],
        "facts": {"dataset": "virtual:plaza"},
    }
    folder = written(tmp_path / "a", "audit", None)
    (folder / "audit.json").write_text(json.dumps(result))
    html = page_of(folder)
    assert "a: audit on virtual:plaza: zero_gradients." in text(html)
    assert "&lt;all&gt;" in html
    assert "mAP: 50 at 0, 10 at 8; rank-1: 60 at 0, 0 at 8." in html


def test_other_commands_are_shown_as_they_printed(tmp_path):
    folder = written(tmp_path / "a", "something", {"worst": 1})
    (folder / "result.md").write_text("| <mAP> | 3 |")
    html = page_of(folder)
    assert "a: see below." in text(html)
    assert "<pre>| &lt;mAP&gt; | 3 |</pre>" in html


def test_pictures_stand_with_their_run(tmp_path):
    html = page_of(attack(tmp_path / "a", 8, 0.2), attack(tmp_path / "b", 8, 0.2), b=["<p>hey</p>"])
    assert html.index("<h2>b</h2>") < html.index("<p>hey</p>")
    assert "<h2>a</h2>" not in html  # nothing to show


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="is no run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="at least one run"):
        report_page([])
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_run(tmp_path)
