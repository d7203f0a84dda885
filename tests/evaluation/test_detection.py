"""`detection_scores`: AUC of the scores that it returns, attacks that know them, errors."""

import pytest
import torch

from helpers.models import CameraNet
from reidguard.attacks import SMA, DeltaAttack, PatternAttack
from reidguard.detection import AdaptiveSMA, AgreementScore, JpegScore, ShiftScore
from reidguard.errors import InputError
from reidguard.evaluation import Protocol, detection_scores, evaluate
from reidguard.testing import small_dataset, small_model
from reidguard.types import Budget

PROTOCOL = Protocol(image_size=(32, 16))


@pytest.fixture(scope="module")
def data():
    with small_dataset() as dataset:
        yield dataset


def test_images_that_are_not_attacked_are_not_told_apart(data):
    result = detection_scores(small_model(), data, {"none": DeltaAttack()}, protocol=PROTOCOL)
    assert torch.equal(result.attacked_scores["none"], result.clean_scores)
    assert result.names == ("blur", "flip", "jpeg", "neighbours", "shift")
    assert set(result.auc["none"].values()) == {0.5}
    assert result.attacked["none"].mAP == result.clean.mAP


def test_rankings_are_those_of_evaluate_and_auc_that_of_the_scores(data):
    attack = PatternAttack(Budget(32 / 255))
    result = detection_scores(small_model(), data, {"bars": attack}, protocol=PROTOCOL)
    expected = evaluate(small_model(), data, attack, PROTOCOL)
    assert result.clean.mAP == expected.clean.mAP
    assert result.attacked["bars"].mAP == expected.attacked_8bit.ranking.mAP
    for place, name in enumerate(result.names):
        clean, attacked = result.clean_scores[:, place], result.attacked_scores["bars"][:, place]
        pairs = [0.5 * (a >= c) + 0.5 * (a > c) for c in clean for a in attacked]
        assert result.auc["bars"][name] == pytest.approx(float(sum(pairs)) / len(pairs))
    content = result.to_dict()
    assert content["auc"] == result.auc
    assert content["attacks"]["bars"]["eps"] == 32 / 255
    assert "| jpeg" in result.to_markdown()


def test_an_attack_that_knows_the_score_lowers_it(data):
    """SMA moves the feature without a look at the score; the adaptive attack does both."""
    attacks = {
        "SMA": SMA(Budget(16 / 255), steps=20),
        "adaptive": AdaptiveSMA(Budget(16 / 255), weight=1.0, steps=40),
    }
    scores = {"jpeg": JpegScore(30), "shift": ShiftScore(1)}
    result = detection_scores(small_model(), data, attacks, scores=scores, protocol=PROTOCOL)
    excess = {
        name: ((s - result.clean_scores.mean(0)) / result.clean_scores.std(0)).clamp(min=0).mean()
        for name, s in result.attacked_scores.items()
    }
    assert excess["adaptive"] < 0.6 * excess["SMA"]


def test_cameras_and_other_models(data):
    """Models whose features depend on the camera get those of the samples."""
    torch.manual_seed(0)
    scores = {"agreement": AgreementScore(), "shift": ShiftScore(1)}
    attacks = {"adaptive": AdaptiveSMA(steps=2)}
    for model, other in ((CameraNet(), small_model()), (small_model(), CameraNet())):
        result = detection_scores(
            model.eval(), data, attacks, scores=scores, others=[other.eval()], protocol=PROTOCOL
        )
        assert result.clean_scores.shape == (4, 2)
        assert bool(result.attacked_scores["adaptive"].isfinite().all())


def test_errors(data):
    model, attacks = small_model(), {"SMA": SMA(steps=1)}
    with pytest.raises(InputError, match="attacks must be some by name"):
        detection_scores(model, data, {})
    with pytest.raises(InputError, match="the score 'jpeg' must be of class DetectionScore"):
        detection_scores(model, data, attacks, scores={"jpeg": 75})
    with pytest.raises(InputError, match="looks at each query image by itself"):
        detection_scores(model, data, attacks, protocol=Protocol(rerank=True))
    with pytest.raises(InputError, match="'clean' is the name"):
        detection_scores(model, data, {"clean": SMA()})
    scores = {"agreement": AgreementScore()}
    with pytest.raises(InputError, match="give another model"):
        detection_scores(model, data, attacks, scores=scores, protocol=PROTOCOL)
