"""The paper's values: transcribed correctly, as far as the paper can be checked against itself."""

from __future__ import annotations

import pytest
import torch

from benchmarks.paper import contradictions, paper_figures, paper_tables
from benchmarks.paper.results import report_table
from reidguard.evaluation import ssim


def figure(number: int, metric: str = "mAP", **conditions: object) -> float:
    """The one figure of a table under these conditions."""
    (value,) = {
        f.value
        for f in paper_tables()[number].values
        if f.metric == metric and conditions.items() <= f.conditions.items()
    }
    return value


IDE, PCB = {"model": "IDE"}, {"model": "PCB"}
BOTH = {"attack": "color+delta", "meta": True}
HARD = {"defense": "M(color+delta)"}


def test_all_tables_are_there():
    tables = paper_tables()
    assert list(tables) == list(range(1, 20))
    rows = [len(table.heads) for table in tables.values()]
    assert rows == [14, 14, 14, 16, 19, 9, 3, 6, 2, 4, 3, 2, 14, 6, 22, 6, 4, 3, 4]
    for table in tables.values():
        assert len(table.values) == len(table.heads) * len(table.columns) * len(table.metrics)
        for one in table.values:
            top = {"SSIM": 1, "s/epoch": 1000}.get(one.metric, 100)
            assert 0 <= one.value <= top
            if one.conditions.get("attack") == "none":
                assert "eps" not in one.conditions
    # No experiment twice within a table, but where the paper repeats the clean figures.
    for table in tables.values():
        seen = [(*f.conditions.items(), f.metric) for f in table.values]
        twice = {dict(key[:-1])["attack"] for key in seen if seen.count(key) > 1}
        assert twice <= {"none"}, table.number


def test_no_attack_helps():
    for table in paper_tables().values():
        clean = {
            (f.conditions["model"], f.conditions["data"], f.conditions["defense"], f.metric): f
            for f in table.values
            if f.conditions.get("attack") == "none"
        }
        for one in table.values:
            if "data" not in one.conditions:
                continue
            key = tuple(one.conditions[k] for k in ("model", "data", "defense"))
            before = clean.get((*key, one.metric))
            # The one exception: M(color+delta) on Duke loses nothing to MisRank of AGW.
            if before is not None and one.conditions["attack"] != "misrank":
                assert one.value <= before.value


def test_its_inner_contradictions():
    """Tables that report one experiment agree in 122 other figures."""
    found = {(c.metric, tuple(sorted(c.values.items()))): c.conditions for c in contradictions()}
    usual = (1, 5, 7, 8, 10, 13, 15)
    expected = {
        ("mAP", (*((t, 0.6) for t in usual), (16, 1.1))): (BOTH, "Duke"),
        ("rank-1", (*((t, 0.6) for t in usual), (16, 1.0))): (BOTH, "Duke"),
        ("mAP", ((2, 15.0), (15, 15.9))): ({"attack": "color+delta", "meta": False}, "Market"),
        ("mAP", ((2, 20.0), (15, 20.2))): ({"attack": "color", "meta": True}, "Duke"),
        ("rank-1", ((8, 0.2), (16, 0.0))): ({**BOTH, "eps": 12}, "Duke"),
        ("mAP", ((13, 72.1), (14, 72.1), (15, 72.1), (16, 73.1))): (
            {"attack": "misrank"},
            "Market",
        ),
        ("mAP", ((13, 53.9), (14, 53.9), (15, 54.7), (16, 54.7))): ({"attack": "misrank"}, "Duke"),
        ("rank-1", ((13, 72.6), (14, 72.6), (15, 73.4), (16, 73.4))): (
            {"attack": "misrank"},
            "Duke",
        ),
    }
    assert found.keys() == expected.keys()
    for key, (conditions, data) in expected.items():
        assert {**conditions, "data": data}.items() <= found[key].items()
    same: dict[object, set[int]] = {}
    for table in paper_tables().values():
        for one in table.values:
            same.setdefault((*one.conditions.items(), one.metric), set()).add(one.table)
    assert sum(len(tables) > 1 for tables in same.values()) - len(found) == 122


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        # Section 5.2
        (2.5, figure(1, attack="delta", meta=False, data="Duke", **IDE)),
        (19.8, figure(1, attack="color", meta=False, data="Duke", **PCB)),
        (0.6, figure(1, data="Duke", **BOTH, **IDE)),
        # 5.3
        (77.0, figure(2, "rank-1", attack="delta", meta=False, data="Market", **PCB)),
        (80.9, figure(2, "rank-1", attack="delta", meta=True, data="Market", **PCB)),
        # 5.4
        (3.1, figure(3, attack="delta", meta=False, source_data="Duke", data="Market", **IDE)),
        (4.4, figure(3, attack="delta", meta=False, source_data="Duke", data="MSMT", **IDE)),
        # 5.6: lower than the best competitor by 3.2 and 3.6
        (
            3.2,
            figure(5, attack="uap", data="Market", **IDE) - figure(5, data="Market", **BOTH, **IDE),
        ),
        (3.6, figure(5, attack="uap", data="Duke", **IDE) - figure(5, data="Duke", **BOTH, **IDE)),
        (24.4, figure(5, attack="misrank+personx", data="Market", **IDE)),
        # 5.7
        (31.2, figure(6, attack="color", extra="none", data="Duke")),
        (23.5, figure(6, attack="color", extra="UnrealPerson", meta=False, data="Duke")),
        # 6.2
        (61.6, figure(13, "rank-1", attack="delta", defense="M(delta)", data="Market")),
        (62.4, figure(13, "rank-1", attack="delta", data="Market", **HARD)),
        (55.1, figure(13, "rank-1", attack="color", data="Market", **HARD)),
        (65.4, figure(13, "rank-1", attack="sma", data="Market", **HARD)),
        (34.6, figure(13, "rank-1", attack="sma", defense="M(color)", data="Market")),
        (60.4, figure(13, "rank-1", attack="sma", defense="M(delta)", data="Market")),
        # 6.3
        (50.2, figure(14, attack="sma", data="Market", **HARD)),
        (10.4, figure(14, attack="sma", defense="M(sma)", data="Market")),
        # 6.4
        (74.0, figure(15, attack="misrank", source_model="PCB", data="Market", **HARD)),
        (4.3, figure(16, eps=12, data="Market", **BOTH, **HARD)),
        (67.1, figure(16, attack="misrank", eps=16, data="Market", **HARD)),
        (55.7, figure(16, attack="misrank", eps=16, data="Duke", **HARD)),
        (68.6, figure(16, "rank-1", eps=4, data="Market", **BOTH, **HARD)),  # "mAP", it says
    ],
)
def test_the_text_says_what_the_tables_show(said, shown):
    assert shown == pytest.approx(said)


def test_costs_are_about_threefold_and_ninefold():
    seconds = {f.row: f.value for f in paper_tables()[19].values}
    assert round(seconds[0] / seconds[1]) == 3
    assert round(seconds[2] / seconds[3]) == 9


def test_table_9_is_no_ssim_of_images():
    """Even white noise that fills the budget leaves more than twice what the table says."""
    torch.manual_seed(0)
    grey = torch.rand(4, 3, 8, 4)
    x = torch.nn.functional.interpolate(grey, (256, 128), mode="bicubic").clamp(0.05, 0.95)
    noisy = x + 8 / 255 * torch.sign(torch.randn_like(x))
    printed = max(f.value for f in paper_tables()[9].values)
    assert float(ssim(noisy, x).mean()) > 2 * printed


def test_columns_are_named():
    assert paper_tables()[3].column_label(0) == "Duke→Market"
    assert paper_tables()[2].column_label(0) == "IDE→PCB"
    assert paper_tables()[6].column_label(4) == "Market→Duke, color+delta"
    assert paper_tables()[13].column_label(1) == "M(color)"
    assert paper_tables()[9].column_label(0) == "meta, color"


def test_figures_are_described_whole():
    assert list(paper_figures()) == [4, 5, 6, 7, 8]
    for drawn in paper_figures().values():
        assert drawn.pictures in ("people", "changes", "lists")
        assert len({row["data"] for row in drawn.rows}) == 1
        for kind, count in drawn.queries:
            assert len(kind) == len(drawn.rows)
            assert set(kind) <= set("+-.")
            assert count > 0


def test_the_paper_s_values_beside_ours():
    conditions = {
        "attack": "delta",
        "meta": True,
        "source_model": "IDE",
        "source_data": "Market",
        "extra": "none",
        "eps": 8,
        "model": "PCB",
        "data": "Duke",
        "defense": "none",
    }
    clean = {**conditions, "attack": "none"}
    values = [
        {"row": row, "column": 0, "metric": metric, "paper": paper, "measured": measured,
         "difference": measured and measured - paper, "conditions": c}
        for row, c, metric, paper, measured in (
            (0, clean, "mAP", 70.0, 71.25),
            (0, clean, "SSIM", 1.0, 1.0),
            (1, conditions, "mAP", 3.0, 2.5),
            (1, conditions, "SSIM", 0.9, 0.915),
            (2, conditions, "mAP", 9.0, None),
        )
    ]  # fmt: skip
    result = {"table": 3, "stand_in": None, "values": values}
    table = report_table(result)
    assert table["header"][:6] == [
        "attacked",
        "attack",
        "ε ·255",
        "mAP, paper",
        "here",
        "difference",
    ]
    clean_row, attacked_row = table["rows"]  # none not measured
    assert clean_row[:6] == ["PCB, Duke, defense none", "none", None, "70.0", "71.2", "+1.2"]
    assert attacked_row == [
        "PCB, Duke, defense none",
        "delta, meta-learnt on IDE, Market, none",
        "8",
        *("3.0", "2.5", "-0.5"),
        *("0.900", "0.915", "+0.015"),
    ]
    assert all(len(row) == len(table["header"]) for row in table["rows"])
    assert "STAND-INS" not in table["caption"]
    assert "STAND-INS" in report_table({**result, "stand_in": {"stand_in": True}})["caption"]
