"""``reidguard report``: whose pictures are on the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from reidguard.cli import main
from reidguard.models import create_model
from reidguard.virtual import write_virtual

SIZES = {"train_identities": 2, "test_identities": 3, "cameras": 2, "images_per_camera": 2}
PEOPLE = ("query", "rank ", "person ")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """The same attack on the same images, of which one folder is not marked as virtual."""
    root = tmp_path_factory.mktemp("report")
    crowd = write_virtual(root / "drawn", height=64, **SIZES)
    for query in sorted((crowd / "query").iterdir()):  # so that a fresh network finds everybody
        pid, camera = query.name[:4], 3 - int(query.name[6])
        shutil.copy(query, crowd / "bounding_box_test" / f"{pid}_c{camera}s1_999999_00.png")
    marker = json.loads((crowd / "virtual.json").read_text())
    marker["images"]["gallery"] += 6
    (crowd / "virtual.json").write_text(json.dumps(marker))
    shutil.copytree(crowd, root / "real", ignore=shutil.ignore_patterns("virtual.json"))
    torch.manual_seed(0)
    create_model("ide", backbone="test_resnet", size=(64, 32)).save(root / "model.safetensors")
    for name, reader in (("drawn", "virtual"), ("real", "market1501")):
        call = ["attack", "--data", f"{reader}:{root / name}", "--image-size", "64x32"]
        call += ["--model", str(root / "model.safetensors"), "--attack", "combinatorial"]
        call += ["--steps", "2", "--identities", "2", "--images-per-identity", "2"]
        assert (
            main([*call, "--cache", str(root / "cache"), "--out", str(root / f"run-{name}")]) == 0
        )
    return {name: root / f"run-{name}" for name in ("drawn", "real")}


@pytest.fixture
def report(tmp_path, capsys):
    def call(*arguments: object) -> str:
        out = tmp_path / "page.html"
        assert main(["report", *map(str, arguments), "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"page: {out.resolve()}\n"
        return out.read_text("utf-8")

    return call


def shown(html: str) -> tuple[list[str], list[str]]:
    """Alt texts of pictures of people, and of others."""
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
    people = [alt for alt in alts if alt.startswith(PEOPLE)]
    return people, [alt for alt in alts if alt not in people]


def test_virtual_people_are_shown(runs, report):
    html = report(runs["drawn"])
    people, others = shown(html)
    assert sum(alt.startswith("query") for alt in people) >= 2
    assert sum(alt.startswith("rank 1,") for alt in people) >= 2
    assert sum(alt.endswith(": clean") for alt in people) == 3
    assert sum("colour cube" in alt for alt in others) == 6
    assert "6 of 6 queries have a correct rank-1 match before the attack." in html
    assert re.search(r"Of 6 of them, evenly spaced, \d keep it under attack\.", html)
    assert "Rank-1 match lost" in html or "Rank-1 match kept" in html
    assert "://" not in html.replace("virtual:/", "")
    assert "<script" not in html
    assert html.count("<svg") >= 2  # the curve of learning and its legend


def test_a_defense_is_shown_beside_the_normal_model(runs, report, tmp_path, capsys):
    root = runs["drawn"].parent
    call = ["--data", f"virtual:{root / 'drawn'}", "--image-size", "64x32", "--steps", "4"]
    call += ["--model", str(root / "model.safetensors"), "--cache", str(root / "cache")]
    call += ["--identities", "2", "--images-per-identity", "2"]
    strong = ["attack", *call, "--set", "size=64x32", "--eps", "200/255", "--lr", "200/255"]
    assert main([*strong, "--out", str(tmp_path / "strong")]) == 0
    weak = ["defend", *call, "--attack", str(tmp_path / "strong" / "attack.safetensors"),
            "--defense", "adversarial", "--set", 'losses=["triplet"]']  # fmt: skip
    assert main([*weak, "--out", str(tmp_path / "robust")]) == 0
    capsys.readouterr()
    html = report(tmp_path / "robust")
    titles = re.findall(r"<p>(Before the attack|After the attack|After the defense): person", html)
    assert len(titles) >= 3
    assert titles == ["Before the attack", "After the attack", "After the defense"] * (
        len(titles) // 3
    )
    summary = re.search(
        r"Of (\d+) of them, .* (\d+) keep .* with the hardened model, (\d+) with the normal", html
    )
    before, hardened, normal = map(int, summary.groups())
    result = json.loads((tmp_path / "robust" / "result.json").read_text("utf-8"))["evaluation"]
    rank1 = result["attacked_8bit"]["cmc"][0]
    assert before == 6  # all queries have a correct rank-1 match before
    assert hardened == round(6 * rank1)
    assert normal < 6
    first = html.split("After the defense: person", 1)[1].split('<li class="', 3)[2]
    kind = "correct" if "Rank-1 match kept by the defense" in html else "wrong"
    assert first.startswith(kind)


def test_real_people_are_shown_only_with_an_option(runs, report):
    html = report(runs["real"])
    people, others = shown(html)
    assert people == []
    assert others  # the learnt perturbation shows no people
    assert "--blur shows them as blocks of colour" in html
    blurred, _ = shown(report(runs["real"], "--blur"))
    plain, _ = shown(report(runs["real"], "--images"))
    assert blurred
    # Adversarial images as they are would show people as they are.
    assert not [alt for alt in blurred if alt.startswith("person")]
    assert [alt for alt in plain if alt.startswith("person")]


def test_blurred_people_are_32_blocks_of_colour():
    from reidguard.report import thumbnail

    image = Image.effect_noise((64, 128), 80).convert("RGB")
    blocks = image.resize((4, 8), Image.Resampling.BOX).resize((64, 128), Image.Resampling.NEAREST)
    assert thumbnail(image, True).tobytes() == thumbnail(blocks, True).tobytes()
    assert thumbnail(image, False).tobytes() == image.tobytes()


def test_no_images_at_all(runs, report):
    html = report(runs["drawn"], "--no-images")
    assert "<img" not in html
    assert "<svg" in html


def test_a_page_where_the_data_is_missing(runs, report, tmp_path, capsys):
    """The run exists, its images do not: everything else is shown."""
    moved = tmp_path / "run"
    moved.mkdir()
    for name in ("manifest.json", "result.json", "attack.safetensors"):
        content = (runs["drawn"] / name).read_bytes()
        (moved / name).write_bytes(content.replace(b"/drawn", b"/dr0wn"))
    html = report(moved)
    assert "data is not available" in html
    assert shown(html)[0] == []
    assert "colour cube" in html


def test_errors(runs, refused, tmp_path):
    assert "not a run folder" in refused("report", tmp_path)
    assert "exclusive" in refused("report", runs["drawn"], "--blur", "--images")
    assert "given twice" in refused("report", runs["drawn"], runs["drawn"])
