"""Learners: how an attack or a model learns from its batches."""

from reidguard.meta.base import LEARNERS, MetaLearner, Objective, StepResult
from reidguard.meta.first_order import FirstOrderLearner
from reidguard.meta.hessian_free import HessianFreeLearner
from reidguard.meta.maml import MAMLLearner
from reidguard.meta.plain import JointLearner, PlainLearner

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
