"""MisRank: a generator of perturbations trained against a discriminator."""

from reidguard.attacks.misrank.attack import MisRank

__all__ = ["MisRank"]
