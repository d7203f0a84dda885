"""Learners: the gradient of an attack or a model from its batches."""

from importlib import import_module
from pkgutil import iter_modules

from reidguard.learners.base import LEARNERS, MetaLearner, Objective, StepResult
from reidguard.learners.hessian_free import HessianFreeLearner
from reidguard.learners.maml import FirstOrderLearner, MAMLLearner
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

# The other modules of this folder register themselves.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
