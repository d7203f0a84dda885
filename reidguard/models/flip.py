"""Features of images and their mirror images, averaged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reidguard.models.base import ReIDModel
from reidguard.models.front import FrontModel
from reidguard.nn.cameras import with_cameras
from reidguard.schema import check_instance

__all__ = ["FlipModel"]


class FlipModel(FrontModel):
    """Averages a model's features of each image and of its horizontal mirror image.

    Attacks that are bound to it, or learnt on it, see both passes. It is compared as the model is,
    has no classifier, and is not saved itself: save the model.

    Args:
        model: It is not copied.

    Raises:
        InputError: If it is no :class:`ReIDModel`.

    Example:
        >>> import torch
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25").eval()
        >>> x = torch.rand(2, 3, 64, 32)
        >>> both = FlipModel(model).features(x)
        >>> mean = (model.features(x) + model.features(x.flip(3))) / 2
        >>> torch.allclose(both, mean), torch.allclose(both, model.features(x))
        (True, False)
    """

    def __init__(self, model: ReIDModel) -> None:
        check_instance(ReIDModel, "model", model)
        super().__init__(model.metric)
        self.model = model
        self.cameras = model.cameras

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the (N, D) mean of both features; see :meth:`ReIDModel.features`."""
        model = with_cameras(self.model, cameras)
        return (model.features(x) + model.features(x.flip(3))) / 2
