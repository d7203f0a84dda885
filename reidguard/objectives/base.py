"""Losses of attacks on the features of adversarial and clean images, and their objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.distributed import gather
from reidguard.nn.batch_norm import sync_layers
from reidguard.nn.cameras import with_cameras
from reidguard.nn.gradients import check_graph, graph_needed, watch
from reidguard.objectives.inputs import InputCopies
from reidguard.registry import Registry
from reidguard.types import Embedder, Metric, ReIDBatch

__all__ = [
    "ATTACK_LOSSES",
    "AttackLoss",
    "FeatureObjective",
    "normalize_for",
    "normalized_features",
]


def normalized_features(model: Embedder, images: Tensor) -> Tensor:
    """Return features in the space where the model's retrieval compares them.

    With the cosine metric that is the unit sphere, on which Euclidean distances rank alike.

    Args:
        model: Anything with ``features`` and ``metric``.
        images: (N, 3, H, W) in [0, 1].

    Returns:
        (N, D), at least float32.

    Example:
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25").eval()
        >>> features = normalized_features(model, torch.rand(2, 3, 64, 32))
        >>> features.norm(dim=1).detach().round(decimals=4)
        tensor([1., 1.])
    """
    return normalize_for(model.features(images), model.metric)


def normalize_for(features: Tensor, metric: Metric) -> Tensor:
    """Return features in the space where a metric compares them, at least float32."""
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()
    return F.normalize(features) if metric == "cosine" else features


class AttackLoss(ABC):
    """A scalar that an attack minimises, computed from features of adversarial and clean images.

    Example:
        >>> class Collapse(AttackLoss):
        ...     def __call__(self, adversarial, clean, pids):
        ...         return adversarial.square().mean()
        >>> float(Collapse()(torch.ones(2, 4), torch.zeros(2, 4), torch.arange(2)))
        1.0
    """

    needs_training_statistics: ClassVar[bool] = False
    """Whether :meth:`with_statistics` must see the features of all training images first."""

    flat_at_clean: ClassVar[bool] = False
    """Whether the gradient is zero at the clean image; ``fit`` then starts with one step in a
    random direction."""

    compares_logits: ClassVar[bool] = False
    """Whether :meth:`representation` gives logits of a classifier."""

    caches_clean: ClassVar[bool] = True
    """Whether ``fit`` computes the :meth:`reference` of all training images first; otherwise that
    of a batch in its step, because it is large, or takes many passes, or random draws."""

    @abstractmethod
    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the loss.

        Args:
            adversarial: (N, D) features of the adversarial images, or their :meth:`representation`.
            clean: (N, D) the same of these images before the attack, or their :meth:`reference`;
                constant.
            pids: (N,) identities.
        """

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return the (N, D) vectors that the loss compares; by default normalized features."""
        return normalized_features(model, images)

    def reference(self, model: Embedder, images: Tensor) -> Tensor:
        """Return what the loss takes of clean images; by default :meth:`representation`."""
        return self.representation(model, images)

    def with_statistics(self, training: Tensor) -> AttackLoss:
        """Return the loss for a surrogate whose clean training images have these vectors.

        Args:
            training: (images, D), :meth:`reference` of all training images.
        """
        return self


ATTACK_LOSSES: Registry[AttackLoss] = Registry(
    "objective", group="reidguard.objectives", base=AttackLoss, functions=False
)


@dataclass(eq=False)
class FeatureObjective:
    """The objective that learners minimise: a loss on the features of a frozen model.

    Clean representations are taken from the batch if it has them. Where the model sees several
    copies of an adversarial image, the objective is the mean of their losses.

    Args:
        model: The surrogate under attack.
        loss: What to minimise.
        inputs: What the model sees of the adversarial images; by default, the images themselves.

    Example:
        >>> from reidguard.objectives import SelfMetricLoss
        >>> from reidguard.testing import small_model
        >>> objective = FeatureObjective(small_model(), SelfMetricLoss())
        >>> numbers = torch.arange(4)
        >>> batch = ReIDBatch(torch.rand(4, 3, 32, 16), numbers // 2, numbers, numbers)
        >>> round(objective(lambda x: x, batch).item(), 4)  # the cosine of unchanged features
        1.0
    """

    model: Embedder
    loss: AttackLoss
    inputs: InputCopies = field(default_factory=InputCopies)

    def __call__(self, attack: Callable[[Tensor], Tensor], batch: ReIDBatch) -> Tensor:
        """Return the loss of ``attack`` on one batch; on the joint one if this is a shard of it."""
        shard = batch.shard
        model = with_cameras(self.model, batch.camids)
        with sync_layers(shard):
            clean = batch.features
            if clean is None:
                with torch.no_grad():
                    clean = self.loss.reference(model, batch.images)
            images = attack(batch.images)
            with graph_needed(self.model):
                copies = [
                    self.loss.representation(model, copy) for copy in self.inputs(images, batch)
                ]
            adversarial = copies[0] if len(copies) == 1 else torch.cat(copies, 1)
            if images.requires_grad:
                check_graph(adversarial, self.model)
        joint, pids = gather(clean, shard), gather(batch.pids, shard)
        parts = gather(adversarial, shard).chunk(len(copies), 1)
        losses = [self.loss(part, joint, pids) for part in parts]
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        watch(images, adversarial, None if self.loss.flat_at_clean else loss)
        return loss
