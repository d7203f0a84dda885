"""Batch norm with fixed statistics, as an affine map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["fold_batch_norm"]


class _Folded(nn.modules.batchnorm._BatchNorm):
    """A batch norm in eval mode as ``scale · x + shift``, with one factor for each channel."""

    scale: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape)).to(x.dtype)

    def _get_name(self) -> str:  # a model's fingerprint has it
        return type(self).__bases__[1].__name__


class _Folded1d(_Folded, nn.BatchNorm1d):
    pass


class _Folded2d(_Folded, nn.BatchNorm2d):
    pass


@torch.no_grad()
def fold_batch_norm(norm: nn.Module) -> None:
    """Make a ``BatchNorm1d`` or ``BatchNorm2d`` the affine map of its present statistics, in place.

    Leaves any other module, subclasses of these included, as it is: it may do more.

    Example:
        >>> norm = nn.BatchNorm1d(2).eval()
        >>> fold_batch_norm(norm)
        >>> norm(torch.ones(1, 2)).round(decimals=3).tolist()
        [[1.0, 1.0]]
    """
    if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_var is None:
        return
    folded = {nn.BatchNorm1d: _Folded1d, nn.BatchNorm2d: _Folded2d}.get(type(norm))
    if folded is None or norm.running_mean is None:
        return
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias
    norm.register_buffer("scale", scale, persistent=False)
    norm.register_buffer("shift", shift, persistent=False)
    norm.__class__ = folded  # type: ignore[assignment]
