"""Options that go with every defense: ε warm-up, AWP, replays, turns, free training, averages."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import Killed, kill_at
from reidguard.attacks import SMA, DeltaAttack
from reidguard.contexts import seeded
from reidguard.defenses import (
    ACT,
    HM,
    MART,
    TRADES,
    AdversarialTraining,
    CollapsePairs,
    FreePerturbation,
    FreeTraining,
    MetaDefense,
    RaiseHardness,
)
from reidguard.defenses.batches import AlternatingBatches
from reidguard.errors import InputError
from reidguard.objectives.defense import DefenseObjective
from reidguard.testing import small_dataset, small_model
from reidguard.training.loop import derived_seed
from reidguard.types import Budget

SIZE = (32, 16)
RUN = {"image_size": SIZE, "identities": 4, "images_per_identity": 2, "augment": None}
EPS = 8 / 255


@pytest.fixture(scope="module")
def sets():
    with small_dataset("source") as source, small_dataset("other", 1) as other:
        yield source, other


@pytest.fixture
def fed(monkeypatch):
    seen = []
    original = DefenseObjective.__call__

    def spy(self, model, batch, *more):
        seen.append((batch, copy.deepcopy(model.state_dict())))
        return original(self, model, batch, *more)

    monkeypatch.setattr(DefenseObjective, "__call__", spy)
    return seen


def model():
    return small_model({"source": 4})


def delta():
    attack = DeltaAttack(Budget(EPS), size=SIZE)
    nn.init.uniform_(attack.delta, -EPS, EPS, generator=torch.Generator().manual_seed(0))
    return attack


def norms(batch):
    """Largest change of a pixel, of each adversarial image."""
    first = len(batch) - batch.adversarial
    return (batch.images[first:] - batch.images[batch.sources]).flatten(1).abs().amax(1)


@pytest.mark.parametrize("attack", [delta, lambda: SMA(steps=3, step_size=EPS)])
def test_the_budget_rises_linearly_over_the_first_steps(sets, fed, attack):
    AdversarialTraining(attack(), warmup=0.5).fit(model(), sets[0], steps=6, **RUN)
    for (batch, _), fraction in zip(fed, [1 / 3, 2 / 3, 1, 1, 1, 1], strict=True):
        assert float(norms(batch).max()) <= fraction * EPS + 1e-6
        assert float(norms(batch).max()) > 0.9 * fraction * EPS


def test_a_bound_attack_keeps_its_model_while_its_budget_rises(sets, fed):
    attack = SMA(steps=2, step_size=EPS).bind(model())
    AdversarialTraining(attack, warmup=1.0).fit(model(), sets[0], steps=2, **RUN)
    assert [round(float(255 * norms(batch).max()), 2) for batch, _ in fed] == [4.0, 8.0]
    assert attack.budget.eps == EPS


def test_each_batch_is_used_several_times(sets, fed):
    AdversarialTraining(delta(), replays=3).fit(model(), sets[0], steps=6, **RUN)
    indices = [batch.indices.tolist() for batch, _ in fed]
    assert indices[0] == indices[1] == indices[2] != indices[3]
    assert indices[3] == indices[4] == indices[5]


def test_two_domains_take_turns(sets, fed):
    robust = AdversarialTraining(delta(), alternate=True).fit(model(), *sets, steps=5, **RUN)
    assert [batch.domain for batch, _ in fed] == ["source", "other"] * 2 + ["source"]
    statistics = [state["backbone.bn1.running_mean"] for _, state in fed]
    assert not torch.equal(statistics[0], statistics[1])  # moved by the source's batch
    assert torch.equal(statistics[1], statistics[2])  # and not by the other's
    assert robust.num_classes == {"source": 4, "other": 4}


def test_streams_that_take_turns_go_on_where_they_were():
    class Numbers:
        def __init__(self, name, length):
            self.name, self.length = name, length

        def __len__(self):
            return self.length

        def epoch(self, number, start=0):
            yield from (f"{self.name}{number}.{k}" for k in range(start, self.length))

    turns = AlternatingBatches([Numbers("a", 3), Numbers("b", 2)])
    assert len(turns) == 6
    whole = [*turns.epoch(0), *turns.epoch(1)]
    assert whole[:8] == ["a0.0", "b0.0", "a0.1", "b0.1", "a0.2", "b1.0", "a1.0", "b1.1"]
    for start in range(6):
        assert list(turns.epoch(1, start)) == whole[6 + start :]


def test_free_training_moves_images_by_its_own_gradients(sets, fed, monkeypatch):
    """Each image is x + δ, and δ moves by ε times the sign of the gradient of the step before."""
    seen = []
    original = FreePerturbation.update

    def spy(self, gradient, shard):
        seen.append(gradient.clone())
        original(self, gradient, shard)

    monkeypatch.setattr(FreePerturbation, "update", spy)
    attack = FreePerturbation(Budget(EPS))
    FreeTraining(attack, replays=2).fit(model(), sets[0], steps=4, **RUN)
    assert attack.delta is None  # the caller's is only read
    delta_now = torch.zeros(8, 3, *SIZE)
    clean = fed[0][0].images  # δ is zero at first
    for step, (batch, state) in enumerate(list(fed)):
        if step == 2:
            clean = None  # another batch
        if clean is not None:
            expected = (clean + delta_now).clamp(0, 1)
            torch.testing.assert_close(batch.images, expected, rtol=0, atol=1e-6)
        other = model()
        other.load_state_dict(state)
        images = batch.images.detach().clone().requires_grad_()
        with seeded(derived_seed(0, step)):
            DefenseObjective()(other.train(), replace(batch, images=images)).backward()
        torch.testing.assert_close(seen[step], images.grad, rtol=1e-3, atol=1e-6)
        delta_now = (delta_now + EPS * seen[step].sign()).clamp(-EPS, EPS)
    assert len(seen) == 4


CASES = {
    "trades": (lambda: TRADES(SMA(steps=1)), {}),
    "mart": (lambda: MART(SMA(steps=1), batch_norm="auxiliary"), {"ema": 0.9}),
    "act": (lambda: ACT(CollapsePairs(steps=1)), {"swa": 0.5}),
    "hm": (lambda: HM(RaiseHardness(steps=1), replays=2), {}),
    "free": (lambda: FreeTraining(replays=3), {}),
    "awp": (lambda: AdversarialTraining(SMA(steps=1), awp=0.05, warmup=0.9), {"ema": 0.5}),
    "alternate": (lambda: AdversarialTraining(delta(), alternate=True, awp=0.01), {}),
    "meta": (
        lambda: MetaDefense(delta(), batch_norm="auxiliary", regularizer="trades", awp=0.01),
        {"ema": 0.9},
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_interrupted_and_resumed_equals_never_interrupted(sets, case, tmp_path):
    """Also with a frozen weight, which stays; the model given stays, too."""
    make, options = CASES[case]
    defense, given = make(), model()
    before = copy.deepcopy(given.state_dict())
    second = sets[1] if defense.needs_meta_test else None
    run = {**RUN, **options, "steps": 5, "augment": "recipe"}
    whole = defense.fit(given, sets[0], second, **run)
    run |= {"checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 2}
    with pytest.raises(Killed):
        make().fit(given, sets[0], second, progress=kill_at(3), **run)
    resumed = make().fit(given, sets[0], second, **run)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    frozen = [name for name, p in given.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(torch.equal(whole.state_dict()[name], before[name]) for name in frozen)


def test_perturbed_weights_give_another_model_and_zero_gives_the_same(sets):
    def weights(**options):
        robust = AdversarialTraining(delta(), **options).fit(model(), sets[0], steps=2, **RUN)
        return robust.classifier["source"].weight

    assert torch.equal(weights(), weights(awp=0.0, warmup=0.0, replays=1))
    assert not torch.equal(weights(), weights(awp=0.1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdversarialTraining(SMA(), warmup=1.5), "warmup"),
        (lambda: AdversarialTraining(SMA(), awp=-0.1), "awp"),
        (lambda: AdversarialTraining(SMA(), replays=0), "replays"),
        (lambda: MetaDefense(SMA(), alternate=True), "alternate out"),
        (lambda: FreeTraining(SMA()), "makes its own images"),
        (lambda: FreeTraining(learner="joint"), "learner 'plain'"),
        (lambda: AdversarialTraining(SMA(), clean=False, batch_norm="auxiliary"), "'shared'"),
        (lambda: FreePerturbation()(torch.rand(1, 3, 4, 4)), "take SMA"),
    ],
)
def test_refusals_name_the_cure(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_alternate_needs_the_second_dataset(sets):
    with pytest.raises(InputError, match="alternate needs a second dataset"):
        AdversarialTraining(delta(), alternate=True).fit(model(), sets[0], steps=1, **RUN)
