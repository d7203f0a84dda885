"""The attack keeps reidguard's contract."""

from __future__ import annotations

import pytest
from reidguard_example_universal_attack import TintAttack

from reidguard.testing import ATTACK_CHECKS, check_identity


@pytest.mark.parametrize("check", [*ATTACK_CHECKS, check_identity])
def test_contract(check):
    check(TintAttack)
