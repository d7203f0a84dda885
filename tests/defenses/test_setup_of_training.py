"""What a defense passes to the training loop, recorded in place of training."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import noise_datasets, tiny_model
from reidguard.attacks import SMA, DeltaAttack
from reidguard.data import Augment
from reidguard.defenses import GOAT, AdversarialTraining, MetaDefense, MixedTraining
from reidguard.defenses import training as module
from reidguard.errors import InputError, ReIDGuardError
from reidguard.fingerprint import fingerprint
from reidguard.learners import LEARNERS, FirstOrderLearner, MAMLLearner, PlainLearner
from reidguard.models.fingerprint import model_key
from reidguard.training.loop import derived_seed
from reidguard.types import Budget

SIZE = (32, 16)
SMALL = {"image_size": SIZE, "identities": 2, "images_per_identity": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Six identities of four images, which the model has a classifier for, and nine others."""
    return noise_datasets(tmp_path_factory.mktemp("sets"), 4, SIZE)


@pytest.fixture
def learn(monkeypatch):
    """Keep the arguments of the loop and train nothing."""
    calls = []

    def record(trained, **arguments):
        modes = [m.training for m in trained.modules() if not isinstance(m, DeltaAttack)]
        calls.append(SimpleNamespace(module=trained, training=all(modes[1:]), **arguments))
        return 0.0  # no unusable gradients

    monkeypatch.setattr(module, "learn", record)
    return calls


def built():
    model = tiny_model(num_classes=6)
    model.neck[0].weight.requires_grad_(False)
    return model


def learnt():
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    nn.init.constant_(attack.delta, 2 / 255)
    return attack


def test_usual_values_are_those_that_the_docs_name(sets, learn):
    model = built()
    robust = AdversarialTraining(learnt()).fit(model, sets[0], **SMALL)
    (call,) = learn
    assert isinstance(call.learner, PlainLearner)
    assert type(call.optimizer) is torch.optim.Adam
    (group,) = call.optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (3e-4, 5e-4)
    trained = dict(call.module["model"].named_parameters())
    assert trained.pop("neck.0.weight").requires_grad is False
    assert {id(p) for p in group["params"]} == {id(p) for p in trained.values()}
    assert list(call.module) == ["model"]
    assert call.module["model"] is robust
    assert call.training
    assert call.meta_test is None
    assert call.seed == 0
    stream = call.meta_train
    assert (stream.fraction, stream.clean, stream.domain) == (0.5, True, "default")
    assert (stream.seed, stream.role, stream.augment.erase_value) == (
        0,
        "meta-train",
        Augment().erase_value,
    )
    assert stream.loader.augment == replace(Augment(), erase=0.0)
    assert call.steps == 85 * len(stream)
    assert robust.provenance == call.settings
    facts = call.settings
    assert (facts["method"], facts["lr"], facts["weight_decay"]) == ("adversarial", 3e-4, 5e-4)
    assert (facts["identities"], facts["images_per_identity"]) == (2, 2)
    assert facts["base"] == fingerprint(model_key(model))
    assert facts["data"] == [{"name": "six", "fingerprint": sets[0].fingerprint("train")}]
    assert facts["domains"] == {"default": facts["data"][0]}
    assert facts["defense"]["attack"]["class"] == "delta"
    assert not robust.training


def test_batches_hold_8_identities_of_8_images(sets, learn):
    robust = AdversarialTraining(learnt()).fit(built(), sets[1], image_size=SIZE)
    facts = robust.provenance
    assert (facts["identities"], facts["images_per_identity"]) == (8, 8)
    assert len(next(learn[0].meta_train.loader.epoch(0))) == 64


def test_the_schedule_is_flat_and_then_falls_tenfold_in_as_many_epochs(sets, learn):
    MixedTraining(learnt()).fit(built(), *sets, steps=170, **SMALL)
    (call,) = learn
    lengths = len(call.meta_train), len(call.meta_test)
    assert lengths[0] < lengths[1]
    flat = 40 / 85 * 170 / lengths[1]  # an epoch is that of the longer set
    rate = call.hooks.schedule
    assert rate(0) == rate(flat * 0.99) == 1
    assert rate(2 * flat) == pytest.approx(0.1)
    assert rate(1.5 * flat) == pytest.approx(0.1**0.5)


def test_two_domains_have_streams_of_their_own(sets, learn):
    defense = MetaDefense(learnt(), adversarial=0.25, inner_lr=0.5, losses="identity")
    augment = Augment(erase=0.9, erase_value=(0.0, 0.5, 1.0), flip=0.1)
    robust = defense.fit(
        built(), *sets, seed=4, steps=2, augment=augment, weight_decay=0.1, **SMALL
    )
    (call,) = learn
    assert isinstance(call.learner, MAMLLearner)
    assert call.learner.config()["inner_lr"] == 0.5
    streams = call.meta_train, call.meta_test
    assert [s.role for s in streams] == ["meta-train", "meta-test"]
    assert [s.domain for s in streams] == ["default", "nine"]
    assert [s.seed for s in streams] == [4, 4]
    assert [s.fraction for s in streams] == [0.25, 0.25]
    assert [s.loader.augment for s in streams] == [replace(augment, erase=0.0)] * 2
    assert [s.augment.erase_value for s in streams] == [(0.0, 0.5, 1.0)] * 2
    assert len(streams[0].loader.samples) == 24
    assert len(streams[1].loader.samples) == 36
    assert (call.seed, call.steps) == (4, 2)
    assert call.optimizer.param_groups[0]["weight_decay"] == 0.1
    facts = robust.provenance
    assert facts["method"] == "meta"
    assert [d["name"] for d in facts["data"]] == ["six", "nine"]
    assert {k: d["name"] for k, d in facts["domains"].items()} == {"default": "six", "nine": "nine"}
    assert robust.num_classes == {"default": 6, "nine": 9}


def test_new_classifiers_depend_on_the_seed(sets, learn):
    def head(seed):
        robust = AdversarialTraining(learnt()).fit(model, sets[1], seed=seed, steps=1, **SMALL)
        return robust.classifier["nine"].weight

    model = tiny_model(num_classes=16)
    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))
    expected = tiny_model(seed=derived_seed(1, "classifiers"), num_classes={"nine": 9})
    assert torch.equal(head(1), expected.classifier["nine"].weight)


def test_without_cross_entropy_the_classifiers_stay(sets, learn):
    defense = MixedTraining(learnt(), losses=["triplet"])
    robust = defense.fit(built(), *sets, steps=1, **SMALL)
    assert robust.num_classes == {"default": 6}
    assert robust.provenance["domains"] == {}
    assert [s.domain for s in (learn[0].meta_train, learn[0].meta_test)] == ["default", "default"]
    bare = built()
    bare.num_classes = {}
    defense.fit(bare, *sets, steps=1, **SMALL)
    assert [s.domain for s in (learn[1].meta_train, learn[1].meta_test)] == [None, None]


@pytest.mark.parametrize("every", [1, 3])
def test_an_attack_is_relearnt_every_so_many_epochs(sets, learn, monkeypatch, every):
    fits = []
    monkeypatch.setattr(DeltaAttack, "fit", lambda self, *data, **o: fits.append((data, o)))
    defense = MixedTraining(learnt(), refresh_every=every, refresh_steps=7)
    defense.fit(built(), *sets, seed=2, steps=1, **SMALL)
    (call,) = learn
    assert list(call.module) == ["model", "attack"]
    assert not call.module["attack"].delta.requires_grad
    assert call.meta_test.before is None
    period = every * len(call.meta_test)  # the longer set
    for step in range(2 * period + 2):
        call.meta_train.before(step)
    assert [data for data, _ in fits] == [(call.module["model"], sets[0])] * 2
    assert [options for _, options in fits] == [
        {"learner": "plain", "steps": 7, "seed": derived_seed(2, "refresh", step), **SMALL}
        for step in (period, 2 * period)
    ]


def test_without_relearning_nothing_is_learnt_between_steps(sets, learn, monkeypatch):
    def fails(*args, **options):
        raise AssertionError("relearnt")

    monkeypatch.setattr(DeltaAttack, "fit", fails)
    AdversarialTraining(learnt()).fit(built(), sets[0], steps=1, **SMALL)
    for step in range(30):
        learn[0].meta_train.before(step)


def test_goat_attacks_every_image_of_the_model_in_train_mode(sets, learn):
    GOAT().fit(built(), sets[0], steps=1, **SMALL)
    stream = learn[0].meta_train
    assert (stream.fraction, stream.clean, stream.craft.mode) == (1.0, False, "train")
    assert stream.craft.attack.push == 4
    assert stream.craft.model is learn[0].module["model"]


def test_the_objective_is_that_of_the_settings(sets, learn):
    defense = AdversarialTraining(
        learnt(), margin=0.9, reduction="sum", batch_norm="separate", adversarial=0.5
    )
    defense.fit(built(), sets[0], steps=1, augment=None, **SMALL)
    (call,) = learn
    objective = defense._objective()
    assert (objective.margin, objective.reduction) == (0.9, "sum")
    assert objective.batch_norm == "separate"
    assert objective.losses == ("triplet", "identity")
    assert call.meta_train.augment is None
    assert call.meta_train.loader.augment is None
    batch = next(call.meta_train.epoch(0))
    assert batch.adversarial == 2
    found = call.objective(call.module, batch)
    torch.testing.assert_close(found, objective(call.module["model"], batch))


def test_the_settings_of_a_defense():
    config = AdversarialTraining(SMA(steps=3), losses="triplet", margin=0.4).config()
    attack = config.pop("attack")
    assert (attack["class"], attack["config"]["steps"]) == ("sma", 3)
    assert config == {
        "learner": "plain",
        "learner_options": {},
        "inner": "sgd",
        "inner_lr": None,
        "adversarial": 0.5,
        "clean": True,
        "losses": ["triplet"],
        "margin": 0.4,
        "reduction": "mean",
        "batch_norm": "shared",
        "attack_mode": "eval",
        "refresh_every": None,
        "refresh_steps": 20,
        "regularizer": None,
        "beta": 6.0,
        "divergence": "distance",
        "warmup": 0.0,
        "awp": 0.0,
        "replays": 1,
        "alternate": False,
    }


@pytest.mark.parametrize(
    "options",
    [
        {"adversarial": 0.0},
        {"adversarial": 1.0},
        {"adversarial": 1.0, "clean": False},
        {"batch_norm": "separate"},
        {"refresh_every": 1, "refresh_steps": 1},
        {"attack_mode": "train"},
    ],
)
def test_the_ends_of_ranges_are_allowed(options):
    AdversarialTraining(learnt(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"adversarial": -0.01},
        {"adversarial": 1.01},
        {"refresh_every": 1, "refresh_steps": 0},
        {"refresh_every": 0, "refresh_steps": 1},
        {"refresh_every": 1, "attack": SMA()},
        {"attack": nn.Identity()},
    ],
)
def test_what_lies_beyond_is_refused(options):
    with pytest.raises(InputError):
        AdversarialTraining(**{"attack": learnt(), **options})


def test_a_learner_that_is_given_as_an_object_is_taken_as_it_is():
    learner = MAMLLearner(inner="sign")
    defense = MetaDefense(SMA(), learner=learner, inner_lr=0.3)
    assert defense.make_learner() is learner
    assert defense.needs_meta_test
    assert not AdversarialTraining(SMA(), learner=PlainLearner()).needs_meta_test
    assert MetaDefense(SMA(), inner="adam").make_learner().config()["inner"] == "adam"
    with pytest.raises(InputError, match="no inner step"):
        MixedTraining(SMA(), inner_lr=0.1)


def test_datasets_that_do_not_suit_the_learner_are_refused(sets, learn):
    for defense, data, words in (
        (MixedTraining(learnt()), sets[:1], "'joint' needs a second dataset"),
        (AdversarialTraining(learnt()), sets, "'plain' uses no second dataset"),
    ):
        with pytest.raises(ReIDGuardError, match=words):
            defense.fit(built(), *data, steps=1, **SMALL)
    assert not learn


def test_the_inner_step_reaches_every_learner_that_has_one(monkeypatch):
    """Named in its signature, or passed on by a subclass of a learner that has it."""

    class PassesOn(FirstOrderLearner):
        def __init__(self, **options):
            super().__init__(**options)

    class HasInner(PlainLearner):
        def __init__(self, inner, inner_lr):
            self.options = inner, inner_lr

    for name, cls in (("passes on", PassesOn), ("has inner", HasInner)):
        monkeypatch.setitem(LEARNERS._factories, name, cls)
    first, second = (
        AdversarialTraining(SMA(), learner=name, inner="sign", inner_lr=0.2).make_learner()
        for name in ("passes on", "has inner")
    )
    assert (first.config()["inner"], first.config()["inner_lr"]) == ("sign", 0.2)
    assert second.options == ("sign", 0.2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attack": "delta"}, r"must be an Attack, not 'delta'.*load_attack"),
        ({"adversarial": 32}, r"adversarial must be .* at most 1, not 32"),
        ({"clean": False, "adversarial": 0.0}, "must be adversarial ones"),
        ({"clean": False, "batch_norm": "separate"}, "batch_norm='shared'"),
        ({"attack_mode": "test"}, "'eval' or 'train', not 'test'"),
        ({"attack": SMA(), "refresh_every": 2}, "SMA has nothing to relearn"),
        ({"refresh_every": 2, "refresh_steps": 0}, "at least 1"),
    ],
)
def test_refusals_name_the_value_and_the_cure(options, words):
    with pytest.raises(InputError, match=words):
        AdversarialTraining(**{"attack": learnt(), **options})
