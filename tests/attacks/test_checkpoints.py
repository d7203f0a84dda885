"""Files of attacks: the golden one keeps loading, hostile ones are refused."""

import sys
from pathlib import Path

import pytest
import torch

from reidguard.attacks import CombinatorialAttack, DeltaAttack, load_attack
from reidguard.errors import CheckpointError, RegistryError
from reidguard.storage import save_tensors
from reidguard.types import Budget

GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_golden_attack_keeps_loading(monkeypatch):
    monkeypatch.syspath_prepend(str(GOLDEN))
    from make_golden import golden_attack

    sys.modules.pop("make_golden")
    loaded = load_attack(GOLDEN / "attack_schema1.safetensors")
    expected = golden_attack()
    assert isinstance(loaded, CombinatorialAttack)
    assert loaded.budget == Budget(16 / 255)
    assert loaded.stacked
    assert loaded.size == (4, 2)
    assert loaded.provenance == {"learner": "plain", "steps": 100, "seed": 0}
    x = torch.linspace(0, 1, 24).view(1, 3, 4, 2)
    assert torch.equal(loaded(x), expected(x))
    # the first node is black: its offset (-8, …)/256 is clipped at 0 by the colour stage
    assert loaded.color.offset[0, 0, 0, 0] == -8 / 256


def test_another_kind_of_file_is_refused(tmp_path):
    save_tensors(tmp_path / "model", {"a": torch.ones(1)}, {"kind": "model", "name": "ide"})
    with pytest.raises(CheckpointError, match="of kind 'model', where 'attack' is needed"):
        load_attack(tmp_path / "model")


def test_an_attack_of_a_missing_plugin_names_it(tmp_path):
    card = {"kind": "attack", "name": "deltta", "config": {}}
    save_tensors(tmp_path / "attack", {}, card)
    with pytest.raises(RegistryError, match="did you mean 'delta'"):
        load_attack(tmp_path / "attack")


def test_tensors_of_another_shape_are_refused(tmp_path):
    attack = DeltaAttack(size=(4, 2))
    card = {**attack.card(), "config": {"eps": 8 / 255, "size": [8, 4]}}
    save_tensors(tmp_path / "attack", attack.state_dict(), card)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_attack(tmp_path / "attack")


@pytest.mark.parametrize("config", [{}, {"eps": 99.0, "size": [4, 2]}, {"eps": 0.1, "x": 1}])
def test_a_hostile_card_is_refused(tmp_path, config):
    attack = DeltaAttack(size=(4, 2))
    save_tensors(tmp_path / "attack", attack.state_dict(), {**attack.card(), "config": config})
    with pytest.raises(CheckpointError, match="does not fit"):
        load_attack(tmp_path / "attack")


def test_values_that_are_not_finite_are_refused(tmp_path):
    attack = DeltaAttack(size=(4, 2))
    attack.delta.data[0, 0, 0, 0] = float("nan")
    attack.save(tmp_path / "attack")
    with pytest.raises(CheckpointError, match="not finite"):
        load_attack(tmp_path / "attack")


def test_an_attack_that_hides_an_argument_says_so(tmp_path):
    class Forgetful(DeltaAttack):
        def __init__(self, budget=None, secret=1):
            super().__init__(budget, (4, 2))

    with pytest.raises(CheckpointError, match="keep each constructor argument"):
        Forgetful().config()


def test_an_unregistered_attack_cannot_be_saved_in_silence(tmp_path):
    class Stranger(DeltaAttack):
        pass

    with pytest.raises(RegistryError, match="register it first"):
        Stranger(size=(4, 2)).save(tmp_path / "attack")
