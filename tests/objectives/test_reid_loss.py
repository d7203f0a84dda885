from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import imagine_silent_peer
from reidguard.errors import InputError
from reidguard.objectives.reid import (
    AGWObjective,
    CentreLoss,
    ReIDObjective,
    identity_loss,
    triplet_loss,
    weighted_triplet_loss,
)
from reidguard.types import BatchShard, ReIDBatch


def loops(points, pids, margin):
    """Eq. 10 by explicit loops over anchors, positives and negatives; one loss per valid anchor."""
    losses = []
    for i in range(len(pids)):
        positives, negatives = [], []
        for j in range(len(pids)):
            distance = math.dist(points[i].tolist(), points[j].tolist())
            if j != i and pids[j] == pids[i]:
                positives.append(distance)
            if pids[j] != pids[i]:
                negatives.append(distance)
        if positives and negatives:
            losses.append(max(0.0, max(positives) - min(negatives) + margin))
    return losses


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_triplet_equals_explicit_loops(seed, margin):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(14, 5, generator=generator, dtype=torch.float64)
    pids = torch.randint(0, 5, (14,), generator=generator)  # some identities come once
    expected = loops(points, pids, margin)
    assert expected
    torch.testing.assert_close(
        triplet_loss(points, pids, margin), torch.tensor(expected, dtype=torch.float64).mean()
    )
    total = triplet_loss(points, pids, margin, reduction="sum")
    assert float(total) == pytest.approx(sum(expected))


def test_triplet_default_margin_is_the_papers():
    points = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
    assert float(triplet_loss(points, torch.tensor([0, 0, 1, 1]))) == 0
    points = torch.zeros(4, 2)
    assert float(triplet_loss(points, torch.tensor([0, 0, 1, 1]))) == 0.5


def test_anchors_without_partner_are_left_out():
    points = torch.tensor([[0.0], [2.0], [3.0]])
    pids = torch.tensor([0, 0, 1])  # the last has no positive
    # anchor 0: 2 - 3 + 4 = 3; anchor 1: 2 - 1 + 4 = 5
    assert float(triplet_loss(points, pids, margin=4.0)) == pytest.approx(4.0)


@pytest.mark.parametrize("pids", [[0, 1, 2], [0, 0, 0], [0]])
def test_no_valid_anchor_is_an_error(pids):
    with pytest.raises(InputError, match="P identities"):
        triplet_loss(torch.randn(len(pids), 4), torch.tensor(pids, dtype=torch.long))


def test_an_empty_batch_is_an_error():
    with pytest.raises(InputError, match="N > 0"):
        triplet_loss(torch.randn(0, 4), torch.zeros(0, dtype=torch.long))


def test_triplet_second_derivatives():
    torch.manual_seed(0)
    points = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    pids = torch.arange(3).repeat_interleave(3)

    def loss(x):
        return triplet_loss(x, pids, margin=3.0)

    assert torch.autograd.gradcheck(loss, points)
    assert torch.autograd.gradgradcheck(loss, points)


def test_gradients_at_distance_zero_are_finite():
    points = torch.zeros(4, 3, requires_grad=True)
    loss = triplet_loss(points, torch.tensor([0, 0, 1, 1]))
    (first,) = torch.autograd.grad(loss, points, create_graph=True)
    assert torch.equal(first, torch.zeros_like(first))
    (second,) = torch.autograd.grad(first.sum(), points)
    assert torch.isfinite(second).all()


def test_close_points_far_from_the_origin_keep_their_distance():
    """|x|² + |y|² − 2xy would lose these distances to rounding."""
    points = torch.full((40, 64), 100.0)  # so many that a shortcut by products would pay
    points[:, 0] += 0.01 * torch.arange(40)
    points[20:] += 0.5
    pids = torch.arange(40) % 4
    expected = sum(loops(points, pids, 5.0)) / 40
    assert float(triplet_loss(points, pids, 5.0)) == pytest.approx(expected, rel=1e-4)


def test_coinciding_points_have_distance_zero():
    points = torch.tensor([[0.0], [0.0], [3.0], [3.0]])
    assert float(triplet_loss(points, PIDS, margin=5.0)) == 2.0
    expected = math.log1p(math.exp(0 - 3))
    assert float(weighted_triplet_loss(points, PIDS)) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype):
    torch.manual_seed(0)
    points = (300 * torch.randn(8, 512)).to(dtype)  # squares overflow float16
    pids = torch.arange(4).repeat_interleave(2)
    logits = torch.randn(8, 4).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        triplet, entropy = triplet_loss(points, pids), identity_loss(logits, pids)
    assert triplet.dtype == entropy.dtype == torch.float32
    assert torch.equal(triplet, triplet_loss(points.float(), pids))
    assert torch.equal(entropy, identity_loss(logits.float(), pids))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_identity_loss_equals_its_formula(smoothing, reduction):
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 4, dtype=torch.float64)
    pids = torch.tensor([0, 1, 2, 3, 3, 0])
    total = 0.0
    for row, pid in zip(logits.tolist(), pids.tolist(), strict=True):
        normaliser = sum(math.exp(value) for value in row)
        for i, value in enumerate(row):
            target = (1 - smoothing) * (i == pid) + smoothing / 4
            total -= target * math.log(math.exp(value) / normaliser)
    expected = total / 6 if reduction == "mean" else total
    loss = identity_loss(logits, pids, smoothing, reduction=reduction)
    assert float(loss) == pytest.approx(expected)
    if not smoothing:
        assert torch.equal(identity_loss(logits, pids, reduction=reduction), loss)


def test_identity_loss_mistakes():
    with pytest.raises(InputError, match=r"0 to 7.*knows 5"):
        identity_loss(torch.zeros(2, 5), torch.tensor([0, 7]))
    with pytest.raises(InputError, match=r"from 0 to 5, .* knows 5 identities, 0 to 4"):
        identity_loss(torch.zeros(2, 5), torch.tensor([0, 5]))
    assert float(identity_loss(torch.zeros(0, 5), torch.zeros(0).long(), reduction="sum")) == 0
    with pytest.raises(InputError, match="identity_loss needs logits"):
        identity_loss(torch.zeros(5), torch.tensor([0]))
    with pytest.raises(InputError, match="-1"):
        identity_loss(torch.zeros(2, 5), torch.tensor([0, -1]))
    with pytest.raises(InputError, match="smoothing"):
        identity_loss(torch.zeros(2, 5), torch.tensor([0, 1]), smoothing=2)
    with pytest.raises(InputError, match="identities"):
        identity_loss(torch.zeros(2, 5), torch.tensor([0]))
    with pytest.raises(InputError, match="reduction"):
        triplet_loss(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), reduction="none")
    with pytest.raises(InputError, match="reduction"):
        weighted_triplet_loss(torch.zeros(4, 2), PIDS, reduction="none")
    with pytest.raises(InputError, match="reduction"):
        identity_loss(torch.zeros(4, 2), PIDS, reduction="none")
    with pytest.raises(InputError, match=r"triplet_loss needs .* pids"):
        triplet_loss(torch.zeros(4, 2), torch.tensor([0, 0, 1]))


# --- the objective ----------------------------------------------------------------------------

PIDS = torch.tensor([0, 0, 1, 1])
BATCH = ReIDBatch(torch.zeros(4, 3, 2, 2), PIDS, PIDS, PIDS)


def model_with(embeddings, logits, seen=None):
    def model(images, domain=None):
        assert images is BATCH.images
        if seen is not None:
            seen.append(domain)
        return SimpleNamespace(embeddings=embeddings, logits=logits)

    return model


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_objective_adds_triplet_and_cross_entropy_in_one_pass(reduction):
    torch.manual_seed(0)
    points, logits = torch.randn(4, 3), torch.randn(4, 2)
    seen: list[str | None] = []
    loss = ReIDObjective("virtual", margin=1.5, reduction=reduction)(
        model_with(points, logits, seen), BATCH
    )
    assert seen == ["virtual"]
    each = loops(points, PIDS, 1.5)
    triplet = sum(each) / (4 if reduction == "mean" else 1)
    expected = triplet + float(identity_loss(logits, PIDS, reduction=reduction))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_objective_adds_the_losses_of_parts():
    torch.manual_seed(0)
    points, logits = [torch.randn(4, 3) for _ in range(2)], [torch.randn(4, 2) for _ in range(3)]
    expected = sum(triplet_loss(p, PIDS) for p in points) + sum(
        identity_loss(z, PIDS) for z in logits
    )
    torch.testing.assert_close(ReIDObjective()(model_with(points, logits), BATCH), expected)


def test_objective_needs_a_classifier():
    with pytest.raises(InputError, match="num_classes"):
        ReIDObjective()(model_with(torch.randn(4, 3), None), BATCH)
    with pytest.raises(InputError, match="reduction"):
        ReIDObjective(reduction="max")
    for losses in ((), ("centre",), ("triplet", "centre")):
        with pytest.raises(InputError, match="'triplet', 'identity' or both"):
            ReIDObjective(losses=losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_loss_by_itself(reduction):
    torch.manual_seed(0)
    points, logits = torch.randn(4, 3), torch.randn(4, 2)
    triplet = ReIDObjective(losses=("triplet",), reduction=reduction)
    found = triplet(model_with(points, None), BATCH)
    torch.testing.assert_close(found, triplet_loss(points, PIDS, reduction=reduction))
    identity = ReIDObjective(losses=("identity",), reduction=reduction)
    found = identity(model_with(points, logits), BATCH)
    torch.testing.assert_close(found, identity_loss(logits, PIDS, reduction=reduction))


class Dropping(nn.Module):
    """With dropout, which draws for the rows of all processes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x, domain=None):
        embeddings = F.dropout(x.flatten(1))
        return SimpleNamespace(embeddings=embeddings, logits=self.head(embeddings))


@pytest.mark.parametrize("kind", ["reid", "agw"])
def test_the_loss_of_a_shard_is_that_of_the_joint_batch(kind, monkeypatch):
    """Of six rows, 0 and 4 are another process's and zero there."""
    imagine_silent_peer(monkeypatch)
    torch.manual_seed(0)
    rows, pids = torch.tensor([1, 2, 3, 5]), torch.tensor([1, 2, 1, 2])
    images, joint_pids = torch.zeros(6, 3, 2, 2), torch.zeros(6, dtype=torch.int64)
    images[rows], joint_pids[rows] = torch.randn(4, 3, 2, 2), pids
    shard = ReIDBatch(images[rows], pids, pids, pids, shard=BatchShard(rows, 6))
    model, centres = Dropping(), CentreLoss(3, 12).eval()
    objective = ReIDObjective(margin=9.0) if kind == "reid" else AGWObjective(centres)
    torch.manual_seed(1)
    found = objective(model, shard)
    torch.manual_seed(1)
    joint = model(images)
    if kind == "reid":
        wanted = triplet_loss(joint.embeddings, joint_pids, 9.0)
        wanted = wanted + identity_loss(joint.logits, joint_pids)
    else:
        wanted = weighted_triplet_loss(joint.embeddings, joint_pids)
        wanted = wanted + identity_loss(joint.logits, joint_pids, 0.1)
        wanted = wanted + 5e-4 * centres(joint.embeddings, joint_pids)
    torch.testing.assert_close(found, wanted)


# --- AGW's losses -----------------------------------------------------------------------------


def weighted_loops(points, pids):
    """The weighted regularised triplet by explicit loops; one loss per valid anchor."""

    def weighted(distances, sign):
        weights = [math.exp(sign * d) for d in distances]
        return sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)

    losses = []
    for i in range(len(pids)):
        positives, negatives = [], []
        for j in range(len(pids)):
            distance = math.dist(points[i].tolist(), points[j].tolist())
            if pids[j] != pids[i]:
                negatives.append(distance)
            elif j != i:
                positives.append(distance)
        if positives and negatives:
            losses.append(math.log1p(math.exp(weighted(positives, 1) - weighted(negatives, -1))))
    return losses


@pytest.mark.parametrize("seed", range(4))
def test_weighted_triplet_equals_explicit_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    points = 2 * torch.randn(14, 5, generator=generator, dtype=torch.float64)
    pids = torch.randint(0, 5, (14,), generator=generator)  # some identities come once
    expected = weighted_loops(points, pids)
    assert expected
    torch.testing.assert_close(
        weighted_triplet_loss(points, pids), torch.tensor(expected, dtype=torch.float64).mean()
    )
    total = weighted_triplet_loss(points, pids, reduction="sum")
    assert float(total) == pytest.approx(sum(expected))


def test_weighted_triplet_has_the_right_derivatives():
    points = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    pids = torch.tensor([0, 0, 1, 1, 1, 2, 2])

    def loss(x):
        return weighted_triplet_loss(x, pids)

    assert torch.autograd.gradcheck(loss, points.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, points)


def test_weighted_triplet_at_its_limits():
    """Coinciding points, distances of thousands, and anchors without a partner."""
    pids = torch.tensor([0, 0, 1, 1, 2])
    points = torch.zeros(5, 3, requires_grad=True)
    loss = weighted_triplet_loss(points, pids)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert torch.equal(points.grad, torch.zeros(5, 3))
    far = torch.tensor([[0.0], [4000.0], [1.0], [4001.0]], requires_grad=True)
    loss = weighted_triplet_loss(far, pids[:4])
    # Only the furthest positive and the nearest negative weigh: 4000 - 1.
    assert loss.item() == pytest.approx(3999.0)
    loss.backward()
    assert bool(torch.isfinite(far.grad).all())
    for alone in ([0, 1, 2], [0, 0, 0]):
        with pytest.raises(InputError, match="P identities × K images"):
            weighted_triplet_loss(torch.randn(3, 2), torch.tensor(alone))
    with pytest.raises(InputError, match="weighted_triplet_loss needs"):
        weighted_triplet_loss(torch.randn(3, 2, 1), torch.tensor([0, 0, 1]))


def test_centre_loss_and_its_gradient_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    loss = CentreLoss(4, 3, seed=5).eval()
    assert not torch.equal(loss.centres, CentreLoss(4, 3, seed=6).centres)
    assert torch.equal(loss.centres, CentreLoss(4, 3, seed=5).centres)
    assert torch.equal(CentreLoss(4, 3).centres, CentreLoss(4, 3, seed=0).centres)
    assert CentreLoss(4, 3).rate == 0.5
    pids = torch.tensor([1, 1, 3, 0, 1])
    points = torch.randn(5, 3, generator=generator, requires_grad=True)
    before = loss.centres.clone()
    value = loss(points, pids)
    rows = zip(points.tolist(), pids.tolist(), strict=True)
    expected = sum(math.dist(x, before[y].tolist()) ** 2 for x, y in rows) / 5
    assert float(value) == pytest.approx(expected)
    value.backward()
    torch.testing.assert_close(points.grad, 2 / 5 * (points.detach() - before[pids]))
    assert torch.equal(loss.centres, before)  # which learn in train mode only


def test_centres_learn_as_by_sgd_on_the_loss():
    """The published code has them as parameters with an optimiser of their own."""
    generator = torch.Generator().manual_seed(1)
    loss = CentreLoss(4, 3, rate=0.5, seed=2)
    parameter = loss.centres.clone().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    for _ in range(5):
        points = torch.randn(6, 3, generator=generator)
        pids = torch.randint(0, 4, (6,), generator=generator)
        optimizer.zero_grad()
        wanted = (points - parameter[pids]).square().sum(1).mean()
        wanted.backward()
        optimizer.step()
        torch.testing.assert_close(loss(points, pids), wanted)
        torch.testing.assert_close(loss.centres, parameter.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_centres_learn_from_embeddings_of_every_dtype(dtype):
    loss = CentreLoss(2, 1)
    loss.centres.zero_()
    found = loss(torch.tensor([[2.0], [4.0]], dtype=dtype), torch.tensor([1, 1]))
    assert float(found) == 10.0
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.centres.dtype == torch.float32
    assert loss.centres.flatten().tolist() == [0.0, 3.0]
    with pytest.raises(InputError, match="CentreLoss needs embeddings"):
        loss(torch.zeros(2), torch.tensor([1, 1]))


def test_centres_settle_on_the_means():
    pids = torch.tensor([0, 0, 1, 1])
    points = torch.tensor([[0.0, 2.0], [2.0, 2.0], [5.0, 5.0], [5.0, 7.0]])
    loss = CentreLoss(2, 2)
    for _ in range(60):
        loss(points, pids)
    torch.testing.assert_close(loss.centres, torch.tensor([[1.0, 2.0], [5.0, 6.0]]))
    assert float(loss.eval()(points, pids)) == pytest.approx(1.0)  # the spread that is left
    with pytest.raises(InputError, match="2 numbers each, not 3"):
        loss(torch.randn(4, 3), pids)


def test_agw_objective_is_the_sum_of_its_three_losses():
    generator = torch.Generator().manual_seed(3)
    points, logits = torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)
    centres = CentreLoss(2, 3)
    before = centres.centres.clone()
    pids = BATCH.pids
    seen: list[str | None] = []
    found = AGWObjective(centres, domain="b")(model_with(points, logits, seen), BATCH)
    assert seen == ["b"]
    wanted = (
        weighted_triplet_loss(points, pids)
        + identity_loss(logits, pids, 0.1)
        + 5e-4 * (points - before[pids]).square().sum(1).mean()
    )
    torch.testing.assert_close(found, wanted)
    for wrong in (model_with(points, None), model_with([points, points], [logits, logits])):
        with pytest.raises(InputError, match="one embedding"):
            AGWObjective(centres)(wrong, BATCH)
