"""The search for a universal perturbation by queries: closed form, explicit loops, and counts."""

from itertools import pairwise

import pytest
import torch

from helpers import noise_datasets, rng
from helpers.interrupt import Killed, kill_at
from reidguard.attacks import UniversalSquare, load_attack
from reidguard.attacks.universal.square import average_precision, margin, negate_rectangle
from reidguard.errors import InputError
from reidguard.models import BlackBoxModel
from reidguard.types import Budget, InputSpec

SIZE = (16, 8)
EPS = 8 / 255
BATCH = {"image_size": SIZE, "identities": 2, "images_per_identity": 2}
PLAIN = InputSpec(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six identities of four images of noise, whose pixels are far from black and white."""
    return noise_datasets(tmp_path_factory.mktemp("sets"), 4, SIZE)[0]


@pytest.fixture
def counted():
    """A black box whose feature is the mean of each channel, and how many images it has seen."""
    seen = []

    def means(images):
        seen.append(len(images))
        return images.mean((2, 3))

    return BlackBoxModel(means, identity="means", input_spec=PLAIN, metric="euclidean"), seen


def test_it_finds_the_optimum_of_a_linear_feature(data, counted):
    """The mean of a channel moves most if all its blocks have one sign."""
    model, _ = counted
    attack = UniversalSquare(Budget(EPS), (4, 2), queries=16_000)
    attack.fit(model, data, objective="self_metric", **BATCH)
    signs = (attack.delta / EPS).detach()
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert (signs.mean((2, 3)).abs() == 1).all()


@pytest.mark.parametrize("feedback", ["features", "scores", "ranks"])
def test_it_sends_as_many_images_as_it_says(data, counted, feedback):
    model, seen = counted
    attack = UniversalSquare(Budget(EPS), (4, 2), feedback=feedback, queries=100)
    attack.fit(model, data, **BATCH)
    assert attack.provenance["queries"] == 96  # whole steps, of two images for each of four
    clean = len(data.train)  # the features of the gallery, or of the images before the attack
    assert clean <= sum(seen) - 96 <= clean + 2  # two images tell the model's key


@pytest.mark.parametrize("feedback", ["scores", "ranks"])
def test_with_less_feedback_it_still_hides_identities(tmp_path, feedback):
    """A batch of all images: a change is taken only if the loss falls."""
    data = noise_datasets(tmp_path, 4, SIZE)[0]
    weights = torch.randn(8, 3 * 16 * 8, generator=rng(1), dtype=torch.float64).numpy()

    def project(images):
        return images.reshape(len(images), -1).astype("float64") @ weights.T

    model = BlackBoxModel(project, identity="projection", input_spec=PLAIN, metric="euclidean")
    losses = []
    attack = UniversalSquare(Budget(64 / 255), (4, 2), feedback=feedback, queries=3200)
    attack.fit(
        model,
        data,
        identities=6,
        images_per_identity=4,
        image_size=SIZE,
        progress=lambda p: losses.append(p.metrics.get("loss")),
    )
    values = [loss for loss in losses if loss is not None]
    assert values[-1] < values[0]
    assert all(later <= earlier + 1e-5 for earlier, later in pairwise(values))


def test_a_killed_search_resumes_to_the_same_bits(data, counted, tmp_path):
    model, _ = counted
    options = {**BATCH, "checkpoint_every": 2}
    whole = UniversalSquare(Budget(EPS), (4, 2), queries=160).fit(model, data, **options)
    parts = UniversalSquare(Budget(EPS), (4, 2), queries=160)
    path = tmp_path / "search.safetensors"
    with pytest.raises(Killed):
        parts.fit(model, data, checkpoint=path, progress=kill_at(11), **options)
    again = UniversalSquare(Budget(EPS), (4, 2), queries=160)
    again.fit(model, data, checkpoint=path, **options)
    assert torch.equal(again.delta, whole.delta)


def test_scores_of_a_batch_equal_explicit_loops():
    generator = rng(0)
    distance = torch.rand(5, 12, generator=generator, dtype=torch.float64)
    pids = torch.arange(12) // 3
    own = torch.arange(5) * 2  # positions of the images themselves
    others = torch.ones(5, 12, dtype=torch.bool)
    others[torch.arange(5), own] = False
    matches = (pids == pids[own][:, None]) & others
    found, precise = margin(distance, matches, others), average_precision(distance, matches, others)
    for i in range(5):
        rows = [(float(distance[i, j]), bool(matches[i, j])) for j in range(12) if j != own[i]]
        nearest = [min(d for d, match in rows if match == wanted) for wanted in (True, False)]
        assert float(found[i]) == pytest.approx(nearest[1] - nearest[0])
        hits, total = 0, 0.0
        for place, (_, match) in enumerate(sorted(rows), 1):
            if match:
                hits += 1
                total += hits / place
        assert float(precise[i]) == pytest.approx(total / hits)


def test_changes_are_rectangles_of_every_size():
    """Each negates a rectangle in at least one channel, and one block as well as all of them."""
    sizes = set()
    torch.manual_seed(0)
    for _ in range(3000):
        delta = torch.ones(1, 3, 4, 3)
        negate_rectangle(delta)
        changed = [c for c in range(3) if (delta[0, c] < 0).any()]
        assert changed
        rows, columns = (delta[0, changed[0]] < 0).nonzero(as_tuple=True)
        height, width = (int(x.max() - x.min()) + 1 for x in (rows, columns))
        for channel in changed:
            assert int((delta[0, channel] < 0).sum()) == height * width
        sizes.add((height, width))
    assert sizes == {(h, w) for h in (1, 2, 3, 4) for w in (1, 2, 3)}


def test_it_is_saved_and_read(data, counted, tmp_path):
    model, _ = counted
    attack = UniversalSquare(Budget(EPS), (4, 2), feedback="ranks", queries=40)
    attack.fit(model, data, **BATCH).save(tmp_path / "a.safetensors")
    loaded = load_attack(tmp_path / "a.safetensors")
    assert torch.equal(loaded.delta, attack.delta)
    assert (loaded.grid, loaded.feedback, loaded.queries) == ((4, 2), "ranks", 40)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ({"feedback": "rank"}, None, "did you mean 'ranks'"),
        ({"queries": 1}, None, "queries"),
        ({"queries": 6}, {}, "fewer than the 8"),
        ({}, {"lr": 0.1}, "lr"),
        ({}, {"learner": "maml"}, "learner"),
        ({}, {"scales": 2, "nesterov": True}, "scales, nesterov"),
        ({"feedback": "ranks"}, {"objective": "misranking"}, "objective"),
    ],
)
def test_wrong_options_are_refused(data, counted, arguments, options, words):
    with pytest.raises(InputError, match=words):
        UniversalSquare(**arguments).fit(counted[0], data, **BATCH, **(options or {}))
