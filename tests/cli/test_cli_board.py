"""``reidguard board`` on cards that real small runs make, and ``board verify`` on these."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reidguard.attacks import DeltaAttack
from reidguard.cli import main
from reidguard.report import read_cards, write_card
from reidguard.testing import small_dataset, small_model
from reidguard.types import Budget

SUITE = ["--restarts", "1", "--steps", "2", "--squares", "2", "--audit-queries", "2"]
AUDIT = ["--queries", "2", "--attack-steps", "2", "--probes", "1", "--epsilons", "32/255"]
SIZE = ["--image-size", "32x16", "--device", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a model, a dataset as CSV, and finished runs below runs/."""
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch, small_dataset() as data:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        lines = ["path,pid,camid,split"]
        for split in ("train", "query", "gallery"):
            lines += [f"{s.path},{s.pid},{s.camid},{split}" for s in data.split(split)]
        (folder / "people.csv").write_text("\n".join(lines))
        small_model().save(folder / "net.safetensors")
        attack = DeltaAttack(Budget(32 / 255), size=(32, 16))
        attack.delta.data.uniform_(-32 / 255, 32 / 255)
        attack.save(folder / "delta.safetensors")
        what = ["--data", f"csv:{folder / 'people.csv'}"]
        what += ["--model", str(folder / "net.safetensors"), *SIZE]
        runs = {
            "strong": ["autoattack", *what, *SUITE, "--eps", "32/255", "--by", "Robust <Lab>"],
            "weak": ["autoattack", *what, *SUITE, "--eps", "16/255"],
            "clean": ["evaluate", *what],
            "delta": ["attack", *what, "--load", str(folder / "delta.safetensors")],
            "audit": ["audit", *what, *AUDIT, "--eps", "32/255"],
        }
        for name, call in runs.items():
            assert main([*call, "--out", str(folder / "runs" / name)]) == 0
        yield folder


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    return place / "runs"


def content(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values


def test_a_row_for_each_budget(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "board.html"
    assert main(["board", str(runs), "--out", str(page), "--by", "me"]) == 0
    assert "rows: 2, of 5 cards" in capsys.readouterr().out
    rows = {
        row["ε"]: row for row in csv.DictReader((tmp_path / "board.csv").open(encoding="utf-8"))
    }
    assert rows.keys() == {"16/255", "32/255"}
    result = content(runs / "strong" / "result.json")
    row = rows["32/255"]
    worst = [result[name] for name in ("robust", "robust_8bit")]
    delta = content(runs / "delta" / "result.json")["evaluation"]
    universal = [delta[name]["mAP"] for name in ("attacked", "attacked_8bit")]
    members = {member["name"]: member["mAP"] for member in result["members"]}
    expected = {
        "clean mAP": result["clean"]["mAP"],
        "clean rank-1": content(runs / "clean" / "result.json")["evaluation"]["clean"]["cmc"][0],
        "robust mAP": min(values["mAP"] for values in worst),
        "robust rank-1": min(values["cmc"][0] for values in worst),
        "universal": min(members["pattern"], *universal),
        "per image": min(members["self-metric"], members["furthest-negative"]),
        "by queries": members["square"],
    }
    for name, fraction in expected.items():
        assert row[name] == f"{100 * fraction:.1f}", name
    assert row["certified"] == ""
    assert (row["model"], row["data"], row["queries"]) == ("net.safetensors", "people", "4")
    assert row["by"] == "Robust <Lab>, me"
    assert rows["16/255"]["by"] == "me"
    assert row["date"] == content(runs / "strong" / "manifest.json")["finished"][:10]
    order = [float(row["robust mAP"]) for row in rows.values()]
    assert order == sorted(order, reverse=True)
    assert (tmp_path / "board.md").read_text("utf-8").count(f"| {row['row']} |") == 1
    html = page.read_text("utf-8")
    assert "Robust &lt;Lab&gt;" in html
    assert "<Lab>" not in html
    assert str(runs.parent) not in html
    assert "reidguard autoattack --data csv:people.csv --model net.safetensors" in html


def test_nobody_is_named_who_is_not_said(runs: Path, tmp_path: Path):
    page = tmp_path / "board.html"
    assert main(["board", str(runs / "weak" / "result.json"), "--out", str(page)]) == 0
    (row,) = csv.DictReader((tmp_path / "board.csv").open(encoding="utf-8"))
    assert row["by"] == ""
    assert "measured by (not said)" in page.read_text("utf-8")


def test_verify_equal(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    call = ["board", "verify", str(runs / "strong"), "--out", str(tmp_path / "again"), *SIZE[2:]]
    assert main(call) == 0
    card = read_cards([runs / "strong"])[0]
    assert f"equal: all {len(card.figures)} figures are the same" in capsys.readouterr().out
    same = [content(folder / "result.json") for folder in (runs / "strong", tmp_path / "again")]
    assert same[0] == same[1]


def test_verify_every_card_of_a_row(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "board.html"
    assert main(["board", str(runs), "--out", str(page)]) == 0
    rows = {
        row["ε"]: row["row"]
        for row in csv.DictReader((tmp_path / "board.csv").open(encoding="utf-8"))
    }
    again = tmp_path / "again"
    call = ["board", "verify", rows["32/255"], str(runs), "--out", str(again), *SIZE[2:]]
    assert main(call) == 0
    assert capsys.readouterr().out.count("equal: all") == 4
    assert len(list(again.iterdir())) == 4


def test_verify_finds_what_was_tampered_with(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    card = shutil.copytree(runs / "weak", tmp_path / "card")
    result = content(card / "result.json")
    measured = result["robust"]["mAP"]
    result["robust"]["mAP"] = claimed = min(1.0, measured + 0.1)
    (card / "result.json").write_text(json.dumps(result))
    call = ["board", "verify", str(card), *SIZE[2:], "--out"]
    assert main([*call, str(tmp_path / "again")]) == 3
    output = capsys.readouterr().out
    assert "differs: 1 of" in output
    (line,) = [line for line in output.splitlines() if "robust, float: mAP" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == [f"{100 * claimed:.2f}", f"{100 * measured:.2f}"]
    assert main([*call, str(tmp_path / "again"), "--tolerance", "11"]) == 0  # nothing is run again
    result["robust"]["mAP"], result["suite"]["steps"] = measured, 200
    (card / "result.json").write_text(json.dumps(result))
    assert main([*call, str(tmp_path / "again")]) == 3
    assert "the card says otherwise: suite steps: 200 stored, 2 now" in capsys.readouterr().out


def test_verify_refuses_another_model_and_other_options(
    place: Path, tmp_path: Path, refused_quietly: Any
):
    runs, out = place / "runs", tmp_path / "again"
    other = small_model({"a": 4})
    other.requires_grad_(True)
    next(other.parameters()).data.mul_(2)
    other.save(tmp_path / "other.safetensors")
    call = ["board", "verify", runs / "weak", "--out", out]
    said = refused_quietly(*call, "--model", tmp_path / "other.safetensors")
    assert "not what the card was measured with (model weights" in said
    card = shutil.copytree(runs / "weak", tmp_path / "card")
    manifest = content(card / "manifest.json")
    manifest["options"]["steps"] = 3
    (card / "manifest.json").write_text(json.dumps(manifest))
    said = refused_quietly("board", "verify", card, "--out", out)
    assert "suite steps: 2 stored, 3 now" in said
    assert not out.exists()


def test_a_card_in_one_file_can_be_verified_elsewhere(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused_quietly: Any
):
    file = tmp_path / "card.json"
    write_card(file, read_cards([place / "runs" / "clean"])[0])
    assert str(place) not in file.read_text("utf-8")
    call = ["board", "verify", str(file), "--out", str(tmp_path / "again"), *SIZE[2:]]
    assert "people.csv" in refused_quietly(*call)
    where = ["--model", str(place / "net.safetensors"), "--data", f"csv:{place / 'people.csv'}"]
    assert main([*call, *where]) == 0
    assert "equal: all" in capsys.readouterr().out


def test_errors(runs: Path, tmp_path: Path, refused: Any, refused_quietly: Any):
    out = tmp_path / "board.html"
    assert "must end in .html" in refused("board", runs, "--out", tmp_path / "board.md")
    assert "no finished run" in refused("board", tmp_path, "--out", out)
    assert "name the board's cards" in refused_quietly("board", "verify", "0a0a0a0a")
    assert "no row and no card is 0a0a0a0a" in refused_quietly("board", "verify", "0a0a0a0a", runs)
    alone = tmp_path / "alone" / "result.json"
    alone.parent.mkdir()
    shutil.copy(runs / "weak" / "result.json", alone)
    assert main(["board", str(alone), "--out", str(out)]) == 0
    assert "does not say how it was measured" in refused_quietly("board", "verify", alone)
    same = ["board", "verify", runs / "clean", "--out", runs / "clean"]
    assert "is the card itself" in refused_quietly(*same)


@pytest.fixture
def refused_quietly(capsys: pytest.CaptureFixture[str]) -> Any:
    """As ``refused``, of commands that print before they refuse."""

    def call(*argv: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in argv]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return call
