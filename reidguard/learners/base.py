"""The contract of learners: the gradient of a module from one pair of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.nn.functional import Objective
from reidguard.registry import Registry

__all__ = ["LEARNERS", "MetaLearner", "Objective", "StepResult"]


@dataclass(frozen=True)
class StepResult:
    """Losses and unused parameters of one training step.

    Args:
        train_loss: Meta-train loss before the step, detached, still on its device.
        test_loss: Meta-test loss, or None for a learner that has no meta-test.
        unused: Names of parameters that received no gradient.

    Example:
        >>> import torch
        >>> StepResult(torch.tensor(0.5), unused=("head.bias",)).unused
        ('head.bias',)
    """

    train_loss: Tensor
    test_loss: Tensor | None = None
    unused: tuple[str, ...] = ()


class MetaLearner(ABC):
    """One step of meta-train, meta-test and meta-update on any module, attack or model alike.

    Every learner keeps these rules. The meta-train batch moves the module's batch-norm statistics
    once, as one plain forward pass would; the meta-test batch and further passes never do. Random
    layers draw the same numbers in every pass of one step, those of the global generator.

    Example:
        >>> from reidguard.learners import LEARNERS
        >>> LEARNERS.create("maml").needs_meta_test, LEARNERS.create("plain").needs_meta_test
        (True, False)
    """

    needs_meta_test: bool
    """Whether :meth:`step` needs a meta-test batch."""

    @abstractmethod
    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Leave the (meta-)gradient in ``.grad`` of the parameters; the caller's optimiser steps.

        Args:
            module: The module to train. Its parameters are left as they are.
            objective: Scalar loss of a module on a batch.
            meta_train_batch: Batch of the source domain.
            meta_test_batch: Batch of the other domain, for learners that use one.
            optimizer: The caller's optimiser. Learners with an inner step take its rate and its
                momentum from there; they do not change it.
        """

    def config(self) -> dict[str, Any]:
        """Return the learner's options for a run's settings, as JSON values."""
        return {}


LEARNERS: Registry[MetaLearner] = Registry(
    "learner", group="reidguard.learners", base=MetaLearner, functions=False
)
