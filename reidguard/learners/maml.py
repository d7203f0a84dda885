"""Meta-learning that differentiates the inner step exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from reidguard.distributed import average, shard_of
from reidguard.errors import InputError, TrainingError
from reidguard.learners.base import LEARNERS, Objective, StepResult
from reidguard.learners.bilevel import BilevelLearner, InnerState
from reidguard.nn.derivatives import LightDerivatives
from reidguard.nn.functional import FunctionalModule

__all__ = ["MAMLLearner"]


@LEARNERS.register("maml")
class MAMLLearner(BilevelLearner):
    """The exact meta-gradient of Eq. 9, second order included (`higher`).

    Needs a network that can be differentiated twice. Attention can in its plain form, which the
    step switches to; where another part of the backbone cannot, the step says so and names the
    cure.

    Example:
        >>> module = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(module.weight, 3.0)
        >>> learner = MAMLLearner(inner="sgd", inner_lr=0.25)  # w' = w - 0.25·2w = w/2
        >>> loss = lambda m, x: m(x).square().sum()
        >>> _ = learner.step(module, loss, torch.ones(1, 1), torch.ones(1, 1))
        >>> float(module.weight.grad)  # 2·3 + 1/2 · 2·1.5
        7.5
    """

    exact = True

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """See :class:`BilevelLearner`."""
        if any(getattr(part, "recomputes", False) for part in module.modules()):
            raise InputError(
                "maml cannot recompute the passes of the module that learns: they would meet the "
                "weights after the inner step; leave recomputing() out, or take the learner "
                "'hessian_free' or 'first_order'"
            )
        # The fused kernels have a first derivative only.
        with sdpa_kernel(SDPBackend.MATH), LightDerivatives(), _second_derivatives():
            return super().step(
                module, objective, meta_train_batch, meta_test_batch, optimizer=optimizer
            )

    def inner_vjp(
        self,
        patched: FunctionalModule,
        batch: Any,
        parameters: Sequence[Tensor],
        path: Sequence[dict[int, InnerState]],
        temporary: list[Tensor],
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Differentiate the temporary parameters; the meta-test graph is gone by now."""
        moved = {i for points in path for i in points}
        reached = [i for i in sorted(moved) if gradients[i] is not None]
        trained = [i for i, p in enumerate(parameters) if p.requires_grad]
        pulled = torch.autograd.grad(
            [temporary[i] for i in reached],
            [parameters[i] for i in trained],
            [g for i in reached if (g := gradients[i]) is not None],
            allow_unused=True,
        )
        meta: list[Tensor | None] = [None] * len(parameters)
        for i, gradient in zip(trained, average(pulled, shard_of(batch)), strict=True):
            direct = None if i in moved else gradients[i]
            terms = [term for term in (gradient, direct) if term is not None]
            meta[i] = sum(terms[1:], terms[0]) if terms else None
        return meta


CURE = (
    "; take the learner 'first_order' (no second derivative; close to the exact one for attacks), "
    "or 'hessian_free' (by finite differences)"
)


@contextmanager
def _second_derivatives() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        missing = re.search(r"derivative for (\S+) is not implemented", text)
        if not missing and "once_differentiable" not in text:
            raise
        name = missing[1] if missing else "one of its functions"
        raise TrainingError(
            f"the network has no exact second derivative ({name} lacks it){CURE}"
        ) from error
