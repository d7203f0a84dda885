"""A learner: how the gradient of one step is computed, for attacks and defenses alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reidguard import MetaLearner, StepResult


class ClippedLearner(MetaLearner):
    """The plain gradient on the meta-train batch, with a bounded norm.

    Args:
        norm: Greatest Euclidean norm of the whole gradient.
    """

    needs_meta_test = False

    def __init__(self, norm: float = 1.0) -> None:
        self.norm = norm

    def step(
        self,
        module: nn.Module,
        objective: Any,
        meta_train_batch: Any,
        meta_test_batch: Any = None,
        *,
        optimizer: Any = None,
    ) -> StepResult:
        """Leave the gradient in ``.grad``; the caller's optimiser updates the parameters."""
        module.zero_grad(set_to_none=True)
        loss = objective(module, meta_train_batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), self.norm)
        unused = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
        return StepResult(loss.detach(), unused=tuple(unused))
