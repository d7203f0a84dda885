"""Meta-learning that takes ∂w'/∂w for the identity."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from reidguard.learners.base import LEARNERS
from reidguard.learners.bilevel import BilevelLearner, InnerLoop

__all__ = ["FirstOrderLearner"]


@LEARNERS.register("first_order")
class FirstOrderLearner(BilevelLearner):
    """The meta-test gradient at the temporary parameters, as it is: first-order MAML.

    Two passes with gradients; works on every network.

    Example:
        >>> import torch
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
