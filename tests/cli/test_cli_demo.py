"""The demo, on so few identities that its metrics mean nothing."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import reidguard
from reidguard.attacks import MetaAttack, load_attack
from reidguard.cli import main
from reidguard.cli.commands import demo
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, evaluate
from reidguard.models import load_model

TINY = demo.Plan(
    networks=(
        demo.Network("ResNet", "ide", {"backbone": "test_resnet"}, 4, 1e-3),
        demo.Network("OSNet", "osnet_x0_25", {}, 2, 1e-3),
    ),
    train_identities=4,
    meta_identities=4,
    test_identities=3,
    cameras=2,
    images_per_camera=2,
    size=(64, 32),
    identities=4,
    images_per_identity=2,
    attack_steps=2,
)
SETTINGS = ["source", "cross-dataset", "cross-model", "cross-model & dataset"]
NETWORKS = [f"{domain}-{name}" for name in ("resnet", "osnet") for domain in ("plaza", "campus")]


def call(out: Path, *more: str) -> int:
    return main(["demo", "--out", str(out), *more])


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "PLAN", TINY)
        yield patch


@pytest.fixture(scope="module")
def finished(patched, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    assert call(out) == 0
    return out


@pytest.fixture
def html(finished) -> str:
    return (finished / "demo.html").read_text("utf-8")


class Reader(HTMLParser):
    """Tags in order, with their attributes; fails on tags that do not match."""

    VOID = ("meta", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_last_line_names_the_page(finished, patched, capsys):
    """A second call computes nothing, and prints the same."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert call(finished) == 0
    output = capsys.readouterr()
    last = output.out.splitlines()[-1]
    assert last == f"page: {(finished / 'demo.html').resolve()}"
    assert "already finished" in output.err
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    changed = {path.name for path in before if before[path] != after.get(path)}
    assert changed <= {".lock"}


def test_each_step_is_logged(finished):
    lines = (finished / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, TINY.attack_steps + 1)]
    assert len(list((finished / "models").glob("*.jsonl"))) == 4


def cells(row: str, pattern: str) -> list[str]:
    return [unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in re.findall(pattern, row)]


def test_tables_show_the_metrics_of_result_json(finished, patched, html, capsys):
    result = json.loads((finished / "result.json").read_text("utf-8"))
    settings = [cell["setting"] for cell in result["cells"]]
    assert settings == [*SETTINGS, *["knows nothing"] * 4]
    expected, on_page = [], []
    for cell in result["cells"]:
        for name, key in (
            ("clean", "clean"),
            ("attacked, float", "attacked"),
            ("attacked, 8-bit", "attacked_8bit"),
        ):
            metrics = cell["evaluation"][key]
            rates = [metrics["mAP"], metrics["cmc"][0], metrics["mINP"]]
            percents = [f"{100 * rate:.1f}" for rate in rates]
            quality = [f"{metrics.get('linf_255', 0):.2f}", f"{metrics.get('ssim', 1):.3f}"]
            on_page.append([name, *percents, *quality])
            drop = {"attacked": cell["drop"], "attacked_8bit": cell["drop_8bit"]}.get(key)
            rate = "-" if drop is None else f"{100 * drop:.1f}"
            quality[0] = "0" if key == "clean" else quality[0]
            labels = [cell["setting"], cell["model"], cell["dataset"], name]
            expected.append([*labels, *percents, *quality, rate])
    shown = [
        cells(row, r"<t[hd][^>]*>.*?</t[hd]>") for row in re.findall(r"<tr[^>]*>.*?</tr>", html)
    ]
    table = [row[-7:] for row in shown if len(row) >= 7][1:]  # it has rank-5, too
    assert sorted([row[i] for i in (0, 1, 2, 4, 5, 6)] for row in table) == sorted(on_page)
    labels = [row[0] for row in shown if len(row) == 8]
    for cell in result["cells"][: len(SETTINGS)]:
        label = f"{cell['setting']}{cell['model']}, {cell['dataset']}MetaAttack, ε = 8/255"
        assert label in labels
    assert call(finished) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    of_attack = [row for row in rows if row[0] in SETTINGS]
    assert of_attack == [row for row in expected if row[0] in SETTINGS]


def test_metrics_can_be_measured_again_from_the_saved_files(finished):
    """The files give the metrics of result.json."""
    result = json.loads((finished / "result.json").read_text("utf-8"))
    attack = load_attack(finished / "attack.safetensors")
    for cell, name in zip(result["cells"], [*NETWORKS, *NETWORKS], strict=True):
        if cell["attack"] != "MetaAttack":
            continue
        model = load_model(finished / "models" / f"{name}.safetensors")
        people = load_dataset("virtual", finished / "people" / cell["dataset"])
        again = evaluate(model, people, attack, Protocol(image_size=TINY.size)).to_dict()
        for key in ("clean", "attacked", "attacked_8bit"):
            assert again[key] == cell["evaluation"][key]
        assert 0 < cell["evaluation"]["attacked_8bit"]["linf_255"] <= 8


def test_training_and_test_identities_are_disjoint(finished):
    for domain in TINY.domains:
        people = load_dataset("virtual", finished / "people" / domain)
        assert not {s.pid for s in people.train} & {s.pid for s in people.query}
    facts = load_attack(finished / "attack.safetensors").provenance
    assert facts["learner"] == "maml"
    assert facts["meta_train"]["name"] == "virtual:plaza"
    assert facts["meta_test"]["name"] == "virtual:station"


def test_every_picture_is_there(finished, html):
    alts = [attributes["alt"] for tag, attributes in Reader(html).tags if tag == "img"]
    cells = json.loads((finished / "result.json").read_text("utf-8"))["cells"]
    correct = [
        round(c["evaluation"]["clean"]["cmc"][0] * 6) for c in cells
    ]  # of 3 people × 2 cameras
    assert sum("colour cube" in alt for alt in alts) == 6
    assert sum("additive pattern" in alt for alt in alts) == 1
    assert sum(alt.endswith(": clean") for alt in alts) == 3
    assert sum("adversarial" in alt for alt in alts) == 3
    # Two queries of each cell that are lost and two that are not, once before and once after.
    lists = sum(alt.startswith("query") for alt in alts)
    assert 2 * sum(min(2, n) for n in correct) <= lists <= 2 * sum(min(4, n) for n in correct)
    assert lists > 0
    first, last = (sum(alt.startswith(f"rank {n},") for alt in alts) for n in (1, 8))
    assert first == last == lists


def test_the_page_is_complete_and_needs_no_network(html):
    reader = Reader(html)
    assert html.startswith("<!DOCTYPE html>")
    assert "://" not in html
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object"}
    images = [attributes for tag, attributes in reader.tags if tag == "img"]
    for attributes in images:
        assert attributes["alt"]
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", attributes["src"]).groups()
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert image.format == kind.upper()
    assert sum(tag == "h1" for tag, _ in reader.tags) == 1
    assert dict(reader.tags)["html"]["lang"] == "en"


@pytest.mark.slow
def test_an_interrupted_demo_is_resumed(finished, patched, tmp_path, monkeypatch, capsys):
    """Ctrl-C while the attack learns; finished models are not trained again."""
    out = tmp_path / "run"

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetaAttack, "fit", interrupt)
        assert call(out) == 130
    errors = capsys.readouterr().err
    assert re.search(r"^1/9 rendering plaza: images (\d+)/\1, ", errors, re.MULTILINE)
    assert re.search(r"^4/9 training ResNet on plaza: \w+ 4/4, ", errors, re.MULTILINE)
    assert "to resume: reidguard demo --out" in errors
    assert not (out / "demo.html").exists()

    def train_again(*_, **__):
        raise AssertionError("the models exist already")

    monkeypatch.setattr(reidguard, "train_model", train_again)
    assert call(out) == 0
    capsys.readouterr()
    expected, resumed = (
        [cell["evaluation"]["attacked"] for cell in json.loads(text)["cells"]]
        for text in ((f / "result.json").read_text("utf-8") for f in (finished, out))
    )
    assert resumed == expected


def test_other_settings_are_refused(finished, patched, capsys):
    assert call(finished, "--seed", "1") == 2
    assert "other settings (seed: 0 stored, 1 now)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_demo(tmp_path):
    """All networks retrieve people, and the attack hurts at least the one that it was learnt on."""
    assert call(tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    for cell in result["cells"]:
        assert cell["evaluation"]["clean"]["cmc"][0] >= 0.6
        assert 7 < cell["evaluation"]["attacked_8bit"]["linf_255"] <= 8
        assert cell["evaluation"]["attacked"]["linf_255"] <= 8 + 1e-3
    source = result["cells"][0]["evaluation"]
    assert source["attacked_8bit"]["mAP"] < 0.6 * source["clean"]["mAP"]
