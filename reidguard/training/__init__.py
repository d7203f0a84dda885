"""Learning: the loop that attacks and models share, and its optimisers."""

from reidguard.training.loop import Batches, learn
from reidguard.training.metrics import MetricsFile, TensorBoard
from reidguard.training.optim import MISGD
from reidguard.training.recipe import train_model
from reidguard.types import Progress, ProgressCallback

__all__ = [
    "MISGD",
    "Batches",
    "MetricsFile",
    "Progress",
    "ProgressCallback",
    "TensorBoard",
    "learn",
    "train_model",
]
