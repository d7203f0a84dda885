"""Instance attacks inside `evaluate`, on the gallery side, and on real data."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from reidguard.attacks import FNA, SMA, Guides, MetricIFGSM, SquareAttack
from reidguard.data import iterate_images
from reidguard.errors import InputError
from reidguard.evaluation import FeatureStore, Protocol, evaluate, extract_features
from reidguard.metrics import rank
from reidguard.models import create_model, wrap_model
from reidguard.types import Budget, InputSpec

SMALL = Protocol(image_size=(64, 32))
CHECKPOINT = "osnet_x0_25_market1501.pth"


@pytest.fixture(scope="module")
def model():
    """Colours of a 8 × 4 grid: linear in the image, and good enough on virtual people."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d((8, 4)), nn.Flatten())
    spec = InputSpec(size=None, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
    return wrap_model(net, input_spec=spec, metric="cosine")


@pytest.fixture(scope="module")
def guides(model, studio):
    gallery = studio.gallery
    return Guides(extract_features(model, gallery, image_size=(64, 32)), [s.pid for s in gallery])


@pytest.mark.parametrize("attack", [SMA(), FNA(), MetricIFGSM(), SquareAttack(steps=30)])
def test_a_bound_attack_is_evaluated_like_any_other(attack, model, guides, studio):
    result = evaluate(model, studio, attack.bind(model, guides), SMALL, query_every=4)
    assert result.attacked.ranking.mAP < result.clean.mAP
    assert result.attacked.linf <= 8 / 255 + 1e-6
    assert result.attack == {"name": type(attack).__name__, "eps": 8 / 255}


def test_an_unbound_attack_says_so(model, studio):
    with pytest.raises(InputError, match="bind"):
        evaluate(model, studio, SMA(), SMALL, query_every=16)


def test_the_gallery_can_be_attacked_with_queries_as_guides(model, studio):
    queries, gallery = studio.query, studio.gallery
    clean_queries = extract_features(model, queries, image_size=(64, 32))
    guides = Guides(clean_queries, [s.pid for s in queries])
    attack = MetricIFGSM(Budget(8 / 255)).bind(model, guides)
    parts, parts_8bit = [], []
    for place, pixels in iterate_images(gallery, (64, 32), 64):
        pids = [s.pid for s in gallery[place]]
        x = pixels.float() / 255
        x_adv = attack.with_labels(pids)(x)
        parts.append(model.features(x_adv))
        parts_8bit.append(model.features(attack.budget.quantize(x_adv, x).float() / 255))

    def score(features):
        return rank(
            clean_queries,
            features,
            query_pids=[s.pid for s in queries],
            query_camids=[s.camid for s in queries],
            gallery_pids=[s.pid for s in gallery],
            gallery_camids=[s.camid for s in gallery],
            metric="cosine",
        ).mAP

    clean = extract_features(model, gallery, image_size=(64, 32))
    by_hand = score(torch.cat(parts))
    assert by_hand < score(clean)
    seen = []
    result = evaluate(
        model,
        studio,
        attack,
        SMALL,
        with_labels=True,
        side="gallery",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.clean.mAP == pytest.approx(score(clean))
    assert result.attacked.ranking.mAP == pytest.approx(by_hand)
    assert result.attacked_8bit.ranking.mAP == pytest.approx(score(torch.cat(parts_8bit)))
    assert result.attacked_8bit.linf <= 8 / 255 + 1e-6
    assert result.attack["side"] == "gallery"
    assert ", on the gallery" in result.to_markdown()
    assert seen == sorted(seen)
    assert seen[-1] == (len(gallery) + len(queries),) * 2
    with pytest.raises(InputError, match="side"):
        evaluate(model, studio, attack, SMALL, side="both")
    with pytest.raises(InputError, match="give an attack"):
        evaluate(model, studio, None, SMALL, side="gallery")


@pytest.mark.slow
def test_sma_breaks_osnet_on_market(market):
    """Every 128th query: 27 of them."""
    if "REIDGUARD_WEIGHTS" not in os.environ:
        pytest.skip(f"REIDGUARD_WEIGHTS is not set: it names the folder that holds {CHECKPOINT}")
    weights = Path(os.environ["REIDGUARD_WEIGHTS"]) / CHECKPOINT
    model = create_model("osnet_x0_25", weights=weights)
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    result = evaluate(model, market, SMA().bind(model), store=store, query_every=128)
    assert result.clean.mAP > 0.7
    assert result.attacked.ranking.mAP <= 0.01
    assert result.attacked_8bit.ranking.mAP <= 0.01
