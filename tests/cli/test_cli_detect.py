"""``reidguard detect``."""

import json

from reidguard.attacks import SMA
from reidguard.cli import main
from reidguard.data import load_dataset
from reidguard.detection import AdaptiveSMA
from reidguard.evaluation import Protocol, detection_scores
from reidguard.models import load_model

EVERY = ["--query-every", "16"]


def test_the_result_equals_that_of_the_library(target, trained, studio_root, tmp_path, capsys):
    out = tmp_path / "detection"
    call = ["detect", *target, *EVERY, "--attack-set", "steps=2", "--adaptive", "--out", str(out)]
    assert main(call) == 0
    result = detection_scores(
        load_model(trained / "model.safetensors"),
        load_dataset("virtual", studio_root),
        {"SMA": SMA(steps=2), "AdaptiveSMA": AdaptiveSMA()},
        protocol=Protocol(image_size=(64, 32)),
        query_every=16,
    )
    assert json.loads((out / "result.json").read_text()) == result.to_dict()
    printed = capsys.readouterr().out
    assert result.to_markdown() in printed
    assert main(call) == 0
    assert "already finished" in capsys.readouterr().err


def test_errors(target, refused):
    assert "must be learnt first" in refused("detect", *target, "--attack", "delta")
    assert "did you mean 'sma'" in refused("detect", *target, "--attack", "smaa")
    assert "by itself" in refused("detect", *target, "--rerank")
