"""TRADES and MART as objectives of a batch, against loops over its pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers import rng
from reidguard.attacks import SMA
from reidguard.defenses import MART, TRADES, AdversarialTraining
from reidguard.errors import InputError
from reidguard.models import ReIDModel
from reidguard.nn.auxiliary import AuxiliaryNorms
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.objectives.reid import ReIDObjective
from reidguard.types import BatchShard, InputSpec

PLAIN = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
BETA = 0.7


class Small(ReIDModel):
    """A linear map, or one with a batch norm before it."""

    def __init__(self, metric="cosine", norm=False):
        super().__init__(input_spec=PLAIN, metric=metric, num_classes=3)
        layers = [nn.Flatten(), nn.Linear(24, 4)]
        self.net = nn.Sequential(*layers, nn.BatchNorm1d(4)) if norm else nn.Sequential(*layers)
        self.build_classifiers(4)
        nn.init.normal_(self.classifier["default"].weight)

    def embed(self, inputs):
        return self.net(inputs)


def made(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(**options).double()


def batch(clean=9, sources=(4, 1, 8)):
    images = torch.rand(clean, 3, 4, 2, generator=rng(1), dtype=torch.float64)
    rows = torch.tensor([*range(clean), *sources])
    moved = images[list(sources)] + 0.1 * torch.randn(
        len(sources), 3, 4, 2, generator=rng(2), dtype=torch.float64
    )
    return DefenseBatch(
        torch.cat((images, moved)),
        rows % 3,
        rows * 0,
        rows,
        adversarial=len(sources),
        sources=torch.tensor(sources),
    )


def tie(model, drawn, divergence, weighted):
    """The regulariser, pair by pair."""
    total = 0.0
    outputs = model(drawn.images)
    count = drawn.adversarial
    for k, source in enumerate(drawn.sources.tolist()):
        row = len(drawn) - count + k
        p, q = (outputs.logits[i].softmax(0) for i in (source, row))
        if divergence == "kl":
            apart = sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))
        else:
            a, b = (outputs.features[i] for i in (source, row))
            if model.metric == "cosine":
                a, b = a / a.norm(), b / b.norm()
            apart = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        total = total + apart * ((1 - p[drawn.pids[source]]) if weighted else 1)
    return BETA * total / count


@pytest.mark.parametrize("divergence", ["distance", "kl"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_trades_is_the_clean_loss_and_the_divergence_of_each_pair(divergence, metric, batch_norm):
    model, drawn = made(metric=metric), batch()
    objective = DefenseObjective(
        batch_norm=batch_norm, regularizer="trades", beta=BETA, divergence=divergence
    )
    first = slice(len(drawn) - drawn.adversarial)
    clean = replace(
        drawn,
        images=drawn.images[first],
        pids=drawn.pids[first],
        camids=drawn.camids[first],
        indices=drawn.indices[first],
    )
    wanted = ReIDObjective()(model, clean) + tie(model, drawn, divergence, False)
    torch.testing.assert_close(objective(model, drawn), wanted)
    torch.autograd.grad(objective(model, drawn), list(model.parameters()))


@pytest.mark.parametrize("divergence", ["distance", "kl"])
@pytest.mark.parametrize("losses", [("triplet", "identity"), ("identity",)])
def test_mart_boosts_the_adversarial_images_and_weighs_the_pairs(divergence, losses):
    model, drawn = made(), batch()
    objective = DefenseObjective(
        losses=losses, regularizer="mart", beta=BETA, divergence=divergence
    )
    outputs = model(drawn.images)
    boosted = 0.0
    for row in range(len(drawn) - drawn.adversarial, len(drawn)):
        p, pid = outputs.logits[row].softmax(0).tolist(), int(drawn.pids[row])
        rival = max(value for k, value in enumerate(p) if k != pid)
        boosted -= (math.log(p[pid]) + math.log(1 - rival)) / drawn.adversarial
    wanted = boosted + tie(model, drawn, divergence, True)
    if "triplet" in losses:
        wanted = wanted + ReIDObjective(losses=("triplet",))(model, drawn)
    torch.testing.assert_close(objective(model, drawn), wanted)


@pytest.mark.parametrize("regularizer", ["trades", "mart"])
@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_a_shard_that_is_the_whole_batch_changes_nothing(regularizer, batch_norm, monkeypatch):
    from helpers import imagine_silent_peer

    imagine_silent_peer(monkeypatch)
    objective = DefenseObjective(regularizer=regularizer, batch_norm=batch_norm)
    drawn = batch()
    shard = replace(drawn, shard=BatchShard(torch.arange(len(drawn)), len(drawn)))
    torch.testing.assert_close(objective(made(), shard), objective(made(), drawn))


def test_auxiliary_norms_see_the_adversarial_images_alone():
    model, drawn = made(norm=True), batch()
    norms = AuxiliaryNorms(model)
    with torch.no_grad():
        norms.weights[0].fill_(1.7)
        norms.biases[0].fill_(-0.3)
    first = len(drawn) - drawn.adversarial
    other = made(norm=True)
    with torch.no_grad():
        clean = other(drawn.images[:first])
        statistics = other.net[2].running_mean.clone()
        other.net[2].weight.fill_(1.7)
        other.net[2].bias.fill_(-0.3)
        adversarial = other(drawn.images[first:])
        wanted = ReIDObjective().loss(
            torch.cat((clean.embeddings, adversarial.embeddings)),
            torch.cat((clean.logits, adversarial.logits)),
            drawn.pids,
        )
    loss = DefenseObjective(batch_norm="auxiliary")(model, drawn, norms)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(model.net[2].running_mean, statistics)
    with pytest.raises(InputError, match="AuxiliaryNorms"):
        DefenseObjective(batch_norm="auxiliary")(model, drawn)


def test_a_batch_of_the_other_domain_leaves_statistics_alone():
    model, drawn = made(norm=True), batch()
    DefenseObjective()(model, replace(drawn, statistics=False))
    assert int(model.net[2].num_batches_tracked) == 0
    assert not model.net[2].running_mean.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regularizer": "trade"}, "'trades' or 'mart'"),
        ({"divergence": "js"}, "'distance' or 'kl'"),
        ({"regularizer": "mart", "losses": ("triplet",)}, "leave 'identity' among the losses"),
        ({"regularizer": "trades", "divergence": "kl", "losses": ("triplet",)}, "probabilities"),
        ({"regularizer": "trades", "beta": -1.0}, "beta"),
        ({"regularizer": "trades", "clean": False}, "clean=True"),
        ({"regularizer": "trades", "adversarial": 0.0}, "adversarial above 0"),
    ],
)
def test_wrong_options_name_the_cure(options, words):
    with pytest.raises(InputError, match=words):
        AdversarialTraining(SMA(), **options)


def test_presets():
    assert (TRADES().regularizer, TRADES().beta, TRADES().divergence) == ("trades", 6.0, "distance")
    assert (MART().regularizer, MART().beta, MART().divergence) == ("mart", 5.0, "kl")
    assert TRADES().adversarial == MART().adversarial == 1.0
    assert TRADES().config()["attack"]["config"]["steps"] == 7
    assert TRADES(losses=("triplet",)).losses == ("triplet",)
