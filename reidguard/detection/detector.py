"""A detector: a model, its gallery, scores, and their distribution on clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reidguard.detection.scores import DetectionScore, DetectorBatch, Reference
from reidguard.errors import InputError
from reidguard.nn.cameras import depends_on_cameras, with_cameras
from reidguard.objectives.base import normalize_for
from reidguard.types import Metric

__all__ = ["Detector"]


class Detector(nn.Module):
    """Computes several scores of images.

    To an attack it is a model whose features are those of the model under attack, followed by the
    scores, so that gradients of both are one backward pass:
    :class:`~reidguard.detection.AdaptiveSMA` binds to it.

    Args:
        model: The model under attack.
        gallery: (G, D) its features of the clean gallery, not normalised.
        scores: The scores by name.
        others: Further models, each with its features of the same gallery images.

    Raises:
        InputError: If there is no score, or one needs other models and there are none.

    Example:
        >>> from reidguard.detection import FlipScore, NeighbourScore
        >>> from reidguard.testing import small_model
        >>> model, images = small_model(), torch.rand(4, 3, 32, 16)
        >>> scores = {"flip": FlipScore(), "neighbours": NeighbourScore(2)}
        >>> detector = Detector(model, model.features(images), scores)
        >>> detector.scores(images).shape
        torch.Size([4, 2])
    """

    metric: Metric = "euclidean"
    scale: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        model: nn.Module,
        gallery: Tensor,
        scores: Mapping[str, DetectionScore],
        others: Sequence[tuple[nn.Module, Tensor]] = (),
    ) -> None:
        super().__init__()
        if not scores:
            raise InputError("a detector needs at least one score: see reidguard list detection")
        needing = [name for name, score in scores.items() if score.needs_others]
        if needing and not others:
            raise InputError(
                f"the score {needing[0]!r} compares the model with others: give another model, or "
                "leave the score out"
            )
        self.named_scores = dict(scores)
        self.members = nn.ModuleList([model, *(other for other, _ in others)])
        for number, features in enumerate([gallery, *(features for _, features in others)]):
            metric = self.members[number].metric
            self.register_buffer(f"gallery_{number}", normalize_for(features.detach(), metric))  # type: ignore[arg-type]
        own = self.get_buffer("gallery_0")
        spread = own.double().var(0, correction=0).sum().mul(2).sqrt()
        self.register_buffer("scale", torch.where(spread > 0, spread, 1.0).to(own.dtype))
        self.register_buffer("mean", own.new_zeros(len(scores)))
        self.register_buffer("deviation", own.new_ones(len(scores)))

    @property
    def cameras(self) -> range | None:
        """Cameras that the first model with such features knows; None if there is none."""
        known = (getattr(member, "cameras", None) for member in self.members)
        return next((cameras for cameras in known if cameras is not None), None)

    @property
    def model(self) -> Any:
        """The model under attack."""
        return self.members[0]

    @property
    def num_scores(self) -> int:
        """Number of scores."""
        return len(self.named_scores)

    def calibrate(self, scores: Tensor) -> None:
        """Learn mean and standard deviation of each score on clean images.

        Args:
            scores: (N, S), as :meth:`scores` returns them for clean images.
        """
        self.mean = scores.double().mean(0).to(self.mean)
        deviation = scores.double().std(0, correction=0).clamp(min=1e-6)
        self.deviation = deviation.to(self.deviation)

    def scores(self, x: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Return the (N, S) scores of (N, 3, H, W) images in [0, 1]."""
        return self._evaluate(x, cameras)[1]

    def features(self, x: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Return (N, D + S): features for an attack.

        The first D are the model's, in units of the typical distance between two gallery images
        (the root of the mean squared one); the others are the scores less their clean mean, in
        standard deviations.
        """
        features, scores = self._evaluate(x, cameras)
        return torch.cat((features / self.scale, (scores - self.mean) / self.deviation), 1)

    def _evaluate(self, x: Tensor, cameras: Tensor | None) -> tuple[Tensor, Tensor]:
        reference, *others = (
            Reference(_with_cameras(model, cameras), self.get_buffer(f"gallery_{number}"))
            for number, model in enumerate(self.members)
        )
        features = reference.features(x)
        batch = DetectorBatch(x, features, reference, tuple(others))
        scores = [score(batch).to(features.dtype) for score in self.named_scores.values()]
        return features, torch.stack(scores, 1)


def _with_cameras(model: Any, cameras: Tensor | None) -> Any:
    return with_cameras(model, cameras) if depends_on_cameras(model) else model
