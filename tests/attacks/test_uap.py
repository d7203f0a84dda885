"""UAP-Retrieval, and the losses that any universal attack can take."""

import math

import pytest
import torch
from torch import nn

from helpers import TinyNet
from reidguard.attacks import ColorAttack, DeltaAttack, MetaAttack, UAPRetrieval, load_attack
from reidguard.data import iterate_images
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.objectives import (
    ATTACK_LOSSES,
    AttackLoss,
    FeatureObjective,
    PairWiseLoss,
    SelfMetricLoss,
)
from reidguard.objectives.clusters import k_means
from reidguard.training import MISGD
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (32, 16)
SMALL = {"identities": 3, "images_per_identity": 2, "image_size": SIZE}
LOSSES = ["pairwise", "labelwise", "listwise", "self_metric"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyNet()


@pytest.mark.parametrize("objective", LOSSES)
def test_every_loss_is_learnt_within_the_budget(objective, model, studio):
    data = studio
    attack = UAPRetrieval(size=SIZE)
    attack.fit(model, data, objective=objective, steps=20, **SMALL)
    assert 0 < attack.delta.abs().max() <= attack.budget.eps
    assert attack.provenance["objective"] == objective

    pixels = next(iterate_images(data.train, SIZE, len(data.train)))[1].float() / 255
    index = torch.arange(len(pixels))
    batch = ReIDBatch(pixels, index, index, index)
    loss = ATTACK_LOSSES.create(objective)
    with torch.no_grad():
        measured = FeatureObjective(model, loss.with_statistics(loss.representation(model, pixels)))
        assert measured(attack, batch) < measured(UAPRetrieval(size=SIZE), batch)


@pytest.mark.parametrize("objective", LOSSES)
def test_any_universal_attack_takes_them(objective, model, studio):
    attack = ColorAttack(resolution=4)
    attack.fit(model, studio, objective=objective, steps=2, **SMALL)
    assert attack.offset.abs().max() > 0


def test_what_it_does_unless_told_otherwise(model, studio):
    options = {"objective": "pairwise", "momentum": 1.0}
    own = UAPRetrieval(size=SIZE).fit(model, studio, steps=2, **SMALL)
    same = UAPRetrieval(size=SIZE).fit(model, studio, steps=2, **SMALL, **options)
    assert own.provenance == same.provenance
    assert own.provenance["momentum"] == 1.0
    assert torch.equal(own.delta, same.delta)


def test_centroids_are_those_of_all_training_images(model, studio):
    seen = []

    class Spy(PairWiseLoss):
        def with_statistics(self, training):
            seen.append(training)
            return super().with_statistics(training)

    ATTACK_LOSSES.register("spy")(Spy)
    try:
        # fewer steps than an epoch, when other losses would not need all features
        UAPRetrieval(size=SIZE).fit(model, studio, objective="spy", steps=1, **SMALL)
    finally:
        del ATTACK_LOSSES._factories["spy"]
    assert [len(features) for features in seen] == [len(studio.train)]


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def linear(seed):
    weight = torch.randn(
        4, 3 * 2 * 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    return weight, wrap_model(Linear(weight), input_spec=spec, metric="euclidean")


def test_gradient_on_a_linear_embedder_is_the_closed_form():
    """φ(x) = Wx: the pair-wise gradient is 10·Wᵀ times a difference of unit vectors."""
    weight, model = linear(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(5, 3, 2, 2, generator=generator, dtype=torch.float64) * 0.5 + 0.25
    attack = UAPRetrieval(size=(2, 2)).double()
    with torch.no_grad():
        attack.delta.uniform_(-4 / 255, 4 / 255, generator=generator)
    clean = x.flatten(1) @ weight.T
    centroids = k_means(clean, 3)
    index = torch.arange(5)
    objective = FeatureObjective(model, PairWiseLoss(centroids=centroids, margin=1000.0))
    objective(attack, ReIDBatch(x, index, index, index)).backward()

    moved = (x + attack.delta.detach()).flatten(1) @ weight.T
    expected = torch.zeros(12, dtype=torch.float64)
    for i in range(5):
        distance = (centroids - clean[i]).norm(dim=1)
        towards = moved[i] - centroids[distance.argmax()]
        away = moved[i] - centroids[distance.argmin()]
        expected += 10 * (towards / towards.norm() - away / away.norm()) @ weight / 5
    torch.testing.assert_close(attack.delta.grad.flatten(), expected)


def test_self_metric_on_a_linear_embedder_finds_the_best_delta():
    """φ(x) = (1, u·(x − grey)): of a grey image it is turned most by δ = ±ε·sign(u)."""
    u = torch.randn(3 * 8 * 4, generator=torch.Generator().manual_seed(0))

    class Turned(nn.Module):
        def forward(self, x):
            return torch.stack((torch.ones(len(x)), (x - 0.5).flatten(1) @ u), 1)

    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    model = wrap_model(Turned(), input_spec=spec, metric="euclidean")
    grey = torch.full((4, 3, 8, 4), 0.5)
    index = torch.arange(4)
    batch = ReIDBatch(grey, index, index, index)
    attack = UAPRetrieval(size=(8, 4))
    objective = FeatureObjective(model, SelfMetricLoss())
    assert objective(attack, batch).detach() == 1
    objective(attack, batch).backward()
    assert attack.delta.grad.abs().max() < 1e-7  # flat where nothing is changed
    attack.zero_grad()
    attack._random_step(attack.budget.eps / 10, seed=0)
    optimizer = MISGD(attack.parameters(), lr=attack.budget.eps / 10)
    for _ in range(30):
        optimizer.zero_grad()
        objective(attack, batch).backward()
        optimizer.step()
        attack.clip_parameters()
    signs = (attack.delta / attack.budget.eps).flatten() * u.sign()
    assert (signs == signs[0]).all()
    assert signs[0].abs() == 1


def test_a_flat_loss_starts_from_a_seeded_random_step(model, studio):
    def learn(seed):
        attack = DeltaAttack(size=SIZE)
        attack.fit(model, studio, objective="self_metric", lr=1e-3, steps=1, seed=seed, **SMALL)
        return attack.delta.detach()

    first = learn(1)
    assert torch.equal(learn(1), first)
    # ±0.001 by the start, ±0.001 by the only step
    assert set((first * 1000).round().flatten().tolist()) <= {-2.0, 0.0, 2.0}
    assert not torch.equal(learn(2), first)


# Saturation


def saturated(share):
    attack = UAPRetrieval(Budget(8 / 255), size=(10, 10))
    with torch.no_grad():
        flat = attack.delta.view(-1)
        flat.fill_(0.01)
        flat[: round(share * 300)] = 8 / 255
        flat[: round(share * 300) : 2] *= -1
    return attack


@pytest.mark.parametrize(("share", "halved"), [(0.4, False), (0.5, False), (0.6, True), (1, True)])
def test_a_saturated_delta_that_stands_still_is_halved(share, halved):
    attack = saturated(share)
    before = attack.delta.detach().clone()
    attack.start_epoch()  # the share has just moved from 0
    assert torch.equal(attack.delta, before)
    attack.start_epoch()
    assert torch.equal(attack.delta, before / 2 if halved else before)


def test_a_share_that_still_moves_is_left_alone():
    attack = saturated(0.6)
    attack.start_epoch()
    attack.delta.data.view(-1)[299] = 8 / 255
    before = attack.delta.detach().clone()
    attack.start_epoch()
    assert torch.equal(attack.delta, before)


def test_fit_halves_once_an_epoch_and_resumes_bit_for_bit(studio, tmp_path):
    """φ(x) = Wx moved along a direction: the signs of the gradient never change."""
    weight = torch.randn(5, 3 * 8 * 4, generator=torch.Generator().manual_seed(0))
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])
    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    model = wrap_model(Linear(weight), input_spec=spec, metric="euclidean")

    class MoveAlong(AttackLoss):
        def __call__(self, adversarial, clean, pids):
            return -((adversarial - clean) @ direction).mean()

    class StopError(Exception):
        pass

    batch = {"identities": 3, "images_per_identity": 9, "image_size": (8, 4)}
    epoch, eps = 5, 8 / 255

    def learn(**options):
        attack = UAPRetrieval(Budget(eps), size=(8, 4))
        run = {"objective": "move along", "steps": 2 * epoch + 1, "lr": 0.3 * eps, **batch}
        return attack.fit(model, studio, **run, **options)

    ATTACK_LOSSES.register("move along")(MoveAlong)
    try:
        whole = learn()
        # Four steps saturate δ and six change nothing; it is halved, and takes the last step.
        expected = (0.5 + 0.3 * math.exp(-0.02)) * eps * (weight.T @ direction).sign()
        torch.testing.assert_close(whole.delta.data.flatten(), expected)
        for stop in (2, epoch, 2 * epoch - 1, 2 * epoch):
            kept = {"checkpoint": tmp_path / str(stop), "checkpoint_every": 1}

            def halt(p, stop=stop):
                if p.metrics and p.done == stop:
                    raise StopError

            with pytest.raises(StopError):
                learn(**kept, progress=halt)
            resumed = learn(**kept)
            assert torch.equal(resumed.delta, whole.delta)
            assert torch.equal(resumed.saturation, whole.saturation)
    finally:
        del ATTACK_LOSSES._factories["move along"]


def test_it_comes_back_from_its_file(model, studio, tmp_path):
    attack = UAPRetrieval(Budget(4 / 255), size=SIZE).fit(model, studio, steps=2, **SMALL)
    attack.save(tmp_path / "uap.safetensors")
    loaded = load_attack(tmp_path / "uap.safetensors")
    x = torch.rand(2, 3, 40, 20)
    assert isinstance(loaded, UAPRetrieval)
    assert torch.equal(loaded(x), attack(x))
    assert loaded.provenance["objective"] == "pairwise"


def test_labelwise_needs_a_classifier(studio):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten())
    bare = wrap_model(network, input_spec=InputSpec(size=SIZE), metric="euclidean")
    with pytest.raises(InputError, match="num_classes"):
        UAPRetrieval(size=SIZE).fit(bare, studio, objective="labelwise", steps=1, **SMALL)


def test_meta_attack_can_learn_it(model, studio):
    attack = MetaAttack("uap", size=SIZE, learner="first_order")
    attack.fit(model, studio, studio, objective="pairwise", steps=2, **SMALL)
    assert attack.attack.delta.abs().max() > 0
