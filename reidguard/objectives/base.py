"""What an attack learns for: a loss on the features of adversarial and clean images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.distributed import gather, joint_layers
from reidguard.registry import Registry
from reidguard.types import Embedder, ReIDBatch

__all__ = ["ATTACK_LOSSES", "AttackLoss", "FeatureObjective", "comparable_features"]


def comparable_features(model: Embedder, images: Tensor) -> Tensor:
    """Return features in the space where the model's retrieval compares them.

    With the cosine metric that is the unit sphere, on which Euclidean distances rank alike.

    Args:
        model: Anything with ``features`` and ``metric``.
        images: (N, 3, H, W) in [0, 1].

    Returns:
        (N, D), at least float32.
    """
    features = model.features(images)
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features) if model.metric == "cosine" else features


class AttackLoss(ABC):
    """A scalar that an attack minimises, from features alone."""

    @abstractmethod
    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the loss.

        Args:
            adversarial: (N, D) features of the adversarial images.
            clean: (N, D) features of the same images before the attack, constant.
            pids: (N,) identities.
        """


ATTACK_LOSSES: Registry[AttackLoss] = Registry("objective", group="reidguard.objectives")


class FeatureObjective:
    """Binds a frozen model and a loss into the objective that learners know.

    Clean features are taken from the batch where they were computed before.

    Args:
        model: The surrogate under attack.
        loss: What to minimise.
    """

    def __init__(self, model: Embedder, loss: AttackLoss) -> None:
        self.model = model
        self.loss = loss

    def __call__(self, attack: Callable[[Tensor], Tensor], batch: ReIDBatch) -> Tensor:
        """Return the loss of ``attack`` on one batch; on the joint one where this is a share."""
        share = batch.share
        with joint_layers(share):
            clean = batch.features
            if clean is None:
                with torch.no_grad():
                    clean = comparable_features(self.model, batch.images)
            adversarial = comparable_features(self.model, attack(batch.images))
        return self.loss(
            gather(adversarial, share), gather(clean, share), gather(batch.pids, share)
        )
