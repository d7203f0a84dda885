"""Second derivatives of convolution and batch norm against finite differences and torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from reidguard.learners import MAMLLearner
from reidguard.nn.derivatives import LightDerivatives, batch_norm, convolve

DOUBLE = torch.float64


def random(*size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=generator, dtype=DOUBLE).requires_grad_()


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "channels", "kernel"),
    [
        (([1, 1], [0, 0], [1, 1], 1), (2, 3), (3, 2)),
        (([2, 1], [1, 2], [1, 1], 1), (2, 3), (3, 3)),
        (([2, 2], [3, 3], [1, 2], 1), (2, 2), (3, 2)),
        (([1, 1], [1, 1], [1, 1], 2), (4, 2), (3, 3)),
        (([2, 1], [1, 1], [1, 1], 4), (4, 4), (3, 3)),
    ],
    ids=["plain", "stride", "dilation", "groups", "depthwise"],
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_against_finite_differences(shape, channels, kernel, bias, layout):
    taken, given = channels
    x = random(2, taken, 6, 5).detach().contiguous(memory_format=layout).requires_grad_()
    weight = random(given, taken // shape[-1], *kernel, seed=1)
    shift = random(given, seed=2) if bias else None
    variables = (x, weight, shift) if bias else (x, weight)

    def convolution(x, weight, shift=None):
        return convolve(x, weight, shift, shape)

    assert torch.equal(convolution(*variables), F.conv2d(x, weight, shift, *shape))
    assert gradcheck(convolution, variables, fast_mode=True)
    assert gradgradcheck(convolution, variables, fast_mode=True)
    for fixed in range(len(variables)):  # one of them asks for nothing
        some = [v.detach() if i == fixed else v for i, v in enumerate(variables)]
        assert gradgradcheck(convolution, some, fast_mode=True)


@pytest.mark.parametrize("size", [(5, 3), (3, 2, 4, 3), (2, 2, 5)])
@pytest.mark.parametrize("fixed", [None, 0, 1, 2])
def test_batch_norm_against_finite_differences(size, fixed):
    x, weight, bias = random(*size), random(size[1], seed=1), random(size[1], seed=2)
    variables = [
        v.detach().requires_grad_(i != fixed) for i, v in enumerate((x * 2 + 1, weight, bias))
    ]

    def norm(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, True, 0.1, 1e-3)

    assert gradcheck(norm, variables)
    assert gradgradcheck(norm, variables)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_derivatives_of_a_network_are_those_of_torch(layout):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 2, 1)
    ).double()
    x = random(4, 3, 6, 5).detach().contiguous(memory_format=layout).requires_grad_()
    wanted = [x, *net.parameters()]

    def derivatives():
        value = net(x).pow(3).sum()
        found = [value]
        for _ in range(2):
            gradients = torch.autograd.grad(value, wanted, create_graph=True, allow_unused=True)
            value = sum(g.sin().sum() for g in gradients if g is not None)
            found += [value, *(g for g in gradients if g is not None)]
        return found

    own = derivatives()
    with LightDerivatives():
        other = derivatives()
    for one, two in zip(own, other, strict=True):
        close(one, two)


class Block(nn.Module):
    """What a ResNet is made of: stem, residual block with a stride, pooling, classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
            nn.BatchNorm2d(8),
        )
        self.short = nn.Sequential(nn.Conv2d(6, 8, 1, 2), nn.BatchNorm2d(8))
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.last(F.relu(self.body(x) + self.short(x)).mean((2, 3)))


def test_meta_gradient_of_a_network_in_training_is_that_of_torch():
    torch.manual_seed(0)
    module = Block().double()
    batches = [(random(6, 3, 12, 8, seed=i).detach(), torch.arange(6) % 4) for i in (5, 6)]

    def loss(module, batch):
        return F.cross_entropy(module(batch[0]), batch[1])

    names = dict(module.named_parameters())

    def at(weights, batch):
        state = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return F.cross_entropy(functional_call(module, (weights, state), (batch[0],)), batch[1])

    first = at(names, batches[0])
    step = torch.autograd.grad(first, list(names.values()), create_graph=True)
    moved = {name: p - 0.5 * g for (name, p), g in zip(names.items(), step, strict=True)}
    wanted = torch.autograd.grad(first + at(moved, batches[1]), list(names.values()))
    MAMLLearner(inner="sgd", inner_lr=0.5).step(module, loss, *batches)
    for parameter, gradient in zip(module.parameters(), wanted, strict=True):
        close(parameter.grad, gradient)
    assert module.stem[1].num_batches_tracked == 1
