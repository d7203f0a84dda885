"""ACT and HM: which triplets are drawn, what their images become, and the loss of the training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from helpers import rng
from reidguard.attacks import SMA
from reidguard.defenses import ACT, HM, CollapsePairs, RaiseHardness
from reidguard.defenses.triplets import draw_triplets
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.objectives.defense import DefenseObjective
from reidguard.testing import small_dataset, small_model
from reidguard.types import Budget, InputSpec

RUN = {"image_size": (32, 16), "identities": 4, "images_per_identity": 3, "augment": None}
EPS = 4 / 255


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(24, 5)).double()
    spec = InputSpec(None, (0, 0, 0), (1, 1, 1))
    return wrap_model(network, input_spec=spec, metric="euclidean"), network[1].weight.detach()


def images(count):
    draws = torch.rand(count, 3, 4, 2, generator=rng(1), dtype=torch.float64)
    return 0.3 + 0.4 * draws


@pytest.fixture
def fed(monkeypatch):
    seen = []
    original = DefenseObjective.__call__

    def spy(self, model, batch, *more):
        loss = original(self, model, batch, *more)
        seen.append((batch, float(loss.detach())))
        return loss

    monkeypatch.setattr(DefenseObjective, "__call__", spy)
    return seen


def test_triplets_are_the_next_images_in_a_random_order():
    pids = torch.tensor([0, 0, 1, 1, 2])
    order = torch.tensor([3, 0, 4, 1, 2])
    # 4 is alone; 2 has its positive and its negative by going round.
    wanted = [[3, 2, 0], [0, 1, 4], [1, 0, 2], [2, 3, 0]]
    assert draw_triplets(order, pids, 5).tolist() == wanted
    assert draw_triplets(order, pids, 2).tolist() == wanted[:2]
    with pytest.raises(InputError, match="K ≥ 2"):
        draw_triplets(torch.arange(3), torch.tensor([0, 1, 2]), 3)


def test_pairs_collapse_along_the_sign_of_the_gradient():
    """A linear embedder: the gradient of −‖W(p − n)‖² is −2 WᵀW(p − n) by p, its negative by n."""
    model, weight = linear()
    x = images(6)
    attack = CollapsePairs(Budget(EPS), steps=1, step_size=2 * EPS).bind(model)
    found = attack(x) - x
    assert float(found.abs().max()) <= EPS + 1e-6
    # A step of 2ε ends in a corner from wherever it starts; signs are those at the start.
    start = EPS * (2 * attack.uniform(x, "start 0", tuple(x.shape[1:])) - 1)
    p, n = (x + start).flatten(1).chunk(2)
    slope = (p - n) @ weight.T @ weight
    wanted = EPS * torch.cat((-slope, slope)).sign().view_as(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_collapsed_pairs_are_closer_and_need_partners():
    model, _ = linear()
    x = images(8)
    adversarial = CollapsePairs(Budget(EPS), steps=10, step_size=1 / 255).bind(model)(x)

    def apart(z):
        p, n = model.features(z).chunk(2)
        return (p - n).norm(dim=1)

    assert bool((apart(adversarial) < apart(x)).all())
    with pytest.raises(InputError, match="groups of 2"):
        CollapsePairs(steps=1).bind(model)(images(3))


@pytest.mark.parametrize("aim", [-0.05, 0.02, None])
def test_triplets_become_as_hard_as_they_should_and_no_harder(aim):
    model, _ = linear()
    x = images(9)

    def hardness(z):
        rows = model.features(z).detach().tolist()
        triples = zip(rows[:3], rows[3:6], rows[6:], strict=True)
        return [math.dist(a, p) - math.dist(a, n) for a, p, n in triples]

    attack = RaiseHardness(Budget(EPS), hardness=aim, margin=0.05, steps=40, step_size=0.1 / 255)
    before = hardness(x)
    after = hardness(attack.bind(model)(x))
    if aim is None:
        losses = [max(0.0, h + 0.05) for h in before]
        aim = -min(0.05, sum(losses) / 3)
    for old, new in zip(before, after, strict=True):
        if old < aim:
            assert new > old
            assert new < aim + 0.05  # the last step may pass it
    assert any(old < aim for old in before)


def test_anti_collapse_triplets_have_clean_anchors(fed):
    with small_dataset() as data:
        ACT(CollapsePairs(Budget(EPS), steps=2), adversarial=0.5).fit(
            small_model(4), data, steps=1, **RUN
        )
    ((batch, _),) = fed
    clean, count = len(batch) - batch.adversarial, batch.adversarial // 2
    assert (clean, count) == (12, 6)
    anchors, positives, negatives = batch.triplets.T
    assert bool((anchors < clean).all())
    assert positives.tolist() == list(range(clean, clean + count))
    assert negatives.tolist() == list(range(clean + count, clean + 2 * count))
    assert torch.equal(batch.pids[anchors], batch.pids[positives])
    assert bool((batch.pids[anchors] != batch.pids[negatives]).all())
    away = (batch.images[clean:] - batch.images[batch.sources]).flatten(1).abs().amax(1)
    assert float(away.max()) <= EPS + 1e-6
    assert float(away.min()) > 0
    assert not (batch.indices[anchors] == batch.indices[positives]).any()


def test_hardness_manipulation_trains_on_adversarial_images_alone(fed):
    with small_dataset() as data:
        HM(RaiseHardness(steps=2), adversarial=0.25).fit(small_model(4), data, steps=1, **RUN)
    ((batch, _),) = fed
    assert len(batch) == batch.adversarial == 9
    assert batch.sources is None
    assert batch.triplets.T.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    a, p, n = batch.pids.chunk(3)
    assert torch.equal(a, p)
    assert bool((a != n).all())


def test_the_loss_is_that_of_the_given_triplets(fed):
    """With the triplet loss alone, and a model in train mode whose weights did not move yet."""
    with small_dataset() as data:
        model = small_model(4)
        defense = ACT(CollapsePairs(steps=1), losses=("triplet",), margin=0.4, adversarial=0.5)
        defense.fit(model, data, steps=1, **RUN)
    ((batch, loss),) = fed
    model.train()
    with torch.no_grad():
        rows = model(batch.images).embeddings.tolist()
    losses = [
        max(0.0, math.dist(rows[a], rows[p]) - math.dist(rows[a], rows[n]) + 0.4)
        for a, p, n in batch.triplets.tolist()
    ]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_what_does_not_fit_is_refused():
    for make in (
        lambda: ACT(SMA()),
        lambda: HM(CollapsePairs()),
        lambda: ACT(clean=False),
        lambda: ACT(adversarial=0.0),
        lambda: RaiseHardness(hardness=float("nan")),
        lambda: RaiseHardness(margin=-1.0),
    ):
        with pytest.raises(InputError):
            make()
    assert type(ACT().test_attack()) is SMA
    assert HM(RaiseHardness(Budget(EPS))).test_attack().budget.eps == EPS
