"""`certify` against closed forms: half-spaces, whose probabilities and radii are known."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from reidguard.data import ReIDDataset
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import Protocol, certify
from reidguard.evaluation.smoothing import certified_radius, lower_bound, upper_bound
from reidguard.models import wrap_model
from reidguard.testing import small_dataset, small_model
from reidguard.types import InputSpec, ReIDSample

SIZE = (8, 4)
PROTOCOL = Protocol(image_size=SIZE)
PHI = NormalDist()


def image(path, pixels):
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def linear_model(columns=None):
    """Pixels as features; or the first ``columns`` of them alone."""
    network = nn.Flatten()
    if columns is not None:
        network = nn.Sequential(network, nn.Linear(3 * SIZE[0] * SIZE[1], columns, bias=False))
        network[1].weight.data = torch.eye(*network[1].weight.shape)
    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    return wrap_model(network, input_spec=spec, metric="euclidean")


@pytest.fixture
def half_space(tmp_path):
    """Queries on both sides of the plane between a match and another person, and all pixels."""
    rng = np.random.default_rng(0)
    match, other = (rng.integers(110, 146, (*SIZE, 3)) for _ in range(2))
    blends = (0.9, 0.6, 0.52, 0.3)
    pixels = [np.rint(b * match + (1 - b) * other) for b in blends]
    query = [ReIDSample(image(tmp_path / f"q{i}.png", p), 1, 1) for i, p in enumerate(pixels)]
    gallery = [
        ReIDSample(image(tmp_path / "match.png", match), 1, 2),
        ReIDSample(image(tmp_path / "other.png", other), 2, 2),
    ]
    dataset = ReIDDataset("half_space", [], query, gallery)
    return dataset, *(torch.tensor(np.stack(p) / 255) for p in (pixels, [match, other]))


def signed_distances(x, ends):
    """Distance of each (N, ...) image to the plane between two images, above 0 at the first."""
    normal = (ends[0] - ends[1]).flatten()
    return (x - ends.mean(0)).flatten(1) @ normal / normal.norm()


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_bounds_solve_the_binomial_equation(alpha):
    """With exact binomials, and where no bisection is needed."""
    for draws, hits in [(1, 1), (10, 3), (40, 40), (60, 31), (200, 199)]:
        p = lower_bound(hits, draws, alpha)
        tail = math.fsum(
            math.comb(draws, k) * p**k * (1 - p) ** (draws - k) for k in range(hits, draws + 1)
        )
        assert tail == pytest.approx(alpha, rel=1e-9)
        assert upper_bound(draws - hits, draws, alpha) == 1 - p
    assert lower_bound(50, 50, alpha) == pytest.approx(alpha ** (1 / 50), rel=1e-12)
    assert lower_bound(0, 50, alpha) == 0
    # Five of ten, 95 % on both sides, as tables of Clopper and Pearson's limits have it.
    assert lower_bound(5, 10, 0.025) == pytest.approx(0.1871, abs=5e-5)
    assert upper_bound(5, 10, 0.025) == pytest.approx(0.8129, abs=5e-5)


def test_bounds_equal_scipys():
    beta = pytest.importorskip("scipy.stats").beta
    for draws, hits, alpha in [(100, 1, 0.01), (1000, 700, 0.001), (10**6, 990_000, 0.001)]:
        expected = beta.ppf(alpha, hits, draws - hits + 1)
        assert lower_bound(hits, draws, alpha) == pytest.approx(expected, rel=1e-8)


def test_a_bound_is_wrong_as_rarely_as_it_says():
    """Over all outcomes of 30 draws, weighted by their probability."""
    for p in (0.2, 0.5, 0.7, 0.9):
        wrong = sum(
            math.comb(30, k) * p**k * (1 - p) ** (30 - k)
            for k in range(31)
            if lower_bound(k, 30, 0.05) > p
        )
        assert 0 < wrong <= 0.05


def test_a_half_space_has_its_closed_form(half_space):
    """The probability of the event is Φ(distance / σ), and the true radius is the distance."""
    dataset, x, ends = half_space
    sigma, draws = 0.05, 4000
    result = certify(
        linear_model(), dataset, protocol=PROTOCOL, sigma=sigma, draws=draws, ranks=[1]
    )
    distances = signed_distances(x, ends)
    for hits, radius, distance in zip(
        result.hits[:, 0], result.radii[:, 0], distances, strict=True
    ):
        p = PHI.cdf(float(distance) / sigma)
        assert abs(int(hits) / draws - p) < 4 * math.sqrt(p * (1 - p) / draws) + 1e-3
        assert float(radius) < max(float(distance), 1e-9) or radius == 0
    assert result.radii[1, 0] > 0.7 * distances[1]  # and it isn't vacuous
    assert distances[3] < 0
    assert result.radii[3, 0] == 0
    assert not result.abstained[3, 0]  # a miss is likelier, and that is sure


def test_no_image_within_the_radius_loses_the_verdict(half_space):
    """The smoothed probability in closed form at random images of the ball and at the worst one."""
    dataset, x, ends = half_space
    sigma = 0.05
    result = certify(linear_model(), dataset, protocol=PROTOCOL, sigma=sigma, draws=1000, ranks=[1])
    generator = torch.Generator().manual_seed(0)
    normal = (ends[0] - ends[1]) / (ends[0] - ends[1]).norm()
    certified = (result.radii[:, 0] > 0).nonzero().flatten().tolist()
    assert certified[:2] == [0, 1]
    for i in certified:
        radius = result.radii[i, 0]
        directions = torch.randn(500, *x.shape[1:], generator=generator, dtype=torch.float64)
        directions[0] = -normal
        directions /= directions.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        p = [PHI.cdf(float(d) / sigma) for d in signed_distances(x[i] + radius * directions, ends)]
        assert min(p) == p[0] > 0.5
        beyond = signed_distances(x[i : i + 1] - 1.01 * signed_distances(x, ends)[i] * normal, ends)
        assert PHI.cdf(float(beyond[0]) / sigma) < 0.5


def test_cutting_to_the_range_of_images_is_part_of_the_event(tmp_path):
    """One bright value decides; noise leaves [0, 1] often, and the closed form stays."""
    bright, dark = np.full((*SIZE, 3), 255), np.zeros((*SIZE, 3))
    query = [ReIDSample(image(tmp_path / "q.png", np.full((*SIZE, 3), 230)), 1, 1)]
    gallery = [
        ReIDSample(image(tmp_path / "a.png", bright), 1, 2),
        ReIDSample(image(tmp_path / "b.png", dark), 2, 2),
    ]
    dataset = ReIDDataset("cut", [], query, gallery)
    result = certify(
        linear_model(1), dataset, protocol=PROTOCOL, sigma=0.4, draws=4000, ranks=(1, 2)
    )
    p = PHI.cdf((230 / 255 - 0.5) / 0.4)
    assert int(result.hits[0, 0]) / 4000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))
    assert 0.9 * (230 / 255 - 0.5) < result.radii[0, 0] < 230 / 255 - 0.5
    assert result.hits[0, 1] == 4000  # there are two images
    assert result.radii[0, 1] == certified_radius(0.001 ** (1 / 4000), 0.4) > result.radii[0, 0]


def test_images_of_the_querys_camera_are_left_out(half_space):
    """The query itself stands in the gallery, by its own camera: it is no match."""
    dataset, *_ = half_space
    query = dataset.query[3:]
    gallery = [*dataset.gallery, query[0]]
    twin = ReIDDataset("twin", [], query, gallery)
    options = {"sigma": 0.02, "draws": 100, "ranks": (1, 2)}
    result = certify(linear_model(), twin, protocol=PROTOCOL, **options)
    assert result.hits.tolist() == [[0, 100]]
    kept = Protocol(image_size=SIZE, same_camera="keep")
    assert certify(linear_model(), twin, protocol=kept, **options).hits.tolist() == [[100, 100]]


class StopError(Exception):
    pass


def test_batches_and_interruptions_change_nothing(half_space, tmp_path):
    dataset, *_ = half_space
    options = {"protocol": PROTOCOL, "sigma": 0.05, "draws": 50, "alpha": 0.01}
    whole = certify(linear_model(), dataset, **options)
    assert torch.equal(certify(linear_model(), dataset, batch_size=7, **options).hits, whole.hits)
    assert not torch.equal(certify(linear_model(), dataset, seed=1, **options).hits, whole.hits)
    seen = []

    def stop(progress):
        seen.append((progress.phase, progress.done, progress.total))
        if seen[-1] == ("noisy images", 100, 200):
            raise StopError

    state = tmp_path / "state"
    with pytest.raises(StopError):
        certify(linear_model(), dataset, state=state, progress=stop, **options)
    files = sorted(path.name for path in state.glob("query-*"))
    assert files == ["query-000000.json", "query-000001.json"]
    (state / files[0]).write_text("[50, 50, 50]\n")  # what is there is not computed again
    resumed = certify(linear_model(), dataset, state=state, **options)
    assert resumed.hits[0].tolist() == [50, 50, 50]
    assert torch.equal(resumed.hits[1:], whole.hits[1:])
    with pytest.raises(CheckpointError, match="draws"):
        certify(linear_model(), dataset, state=state, **{**options, "draws": 60})
    certify(linear_model(), dataset, state=state, radius=0.2, **options)  # needs the same draws


def test_the_result_says_what_was_certified(half_space, tmp_path):
    dataset, *_ = half_space
    result = certify(
        linear_model(), dataset, protocol=PROTOCOL, sigma=0.05, draws=200, ranks=(1, 2), radius=0.02
    )
    content = result.to_dict()
    assert content["certified"] == {
        "sigma": 0.05,
        "radius": 0.02,
        "rank_1": result.accuracy(1, 0.02),
        "rank_2": 1.0,
    }
    curve = [point["rank_1"] for point in content["curve"]]
    assert all(a >= b for a, b in itertools.pairwise(curve))
    assert curve[0] == result.accuracy(1, 0) > 0
    assert curve[-1] == 0  # no radius is above the largest one
    assert [q["name"] for q in content["queries"]] == ["q0", "q1", "q2", "q3"]
    radii = [q["radius"]["rank_1"] for q in content["queries"]]
    assert content["certified"]["rank_1"] == sum(r > 0.02 for r in radii) / 4
    hits = [q["hits"]["rank_1"] for q in content["queries"]]
    assert content["smoothed"]["rank_1"] == sum(h > 100 for h in hits) / 4
    open_cases = [lower_bound(h, 200, 0.001) <= 0.5 <= upper_bound(h, 200, 0.001) for h in hits]
    assert content["abstained"]["rank_1"] == sum(open_cases) / 4 > 0
    assert content["model"]["weights"]
    assert content["dataset"]["name"] == "half_space"
    for name in ("certificate.json", "certificate.md"):
        result.save(tmp_path / name)
    assert "σ = 0.05, 200 draws" in (tmp_path / "certificate.md").read_text("utf-8")


def test_queries_without_a_match_have_no_certificate(half_space):
    dataset, *_ = half_space
    stranger = ReIDSample(dataset.query[0].path, 9, 1)
    mixed = ReIDDataset("mixed", [], [stranger, dataset.query[1]], dataset.gallery)
    result = certify(linear_model(), mixed, protocol=PROTOCOL, draws=10, sigma=0.01, alpha=0.05)
    assert len(result.hits) == 1
    assert result.names == (mixed.query_names[1],)


def test_what_cannot_be_certified_is_refused():
    with small_dataset() as data:
        for protocol in (Protocol(rerank=True), Protocol(multi_query=True)):
            with pytest.raises(InputError, match="about one query image by itself"):
                certify(small_model(), data, protocol=protocol)
        with pytest.raises(InputError, match="ranks must rise"):
            certify(small_model(), data, ranks=(5, 1))
        with pytest.raises(InputError, match="unknown option 'n'"):
            certify(small_model(), data, n=100)
        size = Protocol(image_size=(32, 16))
        result = certify(small_model(), data, protocol=size, draws=2)
        with pytest.raises(InputError, match="rank 3 was not certified"):
            result.accuracy(3, 0.0)
