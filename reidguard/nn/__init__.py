"""Functional calls, module modes and cheap second derivatives on torch."""

from reidguard.nn.modes import frozen

__all__ = ["frozen"]
