"""Randomised smoothing: bounds on a probability, and the radius that follows from one."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import torch

from reidguard.contexts import fixed_context
from reidguard.errors import InputError
from reidguard.schema import checked

__all__ = ["MAX_DRAWS", "certified_radius", "lower_bound", "upper_bound"]

MAX_DRAWS = 10**6
HALVINGS = 60  # of [0, 1], until its ends are neighbouring floats


def lower_bound(hits: int, draws: int, alpha: float) -> float:
    """Return the one-sided Clopper–Pearson lower bound on a probability.

    It is the p for which ``P(Binomial(draws, p) >= hits) = alpha`` (Clopper & Pearson, 1934), found
    by bisection and rounded down; 0 for no hits. Whatever the true probability is, the bound is
    above it with a probability of at most ``alpha``.

    Args:
        hits: How often the event occurred.
        draws: Number of independent draws.
        alpha: Probability with which the bound may be wrong.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> round(lower_bound(100, 100, 0.001), 4), round(0.001 ** (1 / 100), 4)
        (0.9333, 0.9333)
    """
    draws = checked(int, "draws", draws, low=1, high=MAX_DRAWS)
    hits = checked(int, "hits", hits, low=0, high=draws)
    alpha = checked(float, "alpha", alpha, above=0, high=0.5)
    return _lower_bound(hits, draws, alpha)


@lru_cache(maxsize=4096)
@fixed_context()
def _lower_bound(hits: int, draws: int, alpha: float) -> float:
    if hits == 0:
        return 0.0
    counts = torch.arange(hits, draws + 1, dtype=torch.float64)
    misses = draws - counts
    whole = torch.tensor(draws + 1.0, dtype=torch.float64).lgamma()
    choices = whole - (counts + 1).lgamma() - (misses + 1).lgamma()
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        p = torch.tensor((low + high) / 2, dtype=torch.float64)
        log_terms = choices + torch.xlogy(counts, p) + misses * torch.log1p(-p)
        if float(log_terms.logsumexp(0).exp()) > alpha:
            high = float(p)
        else:
            low = float(p)
    return low


def upper_bound(hits: int, draws: int, alpha: float) -> float:
    """Return the one-sided Clopper–Pearson upper bound on a probability.

    Arguments and errors are those of :func:`lower_bound`.

    Example:
        >>> upper_bound(100, 100, 0.001), round(upper_bound(0, 100, 0.001), 4)
        (1.0, 0.0667)
    """
    return 1.0 - lower_bound(draws - hits, draws, alpha)


def certified_radius(probability: float, sigma: float) -> float:
    """Return the L2 radius within which an event keeps a probability above 1/2.

    ``r = σ · Φ⁻¹(p)`` (Cohen et al., 2019), where p is a lower bound on the probability of the
    event under Gaussian noise of standard deviation σ at the image itself.

    Args:
        probability: p, in [0, 1).
        sigma: σ; the radius has its unit.

    Returns:
        0 where p is 1/2 or less, and nothing is certified.

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> round(certified_radius(0.975, 0.5), 3), certified_radius(0.4, 0.5)
        (0.98, 0.0)
    """
    probability = checked(float, "probability", probability, low=0, high=1)
    sigma = checked(float, "sigma", sigma, above=0, high=1e6)
    if probability == 1:
        raise InputError("probability must be below 1: no number of draws makes an event certain")
    return 0.0 if probability <= 0.5 else sigma * NormalDist().inv_cdf(probability)
