"""Gradients of a learner away from the parameters: Nesterov's, and those of small batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reidguard.errors import InputError
from reidguard.learners.base import MetaLearner, Objective, StepResult
from reidguard.learners.bilevel import add
from reidguard.types import BatchShard

__all__ = ["DisplacedLearner", "small_batch"]


@dataclass(eq=False)
class DisplacedLearner(MetaLearner):
    """The gradient of another learner, or the sum of several, away from the parameters.

    With ``nesterov`` (Lin et al., ICLR 2020) the parameters first move by the step that MI-SGD's
    momentum alone would take. With ``parts`` above 1 (stochastic gradient aggregation: Liu et al.,
    ICCV 2023) each pair of batches is cut into small ones; after the gradient of each, the
    parameters move by a step along its sign, and the gradients are added up. Both together start
    from the first move. Afterwards the parameters are where they were.

    Args:
        learner: Computes each gradient.
        parts: Small batches of a batch; a divisor of the images of each identity.
        nesterov: Whether to look ahead.
        clip: Brings the parameters into their bounds after each move.

    Example:
        >>> from reidguard.learners import PlainLearner
        >>> from reidguard.types import ReIDBatch
        >>> module = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(module.weight, 3.0)
        >>> index = torch.arange(2)
        >>> batch = ReIDBatch(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), index * 0, index, index)
        >>> loss = lambda m, b: m(b.images).square().sum()
        >>> sgd = torch.optim.SGD(module.parameters(), lr=0.5)
        >>> _ = DisplacedLearner(PlainLearner(), parts=2).step(module, loss, batch, optimizer=sgd)
        >>> module.weight.grad.item(), module.weight.item()  # 2·3·1² + 2·2.5·2²
        (26.0, 3.0)
    """

    learner: MetaLearner
    parts: int = 1
    nesterov: bool = False
    clip: Callable[[], None] = lambda: None

    @property
    def needs_meta_test(self) -> bool:  # type: ignore[override]
        """Whether the other learner needs a meta-test batch."""
        return self.learner.needs_meta_test

    def step(
        self,
        module: nn.Module,
        objective: Objective,
        meta_train_batch: Any,
        meta_test_batch: Any | None = None,
        *,
        optimizer: Optimizer | None = None,
    ) -> StepResult:
        """Leave the sum of the gradients in ``.grad``; losses are means over the small batches.

        Raises:
            InputError: Without an optimiser, whose rate is the size of the moves.
        """
        if optimizer is None:
            raise InputError("moves have the optimizer's rate: pass step() the optimizer")
        group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        trained = [p for p in module.parameters() if id(p) in group_of]
        final = [p.detach().clone() for p in trained]
        total: list[Tensor | None] = [None] * len(trained)

        def move(directions: list[Tensor | None]) -> None:
            with torch.no_grad():
                for p, direction in zip(trained, directions, strict=True):
                    if direction is not None:
                        p.sub_(direction.sign(), alpha=group_of[id(p)]["lr"])
            self.clip()

        if self.nesterov:
            move([_momentum(optimizer, p, group_of[id(p)]) for p in trained])
        pair, results = (meta_train_batch, meta_test_batch), []
        for part in range(self.parts):
            if part > 0:
                move([p.grad for p in trained])
            before = [p.detach().clone() for p in trained]
            train, test = (small_batch(b, part, self.parts) for b in pair)
            results.append(self.learner.step(module, objective, train, test, optimizer=optimizer))
            total = [add(t, p.grad) for t, p in zip(total, trained, strict=True)]
            for value, p, old in zip(final, trained, before, strict=True):
                value += p.detach() - old  # 0, unless the learner keeps temporary parameters
        with torch.no_grad():
            for p, value, gradient in zip(trained, final, total, strict=True):
                p.copy_(value)
                p.grad = gradient
        return _joined(results)


def _momentum(optimizer: Optimizer, p: Tensor, group: dict[str, Any]) -> Tensor | None:
    """Return what MI-SGD's momentum of a parameter would be after a gradient of zero."""
    buffer = optimizer.state.get(p, {}).get("momentum_buffer")
    return None if buffer is None else group["momentum"] * buffer


def small_batch(batch: Any, part: int, parts: int) -> Any:
    """Return one of the small batches of a batch: every identity, with a part of its images.

    Args:
        batch: A :class:`~reidguard.types.ReIDBatch`, identity by identity, or None.
        part: Which one, from 0.
        parts: How many there are; a divisor of the images of each identity.

    Example:
        >>> from reidguard.types import ReIDBatch
        >>> index = torch.arange(8)  # two identities of four images
        >>> batch = ReIDBatch(torch.rand(8, 3, 2, 2), index // 4, index % 4, index)
        >>> small_batch(batch, 1, 2).indices
        tensor([1, 3, 5, 7])
    """
    if batch is None or parts == 1:
        return batch
    rows = slice(part, None, parts)
    small: dict[str, Any] = {
        name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)
    }
    if batch.shard is not None:
        shard = batch.shard
        small["shard"] = BatchShard(shard.rows[rows] // parts, shard.total // parts)
    return replace(batch, **small)


def _joined(results: list[StepResult]) -> StepResult:
    """Return the means of the losses, and the parameters that no gradient reached."""
    if len(results) == 1:
        return results[0]
    tests = [r.test_loss for r in results if r.test_loss is not None]
    unused = [name for name in results[0].unused if all(name in r.unused for r in results)]
    return StepResult(
        torch.stack([r.train_loss for r in results]).mean(),
        torch.stack(tests).mean() if tests else None,
        tuple(unused),
    )
