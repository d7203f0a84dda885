"""The key of a model changes with whatever changes its features, and with nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reidguard.attacks import DeltaAttack
from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.models import BlackBoxModel, EnsembleModel, ReIDModel, create_model, wrap_model
from reidguard.models.fingerprint import model_key, tensor_digest
from reidguard.testing import small_dataset
from reidguard.types import InputSpec

SPEC = InputSpec(size=(16, 8))


class Necked(nn.Module):
    """A network whose features depend on more than what is printed and saved."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.neck_feat = "after"
        self.options = {"power": 1.0}
        self.register_buffer("scale", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).mean((2, 3)) * self.scale
        pooled = pooled.sign() * pooled.abs() ** self.options["power"]
        return self.norm(pooled) if self.neck_feat == "after" else pooled


def necked(features: Any = None) -> ReIDModel:
    torch.manual_seed(0)
    network = Necked()
    network.norm.running_mean.uniform_(-1, 1)
    return wrap_model(network, input_spec=SPEC, features=features)


def wrong_code(model: ReIDModel) -> None:
    model.embed = lambda inputs: inputs.mean((2, 3))  # type: ignore[method-assign]


CHANGES = {
    "attribute": lambda model: setattr(model.network, "neck_feat", "before"),
    "nested attribute": lambda model: model.network.options.update(power=1.001),
    "buffer that is not saved": lambda model: model.network.scale[2].mul_(1.001),
    "attribute of a layer": lambda model: setattr(model.network.norm, "eps", 1e-4),
    "function": wrong_code,
    "weight": lambda model: model.network.conv.bias.data[0].add_(1e-6),
    "hook": lambda model: model.network.register_forward_hook(lambda net, x, y: y * 1.001),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_the_features_changes_the_key(change):
    model = necked()
    before = model_key(model)
    assert model_key(model) == before == model_key(copy.deepcopy(model))
    change(model)
    assert model_key(model) != before


def test_functions_that_give_the_features_are_told_apart():
    functions = [lambda net, x: net(x), lambda net, x: net(x) * 1.01, lambda net, x: net.conv(x)]
    first, *others = [model_key(necked(function)) for function in functions]
    assert first not in others
    assert others[0] != others[1]
    assert model_key(necked(lambda net, x: net(x))) == first  # whatever its place in memory


def test_a_member_of_an_ensemble_changes_the_key():
    member = necked()
    ensemble = EnsembleModel([member, necked()])
    before = model_key(ensemble)
    member.network.neck_feat = "before"
    assert model_key(ensemble) != before


def test_stale_features_are_not_reused():
    """A perturbation of zero changes nothing, whatever happened to the model before."""
    store, protocol = FeatureStore(), Protocol(image_size=(32, 16))
    model = necked()
    with small_dataset() as people:
        for neck in ("after", "before"):
            model.network.neck_feat = neck
            result = evaluate(model, people, None, protocol, store=store)
            fresh = evaluate(model, people, None, protocol)
            assert result.to_dict()["clean"] == fresh.to_dict()["clean"]
            attacked = evaluate(model, people, DeltaAttack(size=(32, 16)), protocol, store=store)
            assert attacked.attacked.ranking.mAP == attacked.clean.mAP
    assert len(store) == 4  # queries and gallery, before and after


PRINT_KEYS = """
import json, sys, torch
torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
from reidguard.models import create_model, wrap_model
from reidguard.models.fingerprint import model_key
models = [
    create_model("osnet_x0_25", size=(128, 64)),
    create_model("ide", backbone="test_vit", size=(64, 32)),
    wrap_model(create_model("ide", backbone="test_resnet", size=(64, 32)).backbone,
               features=lambda network, x: network(x)),
]
print(json.dumps([model_key(model) for model in models]))
"""


@pytest.mark.slow
def test_other_processes_and_numbers_of_threads_give_the_same_key():
    keys = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", PRINT_KEYS, str(threads)],
            capture_output=True, check=True, text=True,
        ).stdout
        for threads in (1, 2, 3)
    ]  # fmt: skip
    assert keys[0].count("features") >= 3
    assert keys[0] == keys[1] == keys[2]


def test_the_digest_ignores_rounding_and_sees_little_changes():
    """Of 300 outputs each; the expected number of digests that rounding changes is below 0.1."""
    generator = torch.Generator().manual_seed(0)
    for dtype, noise, change in ((torch.float64, 1e-12, 1e-3), (torch.float32, 1e-7, 0.1)):
        for i in range(300):
            rows = torch.randn(2, 5 + i, generator=generator, dtype=dtype)
            other = torch.randn(2, 5 + i, generator=generator, dtype=dtype)
            assert tensor_digest(rows) == tensor_digest(rows * (1 + noise * other))
            assert tensor_digest(rows) != tensor_digest(rows * (1 + change * other))
            assert tensor_digest(rows) != tensor_digest(rows * (1 + change))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_any_output_has_a_digest(value):
    rows = torch.full((2, 3), value)
    assert tensor_digest(rows) == tensor_digest(rows.clone())
    assert tensor_digest(rows) != tensor_digest(torch.ones(2, 3))


def test_a_key_costs_one_pass_and_changes_nothing():
    passes: list[int] = []
    model = necked(lambda net, x: (passes.append(len(x)), net(x))[1])
    model.network.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.network.register_forward_hook(lambda net, x, y: net.calls.add_(1) and None)
    random, state = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    model_key(model)
    assert passes == [2]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with small_dataset() as people:
        passes.clear()
        evaluate(model, people, None, Protocol(image_size=(32, 16)), batch_size=64)
    assert sorted(passes)[0] == 2
    assert len(passes) == 3  # the key, the queries, the gallery


def test_networks_that_draw_at_random_have_a_key_and_threads_may_share_it():
    model = necked(lambda net, x: net(x + torch.randn_like(x)))
    random = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: model_key(model), range(16)))
    assert all(key == keys[0] for key in keys)
    assert torch.equal(torch.get_rng_state(), random)


def test_models_in_single_precision_only():
    black_box = BlackBoxModel(lambda x: x.mean((2, 3)), identity="mean", input_spec=SPEC)
    before = model_key(black_box)
    assert model_key(black_box) == before
    black_box.function = lambda x: x.max((2, 3))
    assert model_key(black_box) != before
    half = create_model("osnet_x0_25", size=(64, 32)).bfloat16()
    assert model_key(half) == model_key(half)
