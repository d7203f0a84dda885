"""The contract suite of learners.

Each check takes a factory ``make() -> MetaLearner`` and raises an AssertionError that says what is
wrong::

    @pytest.mark.parametrize("check", LEARNER_CHECKS)
    def test_my_learner(check):
        check(MyLearner)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.learners import MetaLearner, StepResult

__all__ = ["LEARNER_CHECKS", "LearnerFactory"]

LearnerFactory = Callable[[], MetaLearner]

Pair = tuple[Tensor, Tensor]


class _Network(nn.Module):
    """Small and smooth, with a batch norm, and with one parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)
        self.spare = nn.Parameter(torch.zeros(3))
        generator = torch.Generator().manual_seed(0)
        for parameter in (*self.first.parameters(), *self.last.parameters()):
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.norm(self.first(x))))
        return out


def _objective(module: Any, batch: Pair) -> Tensor:
    return F.mse_loss(module(batch[0]), batch[1])


def _batch(seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(8, 2, generator=generator, dtype=torch.float64)


def _step(
    learner: MetaLearner,
    module: nn.Module,
    objective: Callable[[Any, Any], Tensor] = _objective,
    test: int = 2,
) -> StepResult:
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    before = repr(optimizer.state_dict())
    other = _batch(test) if learner.needs_meta_test else None
    result = learner.step(module, objective, _batch(1), other, optimizer=optimizer)
    assert repr(optimizer.state_dict()) == before, "the caller's optimiser changed"
    return result


def check_gradient(make: LearnerFactory) -> None:
    """A gradient is left in ``.grad``, the parameters stay, and the losses are returned."""
    module, learner = _Network(), make()
    before = [p.detach().clone() for p in module.parameters()]
    stale = torch.full_like(module.last.bias, 1e9)
    module.last.bias.grad = stale
    result = _step(learner, module)
    for (name, p), old in zip(module.named_parameters(), before, strict=True):
        assert torch.equal(p, old), f"{name} was moved: only the caller's optimiser may do that"
        if name != "spare":
            assert p.grad is not None, f"{name} has no gradient"
            assert bool(torch.isfinite(p.grad).all()), f"the gradient of {name} is not finite"
            assert not p.grad.requires_grad, f"the gradient of {name} is on a graph"
    assert float(module.last.bias.grad.abs().max()) < 1e8, "an earlier gradient was added to"
    assert result.unused == ("spare",), f"unused is {result.unused}, not ('spare',)"
    torch.testing.assert_close(
        result.train_loss, _objective(_Network(), _batch(1)).detach(),
        msg=lambda text: f"train_loss is not the loss before the step: {text}",
    )  # fmt: skip
    assert not result.train_loss.requires_grad, "train_loss is on a graph"
    assert (result.test_loss is not None) == learner.needs_meta_test, "test_loss"


def check_direction(make: LearnerFactory) -> None:
    """With two equal batches and a small step, the gradient points where the plain one does."""
    module, plain = _Network(), _Network()
    _step(make(), module, test=1)
    _objective(plain, _batch(1)).backward()  # type: ignore[no-untyped-call]
    gradient, expected = (
        torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
        for m in (module, plain)
    )
    cosine = float(F.cosine_similarity(gradient, expected, dim=0))
    assert cosine > 0.9, f"cosine {cosine:.3f} to the gradient of the loss"


def check_batch_norm(make: LearnerFactory) -> None:
    """Running statistics move once, as in one plain pass over the meta-train batch."""
    module, plain = _Network(), _Network()
    _objective(plain, _batch(1))
    _step(make(), module)
    for (name, buffer), expected in zip(module.named_buffers(), plain.buffers(), strict=True):
        same = torch.allclose(buffer.double(), expected.double())
        assert same, f"{name} is {buffer} and should be {expected}"


def check_random_layers(make: LearnerFactory) -> None:
    """Dropout draws the same in every pass of one step, from the global generator."""
    seen: list[Tensor] = []

    def objective(module: Any, batch: Pair) -> Tensor:
        seen.append(F.dropout(torch.ones(64, dtype=torch.float64)))
        return _objective(module, batch) * seen[-1].mean()

    with torch.random.fork_rng(devices=[]):
        module, learner = _Network(), make()
        torch.manual_seed(5)
        _step(learner, module, objective)
        torch.manual_seed(5)
        expected = F.dropout(torch.ones(64, dtype=torch.float64))
    assert all(torch.equal(mask, expected) for mask in seen), "passes of one step draw differently"


def check_frozen_parameters(make: LearnerFactory) -> None:
    """A parameter that requires no gradient gets none, and is not listed as unused."""
    module = _Network()
    module.first.weight.requires_grad_(False)
    result = _step(make(), module)
    assert module.first.weight.grad is None, "a frozen parameter has a gradient"
    assert not module.first.weight.requires_grad, "requires_grad of a frozen parameter was changed"
    assert "first.weight" not in result.unused


def check_meta_test_batch(make: LearnerFactory) -> None:
    """A learner that needs a second batch says so; any other works without."""
    module, learner = _Network(), make()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    try:
        learner.step(module, _objective, _batch(1), None, optimizer=optimizer)
    except InputError:
        assert learner.needs_meta_test, "needs_meta_test is False, but a batch is required"
    else:
        assert not learner.needs_meta_test, "needs_meta_test is True, but none was accepted"


LEARNER_CHECKS: tuple[Callable[[LearnerFactory], None], ...] = (
    check_gradient,
    check_direction,
    check_batch_norm,
    check_random_layers,
    check_frozen_parameters,
    check_meta_test_batch,
)
"""The checks that hold for every learner."""
