"""The attack keeps reidguard's contract, and runs from the command line and in a grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reidguard_example_attack import NoiseAttack

import reidguard as rg
from reidguard.cli import main
from reidguard.testing import ATTACK_CHECKS, small_dataset, small_model


@pytest.mark.parametrize("check", ATTACK_CHECKS)
def test_contract(check):
    check(NoiseAttack)


def test_from_the_command_line(flat_people: Path, tmp_path: Path):
    model = tmp_path / "model.safetensors"
    small_model().save(model)
    call = [
        "attack",
        "--data",
        f"csv:{flat_people}",
        "--model",
        str(model),
        "--image-size",
        "32x16",
    ]
    call += ["--attack", "example_noise", "--set", "square=2", "--out", str(tmp_path / "run")]
    assert main([*call, "--cache", str(tmp_path / "cache")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))
    assert round(result["evaluation"]["attacked_8bit"]["linf_255"]) == 8
    saved = rg.load_attack(tmp_path / "run" / "attack.safetensors")
    assert isinstance(saved, NoiseAttack)
    assert saved.square == 2


def test_in_a_grid():
    with small_dataset() as people:
        protocol = rg.Protocol(image_size=(32, 16))
        grid = rg.evaluate_grid(
            {"noise": NoiseAttack()}, {"small": small_model()}, {"small": people}, protocol
        )
    assert [(cell.attack, cell.setting) for cell in grid.cells] == [("noise", "knows nothing")]
