"""Several surrogates: the loss and the gradient against each member's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import noise_datasets, random_batch, rng
from reidguard.attacks import DeltaAttack, MetaAttack
from reidguard.errors import InputError
from reidguard.models import EnsembleModel, ReIDModel, wrap_model
from reidguard.objectives import EnsembleLoss, FeatureObjective, MisrankingTriplet, PairWiseLoss
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


def test_mistakes(tmp_path) -> None:
    people, _ = noise_datasets(tmp_path, 2, SIZE)
    options = {"steps": 1, "identities": 2, "images_per_identity": 2}
    with pytest.raises(InputError, match="give a list of models"):
        DeltaAttack(size=SIZE).fit(members()[0], people, ensemble="loss", **options)
    with pytest.raises(InputError, match="an ensemble needs models"):
        DeltaAttack(size=SIZE).fit([], people, steps=1)
    with pytest.raises(InputError, match="did you mean 'features'"):
        DeltaAttack(size=SIZE).fit(members(), people, steps=1, ensemble="feature")
