"""The attack keeps reidguard's contract, bound to a small model, and more trials move further."""

from __future__ import annotations

import pytest
import torch
from reidguard_example_instance_attack import TrialsAttack

from reidguard import Budget, InputSpec, wrap_model
from reidguard.testing import ATTACK_CHECKS


@pytest.fixture
def model():
    return wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(8, 4)))


@pytest.mark.parametrize("check", ATTACK_CHECKS)
def test_contract(check, model):
    check(lambda budget: TrialsAttack(budget, trials=2).bind(model))


def test_more_trials_move_further(model):
    x = torch.randint(0, 256, (3, 3, 8, 4), generator=torch.Generator().manual_seed(0)) / 255

    def moved(trials: int) -> torch.Tensor:
        attack = TrialsAttack(Budget(8 / 255), trials).bind(model)
        return (model.features(attack(x)) - model.features(x)).norm(dim=1)

    assert bool((moved(16) >= moved(2)).all())
    assert bool((moved(16) > moved(2)).any())
