"""Learners: how an attack or a model learns from its batches."""

from reidguard.learners.base import LEARNERS, MetaLearner, Objective, StepResult
from reidguard.learners.first_order import FirstOrderLearner
from reidguard.learners.hessian_free import HessianFreeLearner
from reidguard.learners.maml import MAMLLearner
from reidguard.learners.plain import JointLearner, PlainLearner

__all__ = [
    "LEARNERS",
    "FirstOrderLearner",
    "HessianFreeLearner",
    "JointLearner",
    "MAMLLearner",
    "MetaLearner",
    "Objective",
    "PlainLearner",
    "StepResult",
]
