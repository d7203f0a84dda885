"""Where models and attacks work."""

from __future__ import annotations

import torch

from reidguard.attacks.instance.base import InstanceAttack
from reidguard.errors import InputError

__all__ = ["attack_device", "module_device"]


def module_device(module: torch.nn.Module, default: torch.device | None = None) -> torch.device:
    """Return the device of a module's parameters and buffers; ``default`` if it has none.

    Raises:
        InputError: If they are on several devices.
    """
    devices = {t.device for group in (module.parameters(), module.buffers()) for t in group}
    if len(devices) > 1:
        raise InputError(
            f"{type(module).__name__} is spread over {', '.join(sorted(map(str, devices)))}; "
            "move it to one device first"
        )
    return devices.pop() if devices else default or torch.device("cpu")


def attack_device(attack: torch.nn.Module, default: torch.device | None = None) -> torch.device:
    """Return the device that an attack or model works on: a bound attack's is its target's.

    Raises:
        InputError: If it is spread over several devices, or an instance attack is not bound.
    """
    module = attack.target.model if isinstance(attack, InstanceAttack) else attack
    if isinstance(module, torch.nn.Module):
        return module_device(module, default)
    return default or torch.device("cpu")
