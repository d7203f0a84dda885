"""Learners with plain gradients: of one domain, or of two at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from reidguard.distributed import average, shard_of
from reidguard.errors import InputError
from reidguard.learners.base import LEARNERS, MetaLearner, Objective, StepResult
from reidguard.nn.functional import RNGState

__all__ = ["JointLearner", "PlainLearner"]


@LEARNERS.register("plain")
class PlainLearner(MetaLearner):
    """The gradient of the meta-train loss: the paper's rows without meta-learning.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> result = PlainLearner().step(module, lambda m, x: m(x).square().sum(), torch.ones(1, 1))
        >>> float(result.train_loss), float(module.weight.grad)
        (9.0, 6.0)
    """

    needs_meta_test = False

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Differentiate the meta-train loss; a meta-test batch is ignored."""
        module.zero_grad(set_to_none=True)
        loss = objective(module, meta_train_batch)
        loss.backward()  # type: ignore[no-untyped-call]
        _average_gradients(module, meta_train_batch)
        return StepResult(loss.detach(), unused=_without_gradient(module))


@LEARNERS.register("joint")
class JointLearner(MetaLearner):
    """The gradients of both losses, at the same parameters: both domains, no meta-learning.

    Example:
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> loss = lambda m, x: m(x).square().sum()
        >>> result = JointLearner().step(module, loss, torch.ones(1, 1), torch.full((1, 1), 2.0))
        >>> float(result.test_loss), float(module.weight.grad)  # 2·3·1² + 2·3·2²
        (36.0, 30.0)
    """

    needs_meta_test = True

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Differentiate the sum of both losses."""
        if meta_test_batch is None:
            raise InputError("the learner 'joint' needs a meta-test batch")
        module.zero_grad(set_to_none=True)
        draws = RNGState(module)
        loss = objective(module, meta_train_batch)
        loss.backward()  # type: ignore[no-untyped-call]
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        draws.rewind()
        try:
            other = objective(module, meta_test_batch)
            other.backward()  # type: ignore[no-untyped-call]
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        _average_gradients(module, meta_train_batch)
        return StepResult(loss.detach(), other.detach(), _without_gradient(module))


@torch.no_grad()
def _average_gradients(module: nn.Module, batch: Any) -> None:
    shard = shard_of(batch)
    if shard is not None:
        trained = [p for p in module.parameters() if p.requires_grad]
        for p, gradient in zip(trained, average([p.grad for p in trained], shard), strict=True):
            p.grad = gradient


def _without_gradient(module: nn.Module) -> tuple[str, ...]:
    return tuple(n for n, p in module.named_parameters() if p.requires_grad and p.grad is None)
