"""Options of learning and evaluation, each defined once: type, default, range, one sentence.

Each group is a :class:`~typing.TypedDict` whose keys are annotated with their
:class:`~reidguard.schema.Option`: see :mod:`reidguard.schema`. The package imports neither torch
nor anything else that is slow to import.
"""

from reidguard.options.evaluation import (
    AuditOptions,
    AutoAttackOptions,
    BatchOptions,
    CertifyOptions,
    EvaluateOptions,
    GridOptions,
    MeasureOptions,
)
from reidguard.options.learning import (
    DEFENSE_DEFAULTS,
    TRAIN_DEFAULTS,
    AttackOptions,
    DefenseOptions,
    FitOptions,
    InputOptions,
    LearnedAttackOptions,
    LoopOptions,
    ModelOptions,
    SurrogateOptions,
    TrainOptions,
)
from reidguard.options.virtual import (
    VirtualOptions,
)

__all__ = [
    "DEFENSE_DEFAULTS",
    "TRAIN_DEFAULTS",
    "AttackOptions",
    "AuditOptions",
    "AutoAttackOptions",
    "BatchOptions",
    "CertifyOptions",
    "DefenseOptions",
    "EvaluateOptions",
    "FitOptions",
    "GridOptions",
    "InputOptions",
    "LearnedAttackOptions",
    "LoopOptions",
    "MeasureOptions",
    "ModelOptions",
    "SurrogateOptions",
    "TrainOptions",
    "VirtualOptions",
]
