"""Ordinary learning from the meta-train batch alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from reidguard.meta.base import LEARNERS, MetaLearner, Objective, StepResult

__all__ = ["PlainLearner"]


@LEARNERS.register("plain")
class PlainLearner(MetaLearner):
    """The gradient of the meta-train loss: the paper's rows without meta-learning.

    Example:
        >>> import torch
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
    ) -> StepResult:
        """Differentiate the meta-train loss; a meta-test batch is not looked at."""
        module.zero_grad(set_to_none=True)
        loss = objective(module, meta_train_batch)
        loss.backward()  # type: ignore[no-untyped-call]
        unused = tuple(
            n for n, p in module.named_parameters() if p.requires_grad and p.grad is None
        )
        return StepResult(loss.detach(), unused=unused)
