"""The fingerprint of an attack, by which cached results and saved images are recognised."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reidguard.attacks.base import Attack
from reidguard.attacks.instance.base import InstanceAttack
from reidguard.errors import CheckpointError
from reidguard.fingerprint import fingerprint, tensor_fingerprint, weights_fingerprint
from reidguard.models.fingerprint import (
    model_key,
    output_digest,
    probe_images,
    tensor_digest,
)
from reidguard.types import Embedder

__all__ = ["attack_fingerprint"]


def attack_fingerprint(attack: Attack, image_size: tuple[int, int] = (256, 128)) -> str:
    """Return a sha256 over all that the adversarial images of an attack depend on.

    That is the class, the constructor arguments, the budget and the tensors. Of a bound instance
    attack it is also the target model, by its :func:`~reidguard.models.fingerprint.model_key`, the
    features and identities of the guides, and the labels; of any other attack a digest of what it
    adds to two fixed images. A target that is no ``torch.nn.Module`` is identified by its class,
    its metric and a digest of its features of two such images on the CPU.

    Args:
        attack: It is not changed.
        image_size: (height, width) of these two images.

    Example:
        >>> from reidguard.attacks import SMA
        >>> attack_fingerprint(SMA(steps=5)) == attack_fingerprint(SMA(steps=5))
        True
        >>> attack_fingerprint(SMA(steps=5)) == attack_fingerprint(SMA(steps=6))
        False
    """
    parts: dict[str, Any] = {
        "class": _class_name(attack),
        "budget": attack.budget.eps,
        "arguments": _arguments(attack),
        "tensors": weights_fingerprint(attack),
    }
    if not isinstance(attack, InstanceAttack):
        parts["perturbation"] = output_digest(attack, lambda view, x: view(x) - x, image_size)
    target = attack._target if isinstance(attack, InstanceAttack) else None
    if target is not None:
        if isinstance(target.model, nn.Module):
            parts["model"] = model_key(target.model, image_size)
        else:
            parts["model"] = _embedder_key(target.model, image_size)
        guides, pids = target.prototypes, target.pids
        if guides is not None:
            tensors = (guides.features, guides.known, guides.index)
            parts["guides"] = [tensor_fingerprint(tensor) for tensor in tensors]
        parts["labels"] = None if pids is None else pids.tolist()
        if target.cameras is not None:
            parts["cameras"] = target.cameras.tolist()
    return fingerprint(parts)


def _embedder_key(model: Embedder, image_size: tuple[int, int]) -> dict[str, Any]:
    with torch.no_grad():
        features = model.features(probe_images(image_size))
    return {
        "class": _class_name(model),
        "metric": model.metric,
        "features": tensor_digest(features),
    }


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _arguments(attack: Attack) -> dict[str, Any]:
    try:
        return attack.config()
    except CheckpointError:  # a class that cannot be saved: its attributes in place of arguments
        internal = {*vars(torch.nn.Module()), "budget", "provenance", "_target"}
        return {name: repr(v) for name, v in vars(attack).items() if name not in internal}
