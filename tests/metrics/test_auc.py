"""The area under the ROC curve against its definition, pair by pair."""

import pytest
import torch

from reidguard.errors import InputError
from reidguard.metrics import roc_auc


def by_pairs(negatives, positives):
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for n in negatives for p in positives]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("levels", [3, 1000])
def test_it_is_the_fraction_of_pairs_in_order(levels):
    """With many equal scores, and with few."""
    generator = torch.Generator().manual_seed(0)
    negatives = torch.randint(levels, (31,), generator=generator).float()
    positives = torch.randint(levels, (17,), generator=generator).float() + 0.3 * levels // 1
    expected = by_pairs(negatives.tolist(), positives.tolist())
    assert roc_auc(negatives, positives) == pytest.approx(expected, abs=1e-12)
    assert roc_auc(positives, negatives) == pytest.approx(1 - expected, abs=1e-12)


def test_it_is_the_area_under_the_curve():
    """Trapezoids between all thresholds."""
    generator = torch.Generator().manual_seed(1)
    negatives, positives = torch.randn(40, generator=generator), torch.randn(30).sort().values + 1
    thresholds = torch.cat([negatives, positives, torch.tensor([-99.0, 99.0])]).sort().values
    rates = [[(s > t).double().mean() for t in thresholds] for s in (negatives, positives)]
    false_rate, true_rate = (torch.stack(rate).flip(0) for rate in rates)
    area = float(torch.trapezoid(true_rate, false_rate))
    assert roc_auc(negatives, positives) == pytest.approx(area, abs=1e-9)


@pytest.mark.parametrize("wrong", [[], [[1.0]], [float("nan")], [float("inf")]])
def test_scores_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="finite scores"):
        roc_auc(torch.tensor(wrong), torch.ones(2))
