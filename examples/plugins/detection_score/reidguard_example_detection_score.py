"""A score of how suspicious a query is."""

from __future__ import annotations

from torch import Tensor

from reidguard.detection import ConsistencyScore


class DarkenScore(ConsistencyScore):
    """How far darkening an image by a tenth moves its feature."""

    def changed(self, images: Tensor) -> list[Tensor]:
        """Return the darker images."""
        return [0.9 * images]
