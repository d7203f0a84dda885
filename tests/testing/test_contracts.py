"""The suites for models, learners, defenses and datasets: ours pass, planted breaches fail."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from reidguard.attacks import SMA, DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.data.readers.folder import read_folder
from reidguard.defenses import DEFENSES, Defense
from reidguard.errors import DataError
from reidguard.learners import LEARNERS, MetaLearner, PlainLearner, StepResult
from reidguard.models import ReIDModel, create_model
from reidguard.testing import (
    DATASET_CHECKS,
    DEFENSE_CHECKS,
    LEARNER_CHECKS,
    MODEL_CHECKS,
    TRAINING_SET_CHECKS,
    check_missing_folder,
    small_dataset,
    small_model,
)
from reidguard.types import Budget, InputSpec, ReIDSample

SIZE = (32, 16)


def names(checks):
    return {"argvalues": checks, "ids": [check.__name__ for check in checks]}


def broken(checks, subject) -> set[str]:
    """Which checks a planted violator fails."""
    found = set()
    for check in checks:
        try:
            check(subject)
        except Exception:  # an author sees whatever comes
            found.add(check.__name__)
    return found


# --- models -----------------------------------------------------------------------------------

ZOO = {
    "ide": {"backbone": "test_resnet", "size": SIZE},
    "ide on a ViT": {"backbone": "test_vit", "size": SIZE},
    "pcb": {"backbone": "test_resnet", "parts": 2, "size": SIZE},
    "agw": {"backbone": "test_resnet", "size": SIZE},
    "osnet_x0_25": {"size": SIZE},
}


@pytest.mark.parametrize("check", **names(MODEL_CHECKS))
@pytest.mark.parametrize("name", ZOO)
def test_our_models_keep_the_contract(name, check):
    check(lambda people: create_model(name.split()[0], num_classes=people, **ZOO[name]))


class Plain(ReIDModel):
    """Keeps the contract; the violators below break one thing each."""

    def __init__(self, num_classes=None):
        super().__init__(
            input_spec=InputSpec(size=(8, 4)), metric="cosine", num_classes=num_classes
        )
        self.layer = nn.Conv2d(3, 5, 3)
        self.norm = nn.BatchNorm2d(5)
        self.build_classifiers(5)

    def embed(self, inputs):
        return self.norm(self.layer(inputs)).tanh().mean((2, 3))


class Flat(Plain):
    def embed(self, inputs):
        return self.layer(inputs)


class Constant(Plain):
    def embed(self, inputs):
        return 0 * super().embed(inputs) + 1


class SeesTheBatch(Plain):
    def embed(self, inputs):
        features = super().embed(inputs)
        return features - features.mean(0)


class OneSize(Plain):
    def features(self, x):
        return super().features(x.view(-1, 3, 48, 24))


class Random(Plain):
    def embed(self, inputs):
        return super().embed(inputs) + torch.rand(1)


class Writes(Plain):
    def features(self, x):
        x *= 1
        x[:1] = 0
        return super().features(x)


class Counts(Plain):
    def __init__(self, num_classes=None):
        super().__init__(num_classes)
        self.register_buffer("calls", torch.zeros(()))

    def embed(self, inputs):
        self.calls += 1
        return super().embed(inputs)


class Detached(Plain):
    def embed(self, inputs):
        return super().embed(inputs).detach()


class FirstDomain(Plain):
    def resolve_domain(self, domain):
        return next(iter(self.num_classes), None)


class NoLogits(Plain):
    def logits(self, features, domain):
        return None


class TrainsItself(Plain):
    def embed(self, inputs):
        self.norm.train()
        return super().embed(inputs)


class CannotBeCopied(Plain):
    def __deepcopy__(self, memo):
        return CannotBeCopied(self.num_classes).eval()


def test_a_model_of_a_few_lines_keeps_the_contract():
    assert broken(MODEL_CHECKS, Plain) == set()


@pytest.mark.parametrize(
    ("violator", "check"),
    [
        (Flat, "check_features"),
        (Constant, "check_features"),
        (SeesTheBatch, "check_features"),
        (OneSize, "check_features"),
        (Random, "check_eval_is_pure"),
        (Writes, "check_eval_is_pure"),
        (Counts, "check_eval_is_pure"),
        (Detached, "check_gradients"),
        (FirstDomain, "check_domains"),
        (FirstDomain, "check_output"),
        (NoLogits, "check_output"),
        (TrainsItself, "check_eval_is_pure"),
        (CannotBeCopied, "check_copies"),
    ],
)
def test_model_violators_are_found(violator, check):
    assert check in broken(MODEL_CHECKS, violator)


# --- learners ---------------------------------------------------------------------------------


@pytest.mark.parametrize("check", **names(LEARNER_CHECKS))
@pytest.mark.parametrize("name", ["plain", "joint", "first_order", "hessian_free", "maml"])
def test_our_learners_keep_the_contract(name, check):
    options = {} if name in ("plain", "joint") else {"inner": "sgd"}
    check(lambda: LEARNERS.create(name, **options))


class Learner(MetaLearner):
    """Two passes, as `joint`, but without its care for buffers and draws."""

    needs_meta_test = True

    def __init__(self, breach=""):
        self.breach = breach

    def step(self, module, objective, meta_train_batch, meta_test_batch=None, *, optimizer=None):
        breach = self.breach
        if breach != "adds up":
            module.zero_grad(set_to_none=True)
        loss = objective(module, meta_train_batch)
        loss.backward()
        if breach == "passes":
            objective(module, meta_train_batch)
        if breach == "uphill":
            for p in module.parameters():
                p.grad = None if p.grad is None else -p.grad
        if breach == "steps":
            optimizer.step()
        if breach == "momentum":
            optimizer.param_groups[0]["lr"] = 0.5
        if breach == "thaws":
            module.requires_grad_(True)
        unused = tuple(n for n, p in module.named_parameters() if p.grad is None)
        test = None if breach == "no meta-test" else loss.detach()
        return StepResult(loss if breach == "graph" else loss.detach(), test, unused)


@pytest.mark.parametrize(
    ("breach", "check"),
    [
        ("adds up", "check_gradient"),
        ("steps", "check_gradient"),
        ("graph", "check_gradient"),
        ("momentum", "check_gradient"),
        ("no meta-test", "check_gradient"),
        ("uphill", "check_direction"),
        ("passes", "check_batch_norm"),
        ("passes", "check_random_layers"),
        ("thaws", "check_frozen_parameters"),
        ("", "check_meta_test_batch"),
        ("", "check_frozen_parameters"),
    ],
)
def test_learner_violators_are_found(breach, check):
    assert check in broken(LEARNER_CHECKS, lambda: Learner(breach))


def test_a_learner_that_demands_more_than_it_says_is_found():
    class Shy(PlainLearner):
        needs_meta_test = True

        def step(self, *args, **options):
            return PlainLearner().step(*args, **options)

    assert "check_meta_test_batch" in broken(LEARNER_CHECKS, Shy)


# --- defenses ---------------------------------------------------------------------------------

SHORT = {"steps": 1, "image_size": SIZE, "identities": 4, "images_per_identity": 2}


def delta() -> DeltaAttack:
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    nn.init.uniform_(attack.delta, -0.03, 0.03, generator=torch.Generator().manual_seed(0))
    return attack


@pytest.mark.parametrize("check", **names(DEFENSE_CHECKS))
@pytest.mark.parametrize(
    "name",
    [
        "adversarial",
        "mixed",
        "meta",
        "meta_released",
        "goat",
        "trades",
        "mart",
        "act",
        "hm",
        "free",
    ],
)
def test_our_defenses_keep_the_contract(name, check):
    options = {}
    if name in ("adversarial", "mixed", "meta", "meta_released"):
        options = {"attack": SMA(steps=2) if name == "adversarial" else delta()}

    def fit(model, source, other):
        defense = DEFENSES.create(name, **options)
        return defense.fit(model, source, other if defense.needs_meta_test else None, **SHORT)

    check(fit)


class Hardens(Defense):
    def __init__(self, breach=""):
        self.breach = breach

    def fit(self, model, meta_train, meta_test=None):
        breach = self.breach
        if breach == "returns the model":
            return model
        made = copy.copy(model) if breach == "shares" else copy.deepcopy(model)
        subject = model if breach == "works on the model" else made
        with torch.no_grad():
            for p in subject.parameters():
                p.add_(torch.randn_like(p) if breach == "random" else 0.01)
                p.mul_(float("nan") if breach == "diverges" else 1)
        if breach == "modes":
            model.eval()
        if breach == "flags":
            model.requires_grad_(True)
        if breach == "metric":
            made.metric = "cosine"
        return made.backbone if breach == "another class" else made


@pytest.mark.parametrize(
    ("breach", "check"),
    [
        ("returns the model", "check_new_model"),
        ("shares", "check_new_model"),
        ("shares", "check_model_is_only_read"),
        ("works on the model", "check_model_is_only_read"),
        ("modes", "check_model_is_only_read"),
        ("flags", "check_model_is_only_read"),
        ("random", "check_repeatable"),
        ("diverges", "check_new_model"),
        ("metric", "check_new_model"),
        ("another class", "check_new_model"),
    ],
)
def test_defense_violators_are_found(breach, check):
    assert check in broken(DEFENSE_CHECKS, Hardens(breach).fit)


def test_a_defense_of_a_few_lines_keeps_the_contract():
    assert broken(DEFENSE_CHECKS, Hardens().fit) == set()


def test_the_small_model_and_dataset_are_small():
    assert sum(p.numel() for p in small_model().parameters()) < 1e6
    with small_dataset() as people:
        assert people.num_train_pids == 4
        assert (len(people.train), len(people.query), len(people.gallery)) == (16, 4, 12)


# --- datasets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people():
    with small_dataset() as dataset:
        yield dataset


def changed(dataset, **splits) -> ReIDDataset:
    given = {
        split: splits.get(split, dataset.split(split)) for split in ("train", "query", "gallery")
    }
    return ReIDDataset(
        splits.get("name", "mine"),
        **given,
        root=dataset.root,
        licence=splits.get("licence", "free"),
    )


@pytest.mark.parametrize("check", **names(DATASET_CHECKS))
def test_our_datasets_keep_the_contract(people, check):
    check(lambda: people)


def test_readers_name_a_missing_folder():
    check_missing_folder(read_folder)


def damage(people, tmp_path) -> Path:
    path = tmp_path / "damaged.png"
    path.write_bytes(people.train[0].path.read_bytes()[:60])
    return path


def test_dataset_violators_are_found(people, tmp_path):
    def fails(**splits):
        return broken(DATASET_CHECKS, lambda: changed(people, **splits))

    assert fails() == set()
    assert "check_splits" in fails(query=())
    assert "check_splits" in fails(train=(*people.train, people.train[0]))
    assert "check_splits" in fails(gallery=(*people.gallery, people.train[0]))
    assert "check_splits" in fails(train=people.train[:4])
    assert fails(licence="unknown") == {"check_summary"}
    one_camera = [replace(s, camid=1) for s in people.gallery]
    assert fails(gallery=one_camera) == {"check_queries"}
    ruined = (ReIDSample(damage(people, tmp_path), 1, 1), *people.train[1:])
    assert fails(train=ruined) == {"check_images"}
    turn = iter([people.train, people.train[::-1]] * 9)
    assert "check_repeatable" in broken(
        DATASET_CHECKS[3:4], lambda: changed(people, train=next(turn))
    )


def test_training_sets_keep_their_own_contract(people):
    def fails(**splits):
        return broken(TRAINING_SET_CHECKS, lambda: changed(people, **splits))

    assert fails(query=(), gallery=()) == set()
    assert fails(query=()) == fails(gallery=()) == {"check_training_split"}
    assert "check_training_split" in fails(query=(), gallery=(), train=people.train[:4])


@pytest.mark.parametrize("error", [None, FileNotFoundError("nowhere"), DataError("not here")])
def test_readers_that_hide_a_missing_folder_are_found(error):
    def reader(root):
        if error is not None:
            raise error
        return ReIDDataset("empty", [], [], [])

    with pytest.raises((AssertionError, FileNotFoundError)):
        check_missing_folder(reader)
