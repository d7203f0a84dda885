"""Terms of TRADES and MART against probabilities that are written out, image by image."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import rng
from reidguard.errors import InputError
from reidguard.objectives.consistency import (
    boosted_identity_loss,
    feature_divergence,
    logit_divergence,
    true_probability,
)
from reidguard.objectives.triplets import given_triplet_loss, hardness


def logits(seed, rows=5, identities=4):
    return 3 * torch.randn(rows, identities, generator=rng(seed), dtype=torch.float64)


def probabilities(row):
    total = sum(math.exp(v) for v in row.tolist())
    return [math.exp(v) / total for v in row.tolist()]


def test_the_divergence_is_that_of_the_probabilities():
    clean, adversarial = logits(1), logits(2)
    wanted = [
        sum(p * math.log(p / q) for p, q in zip(probabilities(a), probabilities(b), strict=True))
        for a, b in zip(clean, adversarial, strict=True)
    ]
    assert logit_divergence(clean, adversarial).tolist() == pytest.approx(wanted)
    assert logit_divergence(clean, clean).abs().max() < 1e-12


def test_the_boosted_loss_has_the_margin_to_the_most_probable_other_identity():
    scores, pids = logits(3), torch.tensor([0, 1, 2, 3, 0])
    wanted = []
    for row, pid in zip(scores, pids.tolist(), strict=True):
        p = probabilities(row)
        rival = max(value for k, value in enumerate(p) if k != pid)
        wanted.append(-math.log(p[pid]) - math.log(1 - rival))
    assert boosted_identity_loss(scores, pids).tolist() == pytest.approx(wanted)
    own = [probabilities(row)[pid] for row, pid in zip(scores, pids.tolist(), strict=True)]
    assert true_probability(scores, pids).tolist() == pytest.approx(own)


def test_the_boosted_loss_is_finite_where_a_probability_rounds_to_one():
    scores = torch.tensor([[100.0, 0.0, -50.0]])
    # −log p_y = 100 and −log(1 − p_0) = 100, though float32 has p_0 = 1
    loss = boosted_identity_loss(scores, torch.tensor([1]))
    assert loss.tolist() == pytest.approx([200.0])
    assert boosted_identity_loss(scores, torch.tensor([0])).tolist() == pytest.approx([0.0])


def test_distances_are_squared_and_gradients_reach_both():
    a, b = (torch.randn(3, 2, generator=rng(s), requires_grad=True) for s in (1, 2))
    distance = feature_divergence(a, b)
    wanted = [
        sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(distance, torch.stack(wanted))
    distance.sum().backward()
    torch.testing.assert_close(a.grad, 2 * (a - b).detach())
    torch.testing.assert_close(b.grad, -a.grad)


def test_given_triplets_have_their_hardness_and_loss():
    points = torch.randn(6, 3, generator=rng(4), dtype=torch.float64)
    triplets = torch.tensor([[0, 1, 2], [3, 4, 5], [0, 5, 1]])

    def length(i, j):
        return math.dist(points[i].tolist(), points[j].tolist())

    wanted = [length(a, p) - length(a, n) for a, p, n in triplets.tolist()]
    found = hardness(*(points[rows] for rows in triplets.T))
    assert found.tolist() == pytest.approx(wanted)
    losses = [max(0.0, value + 0.7) for value in wanted]
    assert any(loss > 0 for loss in losses)
    mean = given_triplet_loss(points, triplets, 0.7)
    assert float(mean) == pytest.approx(sum(losses) / 3)
    assert float(given_triplet_loss(points, triplets, 0.7, reduction="sum")) == pytest.approx(
        sum(losses)
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: feature_divergence(torch.zeros(2, 3), torch.zeros(3, 3)),
        lambda: logit_divergence(torch.zeros(2), torch.zeros(2)),
        lambda: boosted_identity_loss(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)),
        lambda: given_triplet_loss(torch.zeros(2, 3), torch.zeros(0, 3, dtype=torch.long)),
        lambda: given_triplet_loss(torch.zeros(2, 3), torch.zeros(1, 3).long(), reduction="max"),
    ],
)
def test_wrong_shapes_are_refused(call):
    with pytest.raises(InputError):
        call()
