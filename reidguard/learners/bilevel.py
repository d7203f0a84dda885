"""Learners with temporary parameters: the three steps of Algorithm 1."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.distributed import average, shard_of
from reidguard.errors import InputError, TrainingError
from reidguard.learners.base import MetaLearner, Objective, StepResult
from reidguard.learners.inner import InnerRates, first_buffer, inner_step
from reidguard.nn.functional import FunctionalModule
from reidguard.schema import checked
from reidguard.types import BatchShard

__all__ = ["BilevelLearner", "InnerLoop", "InnerState", "add", "gradients_of"]


@dataclass
class InnerState:
    """State of a parameter before an inner step, for the backward pass through it."""

    value: Tensor
    gradient: Tensor
    buffer: Tensor
    rates: InnerRates


@dataclass
class InnerLoop:
    """The inner steps from w to w'.

    Args:
        functional: Computes losses at other parameters.
        batch: The meta-train batch.
        parameters: w, all parameters of the module.
        temporary: w', on the graph of w if the learner is exact.
        trajectory: For each inner step, the states of the parameters that it moved, by index.
    """

    functional: FunctionalModule
    batch: Any
    parameters: list[Tensor]
    temporary: list[Tensor]
    trajectory: list[dict[int, InnerState]] = field(default_factory=list)

    @property
    def trained(self) -> list[int]:
        """Indices of the parameters that require a gradient."""
        return [i for i, p in enumerate(self.parameters) if p.requires_grad]

    @property
    def moved(self) -> dict[int, None]:
        """Indices of the parameters that an inner step moved, in order."""
        return dict.fromkeys(sorted({i for states in self.trajectory for i in states}))


@dataclass(eq=False)
class BilevelLearner(MetaLearner):
    """Meta-train, meta-test, meta-update (Eqs. 6-9, Algorithms 1 and 2).

    1. *Meta-train*: the loss on the meta-train batch at the parameters w and its gradient; inner
       steps from w give temporary parameters w'.
    2. *Meta-test*: the loss on the meta-test batch at w'.
    3. *Meta-update*: ``.grad = ∇L_mtr(w) + (∂w'/∂w)ᵀ ∇L_mte(w')``. The learners differ in how much
       of ``∂w'/∂w`` they compute.

    Args:
        inner: "scaled" (MI-SGD without its sign), "sgd" (Algorithms 1 and 2 to the letter),
            "adam", or "sign" (the released code's, which has no derivative).
        inner_steps: Inner steps, all on the meta-train batch.
        inner_lr: Size of an inner step; that of the outer optimiser by default.
        inner_momentum: Momentum of the inner steps (Adam's β₁); that of the outer optimiser by
            default.
        from_buffer: Let the inner momentum start from the outer optimiser's buffer, held constant:
            "scaled" and "sign" from MI-SGD's, "adam" from Adam's.
        keep_temporary: Leave the module at w', so that the outer step starts from there: what the
            released code does.
    """

    inner: str = "scaled"
    inner_steps: int = 1
    inner_lr: float | None = None
    inner_momentum: float | None = None
    from_buffer: bool = True
    keep_temporary: bool = False

    needs_meta_test = True
    exact: ClassVar[bool] = False  # whether the inner steps stay on the graph

    def __post_init__(self) -> None:
        inner_step(self.inner)
        self.inner_steps = checked(int, "inner_steps", self.inner_steps, low=1, high=1000)
        if self.inner_lr is not None:
            self.inner_lr = checked(float, "inner_lr", self.inner_lr, above=0, high=1e6)
        momentum = self.inner_momentum
        if momentum is not None:
            self.inner_momentum = checked(float, "inner_momentum", momentum, low=0, high=1)
        if self.inner == "adam" and momentum == 1:
            raise InputError("inner_momentum is beta 1 of Adam: it must be below 1, such as 0.9")
        for name in ("from_buffer", "keep_temporary"):
            checked(bool, name, getattr(self, name))

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(vars(self))

    @abstractmethod
    def inner_vjp(self, loop: InnerLoop, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return ``(∂w'/∂w)ᵀ gradients``, one for each parameter.

        Args:
            loop: The inner steps. ``loop.temporary`` may be emptied, to free memory.
            gradients: ∇L_mte(w'), None where the meta-test loss does not reach.
        """

    def step_context(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for the passes and derivatives of one step."""
        return nullcontext()

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Leave the meta-gradient in ``.grad``; see :class:`MetaLearner`.

        Raises:
            TrainingError: If the meta-test loss reaches none of the parameters that the inner step
                moved, or if the exact derivative does not exist.
        """
        if meta_test_batch is None:
            raise InputError(f"the learner {type(self).__name__} needs a meta-test batch")
        names = [name for name, _ in module.named_parameters()]
        parameters: list[Tensor] = list(module.parameters())
        module.zero_grad(set_to_none=True)
        with self.step_context(module), FunctionalModule(module, objective) as functional:
            loop = InnerLoop(functional, meta_train_batch, parameters, list(parameters))
            train_loss = self._run(loop, optimizer)
            gradients: list[Tensor | None] = [None] * len(parameters)
            test_loss = functional.loss(loop.temporary, meta_test_batch)
            at_temporary = gradients_of(
                test_loss, [loop.temporary[i] for i in loop.trained], shard_of(meta_test_batch)
            )
            test_loss = test_loss.detach()
            for i, gradient in zip(loop.trained, at_temporary, strict=True):
                gradients[i] = gradient
            if all(gradients[i] is None for i in loop.moved):
                moved = ", ".join(names[i] for i in loop.moved) or "it moved none"
                raise TrainingError(
                    "the meta-test loss reaches no parameter that the inner step moved "
                    f"({moved}), so there is nothing to meta-learn: let the objective use "
                    "the module's parameters on both batches, or take the learner 'plain'"
                )
            final = {i: loop.temporary[i].detach() for i in loop.moved if self.keep_temporary}
            meta = self.inner_vjp(loop, gradients)
        unused = []
        for i in loop.trained:
            first = loop.trajectory[0].get(i)
            parameters[i].grad = add(None if first is None else first.gradient, meta[i])
            if parameters[i].grad is None:
                unused.append(names[i])
        with torch.no_grad():
            for i, value in final.items():
                parameters[i].copy_(value)
        return StepResult(train_loss, test_loss, tuple(unused))

    def _run(self, loop: InnerLoop, optimizer: Optimizer | None) -> Tensor:
        """Make the inner steps, and return the meta-train loss before them."""
        rates, buffers = self._start(loop, optimizer)
        direction = inner_step(self.inner)
        train_loss: Tensor | None = None
        for _ in range(self.inner_steps):
            loss = loop.functional.loss(loop.temporary, loop.batch)
            if train_loss is None:
                train_loss = loss.detach()
                loop.functional.keep_buffers()
            gradients = gradients_of(
                loss,
                [loop.temporary[i] for i in loop.trained],
                shard_of(loop.batch),
                graph=self.exact,
            )
            del loss
            states: dict[int, InnerState] = {}
            after = list(loop.temporary)
            for i, gradient in zip(loop.trained, gradients, strict=True):
                if gradient is None:
                    continue
                now, value = rates[i], loop.temporary[i]
                states[i] = InnerState(value.detach(), gradient.detach(), buffers[i].detach(), now)
                step, buffers[i] = direction(gradient, buffers[i], now)
                rates[i] = replace(now, count=now.count + 1)
                after[i] = value - now.lr * step
                if not self.exact:
                    after[i] = after[i].detach().requires_grad_()
            loop.temporary = after
            loop.trajectory.append(states)
        assert train_loss is not None
        return train_loss

    def _start(
        self, loop: InnerLoop, optimizer: Optimizer | None
    ) -> tuple[dict[int, InnerRates], dict[int, Tensor]]:
        """Return rates and buffer of each parameter's first inner step."""
        groups = optimizer.param_groups if optimizer is not None else []
        group_of = {id(p): group for group in groups for p in group["params"]}
        states = optimizer.state if self.from_buffer and optimizer is not None else {}
        rates, buffers = {}, {}
        for i in loop.trained:
            parameter = loop.parameters[i]
            group = group_of.get(id(parameter), {})
            lr = group.get("lr") if self.inner_lr is None else self.inner_lr
            if lr is None:
                raise InputError(
                    "the inner step needs a size: give inner_lr, or pass step() the optimizer"
                )
            beta1, beta2 = group.get("betas", (0.9, 0.999))
            momentum = beta1 if self.inner == "adam" else group.get("momentum", 0.0)
            if self.inner_momentum is not None:
                momentum = self.inner_momentum
            buffers[i], count = first_buffer(self.inner, parameter, states.get(parameter, {}))
            eps = group.get("eps", 1e-8)
            rates[i] = InnerRates(float(lr), float(momentum), float(beta2), float(eps), count)
        return rates, buffers


def gradients_of(
    loss: Tensor, inputs: Sequence[Tensor], shard: BatchShard | None, *, graph: bool = False
) -> list[Tensor | None]:
    """Return the gradient of a loss, or of the joint loss where its batch is a shard.

    Args:
        loss: A scalar.
        inputs: What to differentiate by.
        shard: That of the loss's batch. The average over the processes is on the graph, too.
        graph: Whether the gradient can be differentiated.
    """
    if not loss.requires_grad or not inputs:
        return [None] * len(inputs)
    gradients = torch.autograd.grad(
        loss, inputs, create_graph=graph, retain_graph=graph, allow_unused=True
    )
    return average(gradients, shard)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, of which either may be missing."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
