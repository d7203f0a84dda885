"""Inference views: the weights of a model without the model being touched."""

from __future__ import annotations

import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from reidguard.fingerprint import weights_fingerprint
from reidguard.models import BlackBoxModel, create_model, wrap_model
from reidguard.nn import inference_view
from reidguard.nn.modes import shared_copy
from reidguard.types import InputSpec

SMALL = {"size": (64, 32)}


def odd_model(name="osnet_x0_25", **options):
    """Modes and requires_grad as a user may have set them, different everywhere."""
    model = create_model(name, num_classes=3, **SMALL, **options)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    return model


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [(t.data_ptr(), t.stride(), t.clone()) for t in model.state_dict().values()],
    )


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    for (place, stride, value), (place_after, stride_after, value_after) in zip(
        before[2], after[2], strict=True
    ):
        assert (place, stride) == (place_after, stride_after)
        assert torch.equal(value, value_after)


def network(seed=0, norm=True):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    if norm:
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
    return net


def images(*size):
    return torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(3))


def test_a_view_is_ready_and_the_model_untouched():
    model = odd_model()
    before = state_of(model)
    view = inference_view(model)
    assert not any(module.training for module in view.modules())
    assert not any(parameter.requires_grad for parameter in view.parameters())
    x = torch.rand(2, 3, 64, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(view.features(x).sum(), x)
    assert gradient.abs().sum() > 0
    assert_same_state(before, state_of(model))
    assert weights_fingerprint(view) == weights_fingerprint(model)


def test_weights_are_shared_unless_folded():
    net = network()
    x = images(9, 7)
    plain, folded = inference_view(net, fold=False), inference_view(net)
    with torch.no_grad():
        net[0].weight.mul_(2)
        net[1].running_mean.add_(1)
        net.eval()
        assert torch.equal(plain(x), net(x))
        assert not torch.allclose(folded(x), net(x))
        torch.testing.assert_close(inference_view(net)(x), net(x))


def test_a_view_without_folding_equals_eval_mode_bit_by_bit():
    model = create_model("osnet_x0_25", **SMALL)
    view = inference_view(model, fold=False)
    with torch.no_grad():
        assert torch.equal(view.features(images(64, 32)), model.eval().features(images(64, 32)))


def test_modes_are_set_past_an_overridden_train():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def train(self, mode=True):
            return self

    model = nn.Sequential(Stubborn())
    assert not inference_view(inference_view(model))[0].norm.training
    assert model[0].norm.training


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_in_the_layout_of_their_model(layout):
    model = create_model("ide", backbone="test_resnet", **SMALL).to(memory_format=layout)
    before = state_of(model)
    view = inference_view(model)
    weights = [p for p in view.parameters() if p.dim() == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    assert_same_state(before, state_of(model))
    shared = [w.data_ptr() in {p.data_ptr() for p in model.parameters()} for w in weights]
    if layout == torch.channels_last:
        assert all(shared)


def test_tied_weights_and_shared_layers_stay_tied():
    layer = nn.Linear(4, 4)
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    net = nn.Sequential(layer, nn.ReLU(), other, layer)
    view = inference_view(net)
    assert view[0] is view[3]
    assert view[0].weight is view[2].weight
    assert len(list(view.parameters())) == len(list(net.parameters())) == 3
    assert torch.equal(view(torch.ones(2, 4)), net(torch.ones(2, 4)))


def test_references_inside_the_tree_are_the_views_own():
    class Entangled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.norm = nn.BatchNorm1d(3)
            self.steps = [
                self.norm.forward,
                partial(nn.functional.linear, weight=self.layer.weight),
            ]
            self.by_name = {"norm": (self.norm, [self.layer])}
            self.outside = [nn.Identity()]
            self.lock = threading.Lock()  # can be neither copied nor pickled

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return self.by_name["norm"][0](x)

    model = Entangled()
    view = inference_view(model, fold=False)
    assert view.by_name["norm"] == (view.norm, [view.layer])
    assert view.steps[0].__self__ is view.norm
    assert view.steps[1].keywords["weight"] is view.layer.weight
    assert view.lock is model.lock
    assert view.outside is model.outside
    before = state_of(model)
    result = view(torch.rand(5, 3))
    assert not result.requires_grad
    assert_same_state(before, state_of(model))


def test_hooks_are_kept_and_further_ones_stay_apart():
    net = network()
    net[2].register_forward_hook(lambda module, inputs, output: output + 1)
    calls = []
    view = inference_view(net, fold=False)
    view.register_forward_hook(lambda *_: calls.append(1))
    view.add_module("more", nn.Identity())
    x = images(9, 7)
    assert torch.equal(view(x), net.eval()(x))
    assert len(calls) == 1
    assert not hasattr(net, "more")


def test_parametrized_and_normalised_weights():
    with pytest.warns(FutureWarning):
        old = weight_norm(nn.Linear(4, 4))
    for layer in (
        old,
        parametrizations.weight_norm(nn.Linear(4, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.LSTM(4, 3, batch_first=True),
        nn.MultiheadAttention(4, 2),
    ):
        net = nn.Sequential(layer)
        x = torch.rand(2, 5, 4)
        args = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        view = inference_view(net)
        state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        first = view[0](*args)
        with torch.no_grad():
            expected = net.eval()[0](*args)
        for result, target in zip(
            first if isinstance(first, tuple) else [first],
            expected if isinstance(expected, tuple) else [expected],
            strict=True,
        ):
            if isinstance(result, torch.Tensor):
                torch.testing.assert_close(result, target)
                assert not result.requires_grad
        assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize("kind", ["script", "trace", "frozen"])
def test_torchscript(kind):
    net = network().eval()
    script = torch.jit.trace(net, images(16, 8)) if kind == "trace" else torch.jit.script(net)
    script = torch.jit.freeze(script) if kind == "frozen" else script.train()
    model = wrap_model(script, input_spec=InputSpec(size=(16, 8)))
    view = inference_view(model)
    torch.testing.assert_close(view.features(images(16, 8)), net(model.prepare(images(16, 8))))
    if kind == "frozen":
        return
    assert script.training
    assert not view.network.training
    assert all(p.requires_grad for p in script.parameters())
    with torch.no_grad():
        next(script.parameters()).zero_()
    assert not next(view.parameters()).any()


def test_compiled_modules_are_run_without_compilation():
    net = network()
    view = inference_view(wrap_model(torch.compile(net), input_spec=InputSpec(size=None)))
    with torch.no_grad():
        torch.testing.assert_close(
            view.features(images(9, 7)), net.eval()(InputSpec(size=None).apply(images(9, 7)))
        )


def test_functions_that_cannot_be_copied():
    lock = threading.Lock()

    def function(x):
        with lock:
            return x.mean((2, 3))

    model = BlackBoxModel(function, identity="mean", input_spec=InputSpec(size=None))
    view = inference_view(model)
    assert view.function is function
    assert torch.equal(view.features(images(9, 7)), model.features(images(9, 7)))


def test_inference_mode_does_not_reach_the_view():
    net = network()
    with torch.inference_mode():
        view = inference_view(net)
    x = images(9, 7).requires_grad_()
    (slope,) = torch.autograd.grad(view(x).square().sum(), x)
    assert slope.abs().max() > 0


def test_model_and_view_can_be_copied_and_saved_side_by_side():
    model = odd_model("ide", backbone="test_resnet")
    before = state_of(model)
    view = inference_view(model)
    with torch.no_grad():
        expected = view.features(images(64, 32))
    for thing in (model, view):
        file = io.BytesIO()
        torch.save(thing, file)
        file.seek(0)
        for twin in (copy.deepcopy(thing), torch.load(file, weights_only=False)):
            assert [m.training for m in twin.modules()] == [m.training for m in thing.modules()]
            with torch.no_grad():
                result = inference_view(twin).features(images(64, 32))
            torch.testing.assert_close(result, expected)
            with torch.no_grad():
                next(twin.parameters()).zero_()
    assert_same_state(before, state_of(model))


def test_threads_share_a_model():
    """Views come and go in some threads while others make theirs: all see the same network."""
    model = odd_model()
    before = state_of(model)
    with torch.no_grad():
        expected = inference_view(model).features(images(64, 32))

    def call(_):
        with torch.no_grad():
            return inference_view(model).features(images(64, 32))

    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(result, expected) for result in pool.map(call, range(12)))
    assert_same_state(before, state_of(model))


def test_a_shared_copy_learns_statistics_for_both():
    norm = nn.BatchNorm1d(2)
    twin = shared_copy(norm)
    twin(torch.rand(8, 2))
    assert norm.num_batches_tracked == 1
    assert torch.equal(norm.running_mean, twin.running_mean)
    assert not torch.equal(norm.running_mean, torch.zeros(2))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolutions_have_the_derivatives_of_others(groups, layout):
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=groups),
        nn.Tanh(),
        nn.Conv2d(6, 12, (3, 2), dilation=2, bias=False),
    ).double()
    x = torch.rand(3, 6, 14, 11, generator=rng, dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()

    def derivatives(net):
        value = net(x).square().sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(3).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad(second.sin().sum(), x)
        return value.detach(), first.detach(), second.detach(), third

    for result, expected in zip(derivatives(inference_view(net)), derivatives(net), strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def test_folded_batch_norms_compute_what_they_did():
    rng = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(4, affine=False)
    ).double()
    for norm in (net[1], net[3]):
        norm.running_mean.uniform_(-1, 1, generator=rng)
        norm.running_var.uniform_(0.5, 2, generator=rng)
    nn.init.uniform_(net[1].weight, generator=rng)
    nn.init.uniform_(net[1].bias, generator=rng)
    x = torch.rand(5, 3, 3, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    view = inference_view(inference_view(net))
    net.eval()
    (gradient,) = torch.autograd.grad(net(x).square().sum(), x)
    (gradient_of_view,) = torch.autograd.grad(view(x).square().sum(), x)
    torch.testing.assert_close(view(x), net(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_of_view, gradient, rtol=1e-12, atol=1e-12)
