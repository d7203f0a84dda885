"""Recomputed passes: the same gradients and statistics, with less kept. Bytes are counted."""

import weakref

import pytest
import torch
from torch import nn

from helpers import random_batch
from reidguard.attacks import DeltaAttack
from reidguard.errors import InputError
from reidguard.fingerprint import weights_fingerprint
from reidguard.learners import LEARNERS
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.training import MISGD
from reidguard.training.recompute import recomputing

NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        return self.drop(torch.tanh(self.two(torch.tanh(self.one(x))))) + x


class Network(nn.Module):
    metric = "euclidean"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))
        self.double()

    def features(self, x):
        return self.blocks(self.stem(x)).mean((2, 3))

    forward = features


def batch(seed):
    return random_batch(4, 2, (24, 16), seed=seed, low=0.25, high=0.75, dtype=torch.float64)


def of_features(module, given):
    return module(given.images).square().sum(1).mean()


def attack_step(name):
    model = Network()
    attack = DeltaAttack(size=(24, 16)).double()
    optimizer = MISGD(attack.parameters(), lr=0.01, momentum=0.5)
    learner = LEARNERS.create(name)

    def step():
        objective = FeatureObjective(inference_view(model), MisrankingTriplet())
        learner.step(attack, objective, batch(1), batch(2), optimizer=optimizer)
        return {"delta": attack.delta.grad.clone()}

    return model, step


def model_step(name):
    model = Network().train()
    options = {} if name in NAMES[:2] else {"inner": "sgd", "inner_lr": 0.01}
    learner = LEARNERS.create(name, **options)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def step():
        model.load_state_dict(before)
        torch.manual_seed(3)
        learner.step(model, of_features, batch(1), batch(2))
        found = {k: p.grad.clone() for k, p in model.named_parameters()}
        return found | {k: b.clone() for k, b in model.named_buffers()}

    return model, step


def same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-14, msg=name)


class Kept:
    """The most bytes that were kept for derivatives at once, each storage counted once."""

    def __enter__(self):
        self.most = 0
        self.alive = weakref.WeakSet()
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda held: held.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception):
        self.hooks.__exit__(*exception)

    def pack(self, tensor):
        held = type("Held", (), {})()
        held.tensor = tensor
        self.alive.add(held)
        storages = [h.tensor.untyped_storage() for h in self.alive]
        self.most = max(self.most, sum({s.data_ptr(): s.nbytes() for s in storages}.values()))
        return held


def most_kept(step):
    with Kept() as kept:
        step()
    return kept.most


@pytest.mark.parametrize("name", NAMES)
def test_attacks_get_the_same_gradient(name):
    model, step = attack_step(name)
    wanted = step()
    assert wanted["delta"].norm() > 0
    with recomputing(model):
        same(wanted, step())


@pytest.mark.parametrize("name", NAMES[:-1])
def test_models_get_the_same_gradient_and_remember_a_batch_once(name):
    model, step = model_step(name)
    wanted = step()
    assert wanted["blocks.0.one.1.num_batches_tracked"] == 1
    with recomputing(model):
        same(wanted, step())


def test_maml_refuses_a_model_that_learns_itself():
    model, step = model_step("maml")
    step()
    with recomputing(model), pytest.raises(InputError, match=r"hessian_free.*first_order"):
        step()
    step()


@pytest.mark.parametrize("name", ["plain", "first_order", "hessian_free"])
def test_less_is_kept(name):
    model, step = model_step(name)
    before = most_kept(step)
    with recomputing(model):
        assert most_kept(step) < 0.6 * before


@pytest.mark.parametrize("make", [attack_step, model_step])
def test_hessian_free_keeps_no_more_than_first_order(make):
    first, hessian, exact = (
        most_kept(make(name)[1]) for name in ("first_order", "hessian_free", "maml")
    )
    assert hessian <= 1.01 * first
    assert exact > 1.5 * first  # so that the counting sees a second graph


def test_afterwards_all_is_as_before():
    model = Network()
    kinds = [type(module) for module in model.modules()]
    name = weights_fingerprint(model)
    try:
        with recomputing(model):
            assert weights_fingerprint(model) == name
            assert [type(module) for module in model.modules()] != kinds
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert [type(module) for module in model.modules()] == kinds


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no repeated blocks"), recomputing(nn.Linear(2, 2)):
        pass
    with pytest.raises(InputError, match="GRU"), recomputing(Network(), blocks=nn.GRU):
        pass
