"""What networks with a fixed architecture share: the head of their published files."""

from __future__ import annotations

from torch import Tensor

from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import name_head

__all__ = ["PublishedModel"]


class PublishedModel(ReIDModel):
    """A network whose published files have one classifier and otherwise its own names."""

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the one classifier of a published file to the one domain of this model."""
        return name_head(state, self.num_classes)
