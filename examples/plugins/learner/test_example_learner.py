"""The learner keeps reidguard's contract, and its gradient has the bounded norm."""

from __future__ import annotations

import pytest
import torch
from reidguard_example_learner import ClippedLearner

from reidguard.testing import LEARNER_CHECKS


@pytest.mark.parametrize("check", LEARNER_CHECKS)
def test_contract(check):
    check(ClippedLearner)


def test_the_norm_is_bounded():
    layer = torch.nn.Linear(4, 1)
    ClippedLearner(norm=0.5).step(layer, lambda m, x: (1000 * m(x)).sum(), torch.ones(3, 4))
    norm = torch.cat([p.grad.flatten() for p in layer.parameters()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-3)
