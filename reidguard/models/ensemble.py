"""Ensembles: several models as one surrogate, whose attacks have to move all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.base import ReIDModel
from reidguard.models.front import FrontModel
from reidguard.nn.cameras import with_cameras

__all__ = ["EnsembleModel"]


class EnsembleModel(FrontModel):
    """Concatenates the features of its members, each of length 1.

    So squared distances and cosines are the means of those of the members: an attack sees each
    of them to the same degree, whatever the width and the scale of its features. Members resize
    and normalise for themselves. The length of 1 also holds for members whose own retrieval uses
    the Euclidean distance.

    It is compared by cosine, has no classifier, and is not saved itself: save its members.

    Args:
        members: Two models or more, or one. They are not copied.

    Raises:
        InputError: If there is none, or one is no :class:`ReIDModel`.

    Example:
        >>> from reidguard.models import create_model
        >>> osnet, ide = create_model("osnet_x0_25"), create_model("ide", backbone="resnet18")
        >>> EnsembleModel([osnet, ide]).eval().features(torch.rand(2, 3, 64, 32)).shape
        torch.Size([2, 1024])
    """

    def __init__(self, members: Sequence[ReIDModel]) -> None:
        members = list(members)
        others = [type(m).__name__ for m in members if not isinstance(m, ReIDModel)]
        if not members or others:
            raise InputError(
                "an ensemble needs models"
                + (f", not {', '.join(others)}: use wrap_model first" if others else "")
            )
        super().__init__("cosine")
        self.members = nn.ModuleList(members)
        known = [member.cameras for member in members if member.cameras is not None]
        if known:
            self.cameras = range(max(r.start for r in known), min(r.stop for r in known))
            if not self.cameras:
                raise InputError(
                    "the members know different cameras: take models of the same dataset"
                )

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return (N, sum of the members' widths); see :meth:`ReIDModel.features`.

        Args:
            x: (N, 3, H, W) images in [0, 1], any size.
            cameras: (N,) their cameras, for the members whose features depend on them.
        """
        models = [with_cameras(cast(ReIDModel, member), cameras) for member in self.members]
        return torch.cat([F.normalize(model.features(x)) for model in models], 1)
