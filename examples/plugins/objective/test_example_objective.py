"""The loss is the cosine, and an attack learns by it under its registered name."""

from __future__ import annotations

import pytest
import torch
from reidguard_example_objective import OppositeFeatures

from reidguard import DeltaAttack, Protocol, evaluate
from reidguard.testing import small_dataset, small_model

SIZE = (32, 16)


def test_values():
    clean = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    pids = torch.tensor([1, 2])
    loss = OppositeFeatures()
    assert float(loss(3 * clean, clean, pids)) == pytest.approx(1)
    assert float(loss(-clean, clean, pids)) == pytest.approx(-1)
    assert float(loss(clean.flip(0), clean, pids)) == pytest.approx(0)


def test_an_attack_learns_by_it():
    with small_dataset() as people:
        model = small_model(people.num_train_pids)
        attack = DeltaAttack(size=SIZE)
        few = {"identities": 4, "images_per_identity": 2, "image_size": SIZE}
        attack.fit(model, people, objective="example_opposite", steps=3, **few)
        result = evaluate(model, people, attack, Protocol(image_size=SIZE))
    assert 0 < result.attacked.linf <= 8 / 255 + 1e-6
