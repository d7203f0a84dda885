"""Contract suites: checks for the tests of plugins, which the library's own classes pass too."""

from reidguard.testing.attacks import ATTACK_CHECKS, AttackFactory, check_identity
from reidguard.testing.datasets import (
    DATASET_CHECKS,
    TEST_SET_CHECKS,
    TRAINING_SET_CHECKS,
    DatasetFactory,
    check_missing_folder,
)
from reidguard.testing.defenses import DEFENSE_CHECKS, DefenseFit, small_dataset, small_model
from reidguard.testing.learners import LEARNER_CHECKS, LearnerFactory
from reidguard.testing.models import MODEL_CHECKS, ModelFactory

__all__ = [
    "ATTACK_CHECKS",
    "DATASET_CHECKS",
    "DEFENSE_CHECKS",
    "LEARNER_CHECKS",
    "MODEL_CHECKS",
    "TEST_SET_CHECKS",
    "TRAINING_SET_CHECKS",
    "AttackFactory",
    "DatasetFactory",
    "DefenseFit",
    "LearnerFactory",
    "ModelFactory",
    "check_identity",
    "check_missing_folder",
    "small_dataset",
    "small_model",
]
