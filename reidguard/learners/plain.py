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
        """Differentiate the loss, or the sum of both losses; see :class:`MetaLearner`."""
        if self.needs_meta_test and meta_test_batch is None:
            raise InputError(f"the learner {type(self).__name__} needs a meta-test batch")
        module.zero_grad(set_to_none=True)
        draws = RNGState(module) if self.needs_meta_test else None
        loss = objective(module, meta_train_batch)
        loss.backward()  # type: ignore[no-untyped-call]
        test_loss = None
        if draws is not None:
            buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
            draws.rewind()
            try:
                test_loss = objective(module, meta_test_batch)
                test_loss.backward()  # type: ignore[no-untyped-call]
                test_loss = test_loss.detach()
            finally:
                with torch.no_grad():
                    for buffer, before in buffers:
                        buffer.copy_(before)
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        gradients = average([p.grad for p in trained.values()], shard_of(meta_train_batch))
        for p, gradient in zip(trained.values(), gradients, strict=True):
            p.grad = gradient
        unused = tuple(name for name, p in trained.items() if p.grad is None)
        return StepResult(loss.detach(), test_loss, unused)


@LEARNERS.register("joint")
class JointLearner(PlainLearner):
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
