"""Eqs. 12 to 14 against explicit loops and a meta-gradient written by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.func import functional_call

from helpers import imagine_silent_peer
from reidguard.attacks import DeltaAttack
from reidguard.errors import InputError
from reidguard.learners import HessianFreeLearner, JointLearner, MAMLLearner, PlainLearner
from reidguard.models import ReIDModel
from reidguard.objectives.defense import DefenseBatch, DefenseObjective, without_memory
from reidguard.types import BatchShard, Budget, InputSpec

DOUBLE = torch.float64
PLAIN = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))


class Linear(ReIDModel):
    """Features are a linear map of the pixels."""

    def __init__(self, width=4):
        super().__init__(input_spec=PLAIN, metric="euclidean", num_classes={"a": 3, "b": 3})
        self.map = nn.Linear(3 * 4 * 2, width)
        self.build_classifiers(width)

    def embed(self, inputs):
        return self.map(inputs.flatten(1))


class Small(ReIDModel):
    """Convolution, batch norm and a smooth activation."""

    def __init__(self):
        super().__init__(input_spec=PLAIN, metric="euclidean", num_classes={"a": 3, "b": 3})
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, (3, 1)), nn.Flatten()
        )
        self.build_classifiers(5)

    def embed(self, inputs):
        return self.net(inputs)


def made(cls, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls().double()
        for head in model.classifier.values():
            nn.init.normal_(head.weight, std=0.5)
    return model


def batch(domain, seed, clean=9, adversarial=4):
    g = torch.Generator().manual_seed(seed)
    images = torch.rand(clean, 3, 4, 2, generator=g, dtype=DOUBLE)
    if domain == "b":
        images = images * 0.5 + 0.3
    attack = DeltaAttack(Budget(0.1), size=(4, 2)).double()
    nn.init.uniform_(attack.delta, -0.1, 0.1, generator=g)
    pids = torch.arange(clean) % 3
    chosen = torch.randperm(clean, generator=g)[:adversarial]
    with torch.no_grad():
        images = torch.cat((images, attack(images[chosen])))
    rows = torch.cat((torch.arange(clean), chosen))
    return DefenseBatch(images, pids[rows], rows * 0, rows, domain=domain, adversarial=adversarial)


def loop(features, logits, pids, losses, reduction, margin=0.5):
    """Eq. 12 as it is written: one image after the other."""
    total = 0
    for i in range(len(pids)):
        if "triplet" in losses:
            others = [j for j in range(len(pids)) if j != i]
            length = {j: (features[i] - features[j]).square().sum().sqrt() for j in others}
            positive = max((length[j] for j in others if pids[j] == pids[i]), key=Tensor.detach)
            negative = min((length[j] for j in others if pids[j] != pids[i]), key=Tensor.detach)
            total = total + torch.relu(positive - negative + margin)
        if "identity" in losses:
            total = total - (logits[i][pids[i]] - torch.logsumexp(logits[i], 0))
    return total / len(pids) if reduction == "mean" else total


def test_a_batch_is_moved_with_all_that_it_knows():
    moved = batch("b", 1).to("meta")
    assert isinstance(moved, DefenseBatch)
    assert {t.device.type for t in (moved.images, moved.pids, moved.camids, moved.indices)} == {
        "meta"
    }
    assert (moved.domain, moved.adversarial, moved.features) == ("b", 4, None)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("losses", [("triplet",), ("identity",), ("triplet", "identity")])
@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_the_objective_is_the_sum_over_all_images(reduction, losses, batch_norm):
    model, drawn = made(Linear), batch("b", 1)
    with torch.no_grad():
        features = model.map(drawn.images.flatten(1))
        logits = model.classifier["b"](features)
        wanted = loop(features, logits, drawn.pids, losses, reduction)
        objective = DefenseObjective(losses, reduction=reduction, batch_norm=batch_norm)
        torch.testing.assert_close(objective(model, drawn), wanted)
    assert float(wanted) > 0.1


@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_a_shard_that_holds_all_rows_is_the_batch(batch_norm, monkeypatch):
    """Beside a process that holds none, whichever policy; with and without adversarial images."""
    imagine_silent_peer(monkeypatch)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    objective = DefenseObjective(batch_norm=batch_norm)
    for adversarial in (0, 4):
        drawn = batch("b", 1, adversarial=adversarial)
        model, reference = made(Small), made(Small)
        shard = replace(drawn, shard=BatchShard(torch.arange(len(drawn)), len(drawn)))
        found, wanted = objective(model, shard), objective(reference, drawn)
        torch.testing.assert_close(found, wanted)
        for a, b in zip(model.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(a, b)


def by_hand(model, parameters, buffers, drawn, batch_norm):
    """Eq. 12 with given weights, and the passes that the policy asks for."""
    count = drawn.adversarial if batch_norm == "separate" else 0
    parts = [drawn.images[: len(drawn) - count]] + ([drawn.images[-count:]] if count else [])
    outputs = [
        # Each pass has buffers of its own.
        functional_call(
            model, {**parameters, **{k: v.clone() for k, v in buffers.items()}}, (x, drawn.domain)
        )
        for x in parts
    ]
    features = torch.cat([o.features for o in outputs])
    logits = torch.cat([o.logits for o in outputs])
    return loop(features, logits, drawn.pids, ("triplet", "identity"), "sum")


@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_the_meta_gradient_is_that_of_eq_14(batch_norm):
    """Through w' = w - α∇L, batch norm in train mode, each domain with its classifier."""
    model, train, test, lr = made(Small), batch("a", 1), batch("b", 2), 0.02
    parameters = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    inner = by_hand(model, parameters, buffers, train, batch_norm)
    found = torch.autograd.grad(
        inner, list(parameters.values()), create_graph=True, allow_unused=True
    )
    temporary = {
        k: w if g is None else w - lr * g
        for (k, w), g in zip(parameters.items(), found, strict=True)
    }
    outer = by_hand(model, temporary, buffers, test, batch_norm)
    wanted = torch.autograd.grad(inner + outer, list(parameters.values()))
    objective = DefenseObjective(reduction="sum", batch_norm=batch_norm)
    result = MAMLLearner(inner="sgd").step(
        model, objective, train, test, optimizer=torch.optim.Adam(model.parameters(), lr=lr)
    )
    torch.testing.assert_close(result.train_loss, inner.detach())
    torch.testing.assert_close(result.test_loss, outer.detach())
    for (name, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-10, msg=name)
    # The second order matters here, or this test would show nothing.
    JointLearner().step(model, objective, train, test)
    joint = torch.cat([p.grad.flatten() for p in model.parameters()])
    exact = torch.cat([g.flatten() for g in wanted])
    assert torch.linalg.vector_norm(joint - exact) > 0.05 * torch.linalg.vector_norm(exact)


@pytest.mark.parametrize(
    "learner",
    [PlainLearner(), JointLearner(), MAMLLearner(inner="sgd"), HessianFreeLearner(inner="sgd")],
)
@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_statistics_move_once_in_a_step(learner, batch_norm):
    """By the meta-train batch: all of it, or its clean images."""
    model, train, test = made(Small), batch("a", 1), batch("b", 2)
    expected = made(Small)
    seen = train.images if batch_norm == "shared" else train.images[: -train.adversarial]
    expected(seen, "a")
    objective = DefenseObjective(reduction="sum", batch_norm=batch_norm)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    learner.step(model, objective, train, test, optimizer=optimizer)
    for (name, found), wanted in zip(model.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(found, wanted, msg=name)
    assert int(model.net[1].num_batches_tracked) == 1
    assert model.net[1].track_running_stats


def test_without_memory_keep_what_had_none():
    norms = nn.ModuleList([nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False)])
    norms.append(nn.BatchNorm1d(2).eval())
    x = torch.randn(5, 2) + 3
    tested = norms[2](x)
    with without_memory(norms):
        found = norms[0](x)
        assert torch.equal(norms[2](x), tested)
    torch.testing.assert_close(found, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    assert [norm.track_running_stats for norm in norms] == [True, False, True]
    assert torch.equal(norms[0].running_mean, torch.zeros(2))


def test_a_model_with_parts_adds_their_losses():
    class Halves(Linear):
        def forward(self, x, domain=None):
            whole = super().forward(x, domain)
            parts = list(whole.features.chunk(2, 1))
            return type(whole)(whole.features, parts, [whole.logits, 2 * whole.logits])

    model, drawn = made(Halves), batch("b", 1)
    with torch.no_grad():
        features = model.map(drawn.images.flatten(1))
        logits = model.classifier["b"](features)
        one, two = features.chunk(2, 1)
        wanted = loop(one, logits, drawn.pids, ("triplet", "identity"), "sum")
        wanted = wanted + loop(two, 2 * logits, drawn.pids, ("triplet", "identity"), "sum")
        for policy in ("shared", "separate"):
            found = DefenseObjective(reduction="sum", batch_norm=policy)(model, drawn)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": ()}, "'triplet', 'identity' or both"),
        ({"losses": ("center",)}, "'triplet', 'identity' or both"),
        ({"reduction": "max"}, "'mean' or 'sum'"),
        ({"batch_norm": "frozen"}, "'shared', 'separate' or 'auxiliary'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        DefenseObjective(**options)
