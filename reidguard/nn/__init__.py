"""Functional calls, inference views, batch norm and cheap second derivatives on torch."""

from reidguard.nn.modes import inference_view

__all__ = ["inference_view"]
