"""Activation checkpointing: recompute activations in the backward pass instead of storing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from reidguard.errors import InputError
from reidguard.nn.batch_norm import active_sync_layers, without_memory

__all__ = ["recomputing"]

M = TypeVar("M", bound=nn.Module)


@contextmanager
def recomputing(model: M, blocks: type[nn.Module] | None = None) -> Iterator[M]:
    """Store only the inputs of each block in the passes inside (activation checkpointing).

    The rest is computed once more in the backward pass: one more forward pass, and memory of one
    block instead of all. Gradients are the same. Dropout repeats its draws, and each batch
    enters running statistics once.

    A model under attack can be recomputed with every learner; ``maml`` saves little, as its second
    derivative needs what was recomputed. A model that is trained can be recomputed with all
    learners but ``maml``, which differentiates the inner step when the weights have changed; it
    raises an error.

    Args:
        model: Its blocks are recomputed until the end of the context.
        blocks: Their class. By default the outermost modules whose class the model has more than
            once and that hold several layers: residual blocks, transformer blocks.

    Raises:
        InputError: If there are no such blocks.

    Example:
        >>> from torchvision.models import resnet18
        >>> with recomputing(resnet18()) as model:
        ...     loss = model(torch.rand(2, 3, 64, 32)).sum()
        ...     loss.backward()
    """
    chosen = _repeated(model) if blocks is None else _instances(model, blocks)
    if not chosen:
        what = "repeated blocks" if blocks is None else blocks.__name__
        raise InputError(
            f"{type(model).__name__} has no {what}; "
            "give the class of the blocks to recompute: blocks=..."
        )
    kinds = [(block, type(block)) for block in chosen]
    try:
        for block, kind in kinds:
            # Of the class, and not of the module: `higher` copies modules by their class.
            block.__class__ = _recomputed(kind)  # type: ignore[arg-type]
        yield model
    finally:
        for block, kind in kinds:
            block.__class__ = kind


class _Recomputed(nn.Module):
    recomputes = True  # learners look for it

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        run = super().forward
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        layers = active_sync_layers()

        def contexts() -> tuple[Any, Any]:
            return nullcontext(), _Again(self, layers)

        return checkpoint(run, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    # The same name: a model's fingerprint has it.
    return type(kind.__name__, (_Recomputed, kind), {"__module__": kind.__module__})


class _Again:
    """The context of a repeated pass, which each order of derivative enters again."""

    def __init__(self, block: nn.Module, layers: Any) -> None:
        self.block = block
        self.layers = layers

    def __enter__(self) -> None:
        self._open = ExitStack()
        self._open.enter_context(self.layers())
        self._open.enter_context(without_memory(self.block))

    def __exit__(self, *exception: Any) -> bool | None:
        return self._open.__exit__(*exception)


def _instances(model: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    inside = [m for m in model.modules() if isinstance(m, kind)]
    nested = {id(part) for m in inside for part in m.modules() if part is not m}
    return [m for m in inside if id(m) not in nested]


def _repeated(model: nn.Module) -> list[nn.Module]:
    counts = Counter(type(module) for module in model.modules())
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    blocks: dict[int, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            layers = sum(any(True for _ in m.parameters(recurse=False)) for m in child.modules())
            if counts[type(child)] > 1 and type(child) not in containers and layers > 1:
                blocks[id(child)] = child
            else:
                visit(child)

    visit(model)
    return list(blocks.values())
