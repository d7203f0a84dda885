"""The board from cards written by hand: rows, columns, foreign cards, and the page."""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from reidguard.cli.app import parse
from reidguard.errors import InputError
from reidguard.report import board_page, board_rows, board_table, read_cards, write_card
from reidguard.report.rerun import rerun_command, shortened

WEIGHTS, QUERY, GALLERY = "1" * 64, "2" * 64, "3" * 64
DATASET = {
    "name": "market1501",
    "query_every": 8,
    "fingerprints": {"query": QUERY, "gallery": GALLERY},
}
PROTOCOL = {"image_size": [256, 128], "metric": "cosine"}
STRENGTH = {"restarts": 2, "steps": 100, "squares": 1000}
ALONE = {"clean": 0.8, "self-metric": 0.2, "furthest-negative": 0.1, "transfer": 0.3}
ALONE |= {"pattern": 0.6, "square": 0.4}


def member(name: str, mean_ap: float | None) -> dict[str, Any]:
    counts = {"restarts": 1, "queries": 4, "broken": 1, "first": 0, "forward": 1, "backward": 0}
    return {"name": name, "mAP": mean_ap, **counts}


def suite(eps: float = 8, robust: float | None = 0.05, **changed: Any) -> dict[str, Any]:
    worst = {"mAP": robust, "cmc": [0.04, 0.1], "broken": 0.5, "linf_255": eps}
    higher = {**worst, "mAP": None if robust is None else robust + 0.01, "cmc": [0.03, 0.1]}
    return {
        "clean": {"mAP": 0.8, "cmc": [0.9, 1.0]},
        "robust": worst,
        "robust_8bit": higher,
        "members": [member(*pair) for pair in ALONE.items()],
        "suite": {"eps": eps / 255, "broken_rank": 10, "broken_ap": 0.1, **STRENGTH},
        "dataset": DATASET,
        "protocol": PROTOCOL,
        "counts": {"query": 421},
        "model": {"weights": WEIGHTS},
        "warnings": [],
        "suite_findings": [],
        "audit": None,
        **changed,
    }


def evaluation(attack: dict[str, Any] | None = None, attacked: float = 0.5) -> dict[str, Any]:
    ranking = {"mAP": 0.8, "mINP": 0.5, "cmc": [0.9]}
    changed = {**ranking, "mAP": attacked, "linf_255": 8, "psnr": 30, "ssim": 1, "ms_ssim": 1}
    return {
        "evaluation": {
            "clean": ranking,
            "attacked": attack and changed,
            "attacked_8bit": attack and {**changed, "mAP": attacked + 0.1},
            "attack": attack,
            "dataset": DATASET,
            "protocol": {**PROTOCOL, "max_rank": 50},
            "counts": {"query": 421},
            "weights": WEIGHTS,
            "skipped": ["/data/market1501/query/a.jpg"],
        }
    }


def audit(*warnings: str) -> dict[str, Any]:
    prints = {"query": QUERY, "gallery": GALLERY}
    facts = {"dataset": "market1501", "eps": 8 / 255, "weights": WEIGHTS, "fingerprints": prints}
    empty: dict[str, Any] = {"findings": [], "curve": [], "transfer": []}
    return {**empty, "facts": facts, "warnings": list(warnings)}


def manifest(command: str = "autoattack", **options: Any) -> dict[str, Any]:
    chosen = {"data": "market1501:/data/m", "model": "osnet_x0_25:/data/osnet.pth", **options}
    return {
        "command": ["reidguard", command],
        "status": "finished",
        "finished": "2030-01-02T03:04:05+00:00",
        "versions": {"reidguard": "9.8.7"},
        "settings": {"command": command},
        "options": chosen,
        "given": sorted(chosen),
    }


def file(path: Path, result: Any, manifest: Any = None) -> Path:
    content = result if manifest is None else {"manifest": manifest, "result": result}
    path.write_text(json.dumps(content))
    return path


def rows_of(folder: Path, *results: Any) -> Any:
    paths = [file(folder / f"{number}.json", result) for number, result in enumerate(results)]
    return board_rows(read_cards(paths))


def test_columns(tmp_path: Path):
    (row,) = rows_of(tmp_path, suite())
    assert (row.clean_mAP, row.clean_rank1) == (0.8, 0.9)
    assert (row.robust_mAP, row.robust_rank1) == (0.05, 0.03)  # the lower of float and 8-bit
    assert (row.universal, row.per_image, row.by_queries) == (0.6, 0.1, 0.4)
    assert (row.certified, row.warnings, row.audit) == (None, None, "")
    assert (row.level, row.queries, row.query_every) == ("8/255", 421, 8)
    assert (row.by, row.version, row.finished) == ("", "", "")
    assert row.model == WEIGHTS[:8]
    assert row.suite == "2 × 100 steps, 1000 squares"


@pytest.mark.parametrize(
    ("attack", "column"),
    [
        ("DeltaAttack", "universal"),
        ("PluginAttack", "universal"),
        ("SMA", "per_image"),
        ("SquareAttack", "by_queries"),
    ],
)
def test_an_evaluation_under_an_attack_counts_in_its_column(
    tmp_path: Path, attack: str, column: str
):
    measured = evaluation({"name": attack, "eps": 8 / 255}, 0.01)
    (row,) = rows_of(tmp_path, suite(), measured)
    before = {"universal": 0.6, "per_image": 0.1, "by_queries": 0.4, column: 0.01}
    assert {name: getattr(row, name) for name in before} == before
    (_, other) = rows_of(tmp_path, suite(4), measured)  # another ε, another row
    assert other.per_image in (None, 0.01)
    on_gallery = evaluation({"name": attack, "eps": 8 / 255, "side": "gallery"}, 0.01)
    (row,) = rows_of(tmp_path, suite(), on_gallery)
    assert getattr(row, column) > 0.01


def test_what_shares_a_row(tmp_path: Path):
    assert len(rows_of(tmp_path, suite(), suite(8.00001), evaluation(), audit())) == 1
    two = rows_of(tmp_path, suite(), suite(4), evaluation())
    assert [len(row.cards) for row in two] == [2, 2]
    others: list[dict[str, Any]] = [
        {"model": {"weights": "9" * 64}},
        {"dataset": {**DATASET, "query_every": 1}},
        {"dataset": {**DATASET, "fingerprints": {"query": QUERY, "gallery": "9" * 64}}},
        {"protocol": {**PROTOCOL, "flip": True}},
    ]
    for other in others:
        assert len(rows_of(tmp_path, suite(), suite(**other))) == 2
    (row,) = rows_of(tmp_path, suite(robust=0.05), suite(robust=0.02))
    assert row.robust_mAP == 0.02  # the worst case of both
    weaker = {**suite()["suite"], "steps": 10}
    (row,) = rows_of(tmp_path, suite(), suite(suite=weaker))
    assert row.suite == "2 × 100 steps, 1000 squares; 2 × 10 steps, 1000 squares"


def test_rows_are_sorted_by_robust_map(tmp_path: Path):
    weights = iter("456")
    results = [suite(robust=r, model={"weights": next(weights) * 64}) for r in (0.1, None, 0.3)]
    assert [row.robust_mAP for row in rows_of(tmp_path, *results)] == [0.3, 0.1, None]


def test_audits(tmp_path: Path):
    (row,) = rows_of(tmp_path, suite(), audit())
    assert row.audit == "no warning"
    (row,) = rows_of(tmp_path, suite(warnings=["black_box"]), audit("curve"))
    assert row.audit == "warns: black_box, curve"
    (row,) = rows_of(tmp_path, audit("curve"))
    assert (row.audit, row.robust_mAP) == ("warns: curve", None)
    (row,) = rows_of(tmp_path, evaluation(), audit("curve"))
    assert (row.level, row.clean_mAP, row.audit) == ("8/255", 0.8, "warns: curve")


def test_certificates(tmp_path: Path):
    facts = {"model": {"weights": WEIGHTS}, "dataset": {**DATASET, "query_every": 64}}
    certified = {"sigma": 0.1, "radius": 0.2, "rank_1": 0.25, "rank_5": 0.5}
    result = {"certified": certified, "smoothed": {"rank_1": 0.3}, "curve": [], **facts}
    rows = rows_of(tmp_path, suite(), suite(4), result)  # L2, whatever ε
    assert [(row.certified, len(row.cards)) for row in rows] == [(0.25, 2)] * 2
    assert "At an L2 radius of 0.2, by noise of 0.1" in board_page(rows)
    (row,) = rows_of(tmp_path, result)
    assert (row.certified, row.eps, row.robust_mAP) == (0.25, None, None)
    odd = {"sigma": 0.1, "radius": 0.2, "rank_1": 25.0, "mean": 0.1}
    (row,) = rows_of(tmp_path, {**result, "certified": odd, "smoothed": [1]})
    assert row.certified is None
    assert "Certificate" in board_page([row])


def test_who_version_date_and_command_are_those_of_the_card(tmp_path: Path):
    card = file(tmp_path / "a.json", suite(), manifest(by="Ann", eps=8 / 255, out="/home/ann/runs"))
    (row,) = board_rows(read_cards([card]), by="Bob")
    assert (row.by, row.version, row.finished[:10]) == ("Ann", "9.8.7", "2030-01-02")
    command = "reidguard autoattack --data market1501:m --model osnet_x0_25:osnet.pth --eps 8/255"
    assert row.commands == (command,)
    assert row.model == "osnet_x0_25:osnet.pth"
    (row,) = board_rows(read_cards([file(card, suite(), manifest())]), by="Bob")
    assert row.by == "Bob"


def test_text_of_a_card_is_escaped(tmp_path: Path):
    evil = '<img src=x onerror="alert(1)">\x1b[31m\u202e'
    hostile = suite(warnings=[evil], dataset={**DATASET, "name": evil})
    hostile["members"][0] |= {"name": evil, "note": evil}
    told = manifest(by=evil, model=f"{evil}:{evil}")
    told["versions"] = {evil: evil, "reidguard": evil}
    rows = board_rows(read_cards([file(tmp_path / "a.json", hostile, told)]))
    page = board_page(rows)
    assert "&lt;img src=x" in page
    assert "<img" not in page
    assert page.count("<script>") == 1
    assert "script-src 'sha256-" in page
    assert board_table([rows[0]]).to_markdown().count("\x1b") == 0
    formula = board_rows(read_cards([file(tmp_path / "b.json", suite(), manifest(by="=1+1"))]))
    assert "'=1+1" in board_table(formula).to_csv()


def changed(path: str, value: Any) -> Any:
    """A valid card with one value changed; the path's parts are separated by dots."""
    card = copy.deepcopy({"manifest": manifest(), "result": suite()})
    *outer, last = path.split(".")
    place: Any = card
    for name in outer:
        place = place[name]
    place[last] = value
    return card


FOREIGN = [
    [],
    {},
    {"metrics": 3},
    {"evaluation": None},
    {"clean": {"mAP": 0.1, "cmc": [0.1]}},
    {"manifest": {}, "result": suite()},
    {"manifest": manifest("train"), "result": suite()},
    {"manifest": manifest(), "result": None},
    {"manifest": manifest(), "result": [1]},
    {"manifest": manifest(), "result": {**suite(), "robust": 1}},
    {"certified": 1.0},
    {"certified": {}, "model": 3, "dataset": []},
    {"certified": {"sigma": 1, "radius": 1}, "curve": [], "dataset": {"name": "x"}, "model": 3},
    changed("manifest.status", "running"),
    changed("manifest.options", "all"),
    changed("manifest.versions", {"reidguard": {}}),
    changed("result.robust.mAP", 2),
    changed("result.clean.cmc", []),
    changed("result.members", [3]),
    changed("result.warnings", "none"),
    changed("result.dataset", {"name": "x"}),
    changed("result.dataset.name", "x" * 1000),
    changed("result.dataset.query_every", -1),
    changed("result.dataset.fingerprints", ["a"]),
    changed("result.dataset.fingerprints.query", 7),
    changed("result.model", "osnet"),
    changed("result.model.weights", "<b>"),
    changed("result.protocol", "standard"),
    changed("result.counts", {"query": "many"}),
    changed("result.suite.eps", 1e9),
    changed("result.audit", {"warnings": 1}),
]


@pytest.mark.parametrize("content", FOREIGN)
def test_foreign_cards_end_in_one_error(tmp_path: Path, content: Any):
    with pytest.raises(InputError) as error:
        board_rows(read_cards([file(tmp_path / "card.json", content)]))
    assert "card.json" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", '{"mAP": NaN}', "\x00", "[" * 10**5, '{"a":1,"a":2}'])
def test_damaged_files_end_in_one_error(tmp_path: Path, text: str):
    (tmp_path / "card.json").write_text(text)
    for place in (tmp_path, tmp_path / "card.json"):
        with pytest.raises(InputError, match=r"card\.json"):
            read_cards([place])
    with pytest.raises(InputError, match="no file"):
        read_cards([tmp_path / "missing.json"])


def test_odd_values_that_are_only_shown_are_shown(tmp_path: Path):
    told = manifest(model={"a": [1]}, by=7, steps=[["x"]], model_set={"a b": None})
    told["given"] = None
    rows = board_rows(read_cards([file(tmp_path / "a.json", suite(counts={}), told)]))
    assert "measured by 7" in board_page(rows)


def test_a_page_needs_a_row():
    with pytest.raises(InputError, match="at least one card"):
        board_page([])


def test_a_card_that_is_passed_on_names_no_folder(tmp_path: Path):
    told = manifest("attack", out="/home/ann/runs", query="/home/ann/images", by="Ann")
    card = file(tmp_path / "a.json", evaluation(), told)
    write_card(tmp_path / "b.json", read_cards([card])[0])
    text = (tmp_path / "b.json").read_text()
    assert "/" not in text.replace("8/255", "")
    before, after = (read_cards([tmp_path / f"{name}.json"])[0] for name in "ab")
    assert before.figures == after.figures
    assert (after.by, after.command) == ("Ann", before.command)
    with pytest.raises(InputError, match="without the manifest"):
        write_card(tmp_path / "c.json", read_cards([file(tmp_path / "d.json", suite())])[0])


@pytest.mark.parametrize(
    "call",
    [
        "autoattack --data market1501:/d --model osnet_x0_25:/w.pth --eps 4/255 --early-stop",
        "autoattack --data d --model m --eps 0.1 --surrogate s --surrogate-set size=64x32",
        "autoattack --data=-d --model ide --model-set backbone=resnet18 --model-set a='\"true\"'",
        "autoattack --data d --model m --model-set x=8/255 --model-set y=[1,2,3] --image-size 9x3",
        "audit --data d --model m --epsilons 1/255,0.02,8/255 --input bgr,255",
        "evaluate --data d --model m --query-every 8 --flip --query images",
        "attack --data d --model m --attack sma --set steps=15 --set step_size=null",
    ],
)
def test_a_command_is_read_back_as_it_was(call: str):
    options = parse(shlex.split(call))
    assert options is not None
    name = options.command
    told = {"settings": {"command": name}, "options": options.values()}
    again = parse(rerun_command({**told, "given": sorted(options.explicit)})[1:])
    assert again is not None
    assert again.values() == options.values()
    assert again.explicit == options.explicit


@pytest.mark.parametrize(
    ("spec", "short"),
    [
        ("market1501:/data/people/market1501", "market1501:market1501"),
        ("/home/ann/net.xml", "net.xml"),
        ("osnet_x0_25:nets/a.pth", "osnet_x0_25:a.pth"),
        ("runs/robust/model.safetensors", "robust/model.safetensors"),
        (r"C:\nets\a.onnx", "C:a.onnx"),
        ("virtual:plaza?identities=3", "virtual:plaza?identities=3"),
        ("ide", "ide"),
        ("", ""),
    ],
)
def test_shortened(spec: str, short: str):
    assert shortened(spec) == short
