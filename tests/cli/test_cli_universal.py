"""The universal baselines from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import alexnet

from reidguard.attacks import load_attack
from reidguard.cli import main
from reidguard.storage import read_card

SHORT = ["--steps", "1", "--query-every", "16"]


def learn(target: list[str], out: Path, *options: str) -> dict[str, Any]:
    assert main(["attack", *target, *SHORT, *options, "--out", str(out)]) == 0
    facts: dict[str, Any] = read_card(out / "attack.safetensors")["training"]
    return facts


def test_uap_takes_its_own_loss_or_that_of_the_option(target: list[str], tmp_path: Path) -> None:
    own = learn(target, tmp_path / "own", "--attack", "uap")
    assert (own["objective"], own["momentum"]) == ("pairwise", 1.0)
    chosen = learn(target, tmp_path / "sma", "--attack", "uap", "--objective", "self_metric")
    assert chosen["objective"] == "self_metric"
    delta = learn(target, tmp_path / "delta", "--attack", "delta")
    assert (delta["objective"], delta["momentum"]) == ("misranking", 0.5)


def test_input_diversity_is_an_option_of_learning(target: list[str], tmp_path: Path) -> None:
    facts = learn(target, tmp_path / "diverse", "--attack", "delta", "--diversity", "0.7")
    assert facts["diversity"] == 0.7
    manifest = json.loads((tmp_path / "diverse" / "manifest.json").read_text("utf-8"))
    assert manifest["settings"]["recipe"]["diversity"] == 0.7
    plain = learn(target, tmp_path / "plain", "--attack", "delta")
    assert plain.get("diversity", 0.0) == 0.0


def test_options_for_transfer_are_options_of_learning(
    target: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shift", "4", "--scales", "2", "--admix", "0.2", "--aggregate", "2", "--nesterov"]
    facts = learn(target, tmp_path / "run", "--attack", "delta", *options)
    names = ("shift", "scales", "admix", "aggregate", "nesterov")
    assert [facts[name] for name in names] == [4, 2, 0.2, 2, True]
    assert main(["attack", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in names)


def test_a_search_by_queries_has_no_learner(
    target: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--attack", "universal_square", "--set", "queries=300", "--set", "feedback=ranks"]
    command = ["attack", *target, *search, "--query-every", "16", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    facts = read_card(tmp_path / "run" / "attack.safetensors")["training"]
    assert (facts["feedback"], facts["queries"]) == ("ranks", 256)
    assert main([*command, "--learner", "maml"]) == 2
    assert "leave out --learner" in capsys.readouterr().err


def test_misrank_takes_its_own_recipe(target: list[str], tmp_path: Path) -> None:
    options = ["--attack", "misrank", "--set", "width=1", "--set", "pixels=100"]
    facts = learn(target, tmp_path / "misrank", *options)
    assert (facts["objective"], facts["lr"], facts["images_per_identity"]) == ("misrank", 2e-4, 4)
    assert (facts["identities"], facts["learner"]) == (8, "plain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner", "maml"], "not 'maml'"),
        (["--objective", "pairwise"], "unknown option 'objective'"),
        (["--diversity", "0.5"], "unknown option 'diversity'"),
    ],
)
def test_misrank_refuses_other_recipes(
    options: list[str], message: str, target: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    other = ["--meta-data", target[1]]
    call = ["attack", *target, *other, *SHORT, "--attack", "misrank", "--set", "width=1", *options]
    assert message in refused(*call, "--out", str(tmp_path / "run"))


def test_lpips_with_files_of_the_user(
    target: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    weights = alexnet(weights=None).state_dict()
    torch.save({k: v for k, v in weights.items() if "features" in k}, tmp_path / "alexnet.pth")
    counts = (64, 192, 384, 256, 256)
    lines = {f"lin{i}.model.1.weight": torch.ones(1, n, 1, 1) for i, n in enumerate(counts)}
    torch.save(lines, tmp_path / "lines.pth")
    files = f"{tmp_path / 'alexnet.pth'}:{tmp_path / 'lines.pth'}"
    call = ["attack", *target[:-1], "64x64", *SHORT, "--set", "size=64x32"]  # of --image-size
    assert main([*call, "--lpips", files, "--out", str(tmp_path / "run")]) == 0
    evaluation = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["evaluation"]
    assert evaluation["attacked"]["lpips"] > 0
    assert "| LPIPS |" in (tmp_path / "run" / "result.md").read_text("utf-8")
    wrong = f"{tmp_path / 'lines.pth'}:{tmp_path / 'lines.pth'}"
    assert "neither AlexNet nor VGG-16" in refused(*call, "--lpips", wrong)


def test_a_fixed_pattern_is_evaluated_without_learning(
    target: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    call = ["attack", *target, "--attack", "pattern", "--set", "kind=stripes"]
    assert main([*call, "--set", "period=8", "--out", str(tmp_path / "run")]) == 0
    attack = load_attack(tmp_path / "run" / "attack.safetensors")
    assert (attack.kind, attack.period, attack.size) == ("stripes", 8.0, (64, 32))
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert result["evaluation"]["attack"]["name"] == "PatternAttack"
    assert result["evaluation"]["attacked"]["linf_255"] == pytest.approx(8, abs=1e-3)
    assert "learns nothing: leave out --steps" in refused(*call, "--steps", "3")
    assert "needs no --surrogate" in refused(*call, "--surrogate", "osnet_x0_25")
    assert "did you mean 'stripes'" in refused(*call, "--set", "kind=stripe")


def test_several_surrogates_and_meta_learning_over_them(
    target: list[str], trained: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    file = str(trained / "model.safetensors")
    several = ["--surrogate", file, "--surrogate", file]
    over = ["--ensemble", "left_out", "--learner", "first_order"]
    facts = learn(target, tmp_path / "over", *several, *over)
    assert (facts["ensemble"], facts["learner"]) == ("left_out", "first_order")
    manifest = json.loads((tmp_path / "over" / "manifest.json").read_text("utf-8"))
    assert len(manifest["settings"]["surrogate"]["models"]) == 3  # the ensemble and its members
    config = tmp_path / "run.toml"
    config.write_text(f'surrogate = ["{file}", "{file}"]\nensemble = "loss"\n', encoding="utf-8")
    assert learn(target, tmp_path / "loss", "--config", str(config))["ensemble"] == "loss"
    call = ["attack", *target, *SHORT, "--out", str(tmp_path / "no")]
    assert "leave it out, or use fit" in refused(*call, *several, "--surrogate-input", "255")
    assert "two surrogates or more" in refused(
        *call, "--surrogate", file, "--surrogate", file, "--ensemble", "left_out"
    )


def test_a_loss_inside_the_network_and_its_layer(
    target: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    options = ["--objective", "dispersion", "--objective-set"]
    facts = learn(target, tmp_path / "run", *options, "layer=backbone.layer1")
    assert facts["objective"] == "dispersion"
    assert facts["objective_options"] == {"layer": "backbone.layer1"}
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    expected = ["dispersion", {"layer": "backbone.layer1"}]
    assert manifest["settings"]["recipe"]["objective"] == expected
    call = ["attack", *target, *SHORT, "--out", str(tmp_path / "no")]
    assert "backbone.layer1" in refused(*call, *options, "layer=conv9")
    assert "it takes: margin" in refused(*call, "--objective-set", "layer=conv9")
