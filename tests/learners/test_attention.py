"""Exact meta-learning through attention, whose fused kernels have no second derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from helpers import random_batch
from reidguard.attacks import DeltaAttack
from reidguard.learners import FirstOrderLearner, HessianFreeLearner, MAMLLearner
from reidguard.models import ReIDModel, create_model
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.objectives.reid import ReIDObjective
from reidguard.types import Budget, ReIDBatch

# Square: older timm resamples other position embeddings in every pass, and in float32.
SIZE = (32, 32)
LR = 0.01


def vit(*, fused: bool) -> ReIDModel:
    torch.manual_seed(0)
    model = create_model("ide", backbone="test_vit", size=SIZE, num_classes=3).double().eval()
    layers = [m for m in model.modules() if hasattr(m, "fused_attn")]
    assert layers
    for layer in layers:
        layer.fused_attn = fused  # else timm writes softmax and products out
    return model


def batch(seed: int) -> ReIDBatch:
    return random_batch(3, 2, SIZE, seed=seed, dtype=torch.float64)


def loop_by_hand(module: nn.Module, objective) -> list[torch.Tensor | None]:
    """The meta-gradient of one SGD step, from torch.func and two plain lines."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, b):
            return objective(self.module, b)

    state = dict(Loss().named_parameters())
    names = list(state)

    def loss(values, b):
        return functional_call(Loss(), dict(zip(names, values, strict=True)), (b,))

    values = list(state.values())
    train = loss(values, batch(1))
    slopes = torch.autograd.grad(train, values, create_graph=True, allow_unused=True)
    moved = [v if s is None else v - LR * s for v, s in zip(values, slopes, strict=True)]
    return list(torch.autograd.grad(train + loss(moved, batch(2)), values, allow_unused=True))


def attack() -> DeltaAttack:
    made = DeltaAttack(Budget(0.1), SIZE).double()
    nn.init.uniform_(made.delta, -0.03, 0.03, generator=torch.Generator().manual_seed(3))
    return made


@pytest.mark.parametrize("what", ["attack", "defense"])
def test_maml_through_fused_attention_equals_a_loop_by_hand(what):
    def case(fused):
        model = vit(fused=fused)
        if what == "defense":
            return model, ReIDObjective(margin=5.0)
        return attack(), FeatureObjective(model.requires_grad_(False), MisrankingTriplet())

    module, objective = case(True)
    wanted = loop_by_hand(*case(False))
    MAMLLearner(inner="sgd", inner_lr=LR).step(module, objective, batch(1), batch(2))
    found = [p.grad for p in module.parameters()]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    # and there is a second-order term to get wrong
    FirstOrderLearner(inner="sgd", inner_lr=LR).step(module, objective, batch(1), batch(2))
    first = [p.grad for p in module.parameters()]
    gap = sum((a - b).square().sum() for a, b in zip(first, found, strict=True) if a is not None)
    assert gap.sqrt() > 1e-6


def test_the_kernels_are_those_of_before_afterwards():
    def kernels():
        cuda = torch.backends.cuda
        return cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()

    before = kernels()
    MAMLLearner(inner_lr=LR).step(
        attack(), FeatureObjective(vit(fused=True), MisrankingTriplet()), batch(1), batch(2)
    )
    assert kernels() == before


@pytest.mark.parametrize("learner", [FirstOrderLearner, HessianFreeLearner])
def test_other_learners_keep_the_fused_kernels(learner, monkeypatch):
    seen = []
    whole = F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append(torch.backends.cuda.flash_sdp_enabled())
        return whole(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    objective = FeatureObjective(vit(fused=True), MisrankingTriplet())
    learner(inner_lr=LR).step(attack(), objective, batch(1), batch(2))
    assert seen
    assert all(seen)
