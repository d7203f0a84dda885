"""``reidguard certify``."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from reidguard.cli import main
from reidguard.data import load_dataset
from reidguard.evaluation import Protocol, certify
from reidguard.models import load_model

QUICK = ["--sigma", "0.05", "--draws", "20", "--alpha", "0.05", "--ranks", "1,2"]
EVERY = ["--query-every", "16"]


@pytest.fixture(scope="module")
def certified(target, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "certified"
    assert main(["certify", *target, *QUICK, *EVERY, "--out", str(out)]) == 0
    return out


def test_the_result_equals_that_of_the_library(certified, trained, studio_root):
    result = certify(
        load_model(trained / "model.safetensors"),
        load_dataset("virtual", studio_root),
        protocol=Protocol(image_size=(64, 32)),
        sigma=0.05,
        draws=20,
        alpha=0.05,
        ranks=(1, 2),
        query_every=16,
    )
    assert json.loads((certified / "result.json").read_text()) == result.to_dict()
    assert (certified / "result.md").read_text("utf-8").startswith(result.to_markdown())
    assert json.loads((certified / "manifest.json").read_text())["status"] == "finished"


def test_the_curve_is_an_svg_file(certified):
    text = (certified / "curve.svg").read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    assert "Certified accuracy, σ = 0.05" in words
    assert words.count("rank-1") == 2  # in the description and in the legend
    assert len(re.findall(r'<path d="M', text)) == 2


def test_a_gate_on_a_finished_certificate(certified, target, capsys):
    call = ["certify", *target, *QUICK, *EVERY, "--out", str(certified)]
    assert main([*call, "--fail-below", "rank1=100"]) in (0, 3)
    measured = json.loads((certified / "result.json").read_text())["certified"]["rank_1"]
    verdict = json.loads((certified / "verdict.json").read_text())
    assert verdict["metrics"][0]["measured"] == 100 * measured
    assert verdict["passed"] == (measured == 1)
    assert "already finished" in capsys.readouterr().err


def test_errors(target, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # runs that fail leave a folder below it
    assert "certify does not measure it" in refused("certify", *target, "--fail-below", "mAP=5")
    assert "metrics are rank1, rank5, rank10" in refused(
        "certify", *target, "--fail-below", "rank2=5"
    )
    assert "above 0" in refused("certify", *target, "--sigma", "0")
    assert "ranks must rise" in refused("certify", *target, "--ranks", "5,1")
    assert "'a' is not a whole number" in refused("certify", *target, "--ranks", "1,a")
    assert "by itself" in refused("certify", *target, "--rerank", *EVERY)
