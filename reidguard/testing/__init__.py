"""Contract suites: what a plugin must hold, for its author's own tests."""

from reidguard.testing.attacks import ATTACK_CHECKS, AttackFactory, check_identity

__all__ = ["ATTACK_CHECKS", "AttackFactory", "check_identity"]
