"""Scores against explicit loops and finite differences, and the detector that computes them."""

import math

import numpy as np
import pytest
import torch

from helpers import SmoothEmbedder
from reidguard.attacks import SMA
from reidguard.detection import (
    DETECTION_SCORES,
    AdaptiveSMA,
    AgreementScore,
    BlurScore,
    DetectionScore,
    Detector,
    DetectorBatch,
    FlipScore,
    JpegScore,
    NeighbourScore,
    Reference,
    ShiftScore,
)
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec

SIZE = (16, 8)


def images(n=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, *SIZE, generator=generator, dtype=dtype)


@pytest.fixture
def batch():
    model, other = SmoothEmbedder(), SmoothEmbedder()
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.7).add_(0.05)
    gallery = images(9, seed=1)
    references = [Reference(m, m.features(gallery)) for m in (model, other)]
    x = images().requires_grad_()
    return DetectorBatch(x, references[0].features(x), references[0], (references[1],))


def rebuilt(batch, x):
    return DetectorBatch(x, batch.reference.features(x), batch.reference, batch.others)


@pytest.mark.parametrize("score", [FlipScore(), BlurScore(0.8), ShiftScore(2), JpegScore(60)])
def test_consistency_is_one_less_the_cosine(batch, score):
    x, model = batch.images, batch.reference.model
    for i, value in enumerate(score(batch).detach()):
        own = model.features(x[i : i + 1])[0]
        copies = [model.features(c[i : i + 1])[0] for c in score.changed(x)]
        cosines = [(own @ c / (own @ own).sqrt() / (c @ c).sqrt()).item() for c in copies]
        assert float(value) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-9)


def test_neighbours_are_the_nearest(batch):
    gallery = batch.reference.gallery
    for feature, value in zip(
        batch.features.detach(), NeighbourScore(4)(batch).detach(), strict=True
    ):
        distances = sorted(float((feature - g).norm()) for g in gallery)
        assert float(value) == pytest.approx(sum(distances[:4]) / 4, abs=1e-8)
    everyone = NeighbourScore(100)(batch)
    assert torch.equal(everyone, NeighbourScore(9)(batch))


def test_agreement_is_one_less_the_correlation(batch):
    (other,) = batch.others
    for i, value in enumerate(AgreementScore()(batch)):
        rows = [
            [float((feature - g).norm()) for g in reference.gallery]
            for reference in (batch.reference, other)
            for feature in [reference.features(batch.images)[i]]
        ]
        assert float(value) == pytest.approx(1 - np.corrcoef(rows)[0, 1], abs=1e-8)
    same = DetectorBatch(batch.images, batch.features, batch.reference, (batch.reference,))
    assert float(AgreementScore()(same).abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["flip", "blur", "shift", "neighbours", "agreement"])
def test_gradients_are_those_of_finite_differences(batch, name):
    score = DETECTION_SCORES.create(name)
    x = images(1).requires_grad_()
    (gradient,) = torch.autograd.grad(score(rebuilt(batch, x)).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    step = 1e-6
    with torch.no_grad():
        high, low = (score(rebuilt(batch, x + s * direction)) for s in (step, -step))
    slope = float((high - low).sum()) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("name", DETECTION_SCORES.list())
def test_an_images_score_does_not_depend_on_the_others(batch, name):
    score = DETECTION_SCORES.create(name)
    alone = torch.cat([score(rebuilt(batch, x[None])) for x in batch.images])
    torch.testing.assert_close(score(batch), alone)


def pixel_model():
    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    return wrap_model(torch.nn.Flatten(), input_spec=spec, metric="euclidean")


class Redness(DetectionScore):
    """The mean of the red channel."""

    def __call__(self, batch):
        return batch.images[:, 0].mean((1, 2))


def red_detector():
    model, gallery = pixel_model(), images(6, seed=1, dtype=torch.float32)
    detector = Detector(model, model.features(gallery), {"red": Redness()})
    detector.calibrate(torch.tensor([[0.1], [0.3]]))
    return detector


def test_features_of_a_detector_are_features_and_standardized_scores():
    detector = red_detector()
    x = images(dtype=torch.float32)
    features = detector.features(x)
    gallery = images(6, seed=1, dtype=torch.float32).flatten(1)
    squares = [float((a - b).square().sum()) for a in gallery for b in gallery]
    scale = math.sqrt(sum(squares) / len(squares))
    torch.testing.assert_close(features[:, :-1], x.flatten(1) / scale)
    torch.testing.assert_close(features[:, -1], (x[:, 0].mean((1, 2)) - 0.2) / 0.1)


def test_an_attack_that_counts_the_score_alone_goes_to_the_edge_of_the_ball():
    """The score is linear: its lowest value in the ball is at minus ε in each red value."""
    detector, x = red_detector(), images(dtype=torch.float32).clamp(0.1, 0.9)
    attack = AdaptiveSMA(Budget(4 / 255), weight=1e6, steps=10, seed=3).bind(detector)
    x_adv = attack(x)
    torch.testing.assert_close(x_adv[:, 0], x[:, 0] - 4 / 255)
    plain = AdaptiveSMA(Budget(4 / 255), weight=0.0, steps=10, seed=3).bind(detector)(x)
    sma = SMA(Budget(4 / 255), steps=10, seed=3).bind(detector.model)(x)
    assert torch.equal(plain, sma)  # without the score it is SMA
    # A score that looks clean already is lowered no further.
    detector.calibrate(torch.tensor([[0.8], [1.0]]))
    assert torch.equal(attack.bind(detector)(x), AdaptiveSMA(
        Budget(4 / 255), weight=0.0, steps=10, seed=3
    ).bind(detector)(x))  # fmt: skip


def test_what_makes_no_detector_is_refused():
    model = pixel_model()
    with pytest.raises(InputError, match="at least one score"):
        Detector(model, torch.zeros(2, 3), {})
    with pytest.raises(InputError, match="'agreement' compares the model with others"):
        Detector(model, torch.zeros(2, 3), {"agreement": AgreementScore()})
    with pytest.raises(InputError, match="AdaptiveSMA is bound to a Detector"):
        AdaptiveSMA().bind(model)
