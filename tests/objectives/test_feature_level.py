"""Losses on a map inside the surrogate: against loops over images, draws and values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import Killed, kill_at, noise_datasets, random_batch, rng
from reidguard.attacks import DeltaAttack
from reidguard.errors import InputError
from reidguard.models import EnsembleModel, ReIDModel, TransferModel, create_model, wrap_model
from reidguard.nn.maps import find_layer
from reidguard.objectives import (
    AttackLoss,
    DispersionLoss,
    EnsembleLoss,
    FeatureImportanceLoss,
    FeatureObjective,
    NeuronAttributionLoss,
)
from reidguard.types import InputSpec

SIZE = (16, 8)
SHORT = {"steps": 3, "identities": 2, "images_per_identity": 2, "image_size": SIZE}
LOSSES = [DispersionLoss(), FeatureImportanceLoss(draws=3), NeuronAttributionLoss(points=3)]


class Net(nn.Module):
    """Three stages, each of half the resolution; the ReLU after the second works in place."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 5, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.third = nn.Conv2d(5, width, 3, stride=2, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.4, generator=rng(seed))

    def head(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))

    def tail(self, x: Tensor) -> Tensor:
        return self.third(self.relu(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(x))


def network(seed: int = 0, width: int = 6, metric: str = "cosine") -> ReIDModel:
    spec = InputSpec(size=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return wrap_model(Net(seed, width), input_spec=spec, metric=metric).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, *SIZE, dtype=torch.float64, generator=rng(7))


def test_dispersion_is_the_mean_of_standard_deviations(images: Tensor) -> None:
    model = network().double()
    loss = DispersionLoss("network.second")
    value = loss(loss.representation(model, images), images, images)
    total = 0.0
    for image in images:
        numbers = model.network.head(image[None]).flatten().tolist()
        mean = sum(numbers) / len(numbers)
        total += (sum((n - mean) ** 2 for n in numbers) / (len(numbers) - 1)) ** 0.5
    assert float(value.detach()) == pytest.approx(total / len(images), rel=1e-12)


def slope(net: Net, metric: str, variant: Tensor, image: Tensor) -> Tensor:
    """The gradient by the map of minus half the squared distance to the image, for one image."""

    def place(features: Tensor) -> Tensor:
        return features / features.norm() if metric == "cosine" else features

    target = place(net(image[None]).detach())
    inside = net.head(variant[None]).detach().requires_grad_()
    similarity = -(place(net.tail(inside.clone())) - target).square().sum() / 2
    return torch.autograd.grad(similarity, inside)[0].flatten()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_fia_weighs_by_the_aggregate_gradient(metric: str, images: Tensor) -> None:
    model = network(metric=metric).double()
    loss = FeatureImportanceLoss("network.second", draws=5, drop=0.4)
    moved = (images + 0.05).clamp(max=1)
    torch.manual_seed(0)
    with torch.no_grad():
        clean = loss.reference(model, images)
    value = loss(loss.representation(model, moved), clean, images)
    torch.manual_seed(0)
    masks = [torch.rand(1, 3, *SIZE) >= 0.4 for _ in range(5)]
    total = torch.zeros((), dtype=torch.float64)
    for image, other in zip(images, moved, strict=True):
        slopes = [slope(model.network, metric, image * mask[0], image) for mask in masks]
        weights = torch.stack(slopes).sum(0)
        total += (weights / weights.norm()) @ model.network.head(other[None]).flatten()
    torch.testing.assert_close(value, total / len(images))


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_naa_adds_up_attributions(gamma: float, images: Tensor) -> None:
    model = network().double()
    loss = NeuronAttributionLoss("network.second", points=4, gamma=gamma)
    moved = (images + 0.05).clamp(max=1)
    with torch.no_grad():
        clean = loss.reference(model, images)
    value = loss(loss.representation(model, moved), clean, images)
    black = model.network.head(torch.zeros(1, 3, *SIZE).double()).flatten()
    total = 0.0
    for image, other in zip(images, moved, strict=True):
        points = [image * (m / 4) for m in (1, 2, 3, 4)]
        mean = torch.stack([slope(model.network, "cosine", x, image) for x in points]).mean(0)
        maps = model.network.head(other[None]).flatten()
        for a in ((maps - black) * mean / mean.norm()).tolist():
            total += a if a >= 0 else gamma * a
    assert float(value.detach()) == pytest.approx(total / len(images), rel=1e-10)


def test_a_part_of_the_images_has_its_part_of_the_weights(images: Tensor) -> None:
    """So that several processes, each with a shard of the batch, learn the same."""
    model = network().double()
    for loss in LOSSES:
        torch.manual_seed(0)
        whole = loss.reference(model, images)
        torch.manual_seed(0)
        torch.testing.assert_close(loss.reference(model, images[1:3]), whole[1:3])


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("osnet_x0_25", {}, "conv2"),
        ("ide", {"backbone": "resnet18", "last_stride": 2}, "backbone.layer3"),
        ("ide", {"backbone": "resnet18", "last_stride": 1}, "backbone.layer2"),
        ("ide", {"backbone": "mobilenetv2_100", "last_stride": 2}, "backbone.blocks.4"),
    ],
)
def test_the_usual_layer(name: str, options: dict, layer: str) -> None:
    model = create_model(name, size=(64, 32), **options).eval()
    images = torch.rand(1, 3, 64, 32)
    assert find_layer(model, None, images) is model.get_submodule(layer)
    wrapped = TransferModel(model, skip_gradient=0.5)
    found = wrapped.model.get_submodule(layer)
    assert find_layer(wrapped, None, images) is find_layer(wrapped, layer, images) is found


def test_layers_that_are_not_there() -> None:
    images = torch.rand(1, 3, 64, 32)
    model = create_model("osnet_x0_25", size=(64, 32)).eval()
    with pytest.raises(InputError, match=r"has no layer 'conv9': .*name one .*conv1, maxpool"):
        DispersionLoss("conv9").representation(model, images)
    transformer = create_model("ide", backbone="test_vit", last_stride=2, size=(64, 32)).eval()
    with pytest.raises(InputError, match=r"no map before its final resolution.*backbone.blocks"):
        DispersionLoss().representation(transformer, images)
    tokens = DispersionLoss("backbone.blocks.0").representation(transformer, images)
    assert tokens.shape == (1, 1)
    with pytest.raises(InputError, match='give ensemble="loss"'):
        DispersionLoss().representation(EnsembleModel([model, model]), images)
    flat = wrap_model(nn.Flatten(), input_spec=InputSpec(size=SIZE)).eval()
    with pytest.raises(InputError, match="which this is not"):
        DispersionLoss().representation(flat, images)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory):
    return noise_datasets(tmp_path_factory.mktemp("people"), 4, SIZE)[0]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_fit_lowers_the_loss(loss: AttackLoss, people) -> None:
    model, batch = network(), random_batch(4, 2, SIZE)
    attack = DeltaAttack(size=SIZE)
    objective = FeatureObjective(model, loss)
    torch.manual_seed(0)
    before = float(objective(attack, batch).detach())
    attack.fit(model, people, objective=loss, **{**SHORT, "steps": 12})
    torch.manual_seed(0)
    assert float(objective(attack, batch).detach()) < before
    facts = attack.provenance
    assert facts["objective"] in ("dispersion", "fia", "naa")
    expected = {"fia": {"draws": 3}, "naa": {"points": 3}}.get(facts["objective"])
    assert facts.get("objective_options") == expected


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_networks_of_other_widths_and_meta_learning_over_them(loss: AttackLoss, people) -> None:
    models = [network(), network(3, 7), network(4, 8, "euclidean")]
    for options in (
        {"ensemble": "loss"},
        {"ensemble": "gradient", "scales": 2},
        {"ensemble": "left_out", "learner": "maml"},
    ):
        attack = DeltaAttack(size=SIZE).fit(models, people, objective=loss, **options, **SHORT)
        assert bool(attack.delta.any())
        assert bool(attack.delta.isfinite().all())


def test_an_ensemble_means_the_losses_of_its_members() -> None:
    models, batch = [network(), network(3, 7)], random_batch(4, 2, SIZE)
    for loss in LOSSES:
        torch.manual_seed(0)
        joint = FeatureObjective(EnsembleModel(models), EnsembleLoss(loss))(lambda x: x, batch)
        torch.manual_seed(0)
        alone = [FeatureObjective(m, loss)(lambda x: x, batch) for m in models]
        torch.testing.assert_close(joint, torch.stack(alone).mean())


def test_a_killed_run_draws_the_same_masks(people, tmp_path) -> None:
    options = {**SHORT, "objective": FeatureImportanceLoss(draws=2), "checkpoint_every": 1}
    whole = DeltaAttack(size=SIZE).fit(network(), people, **options)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        DeltaAttack(size=SIZE).fit(
            network(), people, checkpoint=path, progress=kill_at(2), **options
        )
    resumed = DeltaAttack(size=SIZE).fit(network(), people, checkpoint=path, **options)
    assert torch.equal(whole.delta, resumed.delta)
