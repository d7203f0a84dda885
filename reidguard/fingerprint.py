"""Fingerprints of JSON values, tensors and models: a sha256 of all that a result depends on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "tensor_fingerprint", "weights_fingerprint"]


def fingerprint(value: Any) -> str:
    """Return the sha256 of a JSON value; the order of keys does not matter.

    Example:
        >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": (2,), "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def tensor_fingerprint(tensor: Tensor) -> str:
    """Return the sha256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256()
    _hash_tensor(digest, tensor)
    return digest.hexdigest()


def _hash_tensor(digest: Any, tensor: Tensor, name: str = "") -> None:
    digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    tensor = tensor.detach().cpu()
    if tensor.layout != torch.strided:
        coordinates = tensor.to_sparse().coalesce()
        _hash_tensor(digest, coordinates.indices(), "indices")
        tensor = coordinates.values()
    elif tensor.is_quantized:
        tensor = tensor.dequantize()
    flat = tensor.contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy())


def _hash_state(digest: Any, state: Mapping[Any, Any] | Iterable[Any], name: str) -> None:
    """Hash a state dict, or what quantized layers and ``get_extra_state`` put into one."""
    items = state.items() if isinstance(state, Mapping) else enumerate(state)
    for key, value in items:
        path = f"{name}.{key}" if name else str(key)
        if isinstance(value, Tensor):
            _hash_tensor(digest, value, path)
        elif isinstance(value, (Mapping, list, tuple)):
            _hash_state(digest, value, path)
        else:
            digest.update(f"\n{path} {_without_addresses(value)}\n".encode())


def _without_addresses(value: object) -> str:
    """Return what is printed of a value, without places in memory, which differ in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def weights_fingerprint(model: nn.Module) -> str:
    """Return a sha256 over the architecture as printed and all names, types and bytes of weights.

    Models with the same fingerprint give the same features for the same inputs (apart from
    resizing and normalisation, which their :class:`~reidguard.types.InputSpec` defines). The
    printed architecture is part of it because equal weights can be run with other strides.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = weights_fingerprint(net)
        >>> with torch.no_grad():
        ...     _ = net.weight.add_(1e-3)
        >>> weights_fingerprint(net) == before
        False
    """
    digest = hashlib.sha256(_without_addresses(model).encode())
    _hash_state(digest, model.state_dict(), "")
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):  # frozen ones have constants for weights
            _hash_script(digest, module)
    return digest.hexdigest()


def _hash_script(digest: Any, module: torch.jit.ScriptModule) -> None:
    """Hash the code of a TorchScript module, and the constants in it."""
    for name in module._c._method_names():
        code, constants = module._c._get_method(name).code_with_constants
        # Classes are numbered in the order in which a process makes them.
        digest.update(re.sub(r"___torch_mangle_\d+\.", "", code).encode())
        _hash_state(digest, constants, name)
