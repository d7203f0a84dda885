"""``reidguard paper``, on stand-ins so small that their figures mean nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reidguard.attacks import SMA, MetaAttack, load_attack
from reidguard.cli import main, paper
from reidguard.data import load_dataset, write_virtual
from reidguard.evaluation import Protocol, evaluate
from reidguard.evaluation.paper import paper_tables
from reidguard.models import load_model

TINY = replace(
    paper.STAND_IN,
    networks={
        name: paper.Network("ide", {"backbone": "test_resnet"}, 2, 1e-3) for name in ("IDE", "PCB")
    },
    people={
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


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "STAND_IN", TINY)
        yield


@pytest.fixture(scope="module")
def table12(tiny, tmp_path_factory) -> Path:
    """IDE of Market and Duke, each attacked by the other's; DeepChange has no stand-in."""
    out = tmp_path_factory.mktemp("paper") / "run"
    assert main(["paper", "table12", "--stand-in", "--out", str(out)]) == 0
    return out


def test_list(capsys):
    assert main(["paper", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in cells] == [f"table{n}" for n in range(1, 20)]
    assert [int(row[2]) for row in cells] == [len(t.figures) for t in paper_tables().values()]
    by_name = {row[0]: row[3:] for row in cells}
    assert by_name["table1"] == ["all", "all"]
    assert by_name["table12"] == ["all", "4"]
    assert by_name["table19"] == ["0", "0"]


def test_show(capsys):
    assert main(["paper", "table8"]) == 0
    said = capsys.readouterr().out
    assert "|   1 |       70.5 |          86.1 |     60.6 |        75.8 |" in said
    assert "the paper contradicts itself: rank-1 of color+delta meta ε=12" in said
    assert "0.2 in Table 8; 0.0 in Table 16" in said
    assert "--data market1501:PATH" in said
    assert "reidguard paper table8 --stand-in" in said


@pytest.mark.parametrize("number", range(1, 20))
def test_every_table_can_be_shown(number, capsys):
    assert main(["paper", f"table{number}"]) == 0
    table = paper_tables()[number]
    said = capsys.readouterr().out
    assert table.caption in said
    digits = 4 if "SSIM" in table.metrics else 1
    assert all(f"{f.value:.{digits}f}" in said for f in table.figures)


def test_stand_ins_are_measured_and_called_so(table12, tiny, capsys):
    content = json.loads((table12 / "result.json").read_text("utf-8"))
    market, duke = "IDE-Market-Market", "IDE-Duke-Duke"
    for figure in content["figures"]:
        if figure["row"] == 1:
            assert figure["measured"] is None
            continue
        source, target = (market, "Duke") if figure["column"] == 0 else (duke, "Market")
        name = f"color+delta-meta-PersonX-{source}-eps8.safetensors"
        attack = load_attack(table12 / "attacks" / name)
        assert isinstance(attack, MetaAttack)
        assert attack.training_facts["steps"] == 2
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
    assert main(["paper", "table12", "--stand-in", "--out", str(table12)]) == 0
    told = capsys.readouterr()
    assert "nothing is measured again" in told.err
    assert "STAND-INS, not the paper's experiment" in told.out
    assert "Market = virtual:plaza" in told.out
    assert "| PersonX    | Market→Duke |" in told.out


def test_a_killed_run_goes_on(table12, tiny, tmp_path, monkeypatch, capsys):
    """What is learnt is not learnt again; the figures are the same."""
    out = tmp_path / "run"
    call = ["paper", "table12", "--stand-in", "--out", str(out)]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(paper, "evaluate_grid", interrupt)
        assert main(call) == 130
    models = {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    assert models
    assert main(call) == 0
    assert (
        models.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}.items()
    )
    one, two = (json.loads((p / "result.json").read_text("utf-8")) for p in (table12, out))
    assert one["figures"] == two["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [17, 18])
def test_defenses(number, tiny, tmp_path):
    out = tmp_path / "run"
    assert main(["paper", f"table{number}", "--stand-in", "--out", str(out)]) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    assert content["left_out"] == []
    assert all(figure["measured"] is not None for figure in content["figures"])
    facts = {
        p.stem.removeprefix("Duke-IDE-"): load_model(p).training_facts["defense"]
        for p in (out / "models").glob("Duke-IDE-*")
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
    only = tuple(f for f in table.figures if f.row == 1)  # SMA on Market
    monkeypatch.setattr(paper, "paper_tables", lambda: {14: replace(table, figures=only)})
    out = tmp_path / "run"
    assert main(["paper", "table14", "--stand-in", "--out", str(out)]) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    (found,) = [f for f in content["figures"] if f["measured"] and f["metric"] == "mAP"]
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
    assert main(["paper", "table6", "--stand-in", "--out", str(out)]) == 0
    facts = {p.stem: load_attack(p).training_facts for p in (out / "attacks").iterdir()}
    assert len(facts) == 3 * 5
    for name, fact in facts.items():
        family, kind, extra = name.split("-")[:3]
        assert fact["learner"] == {"plain": "plain", "joint": "joint", "meta": "maml"}[kind]
        other = {"none": None, "MSMT": "virtual:mall", "PersonX": "virtual:station"}[extra]
        assert (fact.get("meta_test") or {}).get("name") == other, family


def test_data_of_ones_own(tmp_path, monkeypatch, capsys):
    """What is not given is left out, and said so before anything starts."""
    write_virtual(tmp_path / "set", **TINY.people)
    (tmp_path / "set" / "virtual.json").unlink()
    monkeypatch.setattr(paper, "PAPER", replace(TINY, domains={}, people={}))
    call = ["paper", "table7", "--data", f"market1501:{tmp_path / 'set'}"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "left out: PersonX is not given (--data personx-456:PATH)" in told.err
    assert "left out: Duke is not given (--data dukemtmc-reid:PATH)" in told.err
    assert "STAND-INS" not in told.out
    content = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    measured = [(f["row"], f["column"]) for f in content["figures"] if f["measured"] is not None]
    assert measured == [(0, 0), (0, 0)]  # mAP and rank-1: learnt from Market only, on Market


def test_defenses_are_read():
    both = ("triplet", "identity")
    assert paper._parse_defense("none") is None
    assert paper._parse_defense("M(sma)") is None
    assert paper._parse_defense("M(delta)") == ("meta", "delta", "PersonX", both)
    assert paper._parse_defense("M(color+delta), meta-test MSMT")[2] == "MSMT"
    assert paper._parse_defense("M(color+delta), identity only")[3] == ("identity",)
    named = {f.conditions["defense"] for t in paper_tables().values() for f in t.figures
             if "defense" in f.conditions}  # fmt: skip
    unknown = {d for d in named if paper._parse_defense(d) is None}
    assert unknown == {"none", "M(sma)"}


def test_mistakes(refused, tmp_path):
    assert "'table20' is no table" in refused("paper", "table20")
    assert "'market' is none of the paper's datasets" in refused(
        "paper", "table1", "--data", "market:/x"
    )
    assert "there is no folder /nowhere" in refused(
        "paper", "table1", "--data", "market1501:/nowhere"
    )
    assert "exclude each other" in refused(
        "paper", "table1", "--stand-in", "--data", "market1501:/x"
    )
    line = refused("paper", "table19", "--stand-in")
    assert "nothing of table19 can be measured: seconds depend on the machine" in line


def test_a_report_shows_both_figures(table12, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", str(table12), "--out", str(out)]) == 0
    html = out.read_text("utf-8")
    content = json.loads((table12 / "result.json").read_text("utf-8"))
    assert "STAND-INS, not the paper&#x27;s experiment" in html
    (first, *_) = [f for f in content["figures"] if f["measured"] is not None]
    cells = "".join(
        f"<td>{text}</td>"
        for text in ("8", "2.4", f"{first['measured']:.1f}", f"{first['difference']:+.1f}")
    )
    assert cells in html
    assert "lost: cross-dataset" in html
