"""GOAT's attack against one image after the other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import rng
from reidguard.attacks import Guides
from reidguard.defenses import GuideSampling
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec

RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
SHAPE = (3, 4, 6)
PIDS = [3, 7, 7, 3, 9, 3, 0, 9, 7, 3]
LABELS = [3, 7, 9, 1234, 3, 7, 9, 3]  # of 1234 there is no guide


def embedder(metric="cosine"):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))
    return wrap_model(network.double().eval(), input_spec=RAW, metric=metric)


def images(count, seed=0):
    return torch.randint(0, 256, (count, *SHAPE), generator=rng(seed)).double() / 255


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("push", [1, 3])
def test_each_image_has_guides_of_its_own(metric, push):
    model, x, eps = embedder(metric), images(8), 6 / 255
    guides = Guides(model.features(images(len(PIDS), 5)), PIDS)
    attack = GuideSampling(Budget(eps), push=push, steps=3, step_size=3 / 255, seed=2)
    found = attack.bind(model, guides).with_labels(LABELS)(x)

    def compared(y):
        features = model.features(y[None])[0]
        return F.normalize(features, dim=0) if metric == "cosine" else features

    places = F.normalize(guides.features) if metric == "cosine" else guides.features
    draws = attack.uniform(x, "guides", (push + 1,))
    starts = (x + eps * (2 * attack.uniform(x, "start 0", SHAPE) - 1)).clamp(0, 1)
    chosen = set()
    for row, pid in enumerate(LABELS):
        own = [i for i, p in enumerate(PIDS) if p == pid]
        others = [i for i, p in enumerate(PIDS) if p not in (pid, 0)]
        pushing = compared(x[row]).detach()
        if own:
            rows = [own[math.floor(float(d) * len(own))] for d in draws[row, :push]]
            pushing = places[rows].mean(0)
        other = others[math.floor(float(draws[row, push]) * len(others))]
        chosen.add(other)
        low, high = (x[row] - eps).clamp(min=0), (x[row] + eps).clamp(max=1)
        y = starts[row]
        for _ in range(3):
            y = y.detach().requires_grad_()
            feature = compared(y)
            goal = (feature - pushing).square().sum() - (feature - places[other]).square().sum()
            (gradient,) = torch.autograd.grad(goal, y)
            y = torch.minimum(torch.maximum(y + 3 / 255 * gradient.sign(), low), high)
        torch.testing.assert_close(found[row], y.detach(), rtol=0, atol=1e-12)
    assert len(chosen) > 2


def test_draws_reach_the_first_and_the_last_guide():
    """A draw next to 1 is the last guide and no further; one of 0 is the first."""

    class Drawn(GuideSampling):
        draw = 0.0

        def uniform(self, x, purpose, shape):
            return torch.full((len(x), *shape), self.draw, dtype=x.dtype)

        def objective(self, clean, target):
            self.guides = self._push.clone(), self._pull.clone()
            return super().objective(clean, target)

    model = embedder("euclidean")
    features = torch.arange(20.0, dtype=torch.float64).view(4, 5)
    x = images(1)
    for draw, own, other in ((0.0, 0, 2), (1.0 - 2**-53, 1, 3), (1.0, 1, 3)):
        attack = Drawn(push=1, steps=1).bind(model, Guides(features, [4, 4, 8, 8]))
        attack.draw = draw
        bound = attack.with_labels([4])
        bound(x)
        push, pull = bound.guides
        torch.testing.assert_close(push[0], features[own])
        torch.testing.assert_close(pull[0], features[other])


def test_usual_values_are_those_of_the_docs():
    attack = GuideSampling()
    assert (attack.budget, attack.push, attack.steps) == (Budget(8 / 255), 4, 7)
    assert (attack.step_size, attack.seed, attack.restarts) == (1 / 255, 0, 1)
    assert (GuideSampling(push=1).push, GuideSampling(seed=2).seed) == (1, 2)


def test_guides_of_a_single_identity_are_refused():
    model = embedder()
    attack = GuideSampling(steps=1).bind(model, Guides(torch.eye(5)[:2], [4, 4]))
    with pytest.raises(InputError, match="GuideSampling needs guides of at least two"):
        attack(images(1))
