"""UAP-Retrieval's losses and k-means against explicit loops in float64."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reidguard.errors import InputError
from reidguard.models import create_model, wrap_model
from reidguard.objectives import (
    FeatureObjective,
    LabelWiseLoss,
    ListWiseLoss,
    PairWiseLoss,
    SelfMetricLoss,
)
from reidguard.objectives.clusters import k_means
from reidguard.objectives.retrieval import class_scores
from reidguard.types import InputSpec, ReIDBatch

LABELS = torch.zeros(5, dtype=torch.int64)  # none of these losses looks at labels


def representation(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def drawn(seed, centroids=7):
    return (
        representation(5, 4, seed=seed),
        representation(5, 4, seed=seed + 100),
        representation(centroids, 4, seed=9),
    )


def pairwise_by_loops(adversarial, clean, centroids, margin, scale):
    total = 0.0
    for moved, before in zip(adversarial, clean, strict=True):
        far = max(centroids, key=lambda c: float((c - before).norm()))
        near = min(centroids, key=lambda c: float((c - before).norm()))
        pull, push = (moved - far).norm(), (moved - near).norm()
        total += max(0.0, float(scale * (pull - push)) + margin)
    return total / len(clean)


@pytest.mark.parametrize("seed", range(10))
def test_pairwise_matches_explicit_loops(seed):
    adversarial, clean, centroids = drawn(seed)
    loss = PairWiseLoss(centroids=centroids, margin=0.8, scale=3.0)
    expected = pairwise_by_loops(adversarial, clean, centroids, 0.8, 3.0)
    assert float(loss(adversarial, clean, LABELS)) == pytest.approx(expected, abs=1e-12)


def ranks_of(scores):
    """1 for the highest."""
    return [1 + sum(other > own for other in scores) for own in scores]


def listwise_by_loops(moved, before, centroids):
    """One image: the loss, and LambdaRank's gradient to the scores of the centroids."""
    scores = [-float((moved - c).square().sum()) / 2 for c in centroids]
    distance = [float((before - c).norm()) for c in centroids]
    ranks = ranks_of(scores)
    best = sum(1 / math.log2(1 + place) for place in range(1, len(scores) + 1))
    loss, gradient = 0.0, [0.0] * len(scores)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if distance[i] > distance[j]:  # the reversed ranking wants i before j
                gain = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j])) / best
                loss += gain * math.log(1 + math.exp(scores[j] - scores[i]))
                pushed = gain / (1 + math.exp(scores[i] - scores[j]))
                gradient[i] -= pushed
                gradient[j] += pushed
    return loss, gradient


@pytest.mark.parametrize("seed", range(10))
def test_listwise_matches_explicit_loops(seed):
    adversarial, clean, centroids = drawn(seed)
    loss = ListWiseLoss(centroids=centroids)
    by_loops = [listwise_by_loops(a, c, centroids) for a, c in zip(adversarial, clean, strict=True)]
    expected = sum(value for value, _ in by_loops) / len(by_loops)
    adversarial.requires_grad_()
    found = loss(adversarial, clean, LABELS)
    assert float(found.detach()) == pytest.approx(expected, abs=1e-12)
    # s_k = −|a − c_k|²/2, so the gradient to a is Σ λ_k (c_k − a), and the λ of an image add to 0.
    found.backward()
    lambdas = torch.tensor([gradient for _, gradient in by_loops], dtype=torch.float64)
    torch.testing.assert_close(adversarial.grad, lambdas @ centroids / len(clean))


def test_listwise_descent_reverses_the_ranking():
    # In eight dimensions five centroids can be ranked in every order.
    clean, centroids = representation(3, 8, seed=3), representation(5, 8, seed=9)
    loss = ListWiseLoss(centroids=centroids)
    moved = clean.clone().requires_grad_()
    optimizer = torch.optim.SGD([moved], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss(moved, clean, LABELS).backward()
        optimizer.step()
    before, after = (loss.similarity(features.detach()).argsort(1) for features in (clean, moved))
    assert torch.equal(after, before.flip(1))


def labelwise_by_loops(adversarial, clean):
    total = 0.0
    for moved, before in zip(adversarial.tolist(), clean.tolist(), strict=True):
        said = max(range(len(before)), key=lambda j: before[j])
        total += max(0.0, moved[said] - max(z for j, z in enumerate(moved) if j != said))
    return total / len(clean)


@pytest.mark.parametrize("seed", range(10))
def test_labelwise_matches_explicit_loops(seed):
    adversarial, clean, _ = drawn(seed)
    found = LabelWiseLoss()(clean + adversarial, clean, LABELS)
    assert float(found) == pytest.approx(labelwise_by_loops(clean + adversarial, clean), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_self_metric_is_the_mean_cosine(seed):
    adversarial, clean, _ = drawn(seed)
    cosines = [
        float(a @ c / (a.norm() * c.norm())) for a, c in zip(adversarial, clean, strict=True)
    ]
    found = SelfMetricLoss()(adversarial, clean, LABELS)
    assert float(found) == pytest.approx(sum(cosines) / 5, abs=1e-12)


LOSSES = [
    PairWiseLoss(centroids=representation(7, 4, seed=9), margin=50.0),
    ListWiseLoss(centroids=representation(7, 4, seed=9)),
    LabelWiseLoss(),
    SelfMetricLoss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_derivatives(loss):
    adversarial, clean, _ = drawn(2)
    adversarial.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: loss(a, clean, LABELS), (adversarial,))
    assert torch.autograd.gradgradcheck(lambda a: loss(a, clean, LABELS), (adversarial,))


def test_the_pairwise_gradient_is_finite_on_a_centroid():
    centroids = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    adversarial = torch.zeros(1, 2, requires_grad=True)
    PairWiseLoss(centroids=centroids)(adversarial, torch.zeros(1, 2), LABELS[:1]).backward()
    torch.testing.assert_close(adversarial.grad, torch.tensor([[-10.0, 0.0]]))


# Preparation


def test_centroids_are_found_once_and_given_ones_stay():
    features = representation(40, 4, seed=1)
    plain = PairWiseLoss(clusters=6, seed=3)
    made = plain.with_statistics(features)
    torch.testing.assert_close(made.centroids, k_means(features, 6, seed=3), rtol=0, atol=0)
    assert plain.centroids is None
    own = PairWiseLoss(centroids=features[:2])
    assert own.with_statistics(features) is own


def test_a_loss_without_centroids_says_what_to_do():
    with pytest.raises(InputError, match="with_statistics"):
        ListWiseLoss()(torch.zeros(2, 3), torch.zeros(2, 3), LABELS[:2])


def test_labelwise_reads_logits():
    model = create_model("ide", backbone="test_resnet", size=(32, 16), num_classes=5).eval()
    x = torch.rand(3, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    index = torch.arange(3)
    batch = ReIDBatch(x, index, index, index)
    found = FeatureObjective(model, LabelWiseLoss())(lambda images: images / 2, batch)
    before, after = model(x).logits.detach(), model(x / 2).logits.detach()
    assert float(found.detach()) == pytest.approx(labelwise_by_loops(after, before), rel=1e-5)


def test_labelwise_without_a_classifier_names_the_cure():
    model = wrap_model(nn.Flatten(), input_spec=InputSpec(size=None))
    with pytest.raises(InputError, match="num_classes"):
        LabelWiseLoss().representation(model, torch.rand(1, 3, 4, 4))


def test_labelwise_averages_the_logits_of_parts():
    """And of several classifiers it takes the first."""

    class Parts:
        metric, num_classes = "cosine", {"a": 3, "b": 2}

        def __call__(self, x, domain):
            assert domain == "a"
            logits = x.flatten(1)[:, :3].half()
            return SimpleNamespace(features=x.flatten(1), logits=[logits, 3 * logits])

    images = torch.rand(2, 3, 2, 2)
    found = LabelWiseLoss().representation(Parts(), images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found, 2 * images.flatten(1)[:, :3].half().float(), rtol=1e-3, atol=0
    )
    features, parts = class_scores(Parts(), images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert [part.dtype for part in parts] == [torch.float32] * 2


def test_no_classifier_and_too_few_classes():
    with pytest.raises(InputError, match="Flatten has no classifier"):
        class_scores(nn.Flatten(), torch.rand(1, 3, 4, 4))
    one = torch.zeros(5, 1)
    with pytest.raises(InputError, match="at least two classes"):
        LabelWiseLoss()(one, one, LABELS)
    two = torch.tensor([[2.0, -1.0]])
    assert float(LabelWiseLoss()(two, two, LABELS[:1])) == 3.0


def test_defaults_are_those_of_the_paper():
    loss = PairWiseLoss()
    assert (loss.clusters, loss.margin, loss.scale, loss.seed) == (512, 0.8, 10.0, 0)
    assert (ListWiseLoss().clusters, ListWiseLoss().seed) == (512, 0)
    features = representation(40, 4, seed=1)
    found = ListWiseLoss(clusters=2).with_statistics(features).centroids
    assert torch.equal(found, k_means(features, 2, seed=0))
    with pytest.raises(InputError, match=r"at least 2 .*, not 1"):
        ListWiseLoss(clusters=1)
    for few in (None, features[:1]):
        with pytest.raises(InputError, match=r"PairWiseLoss compares .* two at least"):
            PairWiseLoss(centroids=few).similarity(features)


@pytest.mark.parametrize("loss", [PairWiseLoss, ListWiseLoss])
def test_the_attack_s_precision_is_used(loss):
    adversarial, clean, centroids = drawn(4)
    mixed = loss(centroids=centroids.float())(adversarial, clean.float(), LABELS)
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed, loss(centroids=centroids)(adversarial, clean, LABELS),
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_similarity_is_minus_half_the_squared_distance():
    features, _, centroids = drawn(5)
    expected = [[-float((f - c).square().sum()) / 2 for c in centroids] for f in features]
    found = ListWiseLoss(centroids=centroids).similarity(features)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


# k-means


def plus_plus_by_loops(points, clusters, seed):
    """Each start drawn with the probability of its squared distance to the nearest before it."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    while len(chosen) < clusters:
        weights = [
            min(sum((a - b) ** 2 for a, b in zip(p, points[c], strict=True)) for c in chosen)
            for p in points
        ]
        draw = float(torch.rand((), generator=generator, dtype=torch.float64)) * sum(weights)
        index = 0
        while draw >= weights[index]:
            draw -= weights[index]
            index += 1
        chosen.append(index)
    return [points[c] for c in chosen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_that_of_k_means_plus_plus(dtype):
    for seed in range(20):
        points = representation(7, 2, seed=seed).to(dtype)
        points[3] = points[5]  # two that coincide are never both drawn
        expected = plus_plus_by_loops(points.tolist(), 6, seed)
        found = k_means(points, 6, iterations=0, seed=seed)
        assert found.dtype == dtype
        assert found.tolist() == expected


def test_k_means_stops_where_nothing_changes():
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0], [50.0]])
    assert torch.equal(k_means(points, 3, iterations=1000), k_means(points, 3))
    assert k_means(points.half(), 1).tolist() == [[pytest.approx(14.6)]]
    assert k_means(points.half(), 1).dtype == torch.float32
    for wrong in (points[0], points[:0]):
        with pytest.raises(InputError, match="k_means needs points"):
            k_means(wrong, 1)
    with pytest.raises(InputError, match=r"clusters must be .* at least 1"):
        k_means(points, 0)


def lloyd_by_loops(points, centroids, iterations):
    for _ in range(iterations):
        nearest = [
            min(range(len(centroids)), key=lambda k: (p - centroids[k]).norm()) for p in points
        ]
        for k in range(len(centroids)):
            own = [p for p, n in zip(points, nearest, strict=True) if n == k]
            if own:
                centroids[k] = torch.stack(own).mean(0)
    return centroids


@pytest.mark.parametrize("seed", range(5))
def test_k_means_is_lloyds_from_its_start(seed):
    points = representation(30, 3, seed=seed)
    start = k_means(points, 4, iterations=0, seed=seed)
    assert all((points == centroid).all(1).any() for centroid in start)
    expected = lloyd_by_loops(points, start.clone(), 20)
    torch.testing.assert_close(k_means(points, 4, seed=seed), expected)


def test_k_means_finds_clusters_that_are_there():
    centres = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]], dtype=torch.float64)
    points = torch.cat([c + representation(20, 2, seed=i) for i, c in enumerate(centres)])
    found = k_means(points, 3, seed=1)
    expected = points.view(3, 20, 2).mean(1)
    nearest = torch.cdist(expected, found).min(1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2]
    assert nearest.values.max() < 1e-9


def test_k_means_with_fewer_points_than_clusters():
    points = torch.tensor([[0.0], [0.0], [3.0]])
    assert k_means(points, 512).flatten().sort().values.tolist() == [0.0, 3.0]
    with pytest.raises(InputError, match="N > 0"):
        k_means(torch.zeros(0, 2), 2)
