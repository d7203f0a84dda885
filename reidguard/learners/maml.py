"""MAML: meta-learning that differentiates the inner step, exactly or to the first order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from reidguard.distributed import average, shard_of
from reidguard.errors import InputError, TrainingError
from reidguard.learners.base import LEARNERS
from reidguard.learners.bilevel import BilevelLearner, InnerLoop, add
from reidguard.nn.derivatives import LightDerivatives

__all__ = ["FirstOrderLearner", "MAMLLearner"]


@LEARNERS.register("maml")
class MAMLLearner(BilevelLearner):
    """The exact meta-gradient of Eq. 9, second order included (`higher`).

    Needs a network that can be differentiated twice. Attention can in its plain form, which the
    step switches to; if another part of the backbone cannot, the step raises an error that says
    what to do.

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

    @contextmanager
    def step_context(self, module: nn.Module) -> Iterator[None]:
        """Use twice differentiable functions; where there is none, raise an error with advice."""
        if any(getattr(part, "recomputes", False) for part in module.modules()):
            raise InputError(
                "maml cannot recompute the passes of the module that learns: they would meet the "
                "weights after the inner step; leave recomputing() out, or take the learner "
                "'hessian_free' or 'first_order'"
            )
        try:
            # The fused kernels of attention have a first derivative only.
            with sdpa_kernel(SDPBackend.MATH), LightDerivatives():
                yield
        except RuntimeError as error:
            text = str(error)
            missing = re.search(r"derivative for (\S+) is not implemented", text)
            if not missing and "once_differentiable" not in text:
                raise
            name = missing[1] if missing else "one of its functions"
            raise TrainingError(
                f"the network has no exact second derivative ({name} lacks it); take the learner "
                "'first_order' (no second derivative; close to the exact one for attacks), or "
                "'hessian_free' (by finite differences)"
            ) from error

    def inner_vjp(self, loop: InnerLoop, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Differentiate the temporary parameters; the meta-test graph is freed by now."""
        moved = loop.moved
        reached = [i for i in moved if gradients[i] is not None]
        products = torch.autograd.grad(
            [loop.temporary[i] for i in reached],
            [loop.parameters[i] for i in loop.trained],
            [g for i in reached if (g := gradients[i]) is not None],
            allow_unused=True,
        )
        meta: list[Tensor | None] = [None] * len(loop.parameters)
        pairs = zip(loop.trained, average(products, shard_of(loop.batch)), strict=True)
        for i, product in pairs:
            meta[i] = add(product, None if i in moved else gradients[i])
        return meta


@LEARNERS.register("first_order")
class FirstOrderLearner(BilevelLearner):
    """First-order MAML: the meta-test gradient at the temporary parameters, with ∂w'/∂w = 1.

    Two passes with gradients; works on every network.

    Example:
        >>> module = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(module.weight, 3.0)
        >>> learner = FirstOrderLearner(inner="sgd", inner_lr=0.25)  # w' = 3 - 0.25·6 = 1.5
        >>> loss = lambda m, x: m(x).square().sum()
        >>> _ = learner.step(module, loss, torch.ones(1, 1), torch.ones(1, 1))
        >>> float(module.weight.grad)  # 2·3 + 2·1.5
        9.0
    """

    def inner_vjp(self, loop: InnerLoop, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients."""
        return list(gradients)
