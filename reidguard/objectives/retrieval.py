"""The losses of UAP-Retrieval (Li et al., ICCV 2019), and the self-metric loss for it."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError
from reidguard.objectives.base import ATTACK_LOSSES, AttackLoss, normalize_for
from reidguard.objectives.clusters import MAX_CLUSTERS, k_means
from reidguard.objectives.misranking import row_distance
from reidguard.schema import MAX_SEED, checked
from reidguard.types import Embedder

__all__ = ["LabelWiseLoss", "ListWiseLoss", "PairWiseLoss", "SelfMetricLoss", "class_scores"]


@dataclass(eq=False)
class _CentroidLoss(AttackLoss):
    """Base of the losses that compare with the centroids of the training features."""

    needs_training_statistics = True

    clusters: int = 512
    _: KW_ONLY
    centroids: Tensor | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.clusters = checked(int, "clusters", self.clusters, low=2, high=MAX_CLUSTERS)
        self.seed = checked(int, "seed", self.seed, low=0, high=MAX_SEED)

    def with_statistics(self, training: Tensor) -> AttackLoss:
        """Return the loss with the centroids of these features, unless it has some already."""
        if self.centroids is not None:
            return self
        loss = copy.copy(self)
        loss.centroids = k_means(training, self.clusters, seed=self.seed)
        return loss

    def similarity(self, features: Tensor) -> Tensor:
        """Return (N, K): minus half the squared distances to the centroids.

        Retrieval ranks by it. It is the inner product, up to a constant, where centroids have equal
        lengths.
        """
        centroids = self._centroids(features)
        lengths = features.square().sum(1, keepdim=True) + centroids.square().sum(1)
        return features @ centroids.T - lengths / 2

    def _centroids(self, features: Tensor) -> Tensor:
        if self.centroids is None or len(self.centroids) < 2:
            raise InputError(
                f"{type(self).__name__} compares with centroids of training features, two at least:"
                " use fit, with_statistics(features) or centroids="
            )
        return self.centroids.to(features)


@ATTACK_LOSSES.register("pairwise")
@dataclass(eq=False)
class PairWiseLoss(_CentroidLoss):
    """UAP-Retrieval, pair-wise: away from the most similar centroid, to the least similar one.

    With c_near and c_far the centroids most and least similar to the clean feature,
    ``L = mean(max(0, s·‖φ(x̃) − c_far‖₂ − s·‖φ(x̃) − c_near‖₂ + margin))``.

    Args:
        clusters: Centroids of the clean training features that ``fit`` finds by k-means.
        margin: Of the triplet.
        scale: s, what features are multiplied by.
        centroids: (K, D), to use these instead.
        seed: Of k-means.

    Example:
        >>> loss = PairWiseLoss(centroids=torch.tensor([[0.0, 0.0], [4.0, 0.0]]), margin=0.5)
        >>> clean = torch.tensor([[1.0, 0.0]])
        >>> float(loss(clean, clean, torch.tensor([0])))  # 10 · 3 − 10 · 1 + 0.5
        20.5
    """

    margin: float = 0.8
    scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.margin = checked(float, "margin", self.margin, low=0, high=1e6)
        self.scale = checked(float, "scale", self.scale, above=0, high=1e6)

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean loss; labels are not used. See :class:`AttackLoss`."""
        centroids = self._centroids(adversarial)
        similarity = self.similarity(clean.detach().to(adversarial))
        far = row_distance(adversarial, centroids[similarity.argmin(1)])
        near = row_distance(adversarial, centroids[similarity.argmax(1)])
        return (self.scale * (far - near) + self.margin).clamp(min=0).mean()


@ATTACK_LOSSES.register("listwise")
class ListWiseLoss(_CentroidLoss):
    """UAP-Retrieval, list-wise: LambdaRank towards the reversed ranking of the centroids.

    With s the similarities of φ(x̃) to the centroids, and i to be ranked before j where i was *less*
    similar to the clean feature than j,
    ``L = mean over images of Σ w_ij · log(1 + exp(s_j − s_i))``. The weight
    ``w_ij = |1/log2(1 + r_i) − 1/log2(1 + r_j)| / Σ_k 1/log2(1 + k)`` is what exchanging the two
    would change in the NDCG, r being their ranks now; it is constant in the derivative. The
    gradient to s is LambdaRank's.

    Args:
        clusters: Centroids of the clean training features that ``fit`` finds by k-means.
        centroids: (K, D), to use these instead.
        seed: Of k-means.

    Example:
        >>> loss = ListWiseLoss(centroids=torch.tensor([[0.0], [2.0]]))
        >>> left, right = torch.tensor([[0.0]]), torch.tensor([[2.0]])
        >>> bool(loss(right, left, torch.tensor([0])) < loss(left, left, torch.tensor([0])))
        True
    """

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean loss; labels are not used. See :class:`AttackLoss`."""
        # Columns in the target order: each pair then lies above the diagonal.
        order = self.similarity(clean.detach().to(adversarial)).argsort(dim=1, stable=True)
        scores = self.similarity(adversarial).gather(1, order)
        first, second = torch.triu_indices(
            scores.shape[1], scores.shape[1], offset=1, device=scores.device
        )
        with torch.no_grad():
            ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
            places = torch.arange(scores.shape[1], device=scores.device, dtype=scores.dtype)
            discount = 1 / torch.log2(2 + places)
            gains = discount[ranks] / discount.sum()
            weights = (gains[:, first] - gains[:, second]).abs()
        return (weights * F.softplus(scores[:, second] - scores[:, first])).sum(1).mean()


@ATTACK_LOSSES.register("labelwise")
class LabelWiseLoss(AttackLoss):
    """UAP-Retrieval, label-wise: untargeted margin loss on the surrogate's predicted class.

    With z the logits of the adversarial image and y the class that the clean image gets,
    ``L = mean(max(0, z_y − max_{j≠y} z_j))``. The surrogate needs a classifier; of several, the
    first is used.

    Example:
        >>> loss = LabelWiseLoss()
        >>> clean = torch.tensor([[3.0, 1.0, 0.0]])
        >>> float(loss(clean, clean, torch.tensor([0])))
        2.0
    """

    compares_logits = True

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean loss of logits; labels are not used. See :class:`AttackLoss`.

        Raises:
            InputError: If there is one class only.
        """
        if adversarial.shape[1] < 2:
            raise InputError("the label-wise loss needs a classifier of at least two classes")
        predicted = F.one_hot(clean.argmax(1), clean.shape[1]).bool()
        other = adversarial.masked_fill(predicted, -torch.inf).amax(1)
        return F.relu(adversarial[predicted] - other).mean()

    def representation(self, model: Embedder, images: Tensor) -> Tensor:
        """Return the logits of the surrogate's classifier, (N, classes).

        Raises:
            InputError: If the surrogate has no classifier.
        """
        parts = class_scores(model, images)[1]
        return torch.stack(parts).mean(0)


@ATTACK_LOSSES.register("self_metric")
class SelfMetricLoss(AttackLoss):
    """Mean cosine similarity of adversarial and clean features: "UAP w/ SMA" of Table 5.

    ``L = mean(cos(φ(x̃), φ(x)))``. Needs no labels. Its gradient is zero at the clean image, so
    ``fit`` takes one random step first.

    Example:
        >>> right, up = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> float(SelfMetricLoss()(up, right, torch.tensor([0])))
        0.0
    """

    flat_at_clean = True

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        """Return the mean similarity; labels are not used. See :class:`AttackLoss`."""
        return F.cosine_similarity(adversarial, clean.detach()).mean()


def class_scores(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return features, (N, D), and logits, (N, classes) for each part of the model, in one pass.

    Features are :func:`normalized_features`. Of several classifiers, the first is used.

    Args:
        model: A model with a classifier.
        images: (N, 3, H, W) in [0, 1].

    Raises:
        InputError: If the model has no classifier.
    """
    domains = list(getattr(model, "num_classes", ()))
    if not domains:
        raise InputError(
            f"{type(model).__name__} has no classifier, which this objective needs: "
            "create the surrogate with num_classes=<identities of its training split> and load "
            "weights that have a classifier, or take an objective on features, such as 'pairwise'"
        )
    output = model(images, domain=domains[0])
    logits = [output.logits] if isinstance(output.logits, Tensor) else list(output.logits)
    features = normalize_for(output.features, model.metric)
    return features, [part.to(torch.promote_types(part.dtype, torch.float32)) for part in logits]
