"""k-reciprocal re-ranking against dense explicit loops in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.test_ranking import labels, people

from reidguard.errors import InputError
from reidguard.metrics import Reranking, counting, neighbours, rank, ranking, reranking, sparse


def loop_distances(features, metric):
    """Return (N, N) squared Euclidean distances, or cosine ones."""
    points = features.double().numpy()
    if metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
        return np.array([[1 - math.fsum(a * b) for b in points] for a in points])
    return np.array([[math.fsum((a - b) ** 2) for b in points] for a in points])


def loop_rerank(query, gallery, metric="euclidean", k1=20, k2=6, weight=0.3):
    """Zhong et al., Sections 3.2 to 3.5, one image after the other, with dense vectors."""
    raw = loop_distances(torch.cat([query, gallery]), metric)
    total, given = len(raw), len(query)
    order = [sorted(range(total), key=lambda j: (j != i, raw[i][j], j)) for i in range(total)]
    scaled = [[raw[i][j] / (max(raw[i]) or 1) for j in range(total)] for i in range(total)]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    encoded = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        expanded = set(own)
        for j in own:
            of_j = reciprocal(j, round(k1 / 2))
            if 3 * len(of_j & own) > 2 * len(of_j):
                expanded |= of_j
        weights = {j: math.exp(-scaled[i][j]) for j in expanded}
        for j, w in weights.items():
            encoded[i, j] = w / math.fsum(weights.values())
    encoded = np.array([encoded[order[i][:k2]].mean(0) for i in range(total)])
    result = np.zeros((given, total - given))
    for i in range(given):
        for j in range(total - given):
            a, b = encoded[i], encoded[given + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            result[i, j] = (1 - weight) * jaccard + weight * scaled[i][given + j]
    return result


def loop_scores(distances, data):
    """Return AP and the first match's rank of each query; ties count against a match."""
    ap, first = [], []
    for row, pid, camid in zip(distances, *data[:2], strict=True):
        entries = sorted(
            (value, p == pid)
            for value, p, c in zip(row, *data[2:], strict=True)
            if p != -1 and not (p == pid and c == camid)
        )
        ranks = [n for n, (_, match) in enumerate(entries, 1) if match]
        ap.append(sum(k / r for k, r in enumerate(ranks, 1)) / len(ranks) if ranks else None)
        first.append(ranks[0] if ranks else 0)
    return ap, first


def clustered(seed, queries, gallery, dim=16, pids=12, noise=0.8):
    """Features that gather around their identity's, as those of a network do."""
    rng = np.random.default_rng(seed)
    data = people(rng, queries, gallery, pids, 4)
    centres = rng.standard_normal((pids + 2, dim))
    q, g = (
        torch.from_numpy(
            centres[np.array(of)] + noise * rng.standard_normal((len(of), dim))
        ).float()
        for of in (data[0], data[2])
    )
    return q, g, data


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("settings", [{}, {"k1": 7, "k2": 3, "weight": 0.1}, {"k1": 5, "k2": 1}])
def test_distances_and_scores_equal_the_loops(metric, settings):
    query, gallery, data = clustered(0, 15, 90)
    expected = loop_rerank(query, gallery, metric, **settings)
    chosen = Reranking(metric, **settings)
    np.testing.assert_allclose(chosen.distances(query, gallery), expected, rtol=0, atol=1e-6)
    kept = [j for j, pid in enumerate(data[2]) if pid != -1]  # junk is no neighbour, either
    data = (*data[:2], *([values[j] for j in kept] for values in data[2:]))
    ap, first = loop_scores(loop_rerank(query, gallery[kept], metric, **settings), data)
    result = rank(query, gallery[kept], **labels(data), metric=chosen)
    assert result.first_match.tolist() == first
    np.testing.assert_allclose(
        result.ap.numpy(), [math.nan if a is None else a for a in ap], rtol=1e-12
    )
    assert result.mAP != rank(query, gallery[kept], **labels(data), metric=metric).mAP


def figures(result):
    return result.ap.nan_to_num(-1).tolist(), result.first_match.tolist(), result.cmc.tolist()


def test_junk_changes_nothing():
    query, gallery, data = clustered(1, 10, 80)
    junk = [pid == -1 for pid in data[2]]
    assert any(junk)
    kept = [j for j, is_junk in enumerate(junk) if not is_junk]
    less = (*data[:2], *([values[j] for j in kept] for values in data[2:]))
    chosen = Reranking()
    without = rank(query, gallery[kept], **labels(less), metric=chosen)
    assert figures(rank(query, gallery, **labels(data), metric=chosen)) == figures(without)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12), st.integers(1, 9))
def test_tied_and_few_images(seed, queries, k1, k2):
    """Points of a grid: many distances are equal, and images are equal; lists end early."""
    rng = np.random.default_rng(seed)
    query, gallery = (torch.from_numpy(rng.integers(-2, 3, (n, 2))).float() for n in (queries, 12))
    chosen = {"k1": k1, "k2": k2, "weight": 0.25}
    expected = loop_rerank(query, gallery, **chosen)
    actual = Reranking(**chosen).distances(query, gallery)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_every_chunk_size_gives_the_same_bits(metric, monkeypatch):
    """Also with images that are there many times, and with others that nearly are."""
    query, gallery, data = clustered(2, 20, 100)
    gallery[20:40] = gallery[19]
    gallery[60:80] = gallery[59] * (1 + 1e-7 * torch.randn(20, 1))
    chosen = Reranking(metric, k1=8, k2=3)
    expected = figures(rank(query, gallery, **labels(data), metric=chosen))
    exact = chosen.distances(query, gallery)
    for chunk, room in ((13, 999), (64, 4096), (181, 1 << 22)):
        for module in (counting, ranking, reranking, neighbours):
            monkeypatch.setattr(module, "CHUNK", chunk)
        monkeypatch.setattr(neighbours, "WIDTH", 3 * chunk)
        monkeypatch.setattr(counting, "TILE", chunk)
        monkeypatch.setattr(reranking, "ROOM", room)
        monkeypatch.setattr(sparse, "ROOM", room)
        assert torch.equal(chosen.distances(query, gallery), exact), f"chunks of {chunk}"
        assert figures(rank(query, gallery, **labels(data), metric=chosen)) == expected
        parts = gallery.split([40, 1, 59])
        assert figures(rank(query, parts, **labels(data), metric=chosen)) == expected


def test_weight_1_is_the_order_of_the_metric_itself():
    query, gallery, data = clustered(3, 20, 200)
    for metric in ("euclidean", "cosine"):
        reranked = rank(query, gallery, **labels(data), metric=Reranking(metric, weight=1))
        assert figures(reranked) == figures(rank(query, gallery, **labels(data), metric=metric))


def test_it_helps_where_images_of_an_identity_are_near_each_other():
    query, gallery, data = clustered(4, 60, 400, noise=1.2)
    plain, reranked = (
        rank(query, gallery, **labels(data), metric=m).mAP for m in ("euclidean", Reranking())
    )
    assert reranked > plain + 0.05


def test_collapsed_features_get_the_lowest_score():
    query, gallery, data = torch.ones(3, 4), torch.ones(9, 4), ([1] * 3, [1] * 3)
    data += ([2] * 6 + [1] * 3, [2] * 9)
    result = rank(query, gallery, **labels(data), metric=Reranking(weight=1))
    assert result.first_match.tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": 0}, "k1 must be"),
        ({"k2": 2.5}, "k2 must be"),
        ({"weight": 1.5}, "weight must be"),
        ({"metric": "l1"}, "unknown metric 'l1'"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        Reranking(**arguments)
    with pytest.raises(InputError, match="NaN"):
        Reranking().distances(torch.full((1, 2), math.nan), torch.ones(3, 2))
