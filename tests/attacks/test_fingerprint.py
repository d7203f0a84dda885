"""Two attacks have the same fingerprint only if they make the same images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reidguard.attacks import FNA, SMA, Attack, DeltaAttack, Guides
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.models import EnsembleModel, ReIDModel, wrap_model
from reidguard.types import Budget, InputSpec

FEATURES = torch.arange(12.0).view(4, 3)


def model(size: tuple[int, int] = (8, 4), metric: Any = "euclidean", seed: int = 0) -> ReIDModel:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return wrap_model(network, input_spec=InputSpec(size=size), metric=metric)


def built(**arguments: Any) -> ReIDModel:
    result = model()
    result.build_spec = ("mine", arguments)
    return result


class Other(DeltaAttack):
    pass


class Unsaveable(Attack):
    """Keeps its argument under another name, so that ``config`` cannot find it."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.by = shift

    def perturb(self, x: Tensor) -> Tensor:
        return x + self.by


def delta(value: float = 0.0, eps: float = 8 / 255) -> DeltaAttack:
    attack = DeltaAttack(Budget(eps), size=(8, 4))
    with torch.no_grad():
        attack.delta[0, 0, 0, 0] = value
    return attack


def fna(features: Tensor = FEATURES, pids: tuple[int, ...] = (1, 1, 2, 0)) -> FNA:
    return FNA(steps=2).bind(model(), Guides(features, list(pids)))


DIFFERENT = {
    "class": (delta(), Other(size=(8, 4))),
    "argument": (SMA(steps=3), SMA(steps=4)),
    "tensor": (delta(), delta(1 / 255)),
    "budget": (delta(), delta(eps=7 / 255)),
    "attribute": (Unsaveable(0.1), Unsaveable(0.2)),
    "bound": (SMA(), SMA().bind(model())),
    "weights": (SMA().bind(model()), SMA().bind(model(seed=1))),
    "InputSpec": (SMA().bind(model()), SMA().bind(model(size=(4, 4)))),
    "InputSpec of a member": (
        SMA().bind(EnsembleModel([model()])),
        SMA().bind(EnsembleModel([model(size=(4, 4))])),
    ),
    "metric": (SMA().bind(model()), SMA().bind(model(metric="cosine"))),
    "build": (SMA().bind(built(neck=True)), SMA().bind(built(neck=False))),
    "guides' features": (fna(), fna(FEATURES + 1)),
    "guides' identities": (fna(), fna(pids=(1, 2, 2, 0))),
    "guides' names": (fna(), fna(pids=(1, 1, 3, 0))),
    "guides": (SMA().bind(model()), SMA().bind(model(), Guides(FEATURES, [1, 1, 2, 2]))),
    "labels": (fna(), fna().with_labels([1])),
    "other labels": (fna().with_labels([2]), fna().with_labels([1])),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_changes_the_images_changes_the_fingerprint(name: str) -> None:
    first, second = DIFFERENT[name]
    assert attack_fingerprint(first) != attack_fingerprint(second)
    assert attack_fingerprint(first) == attack_fingerprint(first)


def test_equal_attacks_have_equal_fingerprints() -> None:
    assert attack_fingerprint(fna()) == attack_fingerprint(fna())
    assert attack_fingerprint(delta(0.01)) == attack_fingerprint(delta(0.01))
    assert attack_fingerprint(Unsaveable(0.1)) == attack_fingerprint(Unsaveable(0.1))
    labelled = fna().with_labels([1, 2])
    assert attack_fingerprint(labelled) == attack_fingerprint(fna().with_labels([1, 2]))
    learnt = delta()
    learnt.provenance = {"seed": 3}
    assert attack_fingerprint(learnt) == attack_fingerprint(delta())


class MeanColour:
    """A target that is no ``torch.nn.Module``: mean colours, times a factor."""

    def __init__(self, factor: float = 1, metric: Any = "cosine") -> None:
        self.factor, self.metric = factor, metric

    def features(self, x: Tensor) -> Tensor:
        return self.factor * x.mean((2, 3))


def test_a_target_that_is_no_module_is_identified_by_its_features() -> None:
    first = attack_fingerprint(SMA().bind(MeanColour()))
    assert first == attack_fingerprint(SMA().bind(MeanColour()))
    others = (MeanColour(factor=2), MeanColour(metric="euclidean"))
    assert first not in [attack_fingerprint(SMA().bind(other)) for other in others]


def test_a_target_that_is_no_module_gets_images_of_the_size_it_works_at() -> None:
    class Fixed(MeanColour):
        def features(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, : 3 * 64 * 32].view(-1, 3, 64 * 32).mean(2)

    attack = SMA().bind(Fixed())
    assert attack_fingerprint(attack, (64, 32)) == attack_fingerprint(attack, (64, 32))
