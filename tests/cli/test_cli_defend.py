"""``reidguard defend``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reidguard.attacks import SMA, create_attack
from reidguard.cli import main
from reidguard.models import BlurModel, load_model

SHORT = ["--images-per-identity", "4", "--query-every", "4", "--threads", "1"]


@pytest.fixture(scope="session")
def attack_file(target, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("attacks") / "delta"
    cache = ["--cache", str(tmp_path_factory.mktemp("cache"))]
    assert main(["attack", *target, *SHORT, *cache, "--steps", "6", "--out", str(out)]) == 0
    return out / "attack.safetensors"


@pytest.fixture(scope="session")
def call(target, attack_file) -> list[str]:
    return ["defend", *target, *SHORT, "--attack", str(attack_file)]


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]


def test_a_run_folder(call, data, trained, tmp_path, capsys):
    """The paper's defense, from files to files."""
    out = tmp_path / "run"
    meta = ["--meta-data", data[1], "--set", "batch_norm=separate", "--steps", "3"]
    assert main([*call, *meta, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "attacked, 8-bit" in output
    assert "learnt in 3 steps" in output
    assert f"model: {out / 'model.safetensors'}" in output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["settings"]["defense"]["learner"] == "maml"
    assert manifest["settings"]["defense"]["batch_norm"] == "separate"
    assert steps_of(out) == [1, 2, 3]
    robust = load_model(out / "model.safetensors")
    normal = load_model(trained / "model.safetensors")
    x = torch.rand(2, 3, 64, 32)
    assert not torch.equal(robust.features(x), normal.features(x))
    result = json.loads((out / "result.json").read_text())
    assert result["training"]["method"] == "meta"
    assert 0 <= result["evaluation"]["attacked"]["mAP"] <= 1
    assert result["evaluation"]["attack"]["name"] == "DeltaAttack"
    # A finished run is not repeated.
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert main([*call, *meta, "--out", str(out)]) == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "already finished" in capsys.readouterr().err


def test_an_interrupted_run_is_resumed_by_the_same_command(call, tmp_path, monkeypatch, capsys):
    run = [*call, "--defense", "adversarial", "--steps", "5", "--checkpoint-every", "2"]
    assert main([*run, "--out", str(tmp_path / "uninterrupted")]) == 0
    taken = []
    original = torch.optim.Adam.step

    def interrupted(self, closure=None):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(original(self, closure))

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", interrupted)
        assert main([*run, "--out", str(out)]) == 130
    assert "to resume: reidguard defend" in capsys.readouterr().err
    assert main([*run, "--out", str(out)]) == 0
    assert steps_of(out) == [1, 2, 3, 4, 5]
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def test_an_instance_attack_is_measured_on_the_hardened_model(
    target, tmp_path, monkeypatch, capsys
):
    bound = []
    original = SMA.bind

    def spy(self, model, guides=None):
        bound.append(model)
        return original(self, model, guides)

    monkeypatch.setattr(SMA, "bind", spy)
    out = tmp_path / "run"
    call = ["defend", *target, *SHORT, "--defense", "adversarial", "--attack", "sma"]
    options = ["--attack-set", "steps=2", "--eps", "4/255", "--steps", "2"]
    assert main([*call, *options, "--out", str(out)]) == 0
    assert not bound[-1].training
    result = json.loads((out / "result.json").read_text())
    assert result["evaluation"]["attack"]["name"] == "SMA"
    assert result["training"]["defense"]["attack"]["config"]["eps"] == 4 / 255
    assert result["evaluation"]["attacked"]["linf_255"] <= 4.001


def test_goat_has_its_own_attack(target, tmp_path, capsys):
    out = tmp_path / "run"
    call = ["defend", *target, *SHORT, "--defense", "goat", "--eps", "2/255", "--steps", "1"]
    assert main([*call, "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    attack = result["training"]["defense"]["attack"]
    assert (attack["class"], attack["config"]["eps"]) == ("GuideSampling", 2 / 255)
    assert 0 < result["evaluation"]["attacked"]["linf_255"] <= 2.001  # its guides are the gallery


def test_free_training_is_evaluated_against_sma(target, tmp_path, capsys):
    """With averaged weights, and options of the defense from the command line."""
    out = tmp_path / "run"
    call = ["defend", *target, *SHORT, "--defense", "free", "--eps", "2/255", "--steps", "2"]
    options = ["--set", "replays=2", "--set", "awp=0.01", "--ema", "0.9"]
    assert main([*call, *options, "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["training"]["ema"] == 0.9
    assert result["training"]["defense"]["awp"] == 0.01
    assert result["evaluation"]["attack"]["name"] == "SMA"
    assert 1.9 < result["evaluation"]["attacked"]["linf_255"] <= 2.001


def test_a_blur_is_saved_evaluated_and_attacked(target, data, trained, tmp_path, capsys):
    """From files to files, without learning; the attack goes through the blur."""
    out = tmp_path / "run"
    call = ["defend", *target, "--query-every", "4", "--threads", "1", "--defense", "blur"]
    call += ["--set", "sigma=1.5", "--eps", "2/255", "--out", str(out)]
    assert main(call) == 0
    assert "attacked, 8-bit" in capsys.readouterr().out
    robust = load_model(out / "model.safetensors")
    assert isinstance(robust, BlurModel)
    assert (robust.sigma, robust.scale) == (1.5, 0.5)
    x = torch.rand(2, 3, 64, 32)
    normal = load_model(trained / "model.safetensors")
    assert torch.equal(robust.features(x), normal.features(robust.transform(x)))
    result = json.loads((out / "result.json").read_text())
    assert result["training"]["method"] == "blur"
    assert result["evaluation"]["attack"]["name"] == "SMA"
    assert 1.9 < result["evaluation"]["attacked"]["linf_255"] <= 2.001
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert main(call) == 0
    assert "already finished" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == before

    saved = [*data, "--model", str(out / "model.safetensors"), *target[-2:], "--threads", "1"]
    measured = tmp_path / "measured"
    assert main(["evaluate", *saved, "--query-every", "4", "--out", str(measured)]) == 0
    again = json.loads((measured / "result.json").read_text())
    assert again["evaluation"]["clean"] == result["evaluation"]["clean"]
    options = ["--attack", "delta", "--steps", "2", "--images-per-identity", "4"]
    learnt = tmp_path / "attack"
    assert main(["attack", *saved, *options, "--query-every", "4", "--out", str(learnt)]) == 0
    assert (learnt / "attack.safetensors").is_file()


def test_a_blur_takes_no_options_of_learning(target, data, refused):
    call = ["defend", *target, "--defense", "blur"]
    assert "learns nothing: leave --lr, --steps out" in refused(*call, "--steps", "2", "--lr", "1")
    assert "leave --meta-data out" in refused(*call, "--meta-data", data[1])
    assert "--set: " in refused(*call, "--set", "colour=red")
    assert "sigma" in refused(*call, "--set", "sigma=-1")


def test_errors_say_how_to_correct_the_call(call, target, data, attack_file, refused, tmp_path):
    bare = ["defend", *target]
    plain = ["--defense", "adversarial"]
    assert "--meta-data" in refused(*call)
    assert "leave --meta-data out" in refused(*call, *plain, "--meta-data", data[1])
    assert "--attack FILE" in refused(*bare)
    assert "must be learnt first, with: reidguard attack --attack delta" in refused(
        *bare, "--attack", "delta"
    )
    assert "did you mean 'meta'" in refused(*call, "--defense", "metta")
    assert "did you mean 'sma'" in refused(*bare, "--attack", "smaa")
    assert "leave --eps out" in refused(*call, "--eps", "4/255")
    assert "--set: " in refused(*call, *plain, "--set", "colour=red")
    assert "write --attack FILE" in refused(*call, *plain, "--set", "attack=sma")
    assert "give --attack NAME" in refused(*bare, "--attack-set", "steps=2")
    assert "batch_norm must be" in refused(*call, *plain, "--set", "batch_norm=own")
    create_attack("delta", size=(64, 32)).save(tmp_path / "blank.safetensors")
    blank = [*bare, *plain, "--attack", str(tmp_path / "blank.safetensors"), "--steps", "1"]
    assert "learnt nothing yet" in refused(*blank, "--out", str(tmp_path / "run"))


def test_list(capsys):
    assert main(["list", "defenses"]) == 0
    output = capsys.readouterr().out
    for name in ("adversarial", "goat", "meta", "meta_released", "mixed"):
        assert f"\n{name} " in f"\n{output}"
