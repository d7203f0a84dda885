"""Adversarial weight perturbation against the gradient at weights that are moved by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import rng
from reidguard.errors import InputError
from reidguard.learners import FirstOrderLearner, JointLearner, MAMLLearner, PlainLearner
from reidguard.learners.perturbed import PerturbedLearner
from reidguard.testing import LEARNER_CHECKS


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)
        ).double()


def loss(module, batch):
    return module(batch).square().mean()


def batches():
    return [torch.randn(6, 4, generator=rng(seed), dtype=torch.float64) for seed in (1, 2)]


@pytest.mark.parametrize(
    "learner", [PlainLearner(), JointLearner(), MAMLLearner(inner="sgd", inner_lr=0.1)]
)
def test_the_gradient_is_that_at_the_worst_weights_nearby(learner):
    gamma, (train, test) = 0.1, batches()
    module, expected = network(), network()
    probe = network()
    loss(probe, train).backward()
    with torch.no_grad():
        for p, g in zip(expected.parameters(), probe.parameters(), strict=True):
            if p.dim() > 1:
                p.add_(gamma * p.norm() / g.grad.norm() * g.grad)
    learner.step(expected, loss, train, test)
    before = copy.deepcopy(list(module.parameters()))
    result = PerturbedLearner(learner, gamma).step(module, loss, train, test)
    for p, old, wanted in zip(module.parameters(), before, expected.parameters(), strict=True):
        assert torch.equal(p, old)  # back to the bit
        torch.testing.assert_close(p.grad, wanted.grad)
    torch.testing.assert_close(result.train_loss, loss(network(), train).detach())
    for ours, theirs in zip(module.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_weights_stay_and_take_no_part():
    module, (train, _) = network(), batches()
    module[0].weight.requires_grad_(False)
    PerturbedLearner(PlainLearner(), 0.1).step(module, loss, train)
    assert module[0].weight.grad is None
    assert torch.equal(module[0].weight, network()[0].weight)
    assert module[3].weight.grad is not None


def test_weights_come_back_when_a_step_fails():
    module, (train, _) = network(), batches()

    class Fails(PlainLearner):
        def step(self, *arguments, **options):
            raise RuntimeError("fails")

    with pytest.raises(RuntimeError, match="fails"):
        PerturbedLearner(Fails(), 0.1).step(module, loss, train)
    assert torch.equal(module[0].weight, network()[0].weight)


@pytest.mark.parametrize("learner", [PlainLearner, FirstOrderLearner])
@pytest.mark.parametrize("check", [c for c in LEARNER_CHECKS if c.__name__ != "check_direction"])
def test_a_learner_stays_one(check, learner):
    check(lambda: PerturbedLearner(learner(), 1e-9))


@pytest.mark.parametrize("gamma", [0.0, -1.0, 1.5, float("nan")])
def test_gamma_has_a_range(gamma):
    with pytest.raises(InputError, match="gamma"):
        PerturbedLearner(PlainLearner(), gamma)
