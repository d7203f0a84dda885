"""Which classifier a dataset gets, and a model that is rebuilt around new classifiers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from helpers import TinyNet
from reidguard.data import ReIDDataset
from reidguard.defenses.heads import domains_of, with_classifiers
from reidguard.errors import CheckpointError, InputError
from reidguard.models import MODELS, ReIDModel, create_model, wrap_model
from reidguard.types import InputSpec

SIZE = (32, 16)


class Set(ReIDDataset):
    """A dataset without images, whose fingerprint is its ``images``."""

    def __init__(self, name: str, identities: int, images: str | None = None) -> None:
        super().__init__(name)
        self.identities = identities
        self.images = images or name

    @property
    def num_train_pids(self) -> int:
        return self.identities

    def fingerprint(self, split: str) -> str:
        assert split == "train"
        return self.images


class Mine(ReIDModel):
    """Batch norm, and a classifier with a bias for each domain."""

    def __init__(self, *, num_classes: Any = None, width: int = 5) -> None:
        super().__init__(
            input_spec=InputSpec(size=SIZE), metric="euclidean", num_classes=num_classes
        )
        self.body = nn.Sequential(nn.Conv2d(3, width, 4, stride=4), nn.BatchNorm2d(width))
        self.build_classifiers(width)

    def embed(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs).mean((2, 3))


@pytest.fixture
def make(monkeypatch):
    """Build a registered model with seeded weights."""
    monkeypatch.setitem(MODELS._factories, "mine", Mine)

    def call(seed: int = 0, **options: Any) -> ReIDModel:
        torch.manual_seed(seed)
        model = create_model("mine", **options)
        for buffer in model.buffers():
            if buffer.is_floating_point():
                nn.init.uniform_(buffer, 0.5, 2)
        return model

    return call


def names(num_classes: Any, *datasets: ReIDDataset, provenance: Any = None) -> list[str]:
    model = TinyNet()
    model.num_classes = num_classes
    model.provenance = provenance
    return domains_of(model, list(datasets))


A, B = Set("a", 4), Set("b", 7)
LEARNT = {"domains": {"x": {"name": "a", "fingerprint": "a"}, "y": {"fingerprint": "b"}}}


@pytest.mark.parametrize(
    ("num_classes", "datasets", "provenance", "expected"),
    [
        ({}, [A, B], None, ["a", "b"]),
        ({"a": 4, "b": 7}, [B, A], None, ["b", "a"]),
        # the only classifier, if it has as many identities
        ({"default": 4}, [A], None, ["default"]),
        ({"default": 5}, [A], None, ["a"]),
        ({"default": 4, "other": 4}, [A], None, ["a"]),
        # a classifier serves one dataset
        ({"default": 4}, [A, Set("c", 4)], None, ["default", "c"]),
        # by its images, whatever its name
        ({"x": 4, "y": 7}, [B, A], LEARNT, ["y", "x"]),
        # a name that other images have is taken over: with_classifiers makes it anew
        ({"x": 4, "y": 7}, [Set("x", 4)], LEARNT, ["x"]),
        # train_model's provenance
        ({"default": 4}, [A], {"domain": "default", "train": {"fingerprint": "a"}}, ["default"]),
        ({"default": 4}, [A], {"domain": "default", "train": {"fingerprint": "z"}}, ["a"]),
        ({"default": 4}, [A], {"domain": "default"}, ["default"]),
        ({"default": 4}, [A], {"train": {"fingerprint": "z"}}, ["default"]),
        # the own name goes before that of the same images
        ({"a": 4, "x": 4}, [A], {"domains": {"x": {"fingerprint": "a"}}}, ["a"]),
        # names that are taken, and names with dots
        ({}, [A, Set("a", 5), Set("a", 6)], None, ["a", "a_2", "a_2_2"]),
        ({}, [Set("v1.5.2", 4)], None, ["v1_5_2"]),
        ({"v1_5": 4}, [Set("v1.5", 4)], None, ["v1_5"]),
    ],
)
def test_a_dataset_keeps_the_classifier_that_serves_it(num_classes, datasets, provenance, expected):
    assert names(num_classes, *datasets, provenance=provenance) == expected


def heads(model: ReIDModel) -> dict[str, torch.Tensor]:
    return {domain: layer.weight for domain, layer in model.classifier.items()}


def body(model: nn.Module) -> list[torch.Tensor]:
    return [t for name, t in model.state_dict().items() if not name.startswith("classifier")]


def test_new_classifiers_beside_old_weights(make):
    model = make(num_classes={"a": 4, "old": 3})
    model.provenance = {"domains": {"a": {"fingerprint": "a"}}}
    model.metric = "cosine"
    model.input_spec = InputSpec(size=(8, 4))
    model.body[0].bias.requires_grad_(False)
    model.classifier["a"].bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(9)
    state = torch.get_rng_state()
    built = with_classifiers(model, {"a": A, "b": B}, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(built) is Mine
    assert built.num_classes == {"a": 4, "b": 7}
    assert (built.metric, built.input_spec) == ("cosine", InputSpec(size=(8, 4)))
    assert torch.equal(heads(built)["a"], heads(model)["a"])
    assert 0.001 < float(heads(built)["b"].detach().std()) < 0.02
    assert all(torch.equal(x, y) for x, y in zip(body(built), body(model), strict=True))
    frozen = [name for name, p in built.named_parameters() if not p.requires_grad]
    assert frozen == ["body.0.bias", "classifier.a.bias"]
    # seeded, and apart from the model
    same, other = (with_classifiers(model, {"a": A, "b": B}, seed=s) for s in (1, 2))
    assert torch.equal(heads(same)["b"], heads(built)["b"])
    assert not torch.equal(heads(other)["b"], heads(built)["b"])
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            tensor.fill_(3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_new_model_has_the_dtype_of_the_old(make, dtype):
    built = with_classifiers(make(num_classes=3).to(dtype), {"b": B}, seed=0)
    assert {p.dtype for p in built.parameters()} == {dtype}
    assert built.body[1].num_batches_tracked.dtype == torch.int64


def test_a_classifier_of_other_identities_is_not_kept_under_its_name(make):
    model = make(num_classes={"a": 4})
    model.provenance = {"domains": {"a": {"fingerprint": "others"}}}
    built = with_classifiers(model, {"a": A}, seed=1)
    assert built.num_classes == {"a": 4}
    assert not torch.equal(heads(built)["a"], heads(model)["a"])
    assert all(torch.equal(x, y) for x, y in zip(body(built), body(model), strict=True))


@pytest.mark.parametrize("domains", [{}, {"a": A}])
def test_a_model_that_serves_is_copied_without_its_gradients(make, domains):
    model = make(num_classes={"a": 4}).double()
    model.build_spec = None  # nothing has to be built
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    copied = with_classifiers(model, domains, seed=0)
    assert copied is not model
    assert copied.body[0].weight.grad is None
    assert model.body[0].weight.grad is not None
    assert copied.body[0].weight.data_ptr() != model.body[0].weight.data_ptr()
    assert torch.equal(copied.body[0].weight, model.body[0].weight)
    assert torch.equal(heads(copied)["a"], heads(model)["a"])


def test_without_an_identity_loss_all_classifiers_stay(make):
    model = make(num_classes={"p": 2, "q": 3})
    assert with_classifiers(model, {}, seed=0).num_classes == {"p": 2, "q": 3}


def test_a_model_that_cannot_be_built_anew_is_refused(make):
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU())
    wrapped = wrap_model(network, input_spec=InputSpec(size=SIZE))
    with pytest.raises(InputError, match=r"classifier for b .*num_classes=\{'b': 7\}"):
        with_classifiers(wrapped, {"b": B}, seed=0)


def test_a_model_that_was_changed_after_its_creation_is_refused(make):
    wider = make(num_classes=3)
    wider.body = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6))
    with pytest.raises(CheckpointError, match=r"'mine', rebuilt.*body\.0"):
        with_classifiers(wider, {"b": B}, seed=0)
    shorter = make(num_classes=3)
    shorter.body = nn.Sequential(shorter.body[0])
    with pytest.raises(CheckpointError, match=r"body\.1"):
        with_classifiers(shorter, {"b": B}, seed=0)
