"""Altered passes of surrogates: against derivatives by hand, and through ``fit``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import Killed, kill_at, noise_datasets, rng
from reidguard.attacks import DeltaAttack
from reidguard.errors import InputError
from reidguard.models import EnsembleModel, ReIDModel, TransferModel, create_model, wrap_model
from reidguard.types import InputSpec

SIZE = (4, 2)
INSIDE = 3 * SIZE[0] * SIZE[1]
SHORT = {"steps": 4, "identities": 2, "images_per_identity": 2, "image_size": SIZE}


class Residual(nn.Module):
    """Two residual blocks, the second with a projection; five ReLUs, all written differently."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        shapes = [(INSIDE, width)] + [(width, width)] * 2 + [(width, 7)] + [(width, 7), (7, 7)]
        self.layers = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in [*shapes, (7, 4)])
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.6, generator=rng(seed))
            seed += 1
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        first, a, b, projection, c, d, last = self.layers
        x = torch.relu(first(x.flatten(1)))
        y = b(F.relu(a(x)))
        y += x
        x = self.relu(y)
        x = projection(x) + d(c(x).relu())
        return last(F.relu(x))


def network(seed: int = 0) -> ReIDModel:
    raw = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    spec = InputSpec(size=SIZE, **raw)
    return wrap_model(Residual(seed), input_spec=spec, metric="euclidean").eval()


def by_hand(
    model: ReIDModel, x: Tensor, gradient: Tensor, *, skip: float = 1.0, linear: int = 0
) -> Tensor:
    """The gradient by one image: matrix after matrix, from the last to the first."""
    first, a, b, projection, c, d, last = (w.weight.detach() for w in model.network.layers)
    h1 = first @ x.flatten()
    x1 = h1.clamp(min=0)
    h2 = a @ x1
    h3 = b @ h2.clamp(min=0) + x1
    x3 = h3.clamp(min=0)
    h4 = c @ x3
    h5 = projection @ x3 + d @ h4.clamp(min=0)

    def through(number: int, value: Tensor, vector: Tensor) -> Tensor:
        """Back through a ReLU, of which the last ``linear`` have the derivative 1."""
        return vector if number > 5 - linear else vector * (value > 0)

    def branch(number: int, value: Tensor, inner: Tensor, outer: Tensor, v: Tensor) -> Tensor:
        true = inner.T @ ((outer.T @ v) * (value > 0))
        altered = inner.T @ through(number, value, outer.T @ v)
        return skip * altered * true.norm() / altered.norm().clamp(min=1e-12)

    v = through(5, h5, last.T @ gradient)
    v = projection.T @ v + branch(4, h4, c, d, v)
    v = through(3, h3, v)
    v = v + branch(2, h2, a, b, v)
    return (first.T @ through(1, h1, v)).view_as(x)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"skip_gradient": 0.3}, {"skip": 0.3}),
        ({"linear_backward": 0.2}, {"linear": 1}),
        ({"linear_backward": 0.6}, {"linear": 3}),
        ({"linear_backward": 1.0}, {"linear": 5}),
        ({"linear_backward": 0.7, "skip_gradient": 0.5}, {"linear": 4, "skip": 0.5}),
    ],
)
def test_gradients_are_those_by_hand(options: dict, expected: dict) -> None:
    model = network().double()
    x = torch.rand(4, 3, *SIZE, dtype=torch.float64, generator=rng(1)).requires_grad_()
    vectors = torch.randn(4, 4, dtype=torch.float64, generator=rng(2))
    features = TransferModel(model, **options).features(x)
    assert torch.equal(features, model.features(x))
    (gradient,) = torch.autograd.grad(features, x, vectors)
    for one, vector, own in zip(x.detach(), vectors, gradient, strict=True):
        torch.testing.assert_close(own, by_hand(model, one, vector, **expected))


def test_ghosts_multiply_shortcuts() -> None:
    model = network()
    x = torch.rand(2, 3, *SIZE, generator=rng(1)).requires_grad_()
    ghost = TransferModel(model, ghost=0.4)
    torch.manual_seed(3)
    first, second = ghost.features(x), ghost.features(x)
    torch.manual_seed(3)
    first_layer, a, b, projection, c, d, last = model.network.layers
    for features in (first, second):
        factors = 1 + 0.4 * (2 * torch.stack([torch.rand(()), torch.rand(())]) - 1)
        y = F.relu(first_layer(x.flatten(1)))
        y = F.relu(b(F.relu(a(y))) + factors[0] * y)
        y = last(F.relu(factors[1] * projection(y) + d(F.relu(c(y)))))
        torch.testing.assert_close(features, y)
    assert not torch.allclose(first, second)
    with torch.no_grad():
        assert torch.equal(ghost.features(x), model.features(x))


def test_second_derivatives_follow_the_altered_pass() -> None:
    """With φ linear around x, g(x) = Jᵀ 2φ(x), J altered; back through g: H = 2 Jᵀ J."""
    model = network().double()
    x = torch.rand(1, 3, *SIZE, dtype=torch.float64, generator=rng(1)).requires_grad_()
    other = torch.randn(1, 3, *SIZE, dtype=torch.float64, generator=rng(2))
    surrogate = TransferModel(model, skip_gradient=0.3)
    features = surrogate.features(x)
    (gradient,) = torch.autograd.grad(features.square().sum(), x, create_graph=True)
    (product,) = torch.autograd.grad(gradient, x, other)
    rows = [by_hand(model, x.detach()[0], row, skip=0.3) for row in torch.eye(4).double()]
    jacobian = torch.stack(rows).flatten(1)
    expected = 2 * jacobian.T @ (jacobian @ other.flatten())
    torch.testing.assert_close(product.flatten(), expected)


@pytest.mark.parametrize(
    ("name", "options", "branches", "relus"),
    [
        ("osnet_x0_25", {}, 6, 101),
        ("ide", {"backbone": "resnet18"}, 8, 17),
        ("ide", {"backbone": "vit_tiny_patch16_224", "last_stride": 2}, 24, 0),
        ("ide", {"backbone": "mobilenetv2_100", "last_stride": 2}, 10, 35),
    ],
)
def test_branches_and_relus_are_found(name: str, options: dict, branches: int, relus: int) -> None:
    model = create_model(name, size=(64, 32), **options).eval()
    found = TransferModel(model)._probe()
    assert (found.branches, found.relus) == (branches, relus)


def test_networks_without_them_are_refused() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(INSIDE, 4), nn.Tanh())
    smooth = wrap_model(layers, input_spec=InputSpec(size=SIZE)).eval()
    for option in ("skip_gradient", "ghost"):
        with pytest.raises(InputError, match=f"{option} is for networks with residual branches"):
            TransferModel(smooth, **{option: 0.5})
    with pytest.raises(InputError, match="linear_backward is for networks with ReLUs"):
        TransferModel(smooth, linear_backward=0.5)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory):
    return noise_datasets(tmp_path_factory.mktemp("people"), 4, SIZE)[0]


ON = [{"skip_gradient": 0.5}, {"linear_backward": 0.6}, {"ghost": 0.4}]


@pytest.mark.parametrize("options", ON, ids=str)
def test_fit_learns_with_them(options: dict, people, tmp_path) -> None:
    models = [network(), network(9)]
    plain = DeltaAttack(size=SIZE).fit(models, people, ensemble="loss", **SHORT)
    neutral = {"skip_gradient": 1.0, "linear_backward": 0.0, "ghost": 0.0}
    off = DeltaAttack(size=SIZE).fit(models, people, ensemble="loss", **neutral, **SHORT)
    assert torch.equal(plain.delta, off.delta)
    on = DeltaAttack(size=SIZE).fit(models, people, ensemble="loss", **options, **SHORT)
    assert not torch.equal(plain.delta, on.delta)
    (name,) = options
    assert on.provenance[name] == options[name]
    assert on.provenance["model"] == plain.provenance["model"]
    members = [TransferModel(model, **options) for model in models]
    own = DeltaAttack(size=SIZE).fit(EnsembleModel(members), people, ensemble="loss", **SHORT)
    assert torch.equal(own.delta, on.delta)


def test_a_killed_run_draws_the_same_ghosts(people, tmp_path) -> None:
    options = {**SHORT, "ghost": 0.4, "checkpoint_every": 1}
    whole = DeltaAttack(size=SIZE).fit(network(), people, **options)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        DeltaAttack(size=SIZE).fit(
            network(), people, checkpoint=path, progress=kill_at(2), **options
        )
    resumed = DeltaAttack(size=SIZE).fit(network(), people, checkpoint=path, **options)
    assert torch.equal(whole.delta, resumed.delta)
    other = DeltaAttack(size=SIZE).fit(network(), people, **{**options, "seed": 1})
    assert not torch.equal(whole.delta, other.delta)


@pytest.mark.parametrize("learner", ["first_order", "maml"])
def test_meta_learning_over_networks_with_them(learner: str, people) -> None:
    models = [network(), network(9), network(20)]
    options = {"skip_gradient": 0.5, "linear_backward": 0.6, "ghost": 0.4, "learner": learner}
    made = DeltaAttack(size=SIZE).fit(models, people, ensemble="left_out", **options, **SHORT)
    assert bool(made.delta.isfinite().all())
    assert bool(made.delta.any())
