"""The limits of the audit's checks of gradients, and its probe on functions in closed form."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from reidguard.evaluation.audit_report import CURES
from reidguard.evaluation.gradient_checks import GradientProbe, gradient_findings, probe_gradients
from reidguard.models import wrap_model
from reidguard.types import InputSpec

RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))


def measurements(count=20, **changes):
    """Those of an honest model."""
    values = {
        "connected": torch.ones(count, dtype=torch.bool),
        "finite": torch.ones(count, dtype=torch.bool),
        "zero": torch.zeros(count, dtype=torch.float64),
        "features_differ": torch.zeros(count, dtype=torch.float64),
        "gradients_differ": torch.zeros(count, dtype=torch.float64),
        "agreement": torch.ones(count, dtype=torch.float64),
    }
    for name, rows in changes.items():
        for row, value in rows.items():
            values[name][row] = value
    return GradientProbe(**values)


def level(name, probe):
    findings = {finding.name: finding for finding in gradient_findings(probe)}
    others = {n for n, f in findings.items() if f.level in ("warning", "error") and n != name}
    assert not others
    return findings[name].level


def test_nothing_is_found_on_an_honest_model():
    findings = gradient_findings(measurements())
    assert [(f.name, f.level, f.cure) for f in findings] == [
        ("non_finite_gradients", "ok", ""),
        ("zero_gradients", "ok", ""),
        ("randomness", "ok", ""),
        ("gradient_mismatch", "ok", ""),
    ]
    assert [f.evidence for f in findings] == [
        {"fraction": 0.0},
        {"fraction": 0.0, "zero_values": 0.0},
        {"features": 0.0, "gradients": 0.0},
        {"median": 1.0, "starts": 20.0},
    ]
    assert [f.measured for f in findings] == [
        "NaN or infinite at 0 % of 20 starts",
        "mostly zero at 0 % of starts",
        "features differ by 0.0e+00, gradients by 0.0e+00",
        "the loss changes 1.00 times as predicted (median)",
    ]
    assert [f.limit for f in findings] == [
        "above 0 %",
        "above 10 %",
        "above 0.001",
        "outside 0.5 to 2",
    ]


def test_one_start_that_is_not_finite_is_an_error():
    probe = measurements(finite={3: False})
    assert level("non_finite_gradients", probe) == "error"
    finding = gradient_findings(probe)[0]
    assert finding.evidence == {"fraction": 0.05}
    assert finding.measured == "NaN or infinite at 5 % of 20 starts"
    assert finding.cure == CURES["non_finite_gradients"]


def test_a_tenth_of_the_starts_may_be_mostly_zero():
    """Mostly is above one half."""
    assert level("zero_gradients", measurements(zero={0: 1.0, 1: 0.6})) == "ok"
    assert level("zero_gradients", measurements(zero={0: 1.0, 1: 0.6, 2: 0.5})) == "ok"
    probe = measurements(zero={0: 1.0, 1: 0.6, 2: 0.51})
    assert level("zero_gradients", probe) == "error"
    finding = gradient_findings(probe)[1]
    assert finding.evidence == {"fraction": 0.15, "zero_values": pytest.approx(2.11 / 20)}
    assert finding.measured == "mostly zero at 15 % of starts"


@pytest.mark.parametrize("which", ["features", "gradients"])
def test_one_difference_in_a_thousand_is_random(which):
    name = f"{which}_differ"
    assert level("randomness", measurements(**{name: {4: 1e-3}})) == "ok"
    probe = measurements(**{name: {4: 1.1e-3}})
    assert level("randomness", probe) == "warning"
    finding = gradient_findings(probe)[2]
    assert finding.evidence[which] == pytest.approx(1.1e-3)
    assert f"{which}{' differ' if which == 'features' else ''} by 1.1e-03" in finding.measured


@pytest.mark.parametrize(
    ("median", "expected"),
    [(0.49, "warning"), (0.5, "ok"), (2.0, "ok"), (2.01, "warning"), (-1.0, "warning")],
)
def test_the_median_change_must_be_half_to_twice_the_predicted(median, expected):
    """Some may be far off, and where nothing is predicted nothing counts."""
    nan, inf = float("nan"), float("inf")
    rows = {0: -50.0, 1: -60.0, 2: 70.0, 3: 80.0, 4: nan, 5: inf}
    probe = measurements(11, agreement={**rows, **dict.fromkeys(range(6, 11), median)})
    assert level("gradient_mismatch", probe) == expected
    assert gradient_findings(probe)[3].evidence == {"median": median, "starts": 9.0}


def test_without_any_prediction_the_last_check_is_left_out():
    rows = dict.fromkeys(range(20), float("nan"))
    finding = gradient_findings(measurements(agreement=rows))[3]
    assert (finding.name, finding.level, finding.cure) == ("gradient_mismatch", "unchecked", "")
    assert "predicts" in finding.measured


# --- the probe ----------------------------------------------------------------------------------


class Function(nn.Module):
    """Features by a function of the image, whose calls are counted."""

    def __init__(self, function):
        super().__init__()
        self.function, self.calls = function, 0

    def forward(self, x):
        self.calls += 1
        return self.function(x)


def probe(function, x=None, eps=8 / 255, seed=0):
    model = wrap_model(Function(function), input_spec=RAW, metric="euclidean")
    x = torch.full((3, 3, 4, 2), 0.5, dtype=torch.float64) if x is None else x
    return probe_gradients(model, x, eps, seed)


def test_a_linear_function_is_as_predicted():
    """Two starts for each of three images."""
    found = probe(lambda x: x.flatten(1))
    assert found.connected.tolist() == found.finite.tolist() == [True] * 6
    for differences in (found.zero, found.features_differ, found.gradients_differ):
        assert differences.tolist() == [0.0] * 6
    # |x + h − c|² − |x − h − c|² is 4 h·(x − c) exactly, as the gradient says
    torch.testing.assert_close(found.agreement, torch.ones(6, dtype=torch.float64))
    for name, values in vars(found).items():
        assert values.dtype == (torch.bool if name in ("connected", "finite") else torch.float64)


def test_starts_are_in_the_ball_and_off_the_borders():
    seen = []

    def record(x):
        seen.append(x.detach().clone())
        return x.flatten(1)

    x = torch.rand(2, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    eps = 30 / 255
    probe(record, x, eps, seed=3)
    clean, *others = seen
    assert torch.equal(clean, x)
    step = 0.1 / 255
    starts = [others[0], others[len(others) // 2]]
    assert not torch.equal(*starts)
    for start in starts:
        assert (start - x).abs().max() <= eps
        assert (start - x).abs().mean() > 0.3 * eps  # uniform in the ball
        assert abs(float((start - x)[:, 1:].mean())) < 0.3 * eps
    for images in others:
        nearest = min(float((images - start).abs().max()) for start in starts)
        assert nearest == pytest.approx(step) or nearest == 0
        assert images.min() >= 0
        assert images.max() <= 1
    again = list(seen)
    seen.clear()
    probe(record, x, eps, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(again, seen, strict=True))
    seen.clear()
    probe(record, x, eps, seed=4)
    assert not torch.equal(again[1], seen[1])


def test_half_precision_is_probed_in_float32():
    seen = set()

    def record(x):
        seen.add(x.dtype)
        return x.flatten(1)

    found = probe(record, torch.full((1, 3, 4, 2), 0.5, dtype=torch.float16))
    assert seen == {torch.float32}
    assert found.agreement.tolist() == pytest.approx([1.0, 1.0], rel=0.01)


def test_a_gradient_that_is_partly_zero_infinite_or_missing():
    half = probe(lambda x: torch.cat([x[..., :1], x[..., 1:].detach()], 3).flatten(1))
    assert half.zero.tolist() == [0.5] * 6
    missing = probe(lambda x: x.detach().flatten(1))
    assert not missing.connected.any()
    assert missing.zero.tolist() == [1.0] * 6
    assert missing.agreement.isnan().all()
    unused = probe(lambda x: torch.ones(len(x), 2, dtype=x.dtype, requires_grad=True) * 1)
    assert not unused.connected.any()
    infinite = probe(lambda x: x.flatten(1) + torch.sqrt(0 * x.flatten(1)))
    assert not infinite.finite.any()
    assert infinite.connected.all()
    assert infinite.gradients_differ.tolist() == [0.0] * 6  # NaN is reported as such


def test_a_flipped_and_a_doubled_gradient():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -2 * gradient

    found = probe(lambda x: Scale.apply(x).flatten(1))
    torch.testing.assert_close(found.agreement, torch.full((6,), -0.5, dtype=torch.float64))


def test_differences_of_equal_calls_are_relative_to_the_larger():
    """Features go back and forth between v and 3v."""
    calls = []

    def flicker(x):
        calls.append(0)
        return (1.0 if len(calls) % 2 else 3.0) * x.flatten(1)

    found = probe(flicker)
    assert found.features_differ.tolist() == pytest.approx([2 / 3] * 6)
    calls.clear()
    constant = probe(lambda x: 0 * x.flatten(1))
    assert constant.features_differ.tolist() == [0.0] * 6


def test_no_grad_and_inference_mode_of_the_caller_do_not_matter():
    expected = probe(lambda x: x.flatten(1))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = probe(lambda x: x.flatten(1))
        assert torch.equal(found.agreement, expected.agreement)
        assert found.connected.all()


def test_measurements_are_joined_in_order():
    one, two = measurements(2, zero={0: 0.25}), measurements(1, zero={0: 0.75})
    joined = GradientProbe.concatenated([one, two])
    assert joined.zero.tolist() == [0.25, 0.0, 0.75]
    assert replace(joined, zero=one.zero).connected.tolist() == [True] * 3
