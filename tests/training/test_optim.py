import copy

import pytest
import torch

from reidguard.training import MISGD


def by_hand(p, gradients, lr, momentum):
    v = torch.zeros_like(p)
    for g in gradients:
        v = momentum * v + g / (g.abs().sum() + 1e-12)
        p = p - lr * torch.sign(v)
    return p


@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.0])
def test_steps_match_the_definition(momentum):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, generator=g)
    gradients = [torch.randn(3, 4, generator=g) for _ in range(7)]
    p = torch.nn.Parameter(start.clone())
    optimizer = MISGD([p], lr=0.1, momentum=momentum)
    for gradient in gradients:
        p.grad = gradient
        optimizer.step()
    torch.testing.assert_close(p.data, by_hand(start, gradients, 0.1, momentum))


def test_each_tensor_is_normalised_alone_and_a_missing_gradient_is_left():
    a, b = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizer = MISGD([a, b], lr=1.0)
    a.grad = torch.tensor([1e-30, -1e-30])
    optimizer.step()
    assert a.tolist() == [-1, 1]
    assert b.tolist() == [0, 0]


def test_state_survives_a_round_trip():
    g = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(5, generator=g))
    optimizer = MISGD([p], lr=0.1)
    p.grad = torch.randn(5, generator=g)
    optimizer.step()
    q = torch.nn.Parameter(p.data.clone())
    other = MISGD([q], lr=0.1)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    p.grad = q.grad = -0.5 * p.grad
    optimizer.step()
    other.step()
    assert torch.equal(p, q)
