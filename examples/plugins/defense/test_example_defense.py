"""The defense keeps reidguard's contract."""

from __future__ import annotations

import pytest
from reidguard_example_defense import RoundedWeights

from reidguard.testing import DEFENSE_CHECKS


@pytest.mark.parametrize("check", DEFENSE_CHECKS)
def test_contract(check):
    check(RoundedWeights().fit)
