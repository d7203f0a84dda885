"""An attack that knows the detector: it breaks the ranking and lowers the scores."""

from __future__ import annotations

from typing import cast

from torch import Tensor
from typing_extensions import Self

from reidguard.attacks import SMA, Guides
from reidguard.attacks.instance.base import Objective, Target, squared_distance
from reidguard.detection.detector import Detector
from reidguard.errors import InputError
from reidguard.schema import checked
from reidguard.types import Budget, Embedder

__all__ = ["AdaptiveSMA"]


class AdaptiveSMA(SMA):
    """Self-metric attack on a model behind a detector, through all that the detector computes.

    Maximises ``|φ(x̃) − φ(x)|² / s² − weight · mean_j max(0, z_j(x̃))`` by PGD, where s is the
    typical distance between gallery images and z_j the j-th score, less its clean mean, in clean
    standard deviations: a score that looks clean is lowered no further. An attack that ignores the
    detector says little about it (Carlini & Wagner, 2017).

    Each pass costs as many passes of the model as the scores have, and one more.

    Args:
        budget: The L∞ ball; 8/255 by default.
        weight: Of the scores. 0 is SMA.
        steps: Iterations of each restart.
        step_size: Length of a step in [0, 1] pixel units; None adapts it.
        restarts: Ascents from different starts.
        seed: Fixes the starts.

    Example:
        >>> import torch
        >>> from reidguard.detection import Detector, FlipScore
        >>> from reidguard.testing import small_model
        >>> model, x = small_model(), torch.rand(4, 3, 32, 16)
        >>> detector = Detector(model, model.features(x), {"flip": FlipScore()})
        >>> detector.calibrate(detector.scores(x).detach())
        >>> attack = AdaptiveSMA(steps=3).bind(detector)
        >>> bool((attack(x) - x).abs().max() <= 8 / 255 + 1e-6)
        True
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        weight: float = 0.05,
        steps: int = 30,
        step_size: float | None = 1 / 255,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(budget, steps=steps, step_size=step_size, restarts=restarts, seed=seed)
        self.weight = checked(float, "weight", weight, low=0, high=1e6)

    def bind(self, model: Embedder, guides: Guides | None = None) -> Self:
        """Return this attack bound to a detector.

        Args:
            model: A calibrated :class:`~reidguard.detection.Detector`.
            guides: Not used.

        Raises:
            InputError: If it is no detector.
        """
        if not isinstance(model, Detector):
            raise InputError(
                f"AdaptiveSMA is bound to a Detector, not to a {type(model).__name__}: give it to "
                "detection_scores, which binds it, or use SMA"
            )
        return super().bind(model, guides)

    def objective(self, clean: Tensor, target: Target) -> Objective:
        """Return the squared distance to the clean features, less what is suspicious."""
        count = cast(Detector, target.model).num_scores

        def value(features: Tensor) -> Tensor:
            distance = squared_distance(features[:, :-count], clean[:, :-count])
            return distance - self.weight * features[:, -count:].clamp(min=0).mean(1)

        return value
