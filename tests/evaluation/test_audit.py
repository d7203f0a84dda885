"""`audit` warns of each planted fault, and is silent on honest models."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from reidguard.attacks import SMA
from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.evaluation import FeatureStore, Protocol, audit, evaluate
from reidguard.evaluation.audit import _excess
from reidguard.evaluation.audit_report import TITLES
from reidguard.fingerprint import weights_fingerprint
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec, ReIDSample

SIZE = (64, 32)
SPEC = InputSpec(size=None, mean=(0.5, 0.5, 0.5), std=(1, 1, 1))
OPTIONS = {"protocol": Protocol(image_size=SIZE), "attack_steps": 8, "learning_steps": 10}


@pytest.fixture(scope="session")
def codes(tmp_path_factory):
    """People who differ by five grey levels up or down in each cell of a grid, and some noise."""
    folder = tmp_path_factory.mktemp("codes")
    rng = np.random.default_rng(0)
    splits = {"train": [], "query": [], "gallery": []}
    for pid in range(1, 25):
        code = np.kron(rng.choice([-5, 5], (8, 4, 3)), np.ones((8, 8, 1)))
        for number in range(4):
            path = folder / f"{pid}_{number}.png"
            pixels = 128 + code + rng.integers(-1, 2, code.shape)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            split = "train" if pid > 12 else "query" if number < 2 else "gallery"
            splits[split].append(ReIDSample(path, pid, 1 if split == "query" else 2))
    return ReIDDataset("codes", **splits)


class Smooth(nn.Module):
    """Reads the grid; finds everybody, and is broken by eight grey levels. A subclass spoils it."""

    def __init__(self, channels=3):
        super().__init__()
        self.channels = channels

    def prepare(self, x):
        return x

    def activate(self, cells):
        return torch.tanh(75 * cells)

    def forward(self, x):
        cells = F.adaptive_avg_pool2d(self.prepare(x), (8, 4))
        return self.activate(cells[:, : self.channels].flatten(1))

    def extra_repr(self):
        return f"{self.channels} channels"


class Kinked(Smooth):
    """Honest, and not smooth."""

    def activate(self, cells):
        return F.hardtanh(45 * cells)


class Quantised(Smooth):
    """Rounds its input, whose derivative is zero."""

    def prepare(self, x):
        return torch.round(x * 64) / 64


class Detached(Smooth):
    """Its features do not depend on the image, as far as autograd knows."""

    def activate(self, cells):
        return torch.tanh(75 * cells.detach())


class Patchy(Smooth):
    """The gradient is zero for images of some brightness, about half of them."""

    def prepare(self, x):
        bright = x.mean((1, 2, 3), keepdim=True) > 0
        return torch.where(bright, x.detach(), x)


class Noisy(Smooth):
    """Features and gradients differ from call to call."""

    def prepare(self, x):
        return x + 0.05 * torch.randn_like(x)


class NoisyGradient(Smooth):
    """Features are the same in every call, gradients are not."""

    def prepare(self, x):
        if x.requires_grad:
            x = x * 1
            x.register_hook(lambda g: g + g.std() * torch.randn_like(g))
        return x


class NotANumber(Smooth):
    """The root of a zero: its value is 0, its gradient infinite, and 0 · ∞ is NaN."""

    def activate(self, cells):
        return torch.tanh(75 * cells) + torch.sqrt(0 * cells)


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Flipped(Smooth):
    """Attacks walk the wrong way."""

    def prepare(self, x):
        return _Flip.apply(x)


class Shattered(Smooth):
    """Tiny, very steep waves on the input: each gradient is true, and holds for no step."""

    def prepare(self, x):
        return x + 2e-4 * torch.sin(2e5 * x)


class Gated(Smooth):
    """No gradient where the image is rough, as it is at the random starts in a large ball."""

    def prepare(self, x):
        rough = (x - F.avg_pool2d(x, 3, 1, 1)).abs()[:, :, 1:-1, 1:-1].mean((1, 2, 3), keepdim=True)
        return torch.where(rough > 0.022, x.detach(), x)


def model_of(network, metric="cosine"):
    return wrap_model(network, input_spec=SPEC, metric=metric)


def found(report):
    return {finding.name: finding for finding in report.findings}


def names(report):
    return {finding.name for finding in report.warnings}


@pytest.mark.parametrize(
    ("kind", "metric"), [(Smooth, "cosine"), (Smooth, "euclidean"), (Kinked, "euclidean")]
)
def test_silent_on_honest_models(codes, kind, metric):
    report = audit(
        model_of(kind(), metric), codes, surrogate=model_of(Smooth(1), metric), **OPTIONS
    )
    assert report.warnings == ()
    assert [finding.level for finding in report.findings] == ["ok"] * 6
    assert all(finding.cure == "" for finding in report.findings)
    assert report.curve[0]["mAP"] == 1  # it has something to lose, and loses it
    assert report.curve[-1]["mAP"] < 0.5
    assert [row["attack"] for row in report.transfer] == ["SMA", "delta"]
    assert all(row["white_box"] <= row["surrogate"] for row in report.transfer)
    assert any(row["white_box"] < row["surrogate"] for row in report.transfer)
    assert "no sign of masked gradients" in report.to_markdown()


NOISY = {"randomness", "gradient_mismatch"}


@pytest.mark.parametrize(
    ("kind", "fires", "may_fire"),
    [
        (Quantised, {"zero_gradients"}, set()),
        (Patchy, {"zero_gradients"}, set()),
        (Noisy, {"randomness"}, NOISY),
        (NoisyGradient, {"randomness"}, NOISY),
        (NotANumber, {"non_finite_gradients"}, set()),
        (Flipped, {"gradient_mismatch"}, set()),
        (Shattered, {"gradient_mismatch"}, set()),
        (Gated, {"curve"}, set()),
    ],
)
def test_warns_of_what_is_planted_and_of_nothing_else(codes, kind, fires, may_fire):
    """Without a surrogate: each fault is found by the check that is meant for it."""
    report = audit(model_of(kind()), codes, **OPTIONS)
    assert fires <= names(report) <= fires | may_fire
    text = report.to_markdown()
    for finding in report.warnings:
        assert finding.evidence
        assert finding.cure
        assert finding.cure in text
    broken = fires & {"zero_gradients", "non_finite_gradients"}
    assert {found(report)[name].level for name in fires} == {"error" if broken else "warning"}
    assert found(report)["transfer"].level == "unchecked"


@pytest.mark.parametrize("kind", [Quantised, Flipped, NotANumber])
def test_transfer_that_beats_white_box(codes, kind):
    """The same network without the fault makes the stronger perturbation."""
    options = {**OPTIONS, "learning_steps": 20}
    report = audit(model_of(kind()), codes, surrogate=model_of(Smooth()), **options)
    transfer = found(report)["transfer"]
    assert transfer.level == "warning"
    assert transfer.evidence["surrogate"] < transfer.evidence["white_box"]
    rows = {row["attack"]: row for row in report.transfer}
    assert rows["SMA"]["surrogate"] < rows["SMA"]["white_box"] - 0.5
    assert rows["delta"]["surrogate"] < rows["delta"]["white_box"]


def test_the_curve_names_where_more_hurts_less(codes):
    report = audit(model_of(Gated()), codes, **OPTIONS)
    evidence = found(report)["curve"].evidence
    assert (255 * evidence["smaller_eps"], 255 * evidence["eps"]) == pytest.approx((8, 16))
    by_eps = {round(255 * point["eps"]): point["mAP"] for point in report.curve}
    assert evidence["gain"] == pytest.approx(by_eps[16] - by_eps[8])


def test_features_cut_off_from_the_image(codes):
    """No gradient attack can even run."""
    report = audit(model_of(Detached()), codes, surrogate=model_of(Smooth()), **OPTIONS)
    assert names(report) == {"zero_gradients"}
    assert found(report)["curve"].level == found(report)["transfer"].level == "unchecked"
    assert "cut off" in report.to_markdown()
    assert report.curve == report.transfer == ()


def test_the_figures_are_those_of_evaluate(codes):
    """At 8 grey levels, with a third of the queries, by the same steps and seed."""
    model = model_of(Smooth(), "euclidean")
    report = audit(model, codes, epsilons=[3 / 255, 8 / 255], queries=8, seed=5, **OPTIONS)
    attack = SMA(Budget(8 / 255), steps=8, step_size=2.5 * 8 / 255 / 8, seed=5).bind(model)
    result = evaluate(model, codes, attack, OPTIONS["protocol"], query_every=3)
    assert report.facts["queries"] == result.counts["query"] == 8
    assert [255 * point["eps"] for point in report.curve] == pytest.approx([0, 3, 8])
    assert report.facts["eps"] == 8 / 255
    assert report.curve[0]["mAP"] == result.clean.mAP
    assert report.curve[2]["mAP"] == result.attacked.ranking.mAP
    assert report.curve[2]["rank1"] == result.attacked.ranking.rank_k(1)


def test_an_audit_is_repeatable_and_leaves_the_model_alone(codes):
    model = model_of(nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Dropout(0.5), nn.Flatten()))
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    store = FeatureStore()
    reports = [audit(model, codes, queries=6, store=store, **OPTIONS) for _ in range(2)]
    assert reports[0].to_dict() == reports[1].to_dict()
    assert found(reports[0])["randomness"].level == "ok"  # dropout is off in eval mode
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_report_is_plain_json_and_a_table(codes):
    report = audit(model_of(Quantised()), codes, surrogate=model_of(Smooth()), **OPTIONS)
    values = report.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["warnings"] == [finding.name for finding in report.warnings]
    assert [finding["name"] for finding in values["findings"]] == [
        name for name in TITLES if name != "black_box"
    ]
    text = report.to_markdown()
    assert "Audit on codes (24 queries): 2 warnings" in text
    assert "ERROR: gradients are not zero?" in text
    for table in text.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_without_training_images_or_steps_only_sma_is_compared(codes):
    tested = ReIDDataset("tested", [], codes.query, codes.gallery)
    options = {"surrogate": model_of(Smooth(1)), "epsilons": [8 / 255]}
    report = audit(model_of(Smooth()), tested, **options, **OPTIONS)
    assert [row["attack"] for row in report.transfer] == ["SMA"]
    none = {**OPTIONS, "learning_steps": 0}
    report = audit(model_of(Smooth()), codes, **options, **none)
    assert [row["attack"] for row in report.transfer] == ["SMA"]


@pytest.mark.parametrize("surrogate", [False, True])
def test_progress_rises_to_the_total(codes, surrogate):
    calls = []
    audit(
        model_of(Smooth()),
        codes,
        surrogate=model_of(Smooth(1)) if surrogate else None,
        queries=4,
        progress=lambda done, total: calls.append((done, total)),
        **OPTIONS,
    )
    total = 10 if surrogate else 6
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_what_was_audited_is_part_of_the_report(codes):
    """Of 24 queries every fourth, since every third would be 8; probes are spread over all."""
    model, surrogate = model_of(Smooth()), model_of(Smooth(1))
    options = {"queries": 7, "probes": 5, "eps": 4 / 255, "epsilons": (2 / 255, 3 / 255)}
    options |= {"attack_steps": 1, "learning_steps": 0, "seed": 3, "batch_size": 2}
    calls = []
    report = audit(
        model,
        codes,
        surrogate=surrogate,
        protocol=OPTIONS["protocol"],
        progress=lambda *call: calls.append(call),
        **options,
    )
    assert report.facts == {
        "dataset": "codes",
        "queries": 6,
        "query_every": 4,
        "probes": 5,
        "eps": 4 / 255,
        "attack_steps": 1,
        "learning_steps": 0,
        "seed": 3,
        "protocol": OPTIONS["protocol"].to_dict(),
        "fingerprints": {s: codes.fingerprint(s) for s in ("query", "gallery")},
        "weights": weights_fingerprint(model),
        "surrogate": weights_fingerprint(surrogate),
    }
    assert "of 10 starts" in found(report)["non_finite_gradients"].measured
    # Probes, two radii, SMA by both; the delta's two parts are left out at once.
    assert calls == [(done, 7) for done in (1, 2, 3, 4, 5, 7)]
    assert [255 * point["eps"] for point in report.curve] == pytest.approx([0, 2, 3])
    rows = report.transfer
    attacked = {}
    for name, source in (("white_box", model), ("surrogate", surrogate)):
        attack = SMA(Budget(4 / 255), steps=1, step_size=2.5 * 4 / 255, seed=3).bind(source)
        result = evaluate(model, codes, attack, OPTIONS["protocol"], query_every=4)
        attacked[name] = result.attacked.ranking
        assert rows[0][name] == pytest.approx(result.attacked.ranking.mAP, abs=1e-6)
    gain, margin = _excess(attacked["white_box"].ap, attacked["surrogate"].ap)
    assert rows[0]["gain"] == pytest.approx(gain, abs=1e-6)
    assert rows[0]["margin"] == pytest.approx(margin, abs=1e-6)
    evidence = found(report)["transfer"].evidence
    assert evidence == {name: value for name, value in rows[0].items() if name != "attack"}
    assert found(report)["transfer"].measured == (
        f"white-box SMA leaves {100 * rows[0]['gain']:+.1f} points mAP over transfer"
    )
    assert audit(model, codes, **options, protocol=OPTIONS["protocol"]).facts["surrogate"] is None


def test_chance_is_no_warning():
    """A rise of AP counts only beyond 2 points and 3 standard errors of the paired difference."""
    rng = torch.Generator().manual_seed(0)
    lower = torch.rand(100, generator=rng, dtype=torch.float64)
    gain, margin = _excess(lower + 0.03, lower)
    assert gain == pytest.approx(0.03)
    assert margin == 0.02  # the same rise for everybody: no spread
    spread = torch.tensor([0.5, -0.44] * 50, dtype=torch.float64)
    gain, margin = _excess(lower + spread, lower)
    assert gain == pytest.approx(0.03)
    assert margin == pytest.approx(3 * 0.47 / 10)
    skipped = torch.where(torch.arange(100) % 2 == 0, torch.nan, lower)
    assert _excess(skipped + 0.03, skipped) == pytest.approx((0.03, 0.02))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps must be .*above 0"),
        ({"eps": 8}, "eps must be .*8"),
        ({"epsilons": [2 / 255, 1 / 255]}, "rise"),
        ({"epsilons": [0, 1 / 255]}, "epsilons must be .*above 0"),
        ({"epsilons": []}, "epsilons"),
        ({"attack_steps": 0}, "at least 1"),
        ({"queries": 0}, "at least 1"),
        ({"probes": 0}, "at least 1"),
        ({"learning_steps": -1}, "learning_steps"),
        ({"surrogate": "meta"}, r"surrogate on meta; move it with \.to\('cpu'\)"),
    ],
)
def test_mistakes(codes, options, message):
    model = model_of(nn.Conv2d(3, 4, 3))
    if "surrogate" in options:
        options = {"surrogate": model_of(nn.Conv2d(3, 4, 3)).to("meta")}
    with pytest.raises(InputError, match=message):
        audit(model, codes, **{**OPTIONS, **options})


def test_nothing_to_rank(codes):
    with pytest.raises(InputError, match="no query or no gallery"):
        audit(model_of(Smooth()), ReIDDataset("x", codes.train, [], codes.gallery), **OPTIONS)


def test_features_that_are_not_finite_are_refused(codes):
    """That is no matter of gradients: the model cannot be used at all."""

    class Broken(Smooth):
        def activate(self, cells):
            return cells / 0

    with pytest.raises(InputError, match="NaN or infinite"):
        audit(model_of(Broken()), codes, **OPTIONS)
