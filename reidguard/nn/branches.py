"""Residual branches of a network, found in the autograd graph of a pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

__all__ = ["block_input"]

# Functions without a nonlinearity, of which the shortcuts with a projection consist.
LINEAR = re.compile(
    "_?(Convol|Addcmul|Addmm|Mm|NativeBatchNorm|CudnnBatchNorm|Add|Sub|Mul|Div|AvgPool|View|"
    "UnsafeView|Reshape|Alias|AsStrided|Permute|Transpose|Clone|ToCopy|Slice|ConstantPad)"
)
MAX_CHAIN = 12  # functions of a shortcut


def block_input(shortcut: Tensor, branch: Tensor) -> GradientEdge | None:
    """Return where shortcut and branch part, if the sum of the two is that of a residual block.

    It is one if the shortcut is the block's input, or a chain of linear functions of it, and the
    branch is another, nonlinear function of this input.

    Args:
        shortcut: The first summand; it requires a gradient.
        branch: The second one, likewise.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> block_input(x, torch.tanh(x)) is None, block_input(torch.tanh(x), x) is None
        (False, True)
    """
    start = get_gradient_edge(branch)
    own = {_key(edge) for edge in _linear_chain(start)}
    for edge in _linear_chain(get_gradient_edge(shortcut)):
        if _key(edge) in own:  # both are linear
            return None
        if _reaches(start, edge):
            return edge
    return None


def _key(edge: GradientEdge) -> tuple[int, int]:
    return id(edge.node), edge.output_nr


def _inputs(node: Any) -> list[GradientEdge]:
    return [GradientEdge(n, number) for n, number in node.next_functions if n is not None]


def _linear_chain(edge: GradientEdge) -> Iterator[GradientEdge]:
    """Yield a tensor, and what it is computed from by functions of one tensor without a kink."""
    for _ in range(MAX_CHAIN):
        yield edge
        inputs = _inputs(edge.node)
        if len(inputs) != 1 or not LINEAR.match(edge.node.name()):
            return
        (edge,) = inputs


def _reaches(start: GradientEdge, target: GradientEdge) -> bool:
    """Whether a tensor is computed from another one."""
    leaf = not _inputs(target.node)
    oldest = -1 if leaf else target.node._sequence_nr()
    stack, seen = [start], set()
    while stack:
        edge = stack.pop()
        if edge.node is target.node and edge.output_nr == target.output_nr:
            return True
        if edge.node in seen or (inputs := _inputs(edge.node)) == []:
            continue
        seen.add(edge.node)
        if edge.node._sequence_nr() > oldest:  # others were computed before the target
            stack += inputs
    return False
