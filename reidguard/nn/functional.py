"""Functional calls: a module's loss at other parameters, with the same random draws."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # of its compilation, at the first import after installation
    warnings.simplefilter("ignore", SyntaxWarning)
    import higher

__all__ = ["FunctionalModule", "Objective", "RNGState"]

Objective = Callable[[Any, Any], Tensor]
"""``objective(module, batch) -> scalar``: the loss that ``module`` minimises."""


class RNGState:
    """State of the random generators, so that each pass can draw the same numbers.

    Args:
        module: Its first parameter names the device whose generator counts besides the CPU's.
    """

    def __init__(self, module: nn.Module) -> None:
        parameter = next(module.parameters(), None)
        self.device = parameter.device if parameter is not None else torch.device("cpu")
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def rewind(self) -> None:
        """Restore the state of the generators."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)


class _Loss(nn.Module):
    """An objective as the forward of a module.

    `higher` puts the fast weights in place when a patched module is called. Through this wrapper,
    everything that the objective does with the module sees them: methods, properties, and direct
    reads of its parameters.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, objective: Objective, batch: Any) -> Tensor:
        return objective(self.module, batch)


class FunctionalModule:
    """A stateless copy of a module: its loss at any parameters, its own buffers.

    A context: afterwards the copy holds no tensor any more.

    Args:
        module: Left as it is, but for :meth:`keep_buffers`.
        objective: Scalar loss of a module on a batch.
    """

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        self._original = module
        self._objective = objective
        self._draws = RNGState(module)
        self._copy: Any = higher.monkeypatch(
            _Loss(module), copy_initial_weights=False, track_higher_grads=True
        )
        # Otherwise every new set of fast weights, and its graph, is kept in a list.
        self._copy.track_higher_grads = False

    def loss(self, parameters: Sequence[Tensor], batch: Any) -> Tensor:
        """Return the loss at ``parameters``, given in the order of ``module.parameters()``."""
        self._draws.rewind()
        self._copy.update_params(list(parameters))
        return cast(Tensor, self._copy(self._objective, batch))

    @torch.no_grad()
    def keep_buffers(self) -> None:
        """Copy the buffers into the module as the passes so far left them."""
        for own, moved in zip(self._original.buffers(), self._copy.buffers(), strict=True):
            own.copy_(moved)

    def __enter__(self) -> FunctionalModule:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The copy is full of reference cycles; without this its graphs would live until the
        # garbage collector runs.
        copy, self._copy = self._copy, None
        for part in list(copy.modules()):
            part.__dict__["_fast_params"] = None
            part.__dict__["_original_params"] = None
            with suppress(AttributeError):
                part._parameters.clear()
                part._buffers.clear()
