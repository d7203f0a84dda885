"""Adversarial weight perturbation: gradients at the worst weights nearby."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.distributed import shard_of
from reidguard.learners.base import MetaLearner, Objective, StepResult
from reidguard.learners.bilevel import gradients_of
from reidguard.nn.functional import RNGState
from reidguard.schema import checked

__all__ = ["PerturbedLearner"]


class PerturbedLearner(MetaLearner):
    """Any learner at adversarially perturbed weights (AWP: Wu et al., NeurIPS 2020).

    Before the learner's step each weight tensor W is moved to ``W + γ ‖W‖ g / ‖g‖``, g being the
    gradient of the loss on the meta-train batch by W; after it, all are back where they were, to
    the bit. So the gradient left in ``.grad`` is that at the worst weights nearby, and the minimum
    found is flat. One step of ascent, and only tensors of two dimensions or more, as in the
    published code: biases and batch norms stay. It costs one more forward and backward pass.

    Args:
        learner: Computes the gradient at the perturbed weights.
        gamma: γ, the size of the perturbation relative to that of the weights; 0.005 in the paper.

    Example:
        >>> from reidguard.learners import PlainLearner
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> learner = PerturbedLearner(PlainLearner(), 0.5)  # w + 0.5 · 3 · 1 = 4.5
        >>> loss = lambda m, x: m(x).square().sum()
        >>> result = learner.step(module, loss, torch.ones(1, 1))
        >>> float(result.train_loss), float(module.weight.grad), module.weight.item()
        (9.0, 9.0, 3.0)
    """

    def __init__(self, learner: MetaLearner, gamma: float) -> None:
        self.learner = learner
        self.gamma = checked(float, "gamma", gamma, above=0, high=1)
        self.needs_meta_test = learner.needs_meta_test

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Leave the gradient at the perturbed weights in ``.grad``; see :class:`MetaLearner`."""
        moved = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
        draws = RNGState(module)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        loss = objective(module, meta_train_batch)
        gradients = gradients_of(loss, moved, shard_of(meta_train_batch))
        loss = loss.detach()
        draws.rewind()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        before = [p.detach().clone() for p in moved]
        try:
            self._move(moved, gradients)
            result = self.learner.step(
                module, objective, meta_train_batch, meta_test_batch, optimizer=optimizer
            )
        finally:
            with torch.no_grad():
                for parameter, value in zip(moved, before, strict=True):
                    parameter.copy_(value)
        return replace(result, train_loss=loss)

    @torch.no_grad()
    def _move(self, parameters: list[nn.Parameter], gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                tiny = torch.finfo(gradient.dtype).tiny
                length = self.gamma * parameter.norm() / gradient.norm().clamp(min=tiny)
                parameter.addcmul_(gradient, length.expand_as(gradient))

    def config(self) -> dict[str, Any]:
        """Return γ and the learner's options."""
        return {"awp": self.gamma, **self.learner.config()}
