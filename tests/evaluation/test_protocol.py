"""The protocol's ways to score: re-ranking, with attacked queries and in grids."""

from __future__ import annotations

import json

import pytest
import torch

from reidguard.attacks import SMA
from reidguard.errors import InputError
from reidguard.evaluation import (
    FeatureStore,
    Protocol,
    RetrievalAutoAttack,
    evaluate,
    evaluate_grid,
    extract_features,
)
from reidguard.metrics import Reranking, rank
from reidguard.types import Budget

SIZE = (64, 32)
PLAIN = Protocol(image_size=SIZE)


def labels(dataset):
    return {
        f"{split}_{kind}s": [getattr(s, kind) for s in dataset.split(split)]
        for split in ("query", "gallery")
        for kind in ("pid", "camid")
    }


def adversarial_features(model, attack, dataset):
    """Features of the queries attacked one by one."""
    from reidguard.data import decode_image

    x = torch.stack([decode_image(s.path, SIZE) for s in dataset.query]).float() / 255
    with torch.no_grad():
        return model.eval().features(attack(x))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_clean_and_attacked_queries_are_reranked(model, people, metric):
    chosen = Reranking(k1=6, k2=3, weight=0.2)
    protocol = Protocol(image_size=SIZE, metric=metric, rerank=chosen)
    attack = SMA(Budget(4 / 255), steps=2, seed=1).bind(model)
    result = evaluate(model, people, attack, protocol)
    gallery = extract_features(model, people.gallery, image_size=SIZE)
    query = extract_features(model, people.query, image_size=SIZE)
    own = {**labels(people), "metric": Reranking(metric, k1=6, k2=3, weight=0.2)}
    expected = rank(query, gallery, **own)
    assert torch.equal(result.clean.ap, expected.ap)
    assert result.clean.mAP != evaluate(model, people, None, PLAIN).clean.mAP
    adversarial = adversarial_features(model, attack, people)
    assert result.attacked.ranking.mAP == rank(adversarial, gallery, **own).mAP
    assert result.protocol["rerank"] == {"k1": 6, "k2": 3, "weight": 0.2}
    assert result.protocol["metric"] == metric
    assert "re-ranked" in result.to_markdown()
    json.loads(result.to_json())


def test_features_are_extracted_once_for_both(model, people):
    store, calls = FeatureStore(), []
    plain = evaluate(model, people, None, PLAIN, store=store)
    reranked = evaluate(
        model,
        people,
        None,
        Protocol(image_size=SIZE, rerank=True),
        store=store,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(len(people.query), len(people.query))]  # nothing is read again
    assert plain.clean.mAP != reranked.clean.mAP
    assert "rerank" not in plain.protocol


def test_a_grid_keeps_cells_of_each_protocol_apart(model, people, tmp_path):
    def mean(protocol):
        grid = evaluate_grid(
            {"SMA": SMA(steps=1)}, {"net": model}, {"p": people}, protocol, folder=tmp_path
        )
        return grid.cells[0].metric("attacked", "mAP")

    plain, reranked = mean(PLAIN), mean(Protocol(image_size=SIZE, rerank=True))
    assert plain != reranked
    assert mean(PLAIN) == plain
    attack = SMA(steps=1).bind(model)
    expected = evaluate(model, people, attack, Protocol(image_size=SIZE, rerank=True))
    assert reranked == expected.attacked.ranking.mAP


def test_the_suite_refuses_reranking(model, people):
    suite = RetrievalAutoAttack(Budget(4 / 255), steps=1, restarts=1, squares=1)
    with pytest.raises(InputError, match="without rerank"):
        suite.run(model, people, Protocol(image_size=SIZE, rerank=True))


def test_settings_of_the_protocol():
    assert Protocol(rerank=False) == Protocol() == Protocol(rerank=None)
    assert Protocol(rerank=True) == Protocol(rerank=Reranking())
    with pytest.raises(InputError, match="rerank must be"):
        Protocol(rerank=20)
