"""Builders that tests of several packages share: small models, batches, interruptions."""

from helpers.batches import random_batch, rng
from helpers.distributed import imagine_silent_peer
from helpers.interrupt import Killed, kill_at
from helpers.models import SmoothEmbedder, TinyNet, tiny_model

__all__ = [
    "Killed",
    "SmoothEmbedder",
    "TinyNet",
    "imagine_silent_peer",
    "kill_at",
    "random_batch",
    "rng",
    "tiny_model",
]
