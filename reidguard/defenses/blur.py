"""Blurring as a baseline defense: a transform of the input in place of training."""

from __future__ import annotations

import copy
from typing import Any

from reidguard.data import ReIDDataset
from reidguard.defenses.base import DEFENSES, Defense
from reidguard.fingerprint import fingerprint
from reidguard.models import BlurModel, ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.schema import checked

__all__ = ["Blur"]


@DEFENSES.register("blur")
class Blur(Defense):
    """Shows a model shrunk and blurred images, and trains nothing.

    A cheap baseline, in the line of the input transforms of Guo et al. (ICLR 2018): a learnt
    perturbation is mostly high frequencies, which a blur removes. It is no defense against an
    attacker who knows it, since attacks differentiate exactly through the
    :class:`~reidguard.models.BlurModel` that comes out.

    Args:
        sigma: Standard deviation of the Gaussian in pixels; 0 for none.
        scale: Fraction of height and width that the image is shrunk to first; 1 for none.

    Example:
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     robust = Blur(sigma=1.5).fit(small_model(), data)
        >>> robust.sigma
        1.5
    """

    def __init__(self, sigma: float = 1.0, scale: float = 0.5) -> None:
        self.sigma = checked(float, "sigma", sigma, low=0, high=100)
        self.scale = checked(float, "scale", scale, above=0, high=1)

    def fit(
        self,
        model: ReIDModel,
        meta_train: ReIDDataset,
        meta_test: ReIDDataset | None = None,
    ) -> BlurModel:
        """Return the model behind the transform.

        Args:
            model: It is copied. The result can be saved where it can.
            meta_train: Not used.
            meta_test: Not used.
        """
        robust = BlurModel(copy.deepcopy(model), self.sigma, self.scale)
        robust.provenance = {
            "method": "blur",
            **self.config(),
            "base": fingerprint(model_key(model)),
        }
        return robust.eval()

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"sigma": self.sigma, "scale": self.scale}
