"""The fingerprint of an attack, by which cached results and saved images are recognised."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reidguard.attacks.base import Attack
from reidguard.attacks.instance.base import InstanceAttack
from reidguard.errors import CheckpointError, InputError
from reidguard.models.fingerprint import model_key
from reidguard.storage import fingerprint, tensor_fingerprint, weights_fingerprint

__all__ = ["attack_fingerprint"]


def attack_fingerprint(attack: Attack) -> str:
    """Return a sha256 over all that the adversarial images of an attack depend on.

    That is the class, the constructor arguments, the budget and the tensors and, of a bound
    instance attack, the target model (weights, InputSpec, metric, how it is built), the features
    and identities of the guides, and the labels.

    Raises:
        InputError: If the attack is bound to something that is not a ``torch.nn.Module``, whose
            features nothing identifies.

    Example:
        >>> from reidguard.attacks import SMA
        >>> attack_fingerprint(SMA(steps=5)) == attack_fingerprint(SMA(steps=5))
        True
        >>> attack_fingerprint(SMA(steps=5)) == attack_fingerprint(SMA(steps=6))
        False
    """
    parts: dict[str, Any] = {
        "class": f"{type(attack).__module__}.{type(attack).__qualname__}",
        "budget": attack.budget.eps,
        "arguments": _arguments(attack),
        "tensors": weights_fingerprint(attack),
    }
    target = attack._target if isinstance(attack, InstanceAttack) else None
    if target is not None:
        if not isinstance(target.model, nn.Module):
            raise InputError(
                f"{type(attack).__name__} is bound to a {type(target.model).__name__}, which is no "
                "torch.nn.Module, so its results cannot be recognised in a folder: leave folder "
                "out, or bind the attack to a ReIDModel (BlackBoxModel wraps any function)"
            )
        parts["model"] = model_key(target.model)
        guides, pids = target.prototypes, target.pids
        if guides is not None:
            tensors = (guides.features, guides.known, guides.index)
            parts["guides"] = [tensor_fingerprint(tensor) for tensor in tensors]
        parts["labels"] = None if pids is None else pids.tolist()
    return fingerprint(parts)


def _arguments(attack: Attack) -> dict[str, Any]:
    try:
        return attack.config()
    except CheckpointError:  # a class that cannot be saved: its attributes in place of arguments
        internal = {*vars(torch.nn.Module()), "budget", "provenance", "_target"}
        return {name: repr(v) for name, v in vars(attack).items() if name not in internal}
