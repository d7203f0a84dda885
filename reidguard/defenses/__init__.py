"""Defenses: what makes a model robust. Only their contract stands yet."""

from reidguard.defenses.base import DEFENSES, Defense

__all__ = ["DEFENSES", "Defense"]
