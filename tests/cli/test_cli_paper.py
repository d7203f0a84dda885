"""``reidguard paper``, on stand-ins so small that their figures mean nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.paper import Network, paper_pictures, paper_tables, workshop
from benchmarks.paper.experiments import DefenseSpec, hardening
from reidguard.attacks import SMA, MetaAttack, load_attack
from reidguard.cli import main
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, evaluate
from reidguard.models import create_model, load_model
from reidguard.virtual import write_virtual

TINY = replace(
    paper.STAND_IN,
    networks={
        name: Network("ide", {"backbone": "test_resnet"}, 2, 1e-3) for name in ("IDE", "PCB")
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
    names = [f"table{n}" for n in range(1, 20)]
    assert [row[0] for row in cells] == [*names, *(f"figure{n}" for n in range(4, 9))]
    counts = [len(table.figures) for table in paper_tables().values()]
    assert [int(row[2]) for row in cells[:19]] == counts
    assert {tuple(row[2:]) for row in cells[19:]} == {("-", "all", "all")}
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
    assert main(["paper", "table12", "--stand-in", "--out", str(table12)]) == 0
    told = capsys.readouterr()
    assert "nothing is done again" in told.err
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
        patch.setattr(workshop, "evaluate_grid", interrupt)
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
    facts = {p.stem: load_attack(p).provenance for p in (out / "attacks").glob("*.safetensors")}
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
    plan = replace(TINY, domains={}, people={}, stand_in=False)
    monkeypatch.setattr(paper, "PAPER", plan)
    call = ["paper", "table7", "--data", f"market1501:{tmp_path / 'set'}"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "left out: PersonX is not given (--data personx-456:PATH)" in told.err
    assert "left out: Duke is not given (--data dukemtmc-reid:PATH)" in told.err
    assert "STAND-INS" not in told.out
    content = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    measured = [(f["row"], f["column"]) for f in content["figures"] if f["measured"] is not None]
    assert measured == [(0, 0), (0, 0)]  # mAP and rank-1: learnt from Market only, on Market


def test_virtual_people_stand_in_for_what_is_not_given(tiny, tmp_path, monkeypatch, capsys):
    """Market is a set of one's own with a network of one's own, PersonX is rendered."""
    write_virtual(tmp_path / "set", **TINY.people)
    (tmp_path / "set" / "virtual.json").unlink()
    people = load_dataset("market1501", tmp_path / "set")
    out = tmp_path / "run"
    (out / "models").mkdir(parents=True)
    mine = create_model("osnet_x0_25", num_classes=people.num_train_pids, size=(64, 32))
    mine.save(out / "models" / "Market-IDE.safetensors")
    monkeypatch.setattr(paper, "PAPER", replace(paper.PAPER, size=(32, 16)))
    call = ["paper", "table7", "--stand-in", "--data", f"market1501:{tmp_path / 'set'}"]
    assert main([*call, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "STAND-INS, not the paper's experiment:** Duke = virtual:campus; " in said
    assert "PersonX = virtual:station" in said
    assert "Market = virtual" not in said
    assert "From files in models/: Market-IDE (OSNet)." in said
    content = json.loads((out / "result.json").read_text("utf-8"))
    assert content["own_networks"] == {"Market-IDE": "OSNet"}
    assert all(figure["measured"] is not None for figure in content["figures"])
    # The set that was given was read, at the paper's size, and attacked on one's own network.
    (clean, *_) = [f for f in content["figures"] if f["metric"] == "mAP"]
    name = "color+delta-plain-none-IDE-Market-Market-eps8.safetensors"
    attack = load_attack(out / "attacks" / name)
    own = evaluate(mine, people, attack, Protocol(image_size=(32, 16)))
    assert clean["measured"] == pytest.approx(100 * own.attacked.ranking.mAP)


def test_defenses_are_read():
    assert hardening("none") is None
    assert hardening("M(sma)") is None
    both = ("triplet", "identity")
    assert hardening("M(delta)") == DefenseSpec("meta", "delta", "PersonX", both)
    assert hardening("M(color+delta), meta-test MSMT").extra == "MSMT"
    assert hardening("M(color+delta), identity only").losses == ("identity",)
    named = {f.conditions["defense"] for t in paper_tables().values() for f in t.figures
             if "defense" in f.conditions}  # fmt: skip
    unknown = {d for d in named if hardening(d) is None}
    assert unknown == {"none", "M(sma)"}


@pytest.mark.parametrize("number", range(4, 9))
def test_every_figure_can_be_shown(number, capsys):
    assert main(["paper", f"figure{number}"]) == 0
    said = capsys.readouterr().out
    assert paper_pictures()[number].caption in said
    assert "drawing it takes: --data" in said
    assert f"reidguard paper figure{number} --stand-in" in said


def lists_of(page: str) -> list[tuple[str, list[bool]]]:
    """Title and rights and wrongs of each rank list of a page."""
    parts = page.split('<div class="list">')[1:]
    return [
        (re.search("<p>(.*?)</p>", part)[1], [kind == "right" for kind in KIND.findall(part)])
        for part in parts
    ]


KIND = re.compile(r'<li class="(right|wrong)">')


def test_a_figure_of_rank_lists(tiny, tmp_path, monkeypatch, capsys):
    """Figure 6's rows, and one query of any kind: two steps teach nobody to be right."""
    wanted = replace(paper_pictures()[6], queries=(("....", 2),))
    monkeypatch.setattr(paper, "paper_pictures", lambda: {6: wanted})
    out = tmp_path / "run"
    call = ["paper", "figure6", "--stand-in", "--out", str(out)]
    assert main(call) == 0
    content = json.loads((out / "result.json").read_text("utf-8"))
    page = (out / "figure.html").read_text("utf-8")
    assert "STAND-INS, not the paper&#x27;s experiment" in page
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
    assert "nothing is done again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 5, 7, 8])
def test_other_figures(number, tiny, tmp_path):
    out = tmp_path / "run"
    assert main(["paper", f"figure{number}", "--stand-in", "--out", str(out)]) == 0
    page = (out / "figure.html").read_text("utf-8")
    assert page.count("<img") >= {4: 4 * 7, 5: 3 * 3 * 2}.get(number, 0)
    assert all(alt for alt in re.findall(r'<img[^>]*alt="([^"]*)"', page))


def test_people_of_a_real_set_are_drawn_only_if_asked(tmp_path, monkeypatch, refused):
    write_virtual(tmp_path / "set", **TINY.people)
    (tmp_path / "set" / "virtual.json").unlink()
    plan = replace(TINY, domains={}, people={}, stand_in=False)
    monkeypatch.setattr(paper, "PAPER", plan)
    row = {**paper_pictures()[4].rows[0], "meta": False, "extra": "none"}
    wanted = replace(paper_pictures()[4], rows=(row,), queries=((".", 1),))
    monkeypatch.setattr(paper, "paper_pictures", lambda: {4: wanted})
    call = ["paper", "figure4", "--data", f"market1501:{tmp_path / 'set'}"]
    call += ["--out", str(tmp_path / "run")]
    assert "a figure shows real people: --blur" in refused(*call)
    assert main([*call, "--blur"]) == 0
    page = (tmp_path / "run" / "figure.html").read_text("utf-8")
    data = re.search(r'base64,([^"]*)" alt="query 1: clean"', page)[1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
    sharp = np.abs(np.diff(shown, axis=0)).max()
    assert sharp < 60  # eight blocks, blended


def test_mistakes(refused, tmp_path):
    assert "'table20' is no table and no figure" in refused("paper", "table20")
    assert "'market' is none of the paper's datasets" in refused(
        "paper", "table1", "--data", "market:/x"
    )
    assert "there is no folder /nowhere" in refused(
        "paper", "table1", "--data", "market1501:/nowhere"
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
