"""Ranking against explicit loops over Python numbers that share no code with the library."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidguard.errors import InputError
from reidguard.metrics import counting, distances, near_keys, rank, ranking, shortlist, top_k
from reidguard.metrics.distances import pair_distances


def loop_distance(a, b, metric):
    a, b = a.double().tolist(), b.double().tolist()
    if metric == "euclidean":
        return float(
            np.float32(math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))))
        )
    size = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return float(np.float32(1) - np.float32(dot / size if size else 0.0))


def loop_order(query, gallery, i, data, metric, same_camera):
    """Gallery indices of query i, nearest first, others before matches at equal distance."""
    q_pids, q_camids, g_pids, g_camids = data
    left = []
    for j in range(len(gallery)):
        if g_pids[j] == -1:
            continue
        same = g_pids[j] == q_pids[i]
        if same and g_camids[j] == q_camids[i] and same_camera == "exclude":
            continue
        left.append((loop_distance(query[i], gallery[j], metric), same, j))
    return sorted(left)


def loop_rank(query, gallery, data, metric="euclidean", same_camera="exclude", max_rank=50):
    ap, inp, first = [], [], []
    for i in range(len(query)):
        order = loop_order(query, gallery, i, data, metric, same_camera)
        ranks = [place for place, (_, match, _) in enumerate(order, start=1) if match]
        if not ranks:
            ap, inp, first = [*ap, None], [*inp, None], [*first, 0]
            continue
        ap.append(sum((k + 1) / r for k, r in enumerate(ranks)) / len(ranks))
        inp.append(len(ranks) / ranks[-1])
        first.append(ranks[0])
    return ap, inp, first


def labels(data):
    names = ("query_pids", "query_camids", "gallery_pids", "gallery_camids")
    return dict(zip(names, data, strict=True))


def assert_matches_loops(query, gallery, data, **options):
    expected_ap, expected_inp, expected_first = loop_rank(query, gallery, data, **options)
    used = [i for i, f in enumerate(expected_first) if f]
    if not used:
        with pytest.raises(InputError, match="no query has a match"):
            rank(query, gallery, **labels(data), **options)
        return None
    result = rank(query, gallery, **labels(data), **options)
    assert result.first_match.tolist() == expected_first
    assert result.skipped.tolist() == [i for i in range(len(query)) if i not in used]
    for i, (a, b) in enumerate(zip(expected_ap, expected_inp, strict=True)):
        if a is None:
            assert math.isnan(result.ap[i])
            assert math.isnan(result.inp[i])
        else:
            assert float(result.ap[i]) == pytest.approx(a, abs=1e-12)
            assert float(result.inp[i]) == pytest.approx(b, abs=1e-12)
    assert result.mAP == pytest.approx(np.mean([expected_ap[i] for i in used]), abs=1e-12)
    assert result.mINP == pytest.approx(np.mean([expected_inp[i] for i in used]), abs=1e-12)
    for k in (1, 5, len(result.cmc)):
        share = np.mean([expected_first[i] <= k for i in used])
        assert float(result.cmc[k - 1]) == pytest.approx(share, abs=1e-12)
    return result


def people(rng, queries, gallery, identities, cameras):
    return (
        rng.integers(1, identities + 1, queries).tolist(),
        rng.integers(1, cameras + 1, queries).tolist(),
        rng.integers(-1, identities + 1, gallery).tolist(),  # with junk and distractors
        rng.integers(1, cameras + 1, gallery).tolist(),
    )


def figures(result):
    tensors = (result.ap, result.inp, result.first_match, result.cmc, result.skipped)
    return result.mAP, result.mINP, *(t.numpy().tobytes() for t in tensors)


@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 8),
    gallery=st.integers(1, 40),
    dim=st.integers(1, 9),
    identities=st.integers(1, 6),
    cameras=st.integers(1, 3),  # one camera: every identity loses all its matches
    spread=st.sampled_from([0, 1, 2, 50]),  # few distinct integers: exact ties
    metric=st.sampled_from(["euclidean", "cosine"]),
    same_camera=st.sampled_from(["exclude", "keep"]),
)
@settings(max_examples=150, deadline=None)
def test_equals_loops_with_exact_ties(
    seed, queries, gallery, dim, identities, cameras, spread, metric, same_camera
):
    rng = np.random.default_rng(seed)
    query = torch.from_numpy(rng.integers(-spread, spread + 1, (queries, dim))).float()
    other = torch.from_numpy(rng.integers(-spread, spread + 1, (gallery, dim))).float()
    data = people(rng, queries, gallery, identities, cameras)
    assert_matches_loops(query, other, data, metric=metric, same_camera=same_camera)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equals_loops_in_every_dtype(dtype, metric):
    rng = np.random.default_rng(3)
    query = torch.from_numpy(rng.standard_normal((12, 40))).to(dtype)
    gallery = torch.from_numpy(rng.standard_normal((60, 40)) + 5).to(dtype)
    assert_matches_loops(query, gallery, people(rng, 12, 60, 5, 3), metric=metric)


def test_hand_example():
    """Distances 1 (match), 2 (other), 3 (match): AP = (1/1 + 2/3) / 2, INP = 2/3."""
    result = rank(
        torch.zeros(1, 1),
        torch.tensor([[3.0], [1.0], [2.0]]),
        query_pids=[1],
        query_camids=[1],
        gallery_pids=[1, 1, 2],
        gallery_camids=[2, 2, 2],
        max_rank=2,
    )
    assert result.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert result.mINP == pytest.approx(2 / 3)
    assert result.cmc.tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="max_rank"):
        result.rank_k(3)


def test_a_collapsed_model_scores_the_worst_ranking():
    rng = np.random.default_rng(0)
    data = people(rng, 20, 200, 5, 3)
    result = assert_matches_loops(torch.ones(20, 8), torch.ones(200, 8), data)
    assert result.rank_k(1) == 0.0


def nearly_tied(seed, queries=12, gallery=150, dim=300):
    """Gallery features in clusters whose members differ by the last bits of float32."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((6, dim)).astype(np.float32) + 1
    g = centres[rng.integers(0, 6, gallery)]
    where = rng.integers(0, dim, (gallery, 3))
    for row, columns in zip(g, where, strict=True):
        row[columns] = np.nextafter(row[columns], np.float32(rng.choice([-9, 9])))
    q = rng.standard_normal((queries, dim)).astype(np.float32) + 1
    return torch.from_numpy(q), torch.from_numpy(g), people(rng, queries, gallery, 9, 3)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_every_chunk_size_gives_the_same_bits_on_nearly_tied_features(metric, monkeypatch):
    query, gallery, data = nearly_tied(1)
    expected = figures(assert_matches_loops(query, gallery, data, metric=metric))
    for chunk in (1, 7, 64, 149, 4096):
        monkeypatch.setattr(counting, "TILE", chunk)
        monkeypatch.setattr(ranking, "CHUNK", chunk)
        result = rank(query, gallery, **labels(data), metric=metric)
        assert figures(result) == expected, f"chunks of {chunk}"


@pytest.mark.parametrize(("name", "value"), [("FULL", 1), ("FULL", 100), ("COLUMNS", 32)])
@pytest.mark.parametrize("few", [0.5, 1.0])
def test_near_keys_may_be_counted_after_any_tile(name, value, few, monkeypatch):
    query, gallery, data = nearly_tied(1)
    expected = figures(rank(query, gallery, **labels(data)))
    monkeypatch.setattr(counting, "TILE", 8)
    monkeypatch.setattr(near_keys, "FEW", few)  # with 0.5 some tiles are sorted as a whole
    monkeypatch.setattr(near_keys, name, value)
    assert figures(rank(query, gallery, **labels(data))) == expected


def test_the_float32_product_alone_would_fail_the_nearly_tied_case():
    """Guards the test above: without exact comparison its figures do depend on the rounding."""
    query, gallery, _ = nearly_tied(1)
    exact = distances(query, gallery)
    rough = torch.cdist(query, gallery, compute_mode="use_mm_for_euclid_dist")
    assert (exact.argsort(dim=1, stable=True) != rough.argsort(dim=1, stable=True)).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_order_of_gallery_and_of_dimensions_changes_nothing(metric):
    query, gallery, data = nearly_tied(2)
    expected = figures(rank(query, gallery, **labels(data), metric=metric))
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(0))
    shuffled = (data[0], data[1], [data[2][i] for i in order], [data[3][i] for i in order])
    assert figures(rank(query, gallery[order], **labels(shuffled), metric=metric)) == expected
    turn = torch.randperm(query.shape[1], generator=torch.Generator().manual_seed(0))
    turned = rank(query[:, turn], gallery[:, turn], **labels(data), metric=metric)
    assert figures(turned) == expected


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "positive", "constant", "binary", "tiny", "huge"])
def test_the_error_bound_holds(kind, metric):
    """Keys from the float32 product stay within the bound of the exact ones, with room."""
    g = torch.Generator().manual_seed(4)
    shape = (64, 1000)
    features = {
        "normal": lambda: torch.randn(shape, generator=g),
        "positive": lambda: torch.randn(shape, generator=g).relu() + 3,
        "constant": lambda: torch.full(shape, 0.1) + 1e-4 * torch.randn(shape, generator=g),
        "binary": lambda: 0.1 * (torch.rand(shape, generator=g) < 0.5),
        "tiny": lambda: 1e-28 * torch.randn(shape, generator=g),
        "huge": lambda: 1e34 * torch.randn(shape, generator=g),
    }[kind]
    query, gallery = features(), features()

    class NoMatches:
        junk = torch.zeros(64, dtype=torch.bool)

    counter = counting.NonMatchCounter(
        query,
        gallery,
        0,
        metric,
        (query.double().norm(dim=1), gallery.double().norm(dim=1)),
        NoMatches,
    )
    rows = counter.prepare(query, 0, 64, 0)
    squares = counting.squared_norms(rows)
    keys = counter.keys(distances(query, gallery, metric), squares)
    error = (counter.product(rows, 0, 64).double() - keys).abs()
    assert (error <= counter.error_bound(squares)).all()


def test_reduced_precision_settings_of_the_caller_do_not_leak_in_or_get_lost():
    rng = np.random.default_rng(5)
    query, gallery = torch.randn(64, 512), torch.randn(640, 512)
    data = people(rng, 64, 640, 9, 3)
    expected = figures(rank(query, gallery, **labels(data)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert figures(rank(query, gallery, **labels(data))) == expected
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_many_matches_and_unequal_numbers_of_them(metric):
    rng = np.random.default_rng(6)
    query, gallery = torch.randn(6, 4).round(), torch.randn(700, 4).round()
    data = (
        [1, 2, 3, 1, 2, 3],
        [1, 2, 3, 2, 3, 1],
        rng.choice([1, 2, 3], 700, p=[0.9, 0.095, 0.005]).tolist(),
        rng.integers(1, 4, 700).tolist(),
    )
    assert_matches_loops(query, gallery, data, metric=metric)


@pytest.mark.parametrize("chunk", [1, 1024])
def test_skipped_queries_are_reported_and_count_nowhere(chunk, monkeypatch):
    """Also where a whole chunk of them has no match."""
    monkeypatch.setattr(counting, "TILE", chunk)
    monkeypatch.setattr(ranking, "CHUNK", chunk)
    result = rank(
        torch.tensor([[0.0], [5.0], [0.0]]),
        torch.tensor([[0.0], [1.0], [5.0]]),
        query_pids=[1, 2, 3],  # 2 is seen again by its own camera only, 3 never
        query_camids=[1, 1, 1],
        gallery_pids=[9, 1, 2],
        gallery_camids=[2, 2, 1],
    )
    assert result.skipped.tolist() == [1, 2]
    assert result.mAP == 0.5
    assert result.rank_k(1) == 0.0
    assert result.rank_k(2) == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.full((2, 3), math.nan)}, "2 of 2 query features are NaN"),
        ({"gallery": torch.full((3, 3), math.inf)}, "gallery features are NaN or infinite"),
        ({"gallery": torch.ones(3, 4)}, "dimensions"),
        ({"gallery": torch.ones(3, 3, dtype=torch.int64)}, "floating point"),
        ({"query": torch.ones(3)}, r"shape \(N, D\), not \(3,\)"),
        ({"query": torch.ones(2, 0), "gallery": torch.ones(3, 0)}, r"not \(2, 0\)"),
        ({"gallery": [[1.0, 2.0, 3.0]]}, r"shape \(N, D\), not list"),
        ({"gallery": torch.ones(0, 3)}, "no gallery features"),
        ({"query": torch.full((2, 3), 1e-32), "gallery": torch.zeros(3, 3)}, "scale the features"),
        ({"query": torch.ones(0, 3)}, "no query features"),
        ({"query": torch.full((2, 3), 3e38)}, "scale the features"),
        ({"query_pids": [1]}, "query_pids .* 2 in all"),
        ({"query_camids": [1, 1, 1]}, "query_camids .* 2 in all"),
        ({"gallery_pids": [1, 2]}, "gallery_pids .* 3 in all"),
        ({"gallery_camids": [[1, 1, 1]]}, r"gallery_camids .* 3 in all, not shape \(1, 3\)"),
        ({"gallery_camids": [True, False, True]}, "gallery_camids must be integers"),
        ({"query_pids": [0, 1]}, "1 or more"),
        ({"query_pids": [1.0, 2.0]}, "integers"),
        ({"gallery_pids": [-2, 1, 2]}, "-1 or more"),
        (
            {"gallery_pids": [8, 0, 9]},
            r"no identity is in both \(queries: \[1, 2\].*gallery: \[8, 9\]",
        ),
        ({"gallery_camids": [1, 1, 1]}, "the 2 shared identities .*same_camera='keep'"),
        ({"metric": "manhattan"}, "euclidean, cosine"),
        ({"same_camera": "drop"}, "'exclude' or 'keep'"),
        ({"max_rank": 0}, "at least 1"),
    ],
)
def test_mistakes_end_in_one_clear_error(change, message):
    arguments = {
        "query": torch.rand(2, 3),
        "gallery": torch.rand(3, 3),
        "query_pids": [1, 2],
        "query_camids": [1, 1],
        "gallery_pids": [1, 2, 0],
        "gallery_camids": [2, 2, 2],
    } | change
    with pytest.raises(InputError, match=message):
        rank(arguments.pop("query"), arguments.pop("gallery"), **arguments)


def test_nan_is_located():
    gallery = torch.rand(5000, 100)
    gallery[4321, 7] = math.nan
    with pytest.raises(InputError, match=r"first rows: \[4321\]"):
        distances(torch.rand(2, 100), gallery)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_equal_loops(metric):
    query, gallery = torch.randn(5, 33), torch.randn(9, 33)
    gallery[0] = 0
    gallery[1] = 3 * query[0]
    expected = [[loop_distance(q, g, metric) for g in gallery] for q in query]
    assert distances(query, gallery, metric).tolist() == expected
    if metric == "cosine":
        assert distances(query, gallery, metric)[0, :2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("same_camera", ["exclude", "keep"])
def test_top_k_lists_the_ranking_that_the_figures_describe(metric, same_camera):
    rng = np.random.default_rng(7)
    query, gallery = torch.randn(6, 3).round(), torch.randn(50, 3).round()
    data = people(rng, 6, 50, 4, 3)
    near, indices = top_k(
        query, gallery, 60, **labels(data), metric=metric, same_camera=same_camera
    )
    for i in range(len(query)):
        order = loop_order(query, gallery, i, data, metric, same_camera)
        assert indices[i, : len(order)].tolist() == [j for _, _, j in order]
        assert near[i, : len(order)].tolist() == [d for d, _, _ in order]
        assert (indices[i, len(order) :] == -1).all()
        assert near[i, len(order) :].isinf().all()


def test_features_of_every_size_that_float32_distances_can_hold():
    far = torch.tensor([[1e37]], dtype=torch.float64)
    near = torch.tensor([[1e-30]], dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert distances(far, zero).item() == pytest.approx(1e37)
    assert distances(near, zero).item() == pytest.approx(1e-30)
    assert distances(zero, zero).item() == 0
    for metric in ("euclidean", "cosine"):
        with pytest.raises(InputError, match="scale the features"):
            distances(1.001 * far, zero, metric)
        with pytest.raises(InputError, match="scale the features"):
            distances(zero, 1.001 * far, metric)
    with pytest.raises(InputError, match="scale the features"):
        distances(0.999 * near, zero)
    assert distances(1e-3 * near, near, "cosine").item() == 0  # lengths do not matter to it


def test_tiny_features_are_ranked_by_the_cosine_only():
    options = labels(([1], [1], [1, 2], [2, 2]))
    query, gallery = torch.tensor([[1e-32, 0.0]]), torch.tensor([[1e-32, 1e-32], [1e-32, 0.0]])
    assert rank(query, gallery, **options, metric="cosine").mAP == 0.5
    assert top_k(query, gallery, 1, **options, metric="cosine")[1].tolist() == [[1]]
    for call in (
        lambda: rank(query, gallery, **options),
        lambda: top_k(query, gallery, 1, **options),
    ):
        with pytest.raises(InputError, match="scale the features"):
            call()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_default_dtype_changes_nothing(metric):
    query, gallery, data = nearly_tied(3)
    expected = figures(rank(query, gallery, **labels(data), metric=metric))
    near, _ = top_k(query, gallery, 4, **labels(data), metric=metric)
    torch.set_default_dtype(torch.float64)
    try:
        assert figures(rank(query, gallery, **labels(data), metric=metric)) == expected
        wide, _ = top_k(query, gallery, 4, **labels(data), metric=metric)
        assert distances(query, gallery, metric).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(near, wide)


def test_thousands_of_queries_are_ranked_as_each_by_itself():
    """More of them than are compared at a time."""
    rng = np.random.default_rng(8)
    query, gallery = torch.randn(2100, 3).round(), torch.randn(30, 3).round()
    data = people(rng, 2100, 30, 5, 3)
    result = rank(query, gallery, **labels(data))
    for start in (0, 1020, 1030, 2040, 2060):
        stop = start + 30
        part = (data[0][start:stop], data[1][start:stop], *data[2:])
        alone = rank(query[start:stop], gallery, **labels(part))
        assert torch.equal(result.ap[start:stop].nan_to_num(-1), alone.ap.nan_to_num(-1))
        assert torch.equal(result.first_match[start:stop], alone.first_match)


@pytest.mark.parametrize(
    ("metric", "scale", "offset"),
    [
        ("euclidean", 1, 0),
        ("euclidean", 1, 100),  # features are centred
        ("euclidean", 1e4, 0),
        ("euclidean", 1e-25, 3),  # and scaled: squares would underflow
        ("cosine", 1, 0),
        ("cosine", 1e-25, 0),
    ],
)
def test_few_images_are_compared_again(metric, scale, offset, monkeypatch):
    """The product's error bound is narrow: of 80,000 pairs few are within it of a match."""
    rng = np.random.default_rng(9)
    generator = torch.Generator().manual_seed(9)
    query = scale * (torch.randn(40, 64, generator=generator) + offset)
    gallery = scale * (torch.randn(2000, 64, generator=generator) + offset)
    data = people(rng, 40, 2000, 60, 4)
    compared = []

    def count(query, gallery, rows, *others):
        compared.append(len(rows))
        return pair_distances(query, gallery, rows, *others)

    monkeypatch.setattr(counting, "pair_distances", count)
    rank(query, gallery, **labels(data), metric=metric)
    own = counting.Matches(len(query), len(gallery), *data, "exclude").per_query.sum()
    assert own <= sum(compared) <= own + 100


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "positive", "one column", "half"])
def test_the_error_of_the_product_is_within_its_bound(metric, kind):
    g = torch.Generator().manual_seed(11)
    query, gallery = torch.randn(60, 700, generator=g), torch.randn(1100, 700, generator=g)
    if kind == "positive":  # all products have one sign
        query, gallery = query.abs() + 3, gallery.abs() + 3
    elif kind == "one column":
        query[:, 5] *= 1000
        gallery[:, 5] *= 1000
    elif kind == "half":
        query, gallery = query.half(), gallery.half()
    norms = tuple(features.double().norm(dim=1) for features in (query, gallery))
    keys = counting.PairKeys(query, gallery, metric, norms)
    rows = keys.prepare(query, 0, len(query), 0)
    squares = counting.squared_norms(rows)
    found = torch.cat([keys.product(rows, *tile) for tile in keys.tiles()], 1)
    expected = keys.keys(distances(query, gallery, metric), squares)
    error = (found - expected).abs() / keys.error_bound(squares)
    assert error.max() < 1


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", ["normal", "positive", "one column", "half", "double"])
def test_the_errors_of_one_pass_are_within_their_bound(metric, kind):
    g = torch.Generator().manual_seed(12)
    query, gallery = torch.randn(7, 700, generator=g), torch.randn(1100, 700, generator=g)
    if kind == "positive":
        query, gallery = query.abs() + 3, gallery.abs() + 3
    elif kind == "one column":
        query[:, 5] *= 1000
        gallery[:, 5] *= 1000
    elif kind != "normal":
        query, gallery = (features.to(getattr(torch, kind)) for features in (query, gallery))
    keys, error = shortlist.one_pass(query, gallery, metric)
    exact = distances(query, gallery, metric).double()
    expected = exact.square() if metric == "euclidean" else 2 * exact
    differences = (keys.double() - expected).sort(1).values  # the same for a row, up to errors
    assert ((differences[:, -1] - differences[:, 0]) / (2 * error)).max() < 1
    assert error.max() < 5e-3 * expected.amax()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("scale", [1e-25, 1e-17, 1.0, 1e12, 1e25])
def test_top_k_of_features_of_any_size(metric, scale):
    query, gallery, data = nearly_tied(4, queries=3, gallery=200, dim=20)
    gallery[7] = 0
    query, gallery = scale * query, scale * gallery
    _, indices = top_k(query, gallery, 30, **labels(data), metric=metric)
    for i in range(len(query)):
        order = loop_order(query, gallery, i, data, metric, "exclude")[:30]
        assert indices[i].tolist() == [j for *_, j in order]
    gallery[150, 3] = torch.nan
    with pytest.raises(InputError, match="1 of 200 gallery features are NaN"):
        top_k(query, gallery, 30, **labels(data), metric=metric)


def test_the_length_of_the_cmc_curve():
    options = labels(([1], [1], [1, 2, 2], [2, 2, 2]))
    query, gallery = torch.zeros(1, 1), torch.tensor([[2.0], [1.0], [1.5]])
    assert rank(query, gallery, **options).cmc.tolist() == [0.0, 0.0] + [1.0] * 48
    assert rank(query, gallery, **options, max_rank=1).cmc.tolist() == [0.0]
    three = rank(query, gallery, **options, max_rank=3)
    assert [three.rank_k(k) for k in (1, 2, 3)] == [0.0, 0.0, 1.0]
    for k in (0, 4):
        with pytest.raises(InputError, match=r"max_rank = 3|k must be"):
            three.rank_k(k)
    assert top_k(query, gallery, 1, **options)[1].tolist() == [[1]]
    with pytest.raises(InputError, match=r"at least 1 .*, not 0"):
        top_k(query, gallery, 0, **options)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("scaled", [False, True])
def test_top_k_of_a_gallery_of_many_tiles_and_ties(metric, scaled, monkeypatch):
    monkeypatch.setattr(counting, "TILE", 61)
    monkeypatch.setattr(shortlist, "FEW", 2)
    monkeypatch.setattr(shortlist, "TABLE", 1000)  # two queries at a time
    monkeypatch.setattr(shortlist, "BLOCK", 50 * 20)
    if scaled:  # as for features that are too large or small for one pass
        monkeypatch.setattr(shortlist, "one_pass", lambda *_: None)
    query, gallery, data = nearly_tied(3, queries=5, gallery=400, dim=20)
    gallery[50:90] = gallery[49]
    exact = distances(query, gallery, metric)
    for k in (1, 45, 399, 500):
        near, indices = top_k(query, gallery, k, **labels(data), metric=metric)
        for i in range(len(query)):
            order = loop_order(query, gallery, i, data, metric, "exclude")[:k]
            assert indices[i].tolist() == [j for *_, j in order] + [-1] * (k - len(order))
            expected = exact[i][indices[i][: len(order)]]
            assert torch.equal(near[i][: len(order)], expected)
