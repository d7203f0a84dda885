"""Victims whose gradient is zero or missing: a warning or an error, never a silent result."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reidguard as rg
from helpers import Killed, TinyNet, kill_at, noise_datasets, random_batch
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.nn import inference_view
from reidguard.nn.gradients import count_gradients, usable
from reidguard.objectives.base import FeatureObjective

SIZE = (32, 16)
FIT: dict[str, Any] = {"identities": 2, "images_per_identity": 2, "image_size": SIZE, "steps": 2}
GRADIENT_ATTACKS = ["sma", "odfa", "fna", "metric_fgsm", "metric_ifgsm", "metric_mifgsm"]
LEARNED: dict[str, dict[str, Any]] = {
    "delta": {"size": SIZE},
    "color": {"resolution": 3},
    "combinatorial": {"size": SIZE, "resolution": 3},
    "uap": {"size": SIZE},
    "misrank": {"size": SIZE, "width": 1},
}


class Rounded(TinyNet):
    """Features in steps: differentiable as far as autograd knows, with a gradient of zero."""

    def embed(self, inputs: Tensor) -> Tensor:
        return (50 * super().embed(inputs)).round()


class Detached(TinyNet):
    def embed(self, inputs: Tensor) -> Tensor:
        return super().embed(inputs).detach()


class NoGrad(TinyNet):
    def embed(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return super().embed(inputs)


class Inference(TinyNet):
    def embed(self, inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return super().embed(inputs)


class Numpy(TinyNet):
    def embed(self, inputs: Tensor) -> Tensor:
        return torch.from_numpy(super().embed(inputs).numpy())


class NaNGradient(TinyNet):
    def embed(self, inputs: Tensor) -> Tensor:
        features = super().embed(inputs)
        return features + 0 * ((inputs - inputs).abs().sum((1, 2, 3)).sqrt())[:, None]


def seeded(kind: type[TinyNet]) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> rg.ReIDDataset:
    base = noise_datasets(tmp_path_factory.mktemp("noise"), 2, SIZE)[0]
    samples = base.train
    return rg.ReIDDataset("noise", samples, samples[::2], samples[1::2])


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, *SIZE), generator=generator) / 255


def bound(name: str, model: rg.ReIDModel) -> rg.InstanceAttack:
    attack = rg.create_attack(name)
    assert isinstance(attack, rg.InstanceAttack)
    with torch.no_grad():
        guides = rg.Guides(model.features(images(6)), [1, 1, 2, 2, 3, 3])
    return attack.bind(model, guides)


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("kind", [Rounded, NaNGradient])
def test_gradient_attacks_warn(name: str, kind: type[TinyNet]) -> None:
    attack = bound(name, seeded(kind))
    with pytest.warns(rg.ZeroGradientWarning, match=r"^100 % .* SquareAttack.* audit\(") as caught:
        attack(images() * 0.5 + 0.2)
    assert len(caught) == 1


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
@pytest.mark.parametrize("step_size", [1 / 255, None])
def test_gradient_attacks_are_silent_on_a_smooth_model(name: str, step_size: float | None) -> None:
    model = seeded(TinyNet)
    attack = bound(name, model)
    if name not in ("metric_fgsm", "metric_mifgsm"):
        attack = type(attack)(step_size=step_size).bind(
            model, rg.Guides(model.features(images(6)).detach(), [1, 1, 2, 2, 3, 3])
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(images())


@pytest.mark.parametrize("kind", [Detached, NoGrad, Inference, Numpy])
def test_a_missing_graph_is_one_error(kind: type[TinyNet], data: rg.ReIDDataset) -> None:
    model = seeded(kind)
    message = rf"no gradient passes through {kind.__name__}: .* SquareAttack"
    for name in GRADIENT_ATTACKS:
        with pytest.raises(rg.InputError, match=message):
            bound(name, model)(images())
    for name, options in LEARNED.items():
        attack = rg.create_attack(name, **options)
        assert isinstance(attack, rg.LearnedAttack)
        with pytest.raises(rg.InputError, match=message):
            attack.fit(model, data, **FIT)
    assert not torch.equal(bound("square", model)(images()), images())
    report = rg.audit(model, data, protocol=rg.Protocol(image_size=SIZE), queries=2, probes=2)
    assert "zero_gradients" in {finding.name for finding in report.warnings}


@pytest.mark.parametrize("name", LEARNED)
def test_fit_warns_and_the_card_keeps_it(name: str, data: rg.ReIDDataset, tmp_path: Path) -> None:
    attack = rg.create_attack(name, **LEARNED[name])
    assert isinstance(attack, rg.LearnedAttack)
    kind = type(attack).__name__
    with pytest.warns(rg.ZeroGradientWarning, match=f"^100 % of the gradients of {kind} are"):
        attack.fit(seeded(Rounded), data, **FIT)
    attack.save(tmp_path / "attack.safetensors")
    loaded = rg.load_attack(tmp_path / "attack.safetensors")
    assert loaded.provenance is not None
    assert loaded.provenance["zero_gradients"] == 1.0
    with pytest.warns(rg.ZeroGradientWarning):
        result = rg.evaluate(seeded(TinyNet), data, loaded, rg.Protocol(image_size=SIZE))
    assert result.attack is not None
    assert result.attack["zero_gradients"] == 1.0


@pytest.mark.parametrize("name", [*LEARNED, "meta"])
@pytest.mark.parametrize("learner", ["plain", "maml"])
def test_fit_is_silent_on_a_smooth_model(name: str, learner: str, data: rg.ReIDDataset) -> None:
    if name == "misrank" and learner == "maml":
        return
    options = {"size": SIZE, "resolution": 3} if name == "meta" else LEARNED[name]
    attack = rg.create_attack(name, **options)
    assert isinstance(attack, rg.LearnedAttack)
    other = data if learner == "maml" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error", rg.ZeroGradientWarning)
        attack.fit(seeded(TinyNet), data, other, **FIT, learner=learner)
    assert attack.provenance is not None
    assert "zero_gradients" not in attack.provenance


class Constant(TinyNet):
    """All images have the same features: every distance is zero, and so is its gradient."""

    def embed(self, inputs: Tensor) -> Tensor:
        return 0 * super().embed(inputs) + 1


@pytest.mark.parametrize("name", ["delta", "uap"])
def test_equal_features_are_no_optimum(name: str, data: rg.ReIDDataset) -> None:
    attack = rg.create_attack(name, size=SIZE)
    assert isinstance(attack, rg.LearnedAttack)
    objective = {} if name == "delta" else {"objective": "self_metric"}
    with pytest.warns(rg.ZeroGradientWarning, match="^100 %"):
        attack.fit(seeded(Constant), data, **FIT, **objective)
    with pytest.warns(rg.ZeroGradientWarning, match="^100 %"):
        rg.SMA(steps=2).bind(seeded(Constant))(images())


class Satisfied(rg.AttackLoss):
    """A hinge that every image is beyond."""

    def __call__(self, adversarial: Tensor, clean: Tensor, pids: Tensor) -> Tensor:
        return (adversarial - 1e6).clamp(min=0).sum()


def test_a_satisfied_hinge_is_an_optimum() -> None:
    attack, model = rg.DeltaAttack(size=SIZE), seeded(TinyNet)
    batch = random_batch(2, 2, SIZE)
    for loss, needed in ((Satisfied(), 0), (rg.ATTACK_LOSSES.create("misranking"), 4)):
        with count_gradients() as count:
            FeatureObjective(inference_view(model), loss)(attack, batch).backward()
        assert count.read() == (needed, needed)


def test_a_resumed_run_keeps_the_count(data: rg.ReIDDataset, tmp_path: Path) -> None:
    model = seeded(Rounded)
    options: dict[str, Any] = {**FIT, "steps": 3, "checkpoint": tmp_path / "c"}
    with count_gradients() as whole:
        rg.DeltaAttack(size=SIZE).fit(model, data, **{**FIT, "steps": 3})
    with count_gradients(), contextlib.suppress(Killed):
        rg.DeltaAttack(size=SIZE).fit(
            model, data, **options, checkpoint_every=1, progress=kill_at(2)
        )
    with count_gradients() as resumed:
        rg.DeltaAttack(size=SIZE).fit(model, data, **options)
    assert whole.read()[0] > 6
    assert whole.read()[1] == 0
    assert resumed.read() == whole.read()


def test_evaluate_grid_and_suite_warn_once(data: rg.ReIDDataset) -> None:
    model, small = seeded(Rounded), rg.Protocol(image_size=SIZE)
    with pytest.warns(rg.ZeroGradientWarning, match="^100 % of the gradients of SMA") as caught:
        result = rg.evaluate(model, data, rg.SMA(steps=2).bind(model), small, batch_size=2)
    assert len(caught) == 1
    assert result.to_dict()["attack"]["zero_gradients"] == 1.0
    assert "WARNING: 100 % of the gradients of SMA are zero" in result.to_markdown()
    with pytest.warns(rg.ZeroGradientWarning, match="of short on rounded") as caught:
        grid = rg.evaluate_grid(
            {"short": rg.SMA(steps=2)}, {"rounded": model}, {"noise": data}, small
        )
    assert len(caught) == 1
    assert grid.cells[0].zero_gradients == 1.0
    assert "WARNING: 100 % of the gradients of short on rounded" in grid.to_markdown()
    suite = rg.RetrievalAutoAttack(restarts=1, steps=2, squares=2)
    with pytest.warns(rg.ZeroGradientWarning) as caught:
        worst = suite.run(model, data, small, audit_queries=0)
    assert [str(w.message).partition(" are")[0] for w in caught] == [
        f"100 % of the gradients of the suite's {name}"
        for name in ("self-metric", "furthest-negative")
    ]
    assert "zero_gradients" in worst.warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.audit(model, data, protocol=small, queries=2, probes=2)  # its finding says it


def test_a_defense_warns(data: rg.ReIDDataset) -> None:
    options = {**FIT, "steps": 1}
    with pytest.warns(rg.ZeroGradientWarning, match="of the gradients of SMA"):
        robust = rg.AdversarialTraining(rg.SMA(steps=1), losses=("triplet",)).fit(
            Smooth.over(seeded(Rounded)), data, **options
        )
    assert robust.provenance is not None
    assert robust.provenance["zero_gradients"] == 1.0


class Smooth(TinyNet):
    """Trains on smooth embeddings; its test-time features are rounded."""

    @classmethod
    def over(cls, model: TinyNet) -> TinyNet:
        model.__class__ = cls
        return model

    def features(self, x: Tensor) -> Tensor:
        return (50 * super().features(x)).round()

    def forward(self, x: Tensor, domain: str | None = None) -> rg.ReIDOutput:
        features = TinyNet.features(self, x)
        return rg.ReIDOutput(features, features, None)


def test_no_false_alarm() -> None:
    """Clipped pixels, dead units and a loss at its optimum are no masked gradients."""
    relu = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.ReLU(), nn.Flatten())
    torch.manual_seed(0)
    nn.init.normal_(relu[0].weight)
    model = rg.wrap_model(relu, input_spec=rg.InputSpec(size=None), metric="euclidean")
    x = images()
    x[:, :, :8] = 0  # black, where half of the steps are clipped
    guides = rg.Guides(model.features(x).detach(), [1, 2, 3, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rg.MetricFGSM().bind(model, guides).with_labels([4, 3, 2, 1])(x)
        # Targeted at the image itself, the objective is at its maximum: nothing is to be gained.
        alone = rg.Guides(guides.features[:1], [1])
        still = rg.MetricFGSM(targeted=True).bind(model, alone)(x[:1])
        assert torch.equal(still, x[:1])
    # At its minimum the gradient is zero as well, and the attack fails.
    with pytest.warns(rg.ZeroGradientWarning):
        rg.MetricFGSM().bind(model, alone)(x[:1])


def test_usable_gradients() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, 1e-30], [torch.nan, 1.0], [torch.inf, 1.0], [-1.0, 0.0]])
    assert usable(rows).tolist() == [False, True, False, False, True]


def test_the_count_leaves_the_fingerprint_alone() -> None:
    model = seeded(TinyNet)
    attack = rg.SMA(steps=1).bind(model)
    before = attack_fingerprint(attack, SIZE)
    attack(images())
    assert attack_fingerprint(attack, SIZE) == before
