"""What models in front of other models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from reidguard.models.base import Metric, ReIDModel
from reidguard.types import InputSpec

__all__ = ["FrontModel"]


class FrontModel(ReIDModel):
    """A model whose features are those of other models, which resize and normalise the images.

    Args:
        metric: How its features are compared.
    """

    def __init__(self, metric: Metric) -> None:
        unchanged = InputSpec(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(input_spec=unchanged, metric=metric)

    @abstractmethod
    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the (N, D) features of (N, 3, H, W) images; see :meth:`ReIDModel.features`."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return the images as they are: the other models prepare them."""
        return x

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the features of images, which the other models prepare."""
        return self.features(inputs)
