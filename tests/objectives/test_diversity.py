"""Input diversity: the images that a network sees, and what an attack learns from them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers import imagine_silent_peer, tiny_model
from reidguard.attacks import DeltaAttack, MisRank
from reidguard.errors import InputError
from reidguard.objectives import FeatureObjective, InputCopies, MisrankingTriplet
from reidguard.objectives.diversity import diverse
from reidguard.types import BatchShard, Budget, ReIDBatch


def test_diversity_shrinks_and_moves_but_keeps_the_picture():
    x = torch.ones(3, 3, 40, 20, dtype=torch.float64)
    # coin, size, right, down: not chosen; smallest at the top left; smallest at the bottom right
    draws = torch.tensor([[0.9, 0, 0, 0], [0.1, 0, 1.0, 1.0], [0.1, 0, 0.0, 0.0]]).double()
    y = diverse(x, draws, 0.5)
    torch.testing.assert_close(y[0], x[0])
    expected = torch.zeros(40, 20, dtype=torch.float64)
    expected[:36, :18] = 1
    torch.testing.assert_close(y[1, 0], expected)
    torch.testing.assert_close(y[2, 0], expected.flip(0, 1))


def test_the_draws_choose_and_shrink():
    """Chosen below the probability; halfway between 0.9 and 1 of the size."""
    x = torch.ones(3, 3, 40, 20, dtype=torch.float64)
    draws = torch.tensor([[0.5, 0, 0, 0], [0.49, 0.5, 1.0, 1.0], [0.0, 0.5, 0.0, 1.0]]).double()
    y = diverse(x, draws, 0.5)
    torch.testing.assert_close(y[0], x[0])
    expected = torch.zeros(40, 20, dtype=torch.float64)
    expected[:38, :19] = 1
    torch.testing.assert_close(y[1, 2], expected)
    torch.testing.assert_close(y[2, 2], expected.flip(1))


def test_without_diversity_nothing_is_drawn():
    index = torch.arange(4)
    batch = ReIDBatch(torch.rand(4, 3, 12, 8), torch.tensor([0, 0, 1, 1]), index, index)
    before = torch.get_rng_state()
    FeatureObjective(Means(), MisrankingTriplet())(lambda x: x / 2, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_loss_of_a_shard_is_that_of_the_joint_batch(monkeypatch):
    """Of six rows, 0 and 4 are another process's and zero there; the draws are those of all."""
    imagine_silent_peer(monkeypatch)
    rows, pids = torch.tensor([1, 2, 3, 5]), torch.tensor([1, 2, 1, 2])
    images = torch.rand(4, 3, 12, 8, generator=torch.Generator().manual_seed(3))
    shard = ReIDBatch(images, pids, pids, pids, shard=BatchShard(rows, 6))
    model, loss = Dropping(), MisrankingTriplet(margin=9.0)
    torch.manual_seed(1)
    found = FeatureObjective(model, loss, InputCopies(diversity=0.7))(lambda x: x / 2, shard)

    def everywhere(values):
        return values.new_zeros(6, *values.shape[1:]).index_copy(0, rows, values)

    torch.manual_seed(1)
    clean = model.features(everywhere(images))
    seen = diverse(images / 2, torch.rand(6, 4)[rows], 0.7)
    adversarial = model.features(everywhere(seen))
    torch.testing.assert_close(found, loss(adversarial, clean, everywhere(pids)))


def test_the_gradient_is_that_of_the_place_where_a_pixel_went():
    x = torch.rand(1, 3, 40, 20, dtype=torch.float64, requires_grad=True)
    y = diverse(x, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).double(), 1.0)  # smallest, top left
    y[..., 36:, :].sum().backward()
    assert not x.grad.any()  # black there
    assert torch.autograd.gradcheck(
        lambda v: diverse(v, torch.tensor([[0.2, 0.4, 0.6, 0.3]]).double(), 1.0),
        torch.rand(1, 3, 6, 4, dtype=torch.float64, requires_grad=True),
    )


class Means:
    """Features are the means of an image's quarters, so that a shift changes them."""

    metric = "euclidean"

    def features(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


class Dropping(Means):
    """With dropout, which draws for the rows of all processes."""

    def features(self, x):
        return F.dropout(super().features(x))


def test_only_adversarial_images_are_seen_so():
    """Against the loss written out, with the same draws."""
    index = torch.arange(4)
    images = torch.rand(4, 3, 12, 8, generator=torch.Generator().manual_seed(3))
    batch = ReIDBatch(images, torch.tensor([0, 0, 1, 1]), index, index)
    model, loss = Means(), MisrankingTriplet()
    objective = FeatureObjective(model, loss, InputCopies(diversity=0.7))
    torch.manual_seed(1)
    found = objective(lambda x: x / 2, batch)
    torch.manual_seed(1)
    seen = diverse(images / 2, torch.rand(4, 4), 0.7)
    expected = loss(model.features(seen), model.features(images), batch.pids)
    assert torch.equal(found, expected)
    assert not torch.equal(found, FeatureObjective(model, loss)(lambda x: x / 2, batch))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model()


def test_fit_learns_with_it_and_says_so(model, studio):
    def learnt(**options):
        attack = DeltaAttack(Budget(8 / 255), size=(64, 32))
        attack.fit(
            model,
            studio,
            steps=2,
            identities=4,
            images_per_identity=2,
            image_size=(64, 32),
            **options,
        )
        return attack

    one, again, other = learnt(diversity=0.7), learnt(diversity=0.7), learnt()
    assert torch.equal(one.delta, again.delta)
    assert not torch.equal(one.delta, other.delta)
    assert one.provenance["diversity"] == 0.7
    assert other.provenance["diversity"] == 0


@pytest.mark.parametrize("diversity", [-0.1, 1.1, float("nan")])
def test_it_is_a_probability(diversity, model, studio):
    with pytest.raises(InputError, match=r"diversity must be .* at least 0 and at most 1"):
        DeltaAttack().fit(model, studio, steps=1, diversity=diversity)


def test_misrank_takes_none(model, studio):
    with pytest.raises(InputError, match="unknown option 'diversity'"):
        MisRank(size=(64, 32), width=2).fit(model, studio, steps=1, diversity=0.7)
