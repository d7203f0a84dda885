"""Area under the ROC curve."""

from __future__ import annotations

import torch
from torch import Tensor

from reidguard.errors import InputError

__all__ = ["roc_auc"]


def roc_auc(negatives: Tensor, positives: Tensor) -> float:
    """Return the probability that a positive has a higher score than a negative.

    Equal scores count one half. That is the area under the curve of the true over the false
    positive rate. 0.5 is chance.

    Args:
        negatives: (N,) scores, such as those of clean images.
        positives: (P,) scores, such as those of attacked ones.

    Raises:
        InputError: If one has no score, or they are not finite.

    Example:
        >>> roc_auc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
        0.875
    """
    scores = (negatives, positives)
    if any(s.dim() != 1 or not len(s) or not bool(s.isfinite().all()) for s in scores):
        raise InputError("the area under a ROC curve needs finite scores (N,) of both kinds")
    low = negatives.double().sort().values
    high = positives.double().to(low.device)
    below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return float(below.double().mean()) / (2 * len(low))
