"""A second set of batch norms against a model that has them for its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import rng
from reidguard.errors import InputError
from reidguard.learners import MAMLLearner
from reidguard.nn.auxiliary import AuxiliaryNorms


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(4, affine=False)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), norm, nn.Tanh(), nn.Flatten(), nn.LazyLinear(2),
            nn.BatchNorm1d(2),
        ).double()  # fmt: skip


def images(seed=1):
    return torch.randn(5, 3, 6, 4, generator=rng(seed), dtype=torch.float64)


def filled(model):
    model(images())
    norms = AuxiliaryNorms(model)
    with torch.no_grad():
        for k, tensor in enumerate(norms.parameters()):
            tensor.copy_(torch.randn(tensor.shape, generator=rng(k), dtype=torch.float64))
    return norms


def test_images_pass_the_other_weights_and_leave_statistics_alone():
    model = network()
    norms = filled(model)
    expected = copy.deepcopy(model)
    for place, k in ((1, 0), (6, 1)):
        expected[place].weight = copy.deepcopy(norms.weights[k])
        expected[place].bias = copy.deepcopy(norms.biases[k])
    before = copy.deepcopy(model.state_dict())
    with norms.used_in(model):
        found = model(images(2))
    torch.testing.assert_close(found, expected(images(2)))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    found.square().sum().backward()
    assert model[1].weight.grad is None
    assert norms.weights[0].grad is not None
    assert model[0].weight.grad is not None


def test_a_learner_with_temporary_weights_uses_them_too():
    """The meta-gradient of maml by finite differences, of weights of both sets."""
    parts = nn.ModuleDict({"model": network()})
    parts["norms"] = filled(parts["model"])

    def loss(parts, batch):
        clean = parts["model"](batch)
        with parts["norms"].used_in(parts["model"]):
            return (clean + 2 * parts["model"](batch + 0.1)).square().mean()

    rate = 0.05
    learner = MAMLLearner(inner="sgd", inner_lr=rate)
    learner.step(parts, loss, images(2), images(3))

    def outer(name, shift):
        moved = copy.deepcopy(parts)
        tensor = dict(moved.named_parameters())[name]
        with torch.no_grad():
            tensor.view(-1)[0] += shift
        first = loss(moved, images(2))
        gradients = torch.autograd.grad(first, list(moved.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(moved.parameters(), gradients, strict=True):
                p.sub_(rate * g if g is not None else 0)
        return float(first.detach() + loss(moved, images(3)).detach())

    for name in ("model.1.weight", "norms.weights.0", "norms.biases.1"):
        wanted = (outer(name, 1e-6) - outer(name, -1e-6)) / 2e-6
        found = dict(parts.named_parameters())[name].grad.view(-1)[0]
        assert float(found) == pytest.approx(wanted, rel=1e-5, abs=1e-7), name


def test_frozen_weights_are_frozen_and_a_model_without_any_is_refused():
    model = network()
    model(images())
    model[1].weight.requires_grad_(False)
    flags = [p.requires_grad for p in AuxiliaryNorms(model).weights]
    assert flags == [False, True]
    with pytest.raises(InputError, match="batch_norm='shared'"):
        AuxiliaryNorms(nn.Linear(2, 2))
