"""MI-SGD: the sign of accumulated, normalised gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from reidguard.schema import checked

__all__ = ["MISGD"]


class MISGD(Optimizer):
    """Momentum-iterative sign descent, the optimiser of UAP-Retrieval.

    Each tensor of parameters p with gradient g moves by
    ``g ← g / (‖g‖₁ + 1e-12);  v ← momentum · v + g;  p ← p − lr · sign(v)``.

    Args:
        params: Parameters or groups, as for every ``torch.optim.Optimizer``.
        lr: Size of every step, in the unit of the parameters (ε/10 in the paper).
        momentum: Weight of the past; 1 never forgets.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = MISGD([p], lr=0.5)
        >>> (p ** 2).sum().backward()
        >>> optimizer.step()
        >>> p.data
        tensor([ 0.5000, -1.5000])
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, momentum: float = 1.0
    ) -> None:
        lr = checked(float, "lr", lr, low=0, high=1e6)
        momentum = checked(float, "momentum", momentum, low=0, high=1)
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad / (p.grad.abs().sum() + 1e-12)
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                v = state["momentum_buffer"].mul_(group["momentum"]).add_(g)
                p.sub_(v.sign(), alpha=group["lr"])
        return loss
