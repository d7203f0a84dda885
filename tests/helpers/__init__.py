"""Builders that tests of several packages share: small models, datasets, batches, interruptions."""

from helpers.batches import random_batch, rng
from helpers.datasets import noise_datasets
from helpers.distributed import imagine_silent_peer
from helpers.interrupt import Killed, kill_at, leave_temporary
from helpers.models import SmoothEmbedder, TinyNet, tiny_model

__all__ = [
    "Killed",
    "SmoothEmbedder",
    "TinyNet",
    "imagine_silent_peer",
    "kill_at",
    "leave_temporary",
    "noise_datasets",
    "random_batch",
    "rng",
    "tiny_model",
]
