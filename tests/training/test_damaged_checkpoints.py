"""Checkpoints and learnt files that were damaged or exchanged are refused when a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reidguard as rg
from helpers import Killed, TinyNet, kill_at, noise_datasets
from reidguard.storage import load_tensors, save_tensors

SIZE = (32, 16)
FIT: dict[str, Any] = {"identities": 2, "images_per_identity": 2, "image_size": SIZE, "steps": 3}
Damage = Callable[[dict[str, Tensor], dict[str, Any]], None]


def without_optimizer(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        del tensors[name]


def a_nan(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    tensors[next(name for name in tensors if name.startswith("module."))].flatten()[0] = torch.nan


def a_nan_in_the_optimizer(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    name = next(n for n in tensors if n.startswith("optimizer.") and tensors[n].dim())
    tensors[name].flatten()[0] = torch.nan


def too_large(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.startswith("module."))
    tensors[name] = torch.full_like(tensors[name], 1e300, dtype=torch.float64)


def another_shape(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    name = next(n for n in tensors if n.startswith("optimizer.") and tensors[n].dim())
    tensors[name] = torch.zeros(2, 2)


def another_parameter(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    tensors["optimizer.999.momentum_buffer"] = torch.zeros(2, 2)
    card["tensors"] = sorted(tensors)


def without_a_list(tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    del card["tensors"]


DAMAGE: list[tuple[Damage, str]] = [
    (without_optimizer, r"lacks tensors.*optimizer\.0"),
    (a_nan, r"not finite in module\."),
    (a_nan_in_the_optimizer, r"not finite in optimizer\."),
    (too_large, r"not finite in module\."),
    (another_shape, "does not fit the optimiser"),
    (another_parameter, "does not fit the optimiser"),
    (without_a_list, "tensors"),
]


def fit(data: rg.ReIDDataset, model: TinyNet, **options: Any) -> rg.DeltaAttack:
    return rg.DeltaAttack(size=SIZE).fit(model, data, **FIT, **options)


def train(data: rg.ReIDDataset, model: TinyNet, **options: Any) -> rg.ReIDModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return rg.train_model(TinyNet(), data, **FIT, **options)


@pytest.mark.parametrize("learn", [fit, train])
@pytest.mark.parametrize("stop", [2, 3])
@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_checkpoint_is_refused(
    learn: Callable[..., Any], stop: int, damage: Damage, message: str, tmp_path: Path
) -> None:
    """Also where no step is left, so that nothing else would notice."""
    data = noise_datasets(tmp_path, 2, SIZE)[0]
    model, path = TinyNet(), tmp_path / "checkpoint.safetensors"
    options = {"checkpoint": path, "checkpoint_every": 1}
    if stop < 3:
        with pytest.raises(Killed):
            learn(data, model, **options, progress=kill_at(stop))
    else:
        learn(data, model, **options)
    tensors, card = load_tensors(path)
    save_tensors(path, tensors, card)
    learn(data, model, checkpoint=path)  # the same file, written anew, is fine
    damage(tensors, card)
    save_tensors(path, tensors, card)
    with pytest.raises(rg.CheckpointError, match=message) as error:
        learn(data, model, checkpoint=path)
    assert str(path) in str(error.value)
