"""UAP-Retrieval's losses and k-means against explicit loops in float64."""

import math

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


# k-means


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
