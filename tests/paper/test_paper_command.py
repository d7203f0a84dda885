"""``python -m benchmarks.paper``, with stand-ins so small that their values mean nothing."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import benchmarks.paper as paper
from benchmarks import common
from benchmarks.paper import (
    DefenseSpec,
    NetworkSpec,
    paper_figures,
    paper_tables,
    parse_defense,
    runner,
)
from benchmarks.paper import __main__ as command
from benchmarks.paper.__main__ import main
from reidguard.attacks import SMA, MetaAttack, load_attack
from reidguard.cli import main as reidguard_main
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, evaluate
from reidguard.models import create_model, load_model
from reidguard.virtual import write_virtual

TINY = replace(
    paper.STAND_IN,
    networks={
        name: NetworkSpec("ide", {"backbone": "test_resnet"}, 2, 1e-3) for name in ("IDE", "PCB")
    },
    virtual_options={
        "train_identities": 4,
        "test_identities": 2,
        "cameras": 2,
        "images_per_camera": 2,
        "height": 64,
    },
    size=(64, 32),
    identities=4,
    images_per_identity=2,
    attack_steps=2,
    defense_steps=2,
)


@pytest.fixture
def refused(capsys):
    """Call main(), check that it refuses in one line with exit code 2, and return that line."""

    def call(*argv: str) -> str:
        capsys.readouterr()
        assert main(argv) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("benchmarks.paper: error: ")
        return line

    return call


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "STAND_IN", TINY)
        yield


@pytest.fixture(scope="module")
def table12(tiny, tmp_path_factory) -> Path:
    """IDE of Market and Duke, each attacked by the other's; DeepChange has no stand-in."""
    out = tmp_path_factory.mktemp("paper") / "run"
    assert main(["table12", "--stand-in", "--out", str(out)]) == 0
    return out


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = [f"table{n}" for n in range(1, 20)]
    assert [row[0] for row in cells] == [*names, *(f"figure{n}" for n in range(4, 9))]
    counts = [len(table.values) for table in paper_tables().values()]
    assert [int(row[2]) for row in cells[:19]] == counts
    assert {tuple(row[2:]) for row in cells[19:]} == {("-", "all", "all")}
    by_name = {row[0]: row[3:] for row in cells}
    assert by_name["table1"] == ["all", "all"]
    assert by_name["table12"] == ["all", "4"]
    assert by_name["table19"] == ["0", "0"]


def test_show(capsys):
    assert main(["table8"]) == 0
    said = capsys.readouterr().out
    assert "|   1 |       70.5 |          86.1 |     60.6 |        75.8 |" in said
    assert "the paper contradicts itself: rank-1 of color+delta meta ε=12" in said
    assert "0.2 in Table 8; 0.0 in Table 16" in said
    assert "--data market1501:PATH" in said
    assert "python -m benchmarks.paper table8 --stand-in" in said


@pytest.mark.parametrize("number", range(1, 20))
def test_every_table_can_be_shown(number, capsys):
    assert main([f"table{number}"]) == 0
    table = paper_tables()[number]
    said = capsys.readouterr().out
    assert table.caption in said
    digits = 4 if "SSIM" in table.metrics else 1
    assert all(f"{f.value:.{digits}f}" in said for f in table.values)


def test_stand_ins_are_measured_and_named(table12, tiny, capsys):
    content = json.loads((table12 / "result.json").read_text("utf-8"))
    market, duke = "IDE-Market-Market", "IDE-Duke-Duke"
    for figure in content["values"]:
        if figure["row"] == 1:
            assert figure["measured"] is None
            continue
        source, target = (market, "Duke") if figure["column"] == 0 else (duke, "Market")
        name = f"color+delta-meta-PersonX-{source}-eps8.safetensors"
        attack = load_attack(table12 / "attacks" / name)
        assert isinstance(attack, MetaAttack)
        assert attack.provenance["steps"] == 2
        model = load_model(table12 / "models" / f"{target}-IDE.safetensors")
        domain = {"Duke": "campus", "Market": "plaza"}[target]
        people = load_dataset("virtual", table12 / "people" / domain)
        ranking = evaluate(model, people, attack, Protocol(image_size=(64, 32))).attacked.ranking
        ours = {"mAP": ranking.mAP, "rank-1": ranking.rank_k(1)}[figure["metric"]]
        assert figure["measured"] == pytest.approx(100 * ours)
        assert figure["difference"] == pytest.approx(100 * ours - figure["paper"])
    assert content["left_out"] == ["DeepChange has no stand-in (2 of 4 cells)"]
    assert content["stand_in"]["domains"]["Market"] == "plaza"
    grid = json.loads((table12 / "grid.json").read_text("utf-8"))
    assert [cell["setting"] for cell in grid["cells"]] == ["cross-dataset"] * 2
    assert main(["table12", "--stand-in", "--out", str(table12)]) == 0
    output = capsys.readouterr()
    assert "already finished" in output.err
    assert "STAND-INS, not the paper's experiment" in output.out
    assert "Market = virtual:plaza" in output.out
    assert "| PersonX    | Market→Duke |" in output.out


def test_a_killed_run_resumes(table12, tiny, tmp_path, monkeypatch, capsys):
    """Nothing is trained twice; the values are the same."""
    out = tmp_path / "run"
    call = ["table12", "--stand-in", "--out", str(out)]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "evaluate_grid", interrupt)
        assert main(call) == 130
    models = {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    assert models
    assert main(call) == 0
    assert (
        models.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}.items()
    )
    one, two = (json.loads((p / "result.json").read_text("utf-8")) for p in (table12, out))
    assert one["values"] == two["values"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [17, 18])
def test_defenses(number, tiny, tmp_path):
    out = tmp_path / "run"
    assert main([f"table{number}", "--stand-in", "--out", str(out)]) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    assert content["left_out"] == []
    assert all(figure["measured"] is not None for figure in content["values"])
    facts = {
        p.stem.removeprefix("Duke-IDE-"): load_model(p).provenance["defense"]
        for p in (out / "models").glob("Duke-IDE-*.safetensors")
    }
    if number == 17:
        learnt = {name: made["learner"] for name, made in facts.items()}
        assert learnt["adversarial"] == "plain"
        assert learnt["mixed"] == "joint"
        assert learnt["M_color+delta_"] == learnt["M_color+delta_meta-test_MSMT"] == "maml"
    else:
        assert facts["M_color+delta_triplet_only"]["losses"] == ["triplet"]


@pytest.mark.slow
def test_sma_is_made_on_the_normal_model(tiny, tmp_path, monkeypatch):
    table = paper_tables()[14]
    only = tuple(f for f in table.values if f.row == 1)  # SMA on Market
    monkeypatch.setattr(paper, "paper_tables", lambda: {14: replace(table, values=only)})
    out = tmp_path / "run"
    assert main(["table14", "--stand-in", "--out", str(out)]) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    (found,) = [f for f in content["values"] if f["measured"] and f["metric"] == "mAP"]
    robust = load_model(out / "models" / "Market-IDE-M_color+delta_.safetensors")
    normal = load_model(out / "models" / "Market-IDE.safetensors")
    people = load_dataset("virtual", out / "people" / "plaza")
    protocol = Protocol(image_size=(64, 32), metric="cosine")
    again = evaluate(robust, people, SMA().bind(normal), protocol)
    assert found["measured"] == pytest.approx(100 * again.attacked.ranking.mAP)


@pytest.mark.slow
def test_other_images(tiny, tmp_path):
    """Table 6 learns from them jointly or as the meta-test set."""
    out = tmp_path / "run"
    assert main(["table6", "--stand-in", "--out", str(out)]) == 0
    facts = {p.stem: load_attack(p).provenance for p in (out / "attacks").glob("*.safetensors")}
    assert len(facts) == 3 * 5
    for name, fact in facts.items():
        family, kind, extra = name.split("-")[:3]
        assert fact["learner"] == {"plain": "plain", "joint": "joint", "meta": "maml"}[kind]
        other = {"none": None, "MSMT": "virtual:mall", "PersonX": "virtual:station"}[extra]
        assert (fact.get("meta_test") or {}).get("name") == other, family


def test_own_data(tmp_path, monkeypatch, capsys):
    """What is not given is left out, and said so before anything starts."""
    write_virtual(tmp_path / "set", **TINY.virtual_options)
    (tmp_path / "set" / "virtual.json").unlink()
    setup = replace(TINY, domains={}, virtual_options={}, stand_in=False)
    monkeypatch.setattr(paper, "PAPER", setup)
    call = ["table7", "--data", f"market1501:{tmp_path / 'set'}"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    output = capsys.readouterr()
    assert "table7: left out: PersonX is missing (--data personx-456:PATH)" in output.err
    assert "left out: Duke is missing (--data dukemtmc-reid:PATH)" in output.err
    assert "STAND-INS" not in output.out
    content = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    measured = [(f["row"], f["column"]) for f in content["values"] if f["measured"] is not None]
    assert measured == [(0, 0), (0, 0)]  # mAP and rank-1: learnt from Market only, on Market


def test_virtual_people_stand_in_for_missing_data(tiny, tmp_path, monkeypatch, capsys):
    """Market is a set of one's own with a network of one's own, PersonX is rendered."""
    write_virtual(tmp_path / "set", **TINY.virtual_options)
    (tmp_path / "set" / "virtual.json").unlink()
    people = load_dataset("market1501", tmp_path / "set")
    out = tmp_path / "run"
    (out / "models").mkdir(parents=True)
    mine = create_model("osnet_x0_25", num_classes=people.num_train_pids, size=(64, 32))
    mine.save(out / "models" / "Market-IDE.safetensors")
    monkeypatch.setattr(paper, "PAPER", replace(paper.PAPER, size=(32, 16)))
    call = ["table7", "--stand-in", "--data", f"market1501:{tmp_path / 'set'}"]
    assert main([*call, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "STAND-INS, not the paper's experiment:** Duke = virtual:campus; " in said
    assert "PersonX = virtual:station" in said
    assert "Market = virtual" not in said
    assert "From files in models/: Market-IDE (OSNet)." in said
    content = json.loads((out / "result.json").read_text("utf-8"))
    assert content["own_networks"] == {"Market-IDE": "OSNet"}
    assert all(figure["measured"] is not None for figure in content["values"])
    # The set that was given was read, at the paper's size, and attacked on one's own network.
    (clean, *_) = [f for f in content["values"] if f["metric"] == "mAP"]
    name = "color+delta-plain-none-IDE-Market-Market-eps8.safetensors"
    attack = load_attack(out / "attacks" / name)
    own = evaluate(mine, people, attack, Protocol(image_size=(32, 16)))
    assert clean["measured"] == pytest.approx(100 * own.attacked.ranking.mAP)


def test_only_given_models(tiny, tmp_path, monkeypatch, capsys):
    """Cells that would require training another network are left out."""
    monkeypatch.setattr(paper, "PAPER", replace(paper.PAPER, size=(32, 16)))
    write_virtual(tmp_path / "set", **TINY.virtual_options)
    (tmp_path / "set" / "virtual.json").unlink()
    people = load_dataset("market1501", tmp_path / "set")
    own = create_model("osnet_x0_25", num_classes=people.num_train_pids, size=(64, 32))
    own.save(tmp_path / "own.safetensors")
    call = ["table7", "--stand-in", "--data", f"market1501:{tmp_path / 'set'}"]
    call += ["--model", f"Market-IDE={tmp_path / 'own.safetensors'}", "--only-given-models"]
    out = tmp_path / "run"
    assert main([*call, "--out", str(out), "--query-every", "2"]) == 0
    assert "table7: left out: Duke has no stand-in" in capsys.readouterr().err
    content = json.loads((out / "result.json").read_text("utf-8"))
    assert content["own_networks"] == {"Market-IDE": "OSNet"}
    assert {v["conditions"]["data"] for v in content["values"] if v["measured"]} == {"Market"}
    assert [p.name for p in (out / "models").glob("*.safetensors")] == ["Market-IDE.safetensors"]


def test_all_share_a_folder_and_results(tiny, tmp_path, monkeypatch, capsys):
    """Several tables use the same network; what the collected results have is not measured."""
    tables = paper_tables()
    clean = [v for v in tables[1].values if v.conditions["attack"] == "none" and v.row == 0]
    few = {
        1: replace(tables[1], values=tuple(clean)),
        13: replace(tables[13], values=tuple(v for v in tables[13].values if not v.row)[:2]),
        19: tables[19],
    }
    monkeypatch.setattr(paper, "paper_tables", lambda: few)
    monkeypatch.setattr(paper, "paper_figures", dict)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    out = tmp_path / "run"
    call = ["all", "--stand-in", "--out", str(out), "--results", "collected"]
    assert main(call) == 0
    assert "table19: left out: seconds depend" in capsys.readouterr().err
    names = [p.name for p in (out / "models").glob("*.safetensors")]
    assert sorted(names) == ["Duke-IDE.safetensors", "Market-IDE.safetensors"]
    collected = json.loads((tmp_path / "collected.json").read_text("utf-8"))
    assert collected["setup"]["domains"]["Duke"] == "campus"
    assert list(collected["tables"]) == ["table1", "table13"]
    for name, table in collected["tables"].items():
        content = json.loads((out / name / "result.json").read_text("utf-8"))
        assert [round(v["measured"], 4) for v in content["values"]] == [
            v["measured"] for v in table["values"]
        ]
        assert table["commit"]
    monkeypatch.setattr(command, "run_item", None)
    assert main(call) == 0


def test_help_has_examples(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--only-given-models" in text
    assert "python -m benchmarks.paper table1 --stand-in" in text


def test_defenses_are_parsed():
    assert parse_defense("none") is None
    assert parse_defense("M(sma)") is None
    both = ("triplet", "identity")
    assert parse_defense("M(delta)") == DefenseSpec("meta", "delta", "PersonX", both)
    assert parse_defense("M(color+delta), meta-test MSMT").extra == "MSMT"
    assert parse_defense("M(color+delta), identity only").losses == ("identity",)
    named = {f.conditions["defense"] for t in paper_tables().values() for f in t.values
             if "defense" in f.conditions}  # fmt: skip
    unknown = {d for d in named if parse_defense(d) is None}
    assert unknown == {"none", "M(sma)"}


@pytest.mark.parametrize("number", range(4, 9))
def test_every_figure_can_be_shown(number, capsys):
    assert main([f"figure{number}"]) == 0
    said = capsys.readouterr().out
    assert paper_figures()[number].caption in said
    assert "drawing it requires: --data" in said
    assert f"python -m benchmarks.paper figure{number} --stand-in" in said


def lists_of(page: str) -> list[tuple[str, list[bool]]]:
    """Title and rights and wrongs of each rank list of a page."""
    parts = page.split('<div class="rank-list">')[1:]
    return [
        (re.search("<p>(.*?)</p>", part)[1], [kind == "correct" for kind in KIND.findall(part)])
        for part in parts
    ]


KIND = re.compile(r'<li class="(correct|wrong)">')


def test_a_figure_of_rank_lists(tiny, tmp_path, monkeypatch, capsys):
    """Figure 6's rows, and one query of any kind: two steps teach nobody to be right."""
    wanted = replace(paper_figures()[6], queries=(("....", 2),))
    monkeypatch.setattr(paper, "paper_figures", lambda: {6: wanted})
    out = tmp_path / "run"
    call = ["figure6", "--stand-in", "--out", str(out)]
    assert main(call) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    page = (out / "figure.html").read_text("utf-8")
    assert "STAND-INS, not the paper's experiment" in html.unescape(page)
    labels = ["clean", "color", "delta", "color+delta"]
    shown = lists_of(page)
    assert [title.split(",")[0].split(":")[0] for title, _ in shown] == 2 * labels
    # What the page frames is what an evaluation finds.
    people = load_dataset("virtual", out / "people" / "campus")
    model = load_model(out / "models" / "Duke-PCB.safetensors")
    attack = load_attack(out / "attacks" / "delta-meta-PersonX-PCB-Market-Market-eps8.safetensors")
    result = evaluate(model, people, attack, Protocol(image_size=(64, 32)))
    ranking = result.attacked_8bit.ranking
    for place, query in enumerate(content["queries"]):
        (number,) = [i for i, s in enumerate(people.query) if s.path.name == query["file"]]
        assert query["right"][2] == (int(ranking.first_match[number]) == 1)
        assert [rights[0] for _, rights in shown[4 * place : 4 * place + 4]] == query["right"]
    # The steps of all that was learnt are written down.
    assert (out / "attacks" / "delta-meta-PersonX-PCB-Market-Market-eps8.jsonl").exists()
    assert main(call) == 0
    assert "already finished" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 5, 7, 8])
def test_other_figures(number, tiny, tmp_path):
    out = tmp_path / "run"
    assert main([f"figure{number}", "--stand-in", "--out", str(out)]) == 0
    page = (out / "figure.html").read_text("utf-8")
    assert page.count("<img") >= {4: 4 * 7, 5: 3 * 3 * 2}.get(number, 0)
    assert all(alt for alt in re.findall(r'<img[^>]*alt="([^"]*)"', page))


def test_real_people_are_drawn_only_on_request(tmp_path, monkeypatch, refused):
    write_virtual(tmp_path / "set", **TINY.virtual_options)
    (tmp_path / "set" / "virtual.json").unlink()
    setup = replace(TINY, domains={}, virtual_options={}, stand_in=False)
    monkeypatch.setattr(paper, "PAPER", setup)
    row = {**paper_figures()[4].rows[0], "meta": False, "extra": "none"}
    wanted = replace(paper_figures()[4], rows=(row,), queries=((".", 1),))
    monkeypatch.setattr(paper, "paper_figures", lambda: {4: wanted})
    call = ["figure4", "--data", f"market1501:{tmp_path / 'set'}"]
    call += ["--out", str(tmp_path / "run")]
    assert "a figure shows real people: --blur" in refused(*call)
    assert main([*call, "--blur"]) == 0
    page = (tmp_path / "run" / "figure.html").read_text("utf-8")
    data = re.search(r'base64,([^"]*)" alt="query 1: clean"', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
    sharp = np.abs(np.diff(shown, axis=0)).max()
    assert sharp < 60  # eight blocks, blended


def test_mistakes(refused, tmp_path):
    assert "'table20' is no table and no figure" in refused("table20")
    assert "'market' is none of the paper's datasets" in refused("table1", "--data", "market:/x")
    assert "there is no folder /nowhere" in refused("table1", "--data", "market1501:/nowhere")
    assert "'Market' is not of the form Market-IDE=FILE" in refused(
        "table1", "--stand-in", "--model", "Market"
    )
    assert "there is no file /nowhere" in refused(
        "table1", "--stand-in", "--model", "Market-IDE=/nowhere"
    )
    assert "'0' is not a whole number above 0" in refused("table1", "--steps", "0")
    assert "unrecognized arguments: --step" in refused("table1", "--step", "5")
    assert "--images: not allowed with argument --blur" in refused("figure4", "--blur", "--images")
    line = refused("table19", "--stand-in")
    assert "nothing of table19 can be measured: seconds depend on the machine" in line


def test_a_report_shows_both_values(table12, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert reidguard_main(["report", str(table12), "--out", str(out)]) == 0
    page = out.read_text("utf-8")
    content = json.loads((table12 / "result.json").read_text("utf-8"))
    assert "STAND-INS, not the paper's experiment" in html.unescape(page)
    (first, *_) = [f for f in content["values"] if f["measured"] is not None]
    cells = "".join(
        f"<td>{text}</td>"
        for text in ("8", "2.4", f"{first['measured']:.1f}", f"{first['difference']:+.1f}")
    )
    assert cells in page
    assert "% on another dataset" in page
