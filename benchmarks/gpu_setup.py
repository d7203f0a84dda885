"""What the sections of gpu.py share: devices, networks, images and times."""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import CHECKPOINT
from benchmarks.hot_loops import PEOPLE, TINY, random_images, tiny_model
from reidguard.attacks import CombinatorialAttack
from reidguard.models import ReIDModel, create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.types import ReIDBatch

Row = dict[str, Any]
"""Results of one row: ``ok`` is False for a wrong one, and absent where nothing is promised."""


@dataclass(frozen=True)
class Setup:
    """Where and how large everything is.

    Args:
        device: "cuda" or "cpu".
        small: Tiny networks and images, and few repeats.
        seed: Of images, networks and attacks.
    """

    device: str
    small: bool
    seed: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return TINY if self.small else (256, 128)

    def model(self) -> ReIDModel:
        """Return a network on the CPU: OSNet x0.25 or, in small, one for tests. Only read it."""
        return _drawn(self.small, self.seed, None)

    def people(self) -> ReIDModel:
        """Return one with the classifiers that the hot loops need. Only read it."""
        return _drawn(self.small, self.seed, tuple(PEOPLE))

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Return 8-bit images divided by 255, on the CPU."""
        return random_images(count, self.size, self.seed + seed)


@cache
def _drawn(small: bool, seed: int, domains: tuple[str, ...] | None) -> ReIDModel:
    num_classes = None if domains is None else PEOPLE
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if small:
            model = tiny_model(num_classes=num_classes)
        else:
            file = Path(os.environ.get("REIDGUARD_WEIGHTS", "")) / CHECKPOINT
            weights = file if file.is_file() else None
            model = create_model("osnet_x0_25", num_classes=num_classes, weights=weights)
    return model.eval()


def on(module: nn.Module, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a copy of a module on a device."""
    return copy.deepcopy(module).to(device, dtype)


def batch_of(images: Tensor, each: int, device: str) -> ReIDBatch:
    """Return a batch on a device, of so many images of each identity."""
    index = torch.arange(len(images), device=device)
    return ReIDBatch(images.to(device), index // each, index, index)


def started(attack: nn.Module, size: float, seed: int) -> Any:
    """Set all parameters of an attack to random numbers in ±size, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attack.parameters():
            draws = 2 * torch.rand(parameter.shape, generator=generator) - 1
            parameter.copy_(size * draws)
    return attack


def attack_objective(model: ReIDModel) -> FeatureObjective:
    """Return Eq. 5 on a view of a model."""
    return FeatureObjective(inference_view(model), MisrankingTriplet())


def combinatorial(setup: Setup) -> CombinatorialAttack:
    """Return the paper's perturbation, on the CPU, in the middle of learning."""
    return started(CombinatorialAttack(size=setup.size), 4 / 255, setup.seed)


def wait(device: str) -> None:
    """Let the device finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], Any], device: str, calls: int = 1) -> float:
    """Return the seconds of one of some calls, the work of the device included."""
    wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        function()
    wait(device)
    return (time.perf_counter() - began) / calls


def in_turn(
    functions: dict[str, Callable[[], Any]], device: str, repeats: int, calls: int = 1
) -> dict[str, float]:
    """Return the median seconds of each function; they take turns, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            seconds = seconds_of(function, device, calls)
            if turn:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
