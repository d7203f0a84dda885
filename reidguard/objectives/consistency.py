"""Losses that tie the outputs of adversarial images to those of their clean images.

Terms of TRADES (Zhang et al., ICML 2019) and MART (Wang et al., ICLR 2020), which are losses of
classifiers, in the forms that they have for embeddings.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reidguard.errors import InputError

__all__ = [
    "Divergence",
    "boosted_identity_loss",
    "feature_divergence",
    "logit_divergence",
    "true_probability",
]

Divergence = Literal["distance", "kl"]


def feature_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Return the squared Euclidean distance of each adversarial feature to its clean one.

    Args:
        clean: (N, D) features, as the model's retrieval compares them.
        adversarial: (N, D) those of the adversarial images.

    Returns:
        (N,). Gradients reach both.

    Example:
        >>> feature_divergence(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """
    _check_pair("feature_divergence", clean, adversarial)
    return (_wide(clean) - _wide(adversarial)).square().sum(1)


def logit_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Return the divergence KL(p(x) ‖ p(x̃)) of the classifier's probabilities of each pair.

    The regulariser of TRADES for classifiers, Eq. 5 of Zhang et al.

    Args:
        clean: (N, identities) logits of the clean images.
        adversarial: (N, identities) those of the adversarial images.

    Returns:
        (N,), in nats. Gradients reach both.

    Example:
        >>> logit_divergence(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])).round(decimals=4)
        tensor([0.1201])
    """
    _check_pair("logit_divergence", clean, adversarial)
    ours, theirs = F.log_softmax(_wide(clean), 1), F.log_softmax(_wide(adversarial), 1)
    return (ours.exp() * (ours - theirs)).sum(1)


def boosted_identity_loss(logits: Tensor, pids: Tensor) -> Tensor:
    """Return MART's boosted cross-entropy of each image.

    ``−log p_y − log(1 − max_{k≠y} p_k)``, Eq. 7 of Wang et al.: a margin between the true identity
    and the most probable other one.

    Args:
        logits: (N, identities), of adversarial images.
        pids: (N,) int64 training labels from 0.

    Returns:
        (N,), in nats.

    Raises:
        InputError: If shapes do not fit, or there is a single identity.

    Example:
        >>> boosted_identity_loss(torch.zeros(1, 2), torch.tensor([0])).exp()  # 1/2 · 1/2
        tensor([4.])
    """
    if logits.dim() != 2 or pids.shape != logits.shape[:1] or logits.shape[1] < 2:
        raise InputError(
            "boosted_identity_loss needs logits (N, identities) of two identities or more and pids "
            f"(N,), not {tuple(logits.shape)} and {tuple(pids.shape)}"
        )
    wide, true = _wide(logits), F.one_hot(pids, logits.shape[1]).bool()
    total = torch.logsumexp(wide, 1)
    own = wide[true]
    # log(1 − max p_k) is the log of the sum of all other probabilities, without cancellation.
    rival = wide.masked_fill(true, -torch.inf).argmax(1)
    others = wide.masked_fill(F.one_hot(rival, logits.shape[1]).bool(), -torch.inf)
    return (total - own) + (total - torch.logsumexp(others, 1))


def true_probability(logits: Tensor, pids: Tensor) -> Tensor:
    """Return the (N,) probabilities that (N, identities) logits give to the true identities.

    Example:
        >>> true_probability(torch.zeros(1, 4), torch.tensor([3]))
        tensor([0.2500])
    """
    return F.softmax(_wide(logits), 1).gather(1, pids[:, None])[:, 0]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_pair(name: str, clean: Tensor, adversarial: Tensor) -> None:
    if clean.dim() != 2 or clean.shape != adversarial.shape:
        raise InputError(
            f"{name} needs two tensors of one shape (N, D), not {tuple(clean.shape)} and "
            f"{tuple(adversarial.shape)}"
        )
