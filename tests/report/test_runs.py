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


def metrics(mean_ap: float, **more: float) -> dict[str, Any]:
    return {
        "mAP": mean_ap,
        "mINP": mean_ap / 2,
        "cmc": [mean_ap / 2 + rank / 100 for rank in range(10)],
        **more,
    }


def evaluation(eps: int | None, clean: float = 0.8, attacked: float = 0.2) -> dict[str, Any]:
    more = {"linf_255": eps or 0, "psnr": 30.0, "ssim": 0.9, "ms_ssim": 0.9}
    return {
        "clean": metrics(clean),
        "attacked": None if eps is None else metrics(attacked, **more),
        "attacked_8bit": None if eps is None else metrics(attacked + 0.01, **more),
        "attack": None if eps is None else {"name": "MetaAttack", "eps": eps / 255},
        "dataset": {"name": "virtual:<plaza>"},
        "weights": "abcdef0123456789",
    }


def written(folder: Path, command: str, result: Any, steps: list[Any] | None = None) -> Path:
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
    if steps is not None:
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)))
    return folder


def attack(folder: Path, eps: int, attacked: float, **options: Any) -> Path:
    result = {
        "evaluation": evaluation(eps, attacked=attacked),
        "training": {"steps": 3, "learner": "maml", "inner_lr": 0.5},
        "seconds_per_step": 0.5,
    }
    return written(folder, "attack", result, **options)


def page_of(*folders: Path, **pictures: list[str]) -> str:
    return report_page([read_run(folder) for folder in folders], pictures)


def text(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", " ", html)).replace("\xa0", " ")


def cells_of(html: str) -> list[list[str]]:
    """Cells of each row of each table."""
    rows = re.findall(r"<tr[^>]*>.*?</tr>", html)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_summary_and_results(tmp_path):
    html = page_of(
        written(tmp_path / "net", "train", {"evaluation": evaluation(None), "training": None}),
        attack(tmp_path / "delta", 8, 0.2),
    )
    said = text(html)
    net = "The model has 80.0 % mAP and 40.0 % rank-1 on the clean queries of virtual:<plaza>."
    assert f"net : {net}" in said
    delta = (
        "Under MetaAttack at ε = 8/255, the model goes from 80.0 % mAP and 40.0 % rank-1 to "
        "21.0 % mAP and 10.5 % rank-1 on virtual:<plaza>."
    )
    assert f"delta : {delta}" in said
    assert f"mAP falls the most in delta. {delta}" in said
    assert "mAP in %. delta: clean 80, attacked, 8-bit 21." in said  # the chart in words
    row = ["attacked, 8-bit", "21.0", "10.5", "14.5", "10.5", "8.00", "0.900"]
    assert row in cells_of(html)
    clean = ["clean", "80.0", "40.0", "44.0", "40.0", "0.00", "1.000"]  # unchanged images
    label = "<strong>{}</strong><br>virtual:&lt;plaza&gt;"
    assert [label.format("delta") + "<br>MetaAttack, ε = 8/255", *clean] in cells_of(html)
    assert [label.format("net"), *clean] in cells_of(html)
    assert "reidguard attack --data 'a b'" in said
    assert "Metrics over the budget" not in said  # one ε is no curve
    assert "<plaza>" not in html
    assert "://" not in html


@pytest.mark.parametrize(("gallery", "rank5"), [(5, "44.0"), (4, "-")])
def test_rank_5_needs_five_gallery_images(tmp_path, gallery, rank5):
    result = {"evaluation": evaluation(None)}
    del result["evaluation"]["clean"]["cmc"][gallery:]
    html = page_of(written(tmp_path / "net", "train", result))
    # Without an attack there is no change of images to measure.
    label = "<strong>virtual:&lt;plaza&gt;</strong>"
    assert [label, "clean", "80.0", "40.0", rank5, "40.0"] in cells_of(html)
    assert "SSIM" not in text(html)


def test_several_budgets_make_a_curve(tmp_path):
    html = page_of(
        attack(tmp_path / "one", 4, 0.4),
        attack(tmp_path / "two", 8, 0.2),
        attack(tmp_path / "three", 8, 0.1),
    )
    assert "MetaAttack (maml) on virtual:&lt;plaza&gt;, model abcdef01; means of the runs" in html
    # Clean at 0; the mean of both runs at 8.
    assert "mAP: 80 at 0, 15 at 8; rank-1: 40 at 0, 7.5 at 8." in html


def test_curves_join_only_what_differs_in_eps(tmp_path):
    def with_learner(folder, eps, learner):
        path = attack(folder, eps, 0.2) / "result.json"
        result = json.loads(path.read_text())
        path.write_text(json.dumps({**result, "training": {"learner": learner}}))
        return folder

    plain, maml = (
        with_learner(tmp_path / "a", 4, "plain"),
        with_learner(tmp_path / "b", 4.25, "maml"),
    )
    assert "Metrics over the budget" not in page_of(plain, maml)
    assert "at 4.25" in page_of(maml, with_learner(tmp_path / "c", 4, "maml"))


def test_learning_curves(tmp_path):
    steps = [{"step": i, "loss": 3.0 - i, "test_loss": 2.0, "time": 1.0} for i in (1, 2, 3)]
    folder = attack(tmp_path / "a", 8, 0.2, steps=[*steps, {"step": 4}])
    html = page_of(folder)
    assert "loss on the meta-train set: 2 at 1, 0 at 3" in html
    assert "loss on the meta-test set, after the inner step: 2 at 1, 2 at 3" in html
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('\n{"step": 5, "lo')  # killed while writing
    assert "2 at 1, 0 at 3" in page_of(folder)


def test_a_run_that_goes_on_is_said_to(tmp_path):
    folder = written(tmp_path / "a", "attack", None, steps=[{"step": 1, "loss": 1.0}])
    assert "Not finished (finished); 1 steps logged." in text(page_of(folder))


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
    html = page_of(grid)
    said = text(html)
    # The means of 8-bit images: 0.21, and (0.41 + 0.61) / 2.
    assert (
        "Under meta at ε = 8/255, mAP goes from 80.0 % to 21.0 % on the network and dataset that "
        "it was learnt on, and from 80.0 % to 51.0 % on another network."
    ) in said
    chart = "source: clean 80, attacked, 8-bit 21; cross-model: clean 80, attacked, 8-bit 51."
    assert f"mAP in %. {chart}" in said
    label = "<strong>cross-model</strong><br>B, x<br>meta, ε = 8/255"
    assert label in [row[0] for row in cells_of(html)]
    # A fixed pattern is what the attack is compared with, however much it does.
    patterns = {"B": 0.1, "C": 0.3}
    content["cells"] += [
        {
            **{"attack": "fixed pattern", "model": model, "dataset": "x"},
            **{"setting": "knows nothing", "evaluation": evaluation(8, attacked=left)},
        }
        for model, left in patterns.items()
    ]
    (grid / "grid.json").write_text(json.dumps(content))
    said = text(page_of(grid))
    assert "Under meta at ε = 8/255, mAP goes from 80.0 % to 21.0 %" in said
    assert "51.0 % on another network, where the strongest fixed pattern leaves 21.0 %." in said
    assert f"mAP in %. {chart}" in said


def test_certificates(tmp_path):
    result = {
        "dataset": {"name": "virtual:plaza"},
        "certified": {"sigma": 0.1, "radius": 0.05, "rank_1": 0.25, "rank_5": 0.5},
        "curve": [
            {"radius": 0.0, "rank_1": 0.5, "rank_5": 0.75},
            {"radius": 0.2, "rank_1": 0.0, "rank_5": 0.0},
        ],
    }
    page = page_of(written(tmp_path / "a", "certify", result))
    said = text(page)
    assert "keeps a certified 25.0 % rank-1, 50.0 % rank-5 within an L2 radius of 0.05." in said
    assert "Certified accuracy, σ = 0.1" in said
    assert "rank-1: 50 at 0, 0 at 0.2; rank-5: 75 at 0, 0 at 0.2." in page
    del result["certified"]["radius"]
    folder = written(tmp_path / "b", "certify", result)
    with pytest.raises(CheckpointError, match="sigma and radius"):
        read_run(folder)


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
        "curve": [{"eps": 0, "mAP": 0.5, "rank1": 0.6}, {"eps": 8 / 255, "mAP": 0.1, "rank1": 0.0}],
        "transfer": [{"attack": "SMA", "white_box": 0.3, "surrogate": 0.25}],
        "facts": {"dataset": "virtual:plaza", "eps": 8 / 255},
    }
    folder = written(tmp_path / "a", "audit", None)
    (folder / "audit.json").write_text(json.dumps(result))
    html = page_of(folder)
    # The names of the checks are those of the command line.
    said = text(html)
    assert "Audit on virtual:plaza: 1 warning; checks not passed: gradients are not zero." in said
    assert ["gradients are not zero", "&lt;all&gt;", "none", "WARNING"] in cells_of(html)
    assert ["mAP at ε = 8/255, made on", "the model", "the surrogate"] in cells_of(html)
    assert ["SMA", "30.0", "25.0"] in cells_of(html)
    assert "mAP: 50 at 0, 10 at 8; rank-1: 60 at 0, 0 at 8." in html


def test_the_suite_of_attacks(tmp_path):
    member = {"restarts": 2, "queries": 20, "broken": 15, "first": 14, "forward": 100}
    result = {
        "dataset": {"name": "market1501"},
        "suite": {"eps": 4 / 255, "broken_rank": 10, "broken_ap": 0.1},
        "clean": {"mAP": 0.8, "cmc": metrics(0.8)["cmc"]},
        "robust": {"mAP": 0.1, "cmc": metrics(0.1)["cmc"], "broken": 0.95, "linf_255": 4.0},
        "robust_8bit": {"mAP": 0.11, "cmc": metrics(0.1)["cmc"], "broken": 0.9, "linf_255": 4.0},
        "members": [
            {"name": "apgd", "mAP": 0.3, "backward": 99, **member},
            {"name": "<square>", "mAP": None, "backward": 0, "note": "cut off", **member},
        ],
        "warnings": [],
        "suite_findings": [],
        "audit": None,
    }
    folder = written(tmp_path / "a", "autoattack", result)
    (folder / "result.md").write_text("| queries | mAP |")
    html = page_of(folder)
    assert "<pre>" not in html  # the text says the same in Markdown
    label = "<strong>market1501</strong><br>retrieval-autoattack, ε = 4/255"
    assert [label, "clean", "80.0", "40.0", "44.0", "-", "0.00", "1.000"] in cells_of(html)
    assert ["worst case, 8-bit", "11.0", "5.0", "9.0", "-", "4.00", "-"] in cells_of(html)
    assert "mAP: clean 80, worst case, 8-bit 11; rank-1: clean 40," in text(html)
    assert (
        "On market1501, the worst case over all attacks of retrieval-autoattack at ε = 4/255 "
        "leaves 10.0 % mAP and 5.0 % rank-1 of 80.0 % mAP and 40.0 % rank-1; 95.0 % of the queries "
        "are broken."
    ) in text(html)
    assert ["apgd", "2", "20", "15", "14", "30.0", "100 / 99", "-"] in cells_of(html)
    assert ["&lt;square&gt;", "2", "20", "15", "14", "-", "100 / 0", "cut off"] in cells_of(html)
    result["robust"]["mAP"] = None  # a suite that stopped early
    result["warnings"] = ["curve", "black_box"]
    said = text(page_of(written(tmp_path / "b", "autoattack", result)))
    assert "leaves 5.0 % rank-1 of" in said
    assert "broken. Checks not passed: mAP falls as ε rises, gradient attacks break" in said


def test_tables_of_a_result(tmp_path):
    table = {
        "caption": "Values <here>.",
        "header": ["network", "attack", "mAP"],
        "text_columns": 2,
        "rows": [["PCB", "none", "70.0"], ["PCB", "delta", None]],
    }
    folder = written(tmp_path / "a", "paper", {"tables": [table]})
    (folder / "result.md").write_text("the same as text")
    html = page_of(folder)
    assert "Values &lt;here&gt;." in html
    assert '<th scope="col" class="text">attack</th><th scope="col">mAP</th>' in html
    rows = [["network", "attack", "mAP"], ["PCB", "none", "70.0"], ["PCB", "delta", "-"]]
    assert cells_of(html)[: len(rows)] == rows
    assert "<pre>" not in html


def test_provenance(tmp_path):
    folder = attack(tmp_path / "a", 8, 0.2)
    rows = cells_of(page_of(folder))
    for row in (
        ["versions", "torch 2"],
        ["learner", "maml"],
        ["inner lr", "0.5"],
        ["seconds per step", "0.5"],
    ):
        assert row in rows
    assert "<details open>" in page_of(folder)
    assert "<details open>" not in page_of(folder, attack(tmp_path / "b", 8, 0.2))


def test_other_commands_are_shown_as_they_printed(tmp_path):
    folder = written(tmp_path / "a", "something", {"worst": 1})
    (folder / "result.md").write_text("| <mAP> | 3 |")
    html = page_of(folder)
    assert "See below." in text(html)
    assert "<pre>| &lt;mAP&gt; | 3 |</pre>" in html


def test_printed_text_is_left_out_where_a_table_says_the_same(tmp_path):
    folder = attack(tmp_path / "a", 8, 0.2)
    (folder / "result.md").write_text("| mAP |")
    assert "<pre>" not in page_of(folder)


def test_cells_beside_a_table(tmp_path):
    table = {"caption": "Table 3 of the paper", "header": ["a"], "text_columns": 1, "rows": []}
    folder = written(tmp_path / "a", "paper", {"table": 3, "tables": [table]})
    cells = [
        {"attack": "meta", "model": model, "dataset": "x", "setting": "source",
         "evaluation": evaluation(8, clean=clean)}
        for model, clean in (("A", 0.8), ("B", 0.0))
    ]  # fmt: skip
    (folder / "grid.json").write_text(json.dumps({"cells": cells, "table": 7}))
    html = page_of(folder)
    label = "<strong>source</strong><br>B, x<br>meta, ε = 8/255"
    assert label in [row[0] for row in cells_of(html)]
    assert "Table 3 of the paper" in text(html)


def test_images_of_a_folder_stand_beside_the_clean_queries(tmp_path):
    measured = evaluation(8, 0.2)
    measured |= {"attack": None, "attacked": None}
    measured["dataset"] |= {"query_folder": "runs/delta/images"}
    folder = written(tmp_path / "a", "evaluate", {"evaluation": measured})
    html = page_of(folder)
    assert "the images of runs/delta/images take the model from" in text(html)
    cells = [cell for row in cells_of(html) for cell in row]
    assert {"clean", "images of runs/delta/images"} <= set(cells)
    assert "attacked, 8-bit" not in cells


def test_the_header_says_version_date_and_command(tmp_path):
    folder = attack(tmp_path / "a", 8, 0.2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"versions": {"reidguard": "1.2"}, "finished": "2026-01-02T03:04:05+00:00"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    header = text(page_of(folder).partition("<header")[2].partition("</header>")[0])
    words = " ".join(header.split())
    assert "reidguard 1.2 date 2026-01-02 03:04:05 UTC" in words
    assert "command reidguard attack --data 'a b'" in words
    assert page_of(folder) == page_of(folder)


def test_pictures_stand_with_their_run(tmp_path):
    html = page_of(attack(tmp_path / "a", 8, 0.2), attack(tmp_path / "b", 8, 0.2), b=["<p>hey</p>"])
    assert html.index("<h2>b</h2>") < html.index("<p>hey</p>")
    assert "<h2>a</h2>" not in html  # nothing to show


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(InputError, match="at least one run"):
        report_page([])
    (tmp_path / "manifest.json").write_text('{"settings": 3}')
    with pytest.raises(CheckpointError, match="settings: expected object, got int"):
        read_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_run(tmp_path)
