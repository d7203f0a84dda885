"""Meta-learning over networks: against MAML by hand on linear embedders, and through ``fit``."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from helpers import Killed, kill_at, noise_datasets, random_batch, rng
from reidguard.attacks import DeltaAttack, MetaAttack
from reidguard.attacks.universal.left_out import (
    LeftOutBatches,
    left_out,
    meta_over_networks,
)
from reidguard.errors import InputError
from reidguard.learners import FirstOrderLearner, MAMLLearner
from reidguard.models import EnsembleModel, ReIDModel, wrap_model
from reidguard.objectives import EnsembleLoss, FeatureObjective, MisrankingTriplet
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (6, 4)
RATE = 0.005
SHORT = {"steps": 6, "identities": 2, "images_per_identity": 2, "image_size": SIZE}


def linear(seed: int, width: int) -> ReIDModel:
    layer = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], width, bias=False))
    with torch.no_grad():
        layer[1].weight.normal_(generator=rng(seed))
    spec = InputSpec(size=SIZE)
    return wrap_model(layer, input_spec=spec, metric="euclidean").double().eval()


def members(count: int = 3) -> list[ReIDModel]:
    return [linear(seed, 4 + seed) for seed in range(count)]


class One:
    """One batch an epoch."""

    def __init__(self, batch: ReIDBatch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int, start: int = 0):
        yield from [self.batch][start:]


def triplet(weight: Tensor, delta: Tensor, batch: ReIDBatch) -> Tensor:
    """Eq. 5 by loops, on features (x + δ) · W of normalised images."""
    spec = InputSpec(size=SIZE)
    clean = [spec.apply(x[None]).flatten() @ weight.T for x in batch.images]
    moved = [spec.apply(x[None] + delta).flatten() @ weight.T for x in batch.images]
    total = torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(clean):
        far = {True: (-1.0, own), False: (-1.0, own)}
        for j, other in enumerate(clean):
            same = bool(batch.pids[i] == batch.pids[j])
            distance = float((own - other).norm())
            if distance > far[same][0]:
                far[same] = (distance, other)
        pull, push = (moved[i] - far[False][1]).norm(), (moved[i] - far[True][1]).norm()
        total = total + (pull - push + 0.5).clamp(min=0)
    return total / len(clean)


def by_hand(models: list[ReIDModel], delta: Tensor, batch: ReIDBatch, out: int, exact: bool):
    """The meta-gradient with a step of plain descent on all but one, tested on that one."""
    weights = [model.network[1].weight.detach() for model in models]
    rest = [w for i, w in enumerate(weights) if i != out]
    train = sum(triplet(w, delta, batch) for w in rest) / len(rest)
    (gradient,) = torch.autograd.grad(train, delta, create_graph=True)
    inner = delta - RATE * (gradient if exact else gradient.detach())
    (meta,) = torch.autograd.grad(triplet(weights[out], inner, batch), delta)
    return gradient.detach() + meta


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("exact", [True, False], ids=["maml", "first_order"])
def test_the_gradient_is_that_of_maml_by_hand(count: int, exact: bool) -> None:
    models, batch = members(count), random_batch(3, 2, SIZE, dtype=torch.float64)
    attack = DeltaAttack(Budget(0.3), SIZE).double()
    with torch.no_grad():
        attack.delta.normal_(std=0.02, generator=rng(5))
        batch.images.mul_(0.4).add_(0.3)  # no pixel is clipped
    objective = FeatureObjective(EnsembleModel(models), EnsembleLoss(MisrankingTriplet()))
    over, (train, test) = meta_over_networks(objective, [One(batch)], seed=3)
    learner = (MAMLLearner if exact else FirstOrderLearner)(inner="sgd", inner_lr=RATE)
    for step in range(4):
        (first,), (second,) = train.epoch(step), test.epoch(step)
        learner.step(attack, over, first, second)
        out = left_out(step, count, 3)
        expected = by_hand(models, attack.delta, batch, out, exact)
        torch.testing.assert_close(attack.delta.grad, expected, rtol=0, atol=1e-10)
        inexact = by_hand(models, attack.delta, batch, out, not exact)
        assert not torch.allclose(attack.delta.grad, inexact, rtol=0, atol=1e-4)
        others = by_hand(models, attack.delta, batch, (out + 1) % count, exact)
        assert not torch.allclose(attack.delta.grad, others, rtol=0, atol=1e-4)


def test_clean_features_of_the_batch_are_those_of_its_members() -> None:
    models, batch = members(), random_batch(3, 2, SIZE, dtype=torch.float64)
    loss = EnsembleLoss(MisrankingTriplet())
    with torch.no_grad():
        features = loss.representation(EnsembleModel(models), batch.images)
    cached = ReIDBatch(**{**vars(batch), "features": features})
    objective = FeatureObjective(EnsembleModel(models), loss)
    for alone in (0, 1):
        values = []
        for one in (batch, cached):
            over, batches = meta_over_networks(objective, [One(one)], seed=0)
            (part,) = batches[alone].epoch(0)
            values.append(over(lambda x: x + 0.01, part))
        torch.testing.assert_close(*values, rtol=0, atol=1e-12)


def test_each_network_is_left_out_equally_often() -> None:
    for count in (2, 3, 5):
        order = [left_out(step, count, seed=1) for step in range(20 * count)]
        turns = [order[i : i + count] for i in range(0, len(order), count)]
        assert all(sorted(turn) == list(range(count)) for turn in turns)
        assert len({tuple(turn) for turn in turns}) > 1
    assert [left_out(i, 3, 1) for i in range(30)] != [left_out(i, 3, 2) for i in range(30)]


def test_batches_start_anywhere() -> None:
    class Three(One):
        def __len__(self) -> int:
            return 3

        def epoch(self, number: int, start: int = 0):
            yield from [self.batch] * (3 - start)

    batches = LeftOutBatches(Three(random_batch(2, 2, SIZE)), 4, 0, alone=True)
    whole = [batch.members for number in (0, 1) for batch in batches.epoch(number)]
    assert [batch.members for batch in batches.epoch(1, 2)] == whole[5:]
    assert whole[:4] == [(left_out(step, 4, 0),) for step in range(4)]


@pytest.mark.parametrize("learner", ["joint", "first_order", "hessian_free", "maml"])
def test_fit_needs_one_dataset(learner: str, tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 4, SIZE)
    models = [one.float() for one in members()]
    made = DeltaAttack(size=SIZE)
    made.fit(models, people, ensemble="left_out", learner=learner, **SHORT)
    assert made.provenance["ensemble"] == "left_out"
    assert bool(made.delta.any())
    plain = DeltaAttack(size=SIZE).fit(models, people, ensemble="loss", **SHORT)
    assert not torch.equal(plain.delta, made.delta)


def test_a_killed_run_ends_like_one_never_killed(tmp_path) -> None:
    people, others = noise_datasets(tmp_path, 4, SIZE)
    models = [one.float() for one in members()]
    options = {**SHORT, "ensemble": "left_out", "checkpoint_every": 1}
    for sets in ((people,), (people, others)):
        path = tmp_path / f"{len(sets)}.safetensors"
        whole = MetaAttack("delta", size=SIZE).fit(models, *sets, **options)
        with pytest.raises(Killed):
            MetaAttack("delta", size=SIZE).fit(
                models, *sets, checkpoint=path, progress=kill_at(4), **options
            )
        resumed = MetaAttack("delta", size=SIZE).fit(models, *sets, checkpoint=path, **options)
        for one, other in pairwise([*whole.parameters(), *resumed.parameters()]):
            assert torch.equal(one, other)


def test_mistakes(tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 2, SIZE)
    options = {**SHORT, "ensemble": "left_out"}
    for models, learner in ((members(), "plain"), (members(1), "maml")):
        with pytest.raises(InputError, match="two surrogates or more and a learner with a meta"):
            DeltaAttack(size=SIZE).fit(models, people, learner=learner, **options)
    with pytest.raises(InputError, match="give a list of models"):
        DeltaAttack(size=SIZE).fit(members()[0], people, learner="maml", **options)
