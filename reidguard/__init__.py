"""Attack and harden person re-identification models.

Every public name is an attribute of this package, such as ``reidguard.evaluate``. It is imported on
first use, so that ``import reidguard`` and the command line's help do not import torch and timm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reidguard.attacks import (
        ATTACKS,
        FNA,
        ODFA,
        SMA,
        Attack,
        ColorAttack,
        CombinatorialAttack,
        DeltaAttack,
        Guides,
        InstanceAttack,
        LearnedAttack,
        MetaAttack,
        MetricFGSM,
        MetricIFGSM,
        MetricMIFGSM,
        MisRank,
        PatternAttack,
        SquareAttack,
        UAPRetrieval,
        UniversalAttack,
        UniversalSquare,
        create_attack,
        fixed_patterns,
        load_attack,
        register_attack,
    )
    from reidguard.data import (
        DATASETS,
        ReIDDataset,
        join_datasets,
        load_dataset,
        register_dataset,
    )
    from reidguard.defenses import (
        ACT,
        DEFENSES,
        GOAT,
        HM,
        MART,
        TRADES,
        AdversarialTraining,
        Blur,
        Defense,
        FreeTraining,
        MetaDefense,
        MixedTraining,
    )
    from reidguard.detection import DETECTION_SCORES, AdaptiveSMA, DetectionScore, Detector
    from reidguard.errors import (
        CheckpointError,
        DataError,
        InputError,
        RegistryError,
        ReIDGuardError,
        TrainingError,
        ZeroGradientWarning,
    )
    from reidguard.evaluation import (
        AttackedResult,
        AuditReport,
        AutoAttackResult,
        CertifyResult,
        DetectionResult,
        EvaluationResult,
        FeatureStore,
        GridCell,
        GridResult,
        Protocol,
        RetrievalAutoAttack,
        VerifyReport,
        audit,
        certify,
        detection_scores,
        evaluate,
        evaluate_grid,
        save_adversarial,
        verify,
    )
    from reidguard.hub import from_pretrained, push_to_hub, save_pretrained
    from reidguard.learners import LEARNERS, MetaLearner, StepResult
    from reidguard.metrics import RankingResult, rank
    from reidguard.models import (
        MODELS,
        EnsembleModel,
        Identification,
        LoadReport,
        ReIDModel,
        ReIDOutput,
        create_model,
        identify_weights,
        load_model,
        load_weights,
        register_model,
        wrap_model,
    )
    from reidguard.objectives import ATTACK_LOSSES, AttackLoss
    from reidguard.registry import Registry
    from reidguard.training import Progress, train_model
    from reidguard.types import Budget, InputSpec, ReIDBatch, ReIDSample

    __version__: str

__all__ = [
    "ACT",
    "ATTACKS",
    "ATTACK_LOSSES",
    "DATASETS",
    "DEFENSES",
    "DETECTION_SCORES",
    "FNA",
    "GOAT",
    "HM",
    "LEARNERS",
    "MART",
    "MODELS",
    "ODFA",
    "SMA",
    "TRADES",
    "AdaptiveSMA",
    "AdversarialTraining",
    "Attack",
    "AttackLoss",
    "AttackedResult",
    "AuditReport",
    "AutoAttackResult",
    "Blur",
    "Budget",
    "CertifyResult",
    "CheckpointError",
    "ColorAttack",
    "CombinatorialAttack",
    "DataError",
    "Defense",
    "DeltaAttack",
    "DetectionResult",
    "DetectionScore",
    "Detector",
    "EnsembleModel",
    "EvaluationResult",
    "FeatureStore",
    "FreeTraining",
    "GridCell",
    "GridResult",
    "Guides",
    "Identification",
    "InputError",
    "InputSpec",
    "InstanceAttack",
    "LearnedAttack",
    "LoadReport",
    "MetaAttack",
    "MetaDefense",
    "MetaLearner",
    "MetricFGSM",
    "MetricIFGSM",
    "MetricMIFGSM",
    "MisRank",
    "MixedTraining",
    "PatternAttack",
    "Progress",
    "Protocol",
    "RankingResult",
    "ReIDBatch",
    "ReIDDataset",
    "ReIDGuardError",
    "ReIDModel",
    "ReIDOutput",
    "ReIDSample",
    "Registry",
    "RegistryError",
    "RetrievalAutoAttack",
    "SquareAttack",
    "StepResult",
    "TrainingError",
    "UAPRetrieval",
    "UniversalAttack",
    "UniversalSquare",
    "VerifyReport",
    "ZeroGradientWarning",
    "__version__",
    "audit",
    "certify",
    "create_attack",
    "create_model",
    "detection_scores",
    "evaluate",
    "evaluate_grid",
    "fixed_patterns",
    "from_pretrained",
    "identify_weights",
    "join_datasets",
    "load_attack",
    "load_dataset",
    "load_model",
    "load_weights",
    "push_to_hub",
    "rank",
    "register_attack",
    "register_dataset",
    "register_model",
    "save_adversarial",
    "save_pretrained",
    "train_model",
    "verify",
    "wrap_model",
]

# Module of each name above. A test compares it with the imports that type checkers see.
_NAMES = {
    "attacks": "ATTACKS FNA ODFA SMA Attack ColorAttack CombinatorialAttack DeltaAttack Guides "
    "InstanceAttack LearnedAttack MetaAttack MetricFGSM MetricIFGSM MetricMIFGSM MisRank "
    "PatternAttack SquareAttack UAPRetrieval UniversalAttack UniversalSquare create_attack "
    "fixed_patterns load_attack register_attack",
    "data": "DATASETS ReIDDataset join_datasets load_dataset register_dataset",
    "defenses": "ACT DEFENSES GOAT HM MART TRADES AdversarialTraining Blur Defense FreeTraining "
    "MetaDefense MixedTraining",
    "detection": "DETECTION_SCORES AdaptiveSMA DetectionScore Detector",
    "errors": "CheckpointError DataError InputError ReIDGuardError RegistryError TrainingError "
    "ZeroGradientWarning",
    "evaluation": "AttackedResult AuditReport AutoAttackResult CertifyResult DetectionResult "
    "EvaluationResult FeatureStore GridCell GridResult Protocol RetrievalAutoAttack VerifyReport "
    "audit certify detection_scores evaluate evaluate_grid save_adversarial verify",
    "hub": "from_pretrained push_to_hub save_pretrained",
    "learners": "LEARNERS MetaLearner StepResult",
    "models": "MODELS EnsembleModel Identification LoadReport ReIDModel ReIDOutput create_model "
    "identify_weights load_model load_weights register_model wrap_model",
    "objectives": "ATTACK_LOSSES AttackLoss",
    "metrics": "RankingResult rank",
    "registry": "Registry",
    "training": "Progress train_model",
    "types": "Budget InputSpec ReIDBatch ReIDSample",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a type checker would take any misspelt name for an attribute

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib import metadata

            value: Any = metadata.version("reidguard")
        elif name in _HOME:
            value = getattr(import_module(f"reidguard.{_HOME[name]}"), name)
        elif name in _NAMES:
            value = import_module(f"reidguard.{name}")
        else:
            raise AttributeError(f"module 'reidguard' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_NAMES})
