import pytest
import torch

from reidguard.errors import InputError
from reidguard.objectives import FeatureObjective, MisrankingTriplet, normalized_features
from reidguard.objectives.base import normalize_for
from reidguard.objectives.misranking import row_distance
from reidguard.types import ReIDBatch


def loops(adversarial, clean, pids, margin):
    """Eq. 5 by explicit loops over the batch."""
    total = 0.0
    for i in range(len(pids)):
        same = [j for j in range(len(pids)) if pids[j] == pids[i]]
        other = [j for j in range(len(pids)) if pids[j] != pids[i]]
        positive = max(same, key=lambda j: (clean[j] - clean[i]).norm())
        negative = max(other, key=lambda j: (clean[j] - clean[i]).norm())
        pull = (clean[negative] - adversarial[i]).norm()
        push = (clean[positive] - adversarial[i]).norm()
        total += max(0.0, float(pull - push) + margin)
    return total / len(pids)


@pytest.mark.parametrize("seed", range(20))
def test_loss_matches_explicit_loops(seed):
    g = torch.Generator().manual_seed(seed)
    pids = torch.tensor([0, 0, 1, 1, 1, 2])
    clean = torch.randn(6, 4, generator=g, dtype=torch.float64)
    adversarial = torch.randn(6, 4, generator=g, dtype=torch.float64)
    loss = MisrankingTriplet(margin=0.3)(adversarial, clean, pids)
    assert float(loss) == pytest.approx(loops(adversarial, clean, pids, 0.3), abs=1e-12)


def test_first_and_second_derivatives():
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(6, 3, generator=g, dtype=torch.float64)
    adversarial = torch.randn(6, 3, generator=g, dtype=torch.float64, requires_grad=True)
    pids = torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(a):
        return MisrankingTriplet(margin=9.0)(a, clean, pids)

    assert torch.autograd.gradcheck(loss, (adversarial,))
    assert torch.autograd.gradgradcheck(loss, (adversarial,))


def test_an_identity_with_one_image_has_no_nan_gradient_at_distance_zero():
    clean = torch.eye(3)
    adversarial = clean.clone().requires_grad_()
    MisrankingTriplet()(adversarial, clean, torch.tensor([0, 1, 2])).backward()
    assert torch.isfinite(adversarial.grad).all()
    assert adversarial.grad.abs().sum() > 0


def test_one_identity_alone_is_refused():
    with pytest.raises(InputError, match="two identities"):
        MisrankingTriplet()(torch.rand(2, 3), torch.rand(2, 3), torch.tensor([4, 4]))


def test_the_margin_of_the_paper_and_distance_zero():
    """Each image is its own furthest positive: |x_n - x| - 0 + 0.5."""
    clean = torch.tensor([[0.0], [2.0], [3.0]])
    loss = MisrankingTriplet()(clean, clean, torch.arange(3))
    assert float(loss) == pytest.approx((3 + 2 + 3) / 3 + 0.5)
    assert row_distance(clean, clean).tolist() == [0.0, 0.0, 0.0]


class Doubler:
    """A model whose features are twice the mean colour, and which counts its passes."""

    def __init__(self, metric):
        self.metric, self.passes = metric, 0

    def features(self, x):
        self.passes += 1
        return 2 * x.mean((2, 3))


def batch(features=None):
    index = torch.arange(4)
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    return ReIDBatch(images, torch.tensor([0, 0, 1, 1]), index, index, features)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_features_are_compared_as_the_model_compares_them(metric):
    model = Doubler(metric)
    features = normalized_features(model, batch().images)
    norms = features.norm(dim=1)
    assert torch.allclose(norms, torch.ones(4)) is (metric == "cosine")


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_are_compared_in_float32_at_least(dtype, metric):
    features = torch.tensor([[3.0, 4.0], [0.0, -2.0]], dtype=dtype)
    found = normalize_for(features, metric)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = [[3.0, 4.0], [0.0, -2.0]] if metric == "euclidean" else [[0.6, 0.8], [0.0, -1.0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype))


def test_known_clean_features_save_the_clean_pass():
    model = Doubler("euclidean")
    objective = FeatureObjective(model, MisrankingTriplet())
    fresh = objective(lambda x: x / 2, batch())
    assert model.passes == 2
    kept = objective(lambda x: x / 2, batch(features=normalized_features(model, batch().images)))
    assert model.passes == 4  # one of them is the line above
    assert torch.equal(fresh, kept)
