"""The score is used under its registered name, and an adaptive attack lowers it."""

from __future__ import annotations

from reidguard_example_detection_score import DarkenScore

from reidguard import DETECTION_SCORES, AdaptiveSMA, DeltaAttack, Protocol, detection_scores
from reidguard.testing import small_dataset, small_model


def test_it_is_found_and_measured():
    assert "example_darken" in DETECTION_SCORES.list()
    scores = {"darken": DETECTION_SCORES.create("example_darken")}
    assert isinstance(scores["darken"], DarkenScore)
    attacks = {"none": DeltaAttack(size=(32, 16)), "adaptive": AdaptiveSMA(steps=2)}
    with small_dataset() as people:
        protocol = Protocol(image_size=(32, 16))
        result = detection_scores(small_model(), people, attacks, scores=scores, protocol=protocol)
    assert result.auc["none"]["darken"] == 0.5  # nothing is attacked yet
    assert 0 <= result.auc["adaptive"]["darken"] <= 1
