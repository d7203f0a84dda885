"""Defenses as a whole: what they feed the model, what they leave alone, and what comes out."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from helpers import Killed, kill_at
from reidguard.attacks import FNA, SMA, CombinatorialAttack, DeltaAttack, Guides
from reidguard.data import Augment, BatchLoader, ReIDDataset
from reidguard.defenses import (
    DEFENSES,
    GOAT,
    AdversarialTraining,
    GuideSampling,
    MetaDefense,
    MixedTraining,
    ReleasedMetaDefense,
)
from reidguard.defenses.batches import AdversarialBatches
from reidguard.errors import CheckpointError, InputError, ReIDGuardError, TrainingError
from reidguard.evaluation import Protocol, evaluate
from reidguard.fingerprint import fingerprint, weights_fingerprint
from reidguard.learners import HessianFreeLearner
from reidguard.models import create_model, load_model, wrap_model
from reidguard.models.fingerprint import model_key
from reidguard.objectives.defense import DefenseObjective
from reidguard.storage import load_tensors
from reidguard.training import train_model
from reidguard.types import Budget, InputSpec

SIZE = (64, 32)


@pytest.fixture
def fed(monkeypatch):
    """Every batch that an objective is called with."""
    seen = []
    original = DefenseObjective.__call__

    def spy(self, model, batch, norms=None):
        seen.append(batch)
        return original(self, model, batch, norms)

    monkeypatch.setattr(DefenseObjective, "__call__", spy)
    return seen


def assert_same(one: nn.Module, two: nn.Module) -> None:
    ours, theirs = one.state_dict(), two.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def pairs(batch):
    """Adversarial images and the clean ones that they were made of."""
    count = batch.adversarial
    place = {int(i): row for row, i in enumerate(batch.indices[:-count])}
    assert len(place) == len(batch) - count  # no image twice, so this finds the right one
    rows = [place[int(i)] for i in batch.indices[-count:]]
    assert torch.equal(batch.pids[rows], batch.pids[-count:])
    return batch.images[-count:], batch.images[rows]


# --- what the model is fed --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["delta", "sma"])
def test_adversarial_images_are_images_in_the_ball(
    normal, delta, studio, other_dataset, short, fed, kind
):
    """Of a clean image of the batch: after crop and flip, and erased where that one is."""
    attack = delta if kind == "delta" else SMA(Budget(8 / 255), steps=2, step_size=4 / 255)
    fill = torch.tensor([1.0, 0.0, 0.5])
    augment = Augment(erase=1.0, erase_area=(0.1, 0.2), erase_value=tuple(fill.tolist()))
    MixedTraining(attack).fit(normal, studio, other_dataset, steps=2, augment=augment, **short)
    assert [(b.domain, len(b), b.adversarial) for b in fed] == [
        ("default", 48, 16),
        ("elsewhere", 48, 16),
    ] * 2
    for batch in fed:
        adversarial, clean = pairs(batch)
        away = (adversarial - clean).abs()
        assert float(away.max()) <= 8 / 255 + 1e-6
        assert float(away.mean()) > 2 / 255
        assert 0 <= float(batch.images.min()) <= float(batch.images.max()) <= 1
        erased = (clean == fill.view(3, 1, 1)).all(1)
        share = erased.flatten(1).float().mean(1)
        assert float(share.min()) > 0.08
        assert float(share.max()) < 0.25
        assert not away.amax(1)[erased].any()
        assert (batch.images == fill.view(3, 1, 1)).all(1).flatten(1).any(1).all()


def test_batches_follow_from_seed_and_step_alone(delta, studio):
    def batches(seed, role="meta-train"):
        loader = BatchLoader(
            studio,
            image_size=SIZE,
            images_per_identity=4,
        )
        return AdversarialBatches(
            loader,
            lambda batch, chosen, *_: delta(batch.images[chosen]),
            augment=Augment(),
            fraction=0.5,
            clean=True,
            domain=None,
            seed=seed,
            role=role,
        )

    whole = list(batches(0).epoch(1))
    assert len(whole) == len(batches(0)) > 1
    (last,) = batches(0).epoch(1, len(whole) - 1)
    assert torch.equal(last.images, whole[-1].images)
    choices = [b.indices[-b.adversarial :].tolist() for b in whole]
    for other in (batches(1), batches(0, "meta-test")):
        assert [b.indices[-b.adversarial :].tolist() for b in other.epoch(1)] != choices


def test_all_passes_of_a_step_see_the_same_batch(normal, delta, studio, other_dataset, tiny, fed):
    learner = HessianFreeLearner(inner="sgd", inner_steps=2)
    MetaDefense(delta, learner=learner).fit(normal, studio, other_dataset, steps=1, **tiny)
    train = [b for b in fed if b.domain == "default"]
    assert len(train) > 2
    assert all(torch.equal(b.images, train[0].images) for b in train)


def test_what_follows_the_model_and_what_does_not(normal, studio, tiny, monkeypatch):
    """An unbound attack works on the model as it hardens; a bound one keeps its target model."""
    targets = []
    original = SMA.search

    def spy(self, x, clean, target):
        targets.append(weights_fingerprint(target.model))
        assert not any(m.training for m in target.model.modules())
        return original(self, x, clean, target)

    monkeypatch.setattr(SMA, "search", spy)
    AdversarialTraining(SMA(steps=1)).fit(normal, studio, steps=3, **tiny)
    assert len(set(targets)) == 3
    assert weights_fingerprint(normal) not in targets[1:]
    targets.clear()
    AdversarialTraining(SMA(steps=1).bind(normal)).fit(normal, studio, steps=2, **tiny)
    assert targets == [weights_fingerprint(normal)] * 2


# --- what is left alone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda delta: AdversarialTraining(delta, refresh_every=1, refresh_steps=1),
        lambda delta: MetaDefense(delta, batch_norm="separate"),
        lambda delta: ReleasedMetaDefense(delta),
        lambda delta: AdversarialTraining(FNA(steps=1)),
        lambda delta: GOAT(GuideSampling(steps=1)),
    ],
    ids=["refreshed", "meta", "released", "fna", "goat"],
)
def test_the_model_given_and_the_attack_stay_as_they_were(
    normal, delta, studio, other_dataset, short, tiny, make
):
    model = copy.deepcopy(normal)
    model.train()
    model.backbone.conv1.eval()
    model.neck[0].weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    before, attack = weights_fingerprint(model), weights_fingerprint(delta)
    gradients = [p.grad for p in (*model.parameters(), *delta.parameters())]
    rng = torch.get_rng_state()
    defense = make(delta)
    other = other_dataset if defense.needs_meta_test else None
    run = {**short, "steps": 5} if defense.refresh_every else {**tiny, "steps": 2}
    robust = defense.fit(model, studio, other, **run)
    assert weights_fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    now = [p.grad for p in (*model.parameters(), *delta.parameters())]
    assert all(a is b for a, b in zip(now, gradients, strict=True))
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["neck.0.weight"]
    assert weights_fingerprint(delta) == attack
    assert all(p.requires_grad for p in delta.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    # and the new one: what was frozen stayed, the rest moved
    assert not any(m.training for m in robust.modules())
    assert torch.equal(robust.neck[0].weight, model.neck[0].weight)
    first, same = next(robust.backbone.parameters()), next(model.backbone.parameters())
    assert not torch.equal(first, same)
    assert all(p.grad is None for p in robust.parameters())


@pytest.mark.parametrize("make", [AdversarialTraining, MetaDefense])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_move_once_in_a_step_whatever_the_attack_does(
    normal, studio, other_dataset, tiny, fed, make, mode
):
    defense = make(GuideSampling(steps=2), attack_mode=mode)
    other = other_dataset if defense.needs_meta_test else None
    robust = defense.fit(normal, studio, other, steps=1, augment=None, **tiny)
    wanted = copy.deepcopy(normal).train()
    with torch.no_grad():
        wanted(fed[0].images)
    for (name, found), expected in zip(robust.named_buffers(), wanted.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


# --- classifiers ------------------------------------------------------------------------------


def test_each_domain_has_its_classifier(normal, delta, studio, other_dataset, tiny):
    fixed = {**tiny, "lr": 1e-12, "steps": 1}  # nothing moves
    defense = MetaDefense(delta, learner="first_order")
    robust = defense.fit(normal, studio, other_dataset, **fixed)
    assert robust.num_classes == {"default": 16, "elsewhere": 10}
    # The normal model's own head is where learning starts.
    own = normal.classifier["default"].weight
    torch.testing.assert_close(robust.classifier["default"].weight, own, rtol=0, atol=1e-9)
    assert robust.provenance["domains"]["elsewhere"]["name"] == "elsewhere"
    # Hardened once more, both are kept: the facts say whose they are, whatever they are called.
    again = MixedTraining(delta).fit(robust, other_dataset, studio, **fixed)
    assert set(again.num_classes) == {"default", "elsewhere"}
    assert list(again.provenance["domains"]) == ["elsewhere", "default"]
    for domain in again.num_classes:
        one, two = (m.classifier[domain].weight for m in (again, robust))
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


def test_two_datasets_of_one_name_have_a_classifier_each(normal, delta, studio, tiny):
    """Also one dataset twice, and names that torch does not take."""
    one = studio
    people = ReIDDataset("v1.5", one.train, one.query, one.gallery, root=one.root)
    robust = MixedTraining(delta).fit(normal, people, people, **{**tiny, "steps": 1})
    assert robust.num_classes == {"default": 16, "v1_5": 16}
    again = MixedTraining(delta).fit(
        create_model("ide", backbone="test_resnet", size=SIZE),
        people,
        people,
        **{**tiny, "steps": 1},
    )
    assert again.num_classes == {"v1_5": 16, "v1_5_2": 16}


def test_a_head_of_other_people_is_replaced(normal, delta, other_dataset, studio, tiny):
    """Also if they are as many: the model's facts say whom it learnt."""
    strangers = ReIDDataset(
        "strangers",
        studio.train[:-1],
        studio.query,
        studio.gallery,
    )
    assert strangers.num_train_pids == studio.num_train_pids
    fixed = {**tiny, "lr": 1e-12, "steps": 1}
    for people, name in ((strangers, "strangers"), (other_dataset, "elsewhere")):
        robust = AdversarialTraining(delta).fit(normal, people, **fixed)
        assert robust.num_classes == {name: people.num_train_pids}
        assert float(robust.classifier[name].weight.detach().std()) < 0.02  # fresh
        torch.testing.assert_close(robust.neck[0].weight, normal.neck[0].weight)
    one = AdversarialTraining(delta).fit(normal, other_dataset, seed=1, **fixed)
    assert not torch.equal(
        one.classifier["elsewhere"].weight, robust.classifier["elsewhere"].weight
    )


def test_a_model_without_classifier_gets_one_or_is_not_asked_for_one(delta, studio, tiny):
    bare = create_model("ide", backbone="test_resnet", size=SIZE)
    robust = AdversarialTraining(delta).fit(bare, studio, steps=1, **tiny)
    assert robust.num_classes == {"virtual:studio": 16}
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU())
    wrapped = wrap_model(network, input_spec=InputSpec(size=SIZE))
    with pytest.raises(InputError, match=r"create_model.*or take losses=\('triplet',\)"):
        AdversarialTraining(delta).fit(wrapped, studio, steps=1, **tiny)
    robust = AdversarialTraining(delta, losses=("triplet",)).fit(wrapped, studio, steps=1, **tiny)
    assert not torch.equal(robust.network[0].weight, network[0].weight)


# --- resume, NaN ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "step", "resumed_from"),
    [
        pytest.param("refreshed", 1, 0, marks=pytest.mark.slow),
        pytest.param("refreshed", 4, 2, marks=pytest.mark.slow),
        pytest.param("refreshed", 5, 4, marks=pytest.mark.slow),
        ("refreshed", 7, 6),
        ("meta", 3, 2),
        ("sma", 3, 2),
        ("goat", 3, 2),
    ],
)
def test_interrupted_and_resumed_equals_never_interrupted(
    normal, delta, studio, other_dataset, short, tiny, tmp_path, kind, step, resumed_from
):
    """A refreshed attack is state, too: an epoch has 4 steps, so it is relearnt after step 4."""
    defense = {
        "refreshed": lambda: AdversarialTraining(delta, refresh_every=1, refresh_steps=2),
        "meta": lambda: MetaDefense(delta),
        "sma": lambda: AdversarialTraining(SMA(steps=1)),
        "goat": lambda: GOAT(GuideSampling(steps=1)),
    }[kind]()
    other = other_dataset if defense.needs_meta_test else None
    run = {**short, "steps": 8} if kind == "refreshed" else {**tiny, "steps": 4}
    whole = defense.fit(normal, studio, other, **run)
    run |= {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 2}
    with pytest.raises(Killed):
        defense.fit(normal, studio, other, progress=kill_at(step), **run)
    steps = []
    resumed = defense.fit(
        normal, studio, other, progress=lambda progress: steps.append(progress.done), **run
    )
    assert steps[0] == resumed_from
    assert_same(resumed, whole)


def test_a_refreshed_attack_is_another_one(normal, delta, studio, short, tmp_path, monkeypatch):
    calls = []
    original = DeltaAttack.fit

    def spy(self, model, *arguments, **options):
        calls.append((weights_fingerprint(model), options["steps"]))
        return original(self, model, *arguments, **options)

    monkeypatch.setattr(DeltaAttack, "fit", spy)
    path = tmp_path / "c.safetensors"
    AdversarialTraining(delta, refresh_every=1, refresh_steps=3).fit(
        normal, studio, steps=9, checkpoint=path, **short
    )
    assert [steps for _, steps in calls] == [3, 3]  # before steps 4 and 8, counted from 0
    assert len({model for model, _ in calls}) == 2
    kept, _ = load_tensors(path)
    moved = kept["module.attack.delta"] - delta.delta.detach()
    assert float(moved.abs().max()) > 1 / 255
    assert float(kept["module.attack.delta"].abs().max()) <= 8 / 255 + 1e-6


def test_other_settings_are_not_resumed(normal, delta, studio, tiny, tmp_path):
    run = {**tiny, "steps": 1, "checkpoint": tmp_path / "c.safetensors"}
    AdversarialTraining(delta).fit(normal, studio, **run)
    other = DeltaAttack(delta.budget, size=SIZE)
    with torch.no_grad():
        other.delta.copy_(-delta.delta)
    for defense in (AdversarialTraining(other), AdversarialTraining(delta, margin=0.3)):
        with pytest.raises(CheckpointError, match="other settings"):
            defense.fit(normal, studio, **run)


def test_nan_stops_with_the_last_good_checkpoint_named(
    normal, delta, studio, short, tmp_path, monkeypatch
):
    original = DefenseObjective.__call__
    calls = []

    def breaks(self, model, batch, norms=None):
        calls.append(1)
        loss = original(self, model, batch, norms)
        return loss * float("nan") if len(calls) == 6 else loss

    monkeypatch.setattr(DefenseObjective, "__call__", breaks)
    path = tmp_path / "c.safetensors"
    run = {**short, "steps": 8, "checkpoint": path, "checkpoint_every": 2}
    with pytest.raises(TrainingError) as caught:
        AdversarialTraining(delta).fit(normal, studio, **run)
    assert "loss of step 6 is nan" in str(caught.value)
    assert f"{path} holds the last good state, that of step 4" in str(caught.value)
    tensors, card = load_tensors(path)
    assert card["step"] == 4
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())
    # From there it goes on, and ends as if nothing had been.
    resumed = AdversarialTraining(delta).fit(normal, studio, **run)
    del run["checkpoint"], run["checkpoint_every"]
    assert_same(resumed, AdversarialTraining(delta).fit(normal, studio, **run))


def test_weights_that_are_not_finite_are_not_handed_out(normal, delta, studio, tiny, monkeypatch):
    def overflow(self, closure=None):
        with torch.no_grad():
            self.param_groups[0]["params"][3].fill_(torch.inf)

    monkeypatch.setattr(torch.optim.Adam, "step", overflow)
    with pytest.raises(TrainingError, match=r"not finite in .*: lower the learning rate"):
        AdversarialTraining(delta).fit(normal, studio, **{**tiny, "steps": 1})


# --- does it harden? --------------------------------------------------------------------------


def test_a_hardened_model_resists_more_than_one_trained_alike_without_attack(
    normal, delta, studio, short
):
    """Equal steps, equal batches; figures of people whom neither has seen."""

    def attacked(defense):
        robust = defense.fit(normal, studio, steps=20, **short)
        result = evaluate(robust, studio, delta, Protocol(image_size=SIZE))
        return result.attacked.ranking.mAP

    undefended = attacked(AdversarialTraining(delta, adversarial=0.0))
    assert attacked(AdversarialTraining(delta)) > undefended + 0.15


# --- guide sampling ---------------------------------------------------------------------------


def test_guides_are_drawn_from_the_right_people():
    """A linear embedder: one step of length ε goes along the sign of a gradient known by hand."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, 5))
    model = wrap_model(
        network, input_spec=InputSpec(None, (0, 0, 0), (1, 1, 1)), metric="euclidean"
    )
    g = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 4, 2, generator=g) * 0.5 + 0.25
    pids = torch.tensor([1, 1, 1, 2, 2, 3])
    features = model.features(images).detach()
    attack = GuideSampling(Budget(4 / 255), push=3, steps=1, step_size=1.0)
    x_adv = attack.bind(model, Guides(features, pids)).with_labels(pids)(images)
    weight = network[1].weight.detach()
    for i in range(6):
        own = features[pids == pids[i]]
        means = [torch.stack(chosen).mean(0) for chosen in itertools.product(own, repeat=3)]
        # The gradient of |f-p|² - |f-n|² by f is 2(n - p), wherever the start is.
        possible = [
            ((n - p) @ weight).view(3, 4, 2).sign()
            for p in means
            for n in features[pids != pids[i]]
        ]
        found = ((x_adv[i] - images[i]) * 255 / 4).round()
        assert any(torch.equal(found, signs) for signs in possible)
    with pytest.raises(InputError, match=r"push must be .* at least 1"):
        GuideSampling(push=0)


def test_images_are_pushed_from_the_mean_of_several_guides():
    """Not from one of them: some results no single guide explains, and all a mean does."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 2, 5))
    model = wrap_model(
        network, input_spec=InputSpec(None, (0, 0, 0), (1, 1, 1)), metric="euclidean"
    )
    g = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 4, 2, generator=g) * 0.5 + 0.25
    pids = torch.tensor([1, 1, 1, 2])
    features = model.features(images).detach()
    weight = network[1].weight.detach()

    def signs(p):  # of the gradient of |f-p|² - |f-n|² by the image, n being the only other guide
        return tuple(((features[3] - p) @ weight).sign().tolist())

    single = {signs(p) for p in features[:3]}
    means = {signs(torch.stack(p).mean(0)) for p in itertools.product(features[:3], repeat=2)}
    results = set()
    for seed in range(8):
        attack = GuideSampling(Budget(4 / 255), push=2, steps=1, step_size=1.0, seed=seed)
        x_adv = attack.bind(model, Guides(features, pids)).with_labels(pids)(images)
        changes = ((x_adv - images)[:3] * 255 / 4).round().flatten(1)
        results |= {tuple(change.tolist()) for change in changes}
    assert results <= means
    assert results - single


def test_the_learning_rate_is_flat_and_then_falls_tenfold(normal, delta, studio, tiny, monkeypatch):
    """Flat for 40/85 of the epochs, a tenth after as many again, in steps of an epoch."""
    rates = []
    original = torch.optim.Adam.step

    def spy(self, closure=None):
        rates.append(self.param_groups[0]["lr"])
        return original(self, closure)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    AdversarialTraining(delta, adversarial=0.0).fit(normal, studio, epochs=4, **tiny)
    epochs = [rates[i * len(rates) // 4] for i in range(4)]
    flat = 4 * 40 / 85
    assert epochs[:2] == [1e-3, 1e-3]
    assert epochs[2:] == pytest.approx([1e-3 * 10 ** -((e - flat) / flat) for e in (2, 3)])
    assert rates == [rate for rate in epochs for _ in range(len(rates) // 4)]


# --- errors -----------------------------------------------------------------------------------


def test_errors_name_the_cure(normal, delta, studio, other_dataset, tiny):
    def refused(message, defense, *datasets, **options):
        with pytest.raises(InputError, match=message):
            defense.fit(normal, *datasets, **{**tiny, "steps": 1, **options})

    one, two = studio, other_dataset
    refused(r"'maml' needs a second dataset: pass meta_test=", MetaDefense(delta), one)
    refused("leave meta_test out", AdversarialTraining(delta), one, two)
    blank = CombinatorialAttack(None, 5, SIZE)
    refused(r"learnt nothing yet.*attack\.fit", AdversarialTraining(blank), one)
    refused(r"steps must be .* at least 1 .*, not 0", AdversarialTraining(delta), one, steps=0)
    refused(r"lr must be .* above 0 .*, not 0", AdversarialTraining(delta), one, lr=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": 32}, r"adversarial must be .* at most 1, not 32"),
        ({"clean": False, "adversarial": 0.0}, "there must be adversarial"),
        ({"clean": False, "batch_norm": "separate"}, "batch_norm='shared'"),
        ({"attack_mode": "test"}, "'eval' or 'train'"),
        ({"refresh_every": 0}, "at least 1"),
        ({"attack": SMA(), "refresh_every": 2}, "nothing to relearn"),
        ({"attack": "delta"}, "load_attack"),
        ({"losses": "center"}, "'triplet', 'identity' or both"),
        ({"inner_lr": 0.1}, "no inner step"),
        ({"learner": "mmal"}, "did you mean 'maml'"),
    ],
)
def test_wrong_options_name_the_cure(delta, options, message):
    with pytest.raises(ReIDGuardError, match=message):
        AdversarialTraining(**{"attack": delta, **options})


# --- the rest of the interface ----------------------------------------------------------------


def test_presets():
    sma = SMA()
    names = ("adversarial", "meta", "meta_released", "mixed")
    made = {name: DEFENSES.create(name, sma) for name in names}
    learners = {name: defense.config()["learner"] for name, defense in made.items()}
    assert learners == {
        "adversarial": "plain",
        "meta": "maml",
        "meta_released": "first_order",
        "mixed": "joint",
    }
    assert made["meta"].config()["learner_options"]["inner"] == "sgd"
    for learner in ("first_order", "hessian_free", "maml"):
        config = MetaDefense(sma, learner=learner, inner="adam", inner_lr=0.1).config()
        assert config["learner_options"]["inner"] == "adam"
        assert config["learner_options"]["inner_lr"] == 0.1
    assert made["meta_released"].losses == ("triplet",)
    assert (made["meta"].default_lr, made["meta_released"].default_lr) == (3e-4, 2e-4)
    goat = DEFENSES.create("goat").config()
    assert (goat["attack"]["config"]["steps"], goat["clean"], goat["adversarial"]) == (7, False, 1)
    assert AdversarialTraining(sma, losses=["identity"]).losses == ("identity",)


def test_a_hardened_model_is_saved_with_its_facts(
    normal, delta, studio, other_dataset, tiny, tmp_path
):
    steps = []
    robust = MetaDefense(delta).fit(
        normal, studio, other_dataset, steps=2, progress=steps.append, **tiny
    )
    assert [progress.done for progress in steps] == [0, 1, 2]
    assert set(steps[-1].metrics) == {"loss", "test_loss"}
    robust.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert_same(loaded, robust)
    facts = loaded.provenance
    assert (facts["method"], facts["steps"], facts["lr"]) == ("meta", 2, 1e-3)
    assert facts["defense"]["attack"]["class"] == "delta"
    assert facts["base"] == fingerprint(model_key(normal))
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(loaded.features(x), robust.features(x))


def test_training_goes_on_as_that_of_a_model_does(normal, delta, studio, tiny):
    """With no attacked image, it is train_model's training, bit for bit."""
    mine = AdversarialTraining(delta, adversarial=0.0).fit(
        normal, studio, steps=3, augment=None, **tiny
    )
    theirs = copy.deepcopy(normal)
    train_model(theirs, studio, steps=3, augment=None, **tiny)
    assert_same(mine, theirs)


@pytest.mark.parametrize("name", ["adversarial", "meta"])
def test_recomputing_changes_memory_alone(name, normal, delta, studio, other_dataset, tiny):
    make = {
        "adversarial": lambda: AdversarialTraining(delta),
        "meta": lambda: MetaDefense(delta, learner="first_order"),
    }[name]
    given = (studio, other_dataset) if name == "meta" else (studio,)
    one, two = (make().fit(normal, *given, **tiny, steps=2, recompute=r) for r in (False, True))
    for key, wanted in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], wanted, rtol=0, atol=1e-5)
    assert type(two) is type(one)
    assert [type(m) for m in two.modules()] == [type(m) for m in one.modules()]
    with pytest.raises(InputError, match="hessian_free"):
        MetaDefense(delta).fit(normal, studio, other_dataset, **tiny, steps=1, recompute=True)
