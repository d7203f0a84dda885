"""Learning an attack on a small real network and virtual people."""

import copy

import pytest
import torch
from torch import nn

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack, load_attack
from reidguard.errors import CheckpointError, InputError, TrainingError
from reidguard.learners import LEARNERS, PlainLearner
from reidguard.models import wrap_model
from reidguard.objectives import (
    ATTACK_LOSSES,
    AttackLoss,
    FeatureObjective,
    MisrankingTriplet,
)
from reidguard.storage import load_tensors
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (32, 16)
SMALL = {"identities": 3, "images_per_identity": 2, "image_size": SIZE}


class CountedNet(nn.Module):
    """A tiny network with batch norm and dropout that counts the images it sees."""

    def __init__(self):
        super().__init__()
        self.images = 0
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )

    def forward(self, x):
        self.images += len(x)
        return self.body(x).mean((2, 3))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return wrap_model(CountedNet(), input_spec=InputSpec(size=SIZE), metric="euclidean")


def attacks():
    return [DeltaAttack(size=SIZE), ColorAttack(resolution=4), CombinatorialAttack(None, 4, SIZE)]


@pytest.mark.parametrize("attack", attacks(), ids=lambda a: type(a).__name__)
def test_fit_lowers_its_loss_within_the_budget(attack, model, studio):
    losses = []
    attack.fit(
        model,
        studio,
        steps=25,
        **SMALL,
        progress=lambda p: losses.append(p.metrics["loss"]) if p.metrics else None,
    )
    assert len(losses) == 25
    assert sum(losses[-5:]) < sum(losses[:5])
    x = torch.rand(4, 3, *SIZE)
    assert (attack(x) - x).abs().max() <= attack.budget.eps + 1e-6
    assert (attack(x) - x).abs().max() > 0


def test_the_model_comes_back_untouched(model, studio):
    model.train()
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    flags = [p.requires_grad for p in model.parameters()]
    DeltaAttack(size=SIZE).fit(model, studio, steps=2, **SMALL)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_same_seed_same_bits_and_another_seed_others(model, studio, tmp_path):
    def learn(seed):
        attack = DeltaAttack(size=SIZE).fit(model, studio, steps=3, seed=seed, **SMALL)
        attack.save(tmp_path / f"{seed}.safetensors")
        return (tmp_path / f"{seed}.safetensors").read_bytes()

    torch.manual_seed(1)
    first = learn(5)
    torch.manual_seed(2)  # the global generator must not matter
    assert learn(5) == first
    assert learn(6) != first


def test_clean_features_are_computed_once(model, studio):
    counted = model.network
    attack = DeltaAttack(size=SIZE)
    epochs = 3
    counted.images = 0
    seen = []
    attack.fit(model, studio, epochs=epochs, **SMALL, progress=seen.append)
    steps = max(p.done for p in seen if p.phase == "learning")
    everything = len(studio.train)
    assert steps >= epochs
    # one adversarial pass a step, one clean pass over all images (and the wrapper's probe)
    assert counted.images <= everything + steps * 6 + 1


def test_kept_and_fresh_clean_features_give_the_same_loss(model, studio):
    def first_loss(**length):
        seen = []
        DeltaAttack(size=SIZE).fit(model, studio, **length, **SMALL, progress=seen.append)
        return next(p.metrics["loss"] for p in seen if p.metrics)

    assert first_loss(steps=1) == pytest.approx(first_loss(epochs=1), rel=1e-4)


def test_gradient_of_a_linear_embedder_is_the_closed_form():
    """φ(x) = Wx: the gradient of Eq. 5 to δ is Wᵀ times a difference of unit vectors."""
    torch.manual_seed(0)
    weight = torch.randn(4, 3 * 2 * 2, dtype=torch.float64)

    class Linear:
        metric = "euclidean"

        def features(self, x):
            return x.flatten(1) @ weight.T

    x = torch.rand(4, 3, 2, 2, dtype=torch.float64) * 0.5 + 0.25
    pids = torch.tensor([0, 0, 1, 1])
    attack = DeltaAttack(size=(2, 2)).double()
    with torch.no_grad():
        attack.delta.uniform_(-4 / 255, 4 / 255)
    index = torch.arange(4)
    objective = FeatureObjective(Linear(), MisrankingTriplet(margin=100.0))
    objective(attack, ReIDBatch(x, pids, index, index)).backward()

    clean = x.flatten(1) @ weight.T
    moved = (x + attack.delta.detach()).flatten(1) @ weight.T
    expected = torch.zeros(12, dtype=torch.float64)
    for i in range(4):
        distance = (clean - clean[i]).norm(dim=1)
        positive = max((j for j in range(4) if pids[j] == pids[i]), key=lambda j: distance[j])
        negative = max((j for j in range(4) if pids[j] != pids[i]), key=lambda j: distance[j])
        towards = moved[i] - clean[negative]
        away = moved[i] - clean[positive]
        expected += (towards / towards.norm() - away / away.norm()) @ weight / 4
    torch.testing.assert_close(attack.delta.grad.flatten(), expected)


def test_a_linear_embedder_is_attacked_as_well_as_it_can_be(studio):
    """φ(x) = Wx, to be moved along u: within the ball the best δ is ε·sign(Wᵀu)."""
    weight = torch.randn(5, 3 * 8 * 4, generator=torch.Generator().manual_seed(0))
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0])

    class Linear(nn.Module):
        def forward(self, x):
            return x.flatten(1) @ weight.T

    class MoveAlong(AttackLoss):
        def __call__(self, adversarial, clean, pids):
            return -((adversarial - clean) @ direction).mean()

    ATTACK_LOSSES.register("move along")(MoveAlong)
    try:
        spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
        model = wrap_model(Linear(), input_spec=spec, metric="euclidean")
        attack = DeltaAttack(Budget(8 / 255), size=(8, 4)).fit(
            model,
            studio,
            objective="move along",
            steps=12,
            **{**SMALL, "image_size": (8, 4)},
        )
    finally:
        del ATTACK_LOSSES._factories["move along"]
    best = 8 / 255 * (weight.T @ direction).sign().view(1, 3, 8, 4)
    torch.testing.assert_close(attack.delta.data, best)


def test_resuming_in_process_gives_the_same_bits(model, studio, tmp_path):
    def attack():
        return CombinatorialAttack(None, 4, SIZE)

    whole = attack().fit(model, studio, epochs=2, **SMALL)
    path = tmp_path / "checkpoint"

    class StopError(Exception):
        pass

    def stop(p):
        if p.phase == "learning" and p.done == 4:
            raise StopError

    options = {"checkpoint": path, "checkpoint_every": 1, **SMALL}
    with pytest.raises(StopError):
        attack().fit(model, studio, epochs=2, progress=stop, **options)
    resumed = attack().fit(model, studio, epochs=2, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def test_a_checkpoint_of_other_settings_is_refused(model, studio, tmp_path):
    path = tmp_path / "checkpoint"
    DeltaAttack(size=SIZE).fit(model, studio, steps=1, checkpoint=path, **SMALL)
    with pytest.raises(CheckpointError, match="seed: 0 stored, 1 now"):
        DeltaAttack(size=SIZE).fit(model, studio, steps=1, seed=1, checkpoint=path, **SMALL)


@pytest.mark.parametrize("where", ["model", "attack"])
def test_what_is_not_finite_stops_and_the_last_good_state_stays(where, model, studio, tmp_path):
    path = tmp_path / "checkpoint"
    attack = DeltaAttack(size=SIZE)

    def poison(p):
        if p.done == 3:
            target = attack.delta if where == "attack" else model.network.body[0].weight
            target.data.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"loss of step 4|step 3 left values"):
        attack.fit(
            model,
            studio,
            steps=9,
            checkpoint=path,
            checkpoint_every=1,
            progress=poison,
            **SMALL,
        )
    tensors, _ = load_tensors(path)
    assert all(torch.isfinite(t).all() for t in tensors.values())


def test_saved_attack_comes_back_with_its_facts(model, studio, tmp_path):
    attack = CombinatorialAttack(Budget(4 / 255), 4, SIZE, stacked=True)
    attack.fit(model, studio, steps=2, **SMALL)
    attack.save(tmp_path / "attack.safetensors")
    loaded = load_attack(tmp_path / "attack.safetensors")
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(loaded(x), attack(x))
    assert loaded.budget == attack.budget == Budget(8 / 255)
    assert loaded.provenance == attack.provenance
    assert loaded.provenance["meta_train"]["name"] == studio.name


def test_a_learner_without_its_meta_test_set_says_so(model, studio):
    class Needy(PlainLearner):
        needs_meta_test = True

    LEARNERS.register("needy")(Needy)
    try:
        with pytest.raises(InputError, match="meta_test="):
            DeltaAttack(size=SIZE).fit(model, studio, learner="needy", steps=1, **SMALL)
    finally:
        del LEARNERS._factories["needy"]
