"""What all learners with temporary parameters share: Algorithm 1's three steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.distributed import average, shard_of
from reidguard.errors import InputError, TrainingError
from reidguard.learners.base import MetaLearner, Objective, StepResult
from reidguard.learners.inner import InnerRates, first_buffer, inner_step
from reidguard.nn.functional import FunctionalModule
from reidguard.types import BatchShard

__all__ = ["BilevelLearner", "InnerState", "gradients_of"]


@dataclass
class InnerState:
    """One parameter before an inner step: what is needed to go back through it."""

    value: Tensor
    gradient: Tensor
    buffer: Tensor
    rates: InnerRates


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

    needs_meta_test = True
    exact: ClassVar[bool] = False  # whether the inner steps stay on the graph

    def __init__(
        self,
        inner: str = "scaled",
        inner_steps: int = 1,
        inner_lr: float | None = None,
        inner_momentum: float | None = None,
        from_buffer: bool = True,
        keep_temporary: bool = False,
    ) -> None:
        inner_step(inner)
        if inner_steps < 1:
            raise InputError(f"inner_steps must be at least 1, not {inner_steps}")
        if inner_lr is not None and not inner_lr > 0:
            raise InputError(f"inner_lr must be above 0, not {inner_lr}")
        if inner_momentum is not None and inner_momentum < 0:
            raise InputError(f"inner_momentum must not be negative, not {inner_momentum}")
        self.inner = inner
        self.inner_steps = inner_steps
        self.inner_lr = inner_lr
        self.inner_momentum = inner_momentum
        self.from_buffer = from_buffer
        self.keep_temporary = keep_temporary

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return dict(vars(self))

    @abstractmethod
    def inner_vjp(
        self,
        patched: FunctionalModule,
        batch: Any,
        parameters: Sequence[Tensor],
        path: Sequence[dict[int, InnerState]],
        temporary: list[Tensor],
        gradients: Sequence[Tensor | None],
    ) -> list[Tensor | None]:
        """Return ``(∂w'/∂w)ᵀ gradients``.

        Args:
            patched: Computes meta-train losses at other parameters.
            batch: The meta-train batch.
            parameters: w, all parameters of the module.
            path: For each inner step, what it did to the parameters that it moved, by index.
            temporary: w', on the graph of w if :attr:`exact`. May be emptied, to free them.
            gradients: ∇L_mte(w'), None where the meta-test loss does not reach.
        """

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """See the class.

        Raises:
            TrainingError: If the meta-test loss reaches none of the parameters that the inner step
                moved, or if the exact derivative does not exist.
        """
        if meta_test_batch is None:
            raise InputError(f"the learner {type(self).__name__} needs a meta-test batch")
        names = [name for name, _ in module.named_parameters()]
        parameters = list(module.parameters())
        trained = [i for i, p in enumerate(parameters) if p.requires_grad]
        share, test_share = shard_of(meta_train_batch), shard_of(meta_test_batch)
        rates, buffers = self._start(parameters, trained, optimizer)
        direction = inner_step(self.inner)
        module.zero_grad(set_to_none=True)
        with FunctionalModule(module, objective) as patched:
            temporary: list[Tensor] = list(parameters)
            path: list[dict[int, InnerState]] = []
            for number in range(self.inner_steps):
                loss = patched.loss(temporary, meta_train_batch)
                if number == 0:
                    train_loss = loss.detach()
                    patched.keep_buffers()
                found = gradients_of(loss, [temporary[i] for i in trained], share, graph=self.exact)
                del loss
                moved: dict[int, InnerState] = {}
                after = list(temporary)
                for i, gradient in zip(trained, found, strict=True):
                    if gradient is None:
                        continue
                    now = rates[i]
                    moved[i] = InnerState(
                        temporary[i].detach(), gradient.detach(), buffers[i].detach(), now
                    )
                    step, buffers[i] = direction(gradient, buffers[i], now)
                    rates[i] = replace(now, count=now.count + 1)
                    after[i] = temporary[i] - now.lr * step
                    if not self.exact:
                        after[i] = after[i].detach().requires_grad_()
                temporary = after
                path.append(moved)
            test_loss = patched.loss(temporary, meta_test_batch)
            reached = gradients_of(test_loss, [temporary[i] for i in trained], test_share)
            test_loss = test_loss.detach()
            gradients: list[Tensor | None] = [None] * len(parameters)
            for i, gradient in zip(trained, reached, strict=True):
                gradients[i] = gradient
            updated = {i for moved in path for i in moved}
            kept = {i: temporary[i].detach() for i in updated} if self.keep_temporary else {}
            if all(gradients[i] is None for i in updated):
                moved_names = ", ".join(names[i] for i in sorted(updated)) or "it moved none"
                raise TrainingError(
                    "the meta-test loss reaches no parameter that the inner step moved "
                    f"({moved_names}), so there is nothing to meta-learn: let the objective use "
                    "the module's parameters on both batches, or take the learner 'plain'"
                )
            meta = self.inner_vjp(patched, meta_train_batch, parameters, path, temporary, gradients)
        unused = []
        for i in trained:
            first = path[0][i].gradient if i in path[0] else None
            terms = [term for term in (first, meta[i]) if term is not None]
            if terms:
                parameters[i].grad = terms[0] if len(terms) == 1 else terms[0] + terms[1]
            else:
                unused.append(names[i])
        with torch.no_grad():
            for i, value in kept.items():
                parameters[i].copy_(value)
        return StepResult(train_loss, test_loss, tuple(unused))

    def _start(
        self, parameters: Sequence[Tensor], trained: Sequence[int], optimizer: Optimizer | None
    ) -> tuple[dict[int, InnerRates], dict[int, Tensor]]:
        """Rates and buffer with which each parameter's first inner step is made."""
        groups = optimizer.param_groups if optimizer is not None else []
        group_of = {id(p): group for group in groups for p in group["params"]}
        rates, buffers = {}, {}
        for i in trained:
            parameter = parameters[i]
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
            kept = optimizer.state if self.from_buffer and optimizer is not None else {}
            buffers[i], count = first_buffer(self.inner, parameter, kept.get(parameter, {}))
            eps = group.get("eps", 1e-8)
            rates[i] = InnerRates(float(lr), float(momentum), float(beta2), float(eps), count)
        return rates, buffers


def gradients_of(
    loss: Tensor, wanted: Sequence[Tensor], share: BatchShard | None, *, graph: bool = False
) -> list[Tensor | None]:
    """Return the gradient of a loss, of the joint loss where its batch was a share.

    Args:
        loss: A scalar.
        wanted: By what.
        share: That of the loss's batch. The average over the processes is on the graph, too.
        graph: Whether the gradient can be differentiated.
    """
    if not loss.requires_grad or not wanted:
        return [None] * len(wanted)
    found = torch.autograd.grad(
        loss, wanted, create_graph=graph, retain_graph=graph, allow_unused=True
    )
    return average(found, share)
