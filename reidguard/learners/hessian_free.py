"""Meta-learning whose second-order term is a finite difference of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reidguard.distributed import shard_of
from reidguard.learners.base import LEARNERS
from reidguard.learners.bilevel import BilevelLearner, InnerLoop, InnerState, add, gradients_of
from reidguard.learners.inner import inner_step
from reidguard.schema import checked

__all__ = ["HessianFreeLearner"]


@LEARNERS.register("hessian_free")
@dataclass(eq=False)
class HessianFreeLearner(BilevelLearner):
    """The meta-gradient of Eq. 9 with each Hessian-vector product from one more plain gradient.

    For an inner step ``w' = w - lr·d(g(w))`` and meta-test gradient v, the second-order term is
    ``-lr·H r`` with ``r = (∂d/∂g)ᵀ v`` (exact, and cheap) and ``H r ≈ (g(w + h·r) - g(w)) / h``.
    Three passes with gradients, one after the other in memory. On smooth networks the term is that
    of ``maml``; where ReLUs switch within the difference it is little more than noise, and more of
    it the smaller the difference (see ``docs/learners.rst``).

    Args:
        difference: Length of h·r, in the larger of the norm of w and that of the inner step.

    The other arguments are those of every ``BilevelLearner``.

    Example:
        >>> module = torch.nn.Linear(1, 1, bias=False).double()
        >>> _ = torch.nn.init.constant_(module.weight, 3.0)
        >>> learner = HessianFreeLearner(inner="sgd", inner_lr=0.25)
        >>> loss = lambda m, x: m(x).square().sum()
        >>> x = torch.ones(1, 1).double()
        >>> _ = learner.step(module, loss, x, x)
        >>> round(float(module.weight.grad), 6)  # as maml: 2·3 + 1/2 · 2·1.5
        7.5
    """

    difference: float = field(default=0.1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.difference = checked(float, "difference", self.difference, above=0, high=10)

    def inner_vjp(self, loop: InnerLoop, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Backpropagate through the inner steps, with one Hessian-vector product each."""
        direction = inner_step(self.inner)
        values: list[Tensor | None] = list(gradients)
        buffers: dict[int, Tensor] = {}
        after = [t.detach() for t in loop.temporary]
        loop.temporary.clear()
        for states in reversed(loop.trajectory):
            before = list(after)
            vectors: dict[int, Tensor] = {}
            for i, state in states.items():
                before[i] = state.value
                gradient = state.gradient.detach().requires_grad_()
                buffer = state.buffer.detach().requires_grad_()
                with torch.enable_grad():
                    step, next_buffer = direction(gradient, buffer, state.rates)
                # gradients of the later steps and the meta-test loss by this step and buffer
                outputs: list[tuple[Tensor, Tensor]] = []
                if (value := values[i]) is not None and step.requires_grad:
                    outputs.append((step, -state.rates.lr * value))
                if i in buffers and next_buffer.requires_grad:
                    outputs.append((next_buffer, buffers[i]))
                if not outputs:
                    continue
                vector, by_buffer = torch.autograd.grad(
                    [tensor for tensor, _ in outputs],
                    (gradient, buffer),
                    [grad for _, grad in outputs],
                    allow_unused=True,
                )
                if by_buffer is not None:
                    buffers[i] = by_buffer
                if vector is not None:
                    vectors[i] = vector
            # The inner step counts where parameters are still 0.
            size = torch.maximum(
                _norm([before[i] for i in states]), _norm([after[i] - before[i] for i in states])
            )
            after = before
            for i, product in self._products(loop, before, states, vectors, size):
                values[i] = add(values[i], product)
        return values

    def _products(
        self,
        loop: InnerLoop,
        before: Sequence[Tensor],
        states: dict[int, InnerState],
        vectors: dict[int, Tensor],
        size: Tensor,
    ) -> list[tuple[int, Tensor]]:
        """Return rows of H·vectors at ``before``, one for each parameter that the step moved.

        Each vector is freed as soon as it is used: the pass needs the memory.
        """
        if not vectors:
            return []
        h = self.difference * size / _norm(list(vectors.values())).clamp(min=1e-20)
        shifted = [t.detach() for t in before]
        for i in states:
            moved = shifted[i] + h * vectors.pop(i) if i in vectors else shifted[i]
            shifted[i] = moved.detach().requires_grad_()
        loss = loop.functional.loss(shifted, loop.batch)
        gradients = gradients_of(loss, [shifted[i] for i in states], shard_of(loop.batch))
        return [
            (i, (gradient - state.gradient) / h)
            for (i, state), gradient in zip(states.items(), gradients, strict=True)
            if gradient is not None
        ]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(t) for t in tensors])
    return norms.square().sum().sqrt()
