"""Learning: the loop that attacks and models share, and its optimisers."""

from reidguard.training.loop import Batches, LoopHooks, batch_loaders, learn
from reidguard.training.metrics import MetricsFile, TensorBoard
from reidguard.training.optim import MISGD
from reidguard.training.recipe import train_model
from reidguard.training.trackers import MLflow, WandB
from reidguard.types import Progress, ProgressCallback

__all__ = [
    "MISGD",
    "Batches",
    "LoopHooks",
    "MLflow",
    "MetricsFile",
    "Progress",
    "ProgressCallback",
    "TensorBoard",
    "WandB",
    "batch_loaders",
    "learn",
    "train_model",
]
