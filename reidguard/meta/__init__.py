"""Learners: how an attack or a model learns from its batches."""

from reidguard.meta.base import LEARNERS, MetaLearner, Objective, StepResult
from reidguard.meta.plain import PlainLearner

__all__ = ["LEARNERS", "MetaLearner", "Objective", "PlainLearner", "StepResult"]
