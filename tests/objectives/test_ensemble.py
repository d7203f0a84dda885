"""Several surrogates: the loss and the gradient against each member's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import noise_datasets, random_batch, rng
from reidguard.attacks import DeltaAttack, MetaAttack
from reidguard.errors import InputError
from reidguard.models import EnsembleModel, ReIDModel, wrap_model
from reidguard.objectives import (
    EnsembleLoss,
    FeatureObjective,
    LabelWiseLoss,
    LogitEnsembleLoss,
    MisrankingTriplet,
    PairWiseLoss,
)
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (12, 8)
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def model(seed: int, width: int, gain: float, **options) -> ReIDModel:
    layers = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.Tanh(), nn.Flatten())
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(std=gain, generator=rng(seed))
    spec = InputSpec(**{"size": SIZE, **options})
    return wrap_model(layers, input_spec=spec, metric="euclidean").double().eval()


def members() -> list[ReIDModel]:
    """They differ in width, scale, size and channel order."""
    return [
        model(0, 3, 0.05),
        model(1, 5, 0.5, size=(9, 6), channels="bgr", value_range=255, **RAW),
    ]


@pytest.fixture
def batch() -> ReIDBatch:
    return random_batch(3, 2, SIZE, dtype=torch.float64)


def attack() -> DeltaAttack:
    made = DeltaAttack(Budget(0.1), SIZE).double()
    with torch.no_grad():
        made.delta.normal_(std=0.02, generator=rng(5))
    return made


def gradient(value: Tensor, made: DeltaAttack) -> Tensor:
    return torch.autograd.grad(value, made.delta)[0]


def test_the_loss_is_the_mean_of_the_members(batch: ReIDBatch) -> None:
    models, made = members(), attack()
    joint = FeatureObjective(EnsembleModel(models), EnsembleLoss(MisrankingTriplet()))
    alone = [FeatureObjective(m, MisrankingTriplet())(made, batch) for m in models]
    value = joint(made, batch)
    torch.testing.assert_close(value, (alone[0] + alone[1]) / 2)
    expected = (gradient(alone[0], made) + gradient(alone[1], made)) / 2
    torch.testing.assert_close(gradient(value, made), expected)


def test_equal_gradients_add_up_at_the_image(batch: ReIDBatch) -> None:
    models, made = members(), attack()
    loss = EnsembleLoss(MisrankingTriplet(), equal_gradients=True)
    value = FeatureObjective(EnsembleModel(models), loss)(made, batch)
    images = made(batch.images).detach().requires_grad_()
    total = torch.zeros_like(images)
    for one in models:
        own = FeatureObjective(one, MisrankingTriplet())(lambda x: images, batch)
        (part,) = torch.autograd.grad(own, images)
        total += part / part.abs().sum()
    expected = torch.autograd.grad(made(batch.images), made.delta, total)[0]
    torch.testing.assert_close(gradient(value, made), expected)


def test_statistics_are_each_member_s_own() -> None:
    models = members()
    loss = EnsembleLoss(PairWiseLoss())
    images = torch.rand(40, 3, *SIZE, dtype=torch.float64, generator=rng(6))
    with torch.no_grad():
        clean = loss.representation(EnsembleModel(models), images)
        ready = loss.with_statistics(clean)
        moved = ready.representation(EnsembleModel(models), (images + 0.05).clamp(0, 1))
        pids = torch.zeros(40, dtype=torch.int64)
        alone = []
        for one in models:
            own = PairWiseLoss()
            before = own.representation(one, images)
            after = own.representation(one, (images + 0.05).clamp(0, 1))
            alone.append(own.with_statistics(before)(after, before, pids))
        torch.testing.assert_close(ready(moved, clean, pids), torch.stack(alone).mean())


@pytest.mark.parametrize("how", ["features", "loss", "gradient"])
def test_fit_takes_a_list(how: str, tmp_path) -> None:
    people, others = noise_datasets(tmp_path, 4, SIZE)
    options = {"steps": 2, "identities": 2, "images_per_identity": 2, "image_size": SIZE}
    models = [one.float() for one in members()]
    for made in (DeltaAttack(size=SIZE), MetaAttack("delta", size=SIZE)):
        made.fit(models, people, others, ensemble=how, **options)
        assert made.provenance["ensemble"] == how
        assert all(bool(p.any()) for p in made.parameters())


def test_a_list_of_features_is_an_ensemble_model(tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 4, SIZE)
    options = {"steps": 2, "identities": 2, "images_per_identity": 2, "image_size": SIZE}
    models = [one.float() for one in members()]
    one = DeltaAttack(size=SIZE).fit(models, people, **options)
    other = DeltaAttack(size=SIZE).fit(EnsembleModel(models), people, **options)
    assert torch.equal(one.delta, other.delta)
    assert one.provenance == other.provenance


class Classifier(ReIDModel):
    """A linear classifier on a linear embedding."""

    def __init__(self, seed: int, width: int, classes: int = 5) -> None:
        raw = InputSpec(size=SIZE, **RAW)
        super().__init__(input_spec=raw, metric="euclidean", num_classes=classes)
        self.layer = nn.Linear(3 * SIZE[0] * SIZE[1], width)
        self.build_classifiers(width)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=rng(seed))

    def embed(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.flatten(1))


@torch.no_grad()
def test_logits_are_averaged_before_the_loss(batch: ReIDBatch) -> None:
    models = [Classifier(0, 4).double().eval(), Classifier(1, 6).double().eval()]
    moved = (batch.images + 0.1).clamp(0, 1)
    objective = FeatureObjective(EnsembleModel(models), LogitEnsembleLoss(LabelWiseLoss()))
    value = float(objective(lambda x: moved, batch))
    total = 0.0
    for before, after in zip(batch.images, moved, strict=True):
        pairs = [(m(before[None]).logits[0], m(after[None]).logits[0]) for m in models]
        clean = [(float(a) + float(b)) / 2 for a, b in zip(pairs[0][0], pairs[1][0], strict=True)]
        shown = [(float(a) + float(b)) / 2 for a, b in zip(pairs[0][1], pairs[1][1], strict=True)]
        best = clean.index(max(clean))
        rest = max(z for number, z in enumerate(shown) if number != best)
        total += max(0.0, shown[best] - rest)
    assert value == pytest.approx(total / len(moved), rel=1e-10)


def test_fit_by_mean_logits(tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 4, SIZE)
    options = {"steps": 2, "identities": 2, "images_per_identity": 2, "image_size": SIZE}
    models = [Classifier(0, 4).eval(), Classifier(1, 6).eval()]
    labelwise = {"objective": "labelwise", "ensemble": "logits"}
    made = DeltaAttack(size=SIZE).fit(models, people, **labelwise, **options)
    assert bool(made.delta.any())
    with pytest.raises(InputError, match='give objective="labelwise"'):
        DeltaAttack(size=SIZE).fit(models, people, ensemble="logits", **options)
    others = [models[0], Classifier(1, 6, 7).eval()]
    with pytest.raises(InputError, match="have 5, 7 classes"):
        DeltaAttack(size=SIZE).fit(others, people, **labelwise, **options)
    unlabelled = [models[0], members()[1].float()]
    with pytest.raises(InputError, match="has no classifier"):
        DeltaAttack(size=SIZE).fit(unlabelled, people, **labelwise, **options)


def test_mistakes(tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 2, SIZE)
    options = {"steps": 1, "identities": 2, "images_per_identity": 2}
    with pytest.raises(InputError, match="give a list of models"):
        DeltaAttack(size=SIZE).fit(members()[0], people, ensemble="loss", **options)
    with pytest.raises(InputError, match="an ensemble needs models"):
        DeltaAttack(size=SIZE).fit([], people, steps=1)
    with pytest.raises(InputError, match="did you mean 'features'"):
        DeltaAttack(size=SIZE).fit(members(), people, steps=1, ensemble="feature")
