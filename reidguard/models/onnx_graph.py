"""Translation of ONNX's operations to torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models import graphs
from reidguard.models.graphs import (
    Attributes,
    GraphBuilder,
    GraphNetwork,
    Translate,
    by_attributes,
    no_translation,
    same,
)

__all__ = ["translate_onnx"]


def translate_onnx(model: Any, batch: int | None) -> GraphNetwork:
    """Return an ONNX model as a torch network with the same weights, in float32.

    Args:
        model: What ``onnx.load`` returns. Its first input takes images, its first output is the
            result.
        batch: Images that it takes at once; None for any number.

    Raises:
        InputError: If an operation has no translation.
    """
    from onnx import helper, numpy_helper

    builder = GraphBuilder(batch)
    for tensor in model.graph.initializer:
        builder.constant(tensor.name, numpy_helper.to_array(tensor))
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        inputs, outputs = list(node.input), list(node.output)
        while inputs and not inputs[-1]:  # left out
            inputs.pop()
        while outputs and not outputs[-1]:
            outputs.pop()
        if node.op_type == "Constant" and "value" in attributes:
            builder.constant(outputs[0], numpy_helper.to_array(attributes["value"]))
        elif node.op_type == "Constant":
            (value,) = attributes.values()
            builder.constant(outputs[0], np.asarray(value))
        elif node.domain not in ("", "ai.onnx") or node.op_type not in OPERATIONS:
            raise no_translation(f"ONNX's operation {node.op_type} ({node.name or outputs[0]})")
        else:
            OPERATIONS[node.op_type](builder, attributes, inputs, outputs)
    initialised = {tensor.name for tensor in model.graph.initializer}
    image = next(value.name for value in model.graph.input if value.name not in initialised)
    return builder.network(image, model.graph.output[0].name)


def _pads(a: Attributes) -> list[int]:
    kind = a.get("auto_pad", b"NOTSET").decode()
    if kind == "VALID":
        return [0, 0, 0, 0]
    if kind != "NOTSET":
        raise no_translation(f"padding {kind}")
    return list(a.get("pads", [0, 0, 0, 0]))


def _convolution(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    b.convolution(
        inputs,
        outputs[0],
        stride=a.get("strides", [1, 1]),
        pads=_pads(a),
        dilation=a.get("dilations", [1, 1]),
        groups=a.get("group", 1),
    )


def _pool(kind: str) -> Translate:
    def pooling(a: Attributes) -> Callable[..., Any]:
        if any(step != 1 for step in a.get("dilations", ())):
            raise no_translation("a pooling with dilation")
        return partial(
            graphs.pool,
            kind=kind,
            kernel=list(a["kernel_shape"]),
            stride=list(a.get("strides", [1, 1])),
            pads=_pads(a),
            ceil=bool(a.get("ceil_mode", 0)),
            count_pads=bool(a.get("count_include_pad", 0)),
        )

    return by_attributes(pooling)


def _global_pool(kind: str) -> Translate:
    return same(partial(graphs.reduce, kind=kind, axes=(2, 3), keep=True))


def _activation(function: Callable[..., Any], name: str, default: float) -> Translate:
    """Return the translation of an activation whose parameter is the attribute ``alpha``."""
    return by_attributes(lambda a: partial(function, **{name: float(a.get("alpha", default))}))


def _axes(b: GraphBuilder, a: Attributes, inputs: list[str]) -> list[int]:
    """Return axes, which newer files have as an input and older ones as an attribute."""
    return b.numbers(inputs[1], "axes") if len(inputs) > 1 else list(a.get("axes", []))


def _reduce(kind: str) -> Translate:
    def translate(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
        axes = _axes(b, a, inputs)
        if not axes and a.get("noop_with_empty_axes", 0):
            b.step(graphs.unchanged, inputs[:1], outputs[0])
            return
        keep = bool(a.get("keepdims", 1))
        run = partial(graphs.reduce, kind=kind, axes=axes, keep=keep)
        b.step(run, inputs[:1], outputs[0])

    return translate


def _with_axes(function: Callable[..., Any]) -> Translate:
    def translate(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
        b.step(partial(function, axes=_axes(b, a, inputs)), inputs[:1], outputs[0])

    return translate


def _affine_clamp(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _clip(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    bounds = [a.get("min"), a.get("max")]
    for place, name in enumerate(inputs[1:]):
        if name:
            bounds[place] = float(b.known(name, "a bound"))
    b.step(partial(graphs.clip, low=bounds[0], high=bounds[1]), inputs[:1], outputs[0])


def _batch_norm(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    weight, bias, mean, variance = (b.known(n, "a batch norm's statistics") for n in inputs[1:5])
    layer = _BatchNorm(len(weight), float(a.get("epsilon", 1e-5)))
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    layer.load_state_dict(state, strict=False)
    b.layer(layer, inputs[0], outputs[0])


class _BatchNorm(nn.Module):
    """A batch norm with the file's statistics, of maps and of vectors alike."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def _normalized_maps(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


def _product(a: Attributes) -> Callable[..., Any]:
    return partial(
        _affine,
        alpha=float(a.get("alpha", 1.0)),
        beta=float(a.get("beta", 1.0)),
        transpose_a=bool(a.get("transA", 0)),
        transpose_b=bool(a.get("transB", 0)),
    )


def _affine(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    transpose_a: bool,
    transpose_b: bool,
) -> Tensor:
    product = alpha * graphs.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return product if c is None else product + beta * c


def _reshape(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    b.reshape(inputs[0], inputs[1], outputs[0], zero_copies=not a.get("allowzero", 0))


def _two_axes(x: Tensor, *, axis: int) -> Tensor:
    if axis % (x.dim() + 1) == 0:
        return x.reshape(1, -1)
    return x.reshape(int(np.prod(x.shape[: axis % x.dim()])), -1)


def _split(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    sizes = b.numbers(inputs[1], "lengths") if len(inputs) > 1 else list(a.get("split", []))
    axis = a.get("axis", 0)
    equal = partial(graphs.halves, count=len(outputs), axis=axis)
    run = partial(graphs.parts, sizes=sizes, axis=axis) if sizes else equal
    b.step(run, inputs[:1], *outputs)


def _permuted(x: Tensor, *, order: list[int]) -> Tensor:
    return x.permute(order or list(range(x.dim()))[::-1])


def _shape(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    if a.get("start", 0) or "end" in a:
        raise no_translation("a part of a shape")
    b.step(_shape_of, inputs, outputs[0])


def _shape_of(x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


def _taken(x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    axis %= x.dim()
    places = indices.flatten().to(x.device) % x.shape[axis]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, places).reshape(shape)


def _norm(a: Attributes) -> Callable[..., Any]:
    if a.get("p", 2) != 2:
        raise no_translation(f"a norm of order {a['p']}")
    return partial(F.normalize, dim=a.get("axis", -1))


def _norm_reduction(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    run = partial(_length, axes=_axes(b, a, inputs), keep=bool(a.get("keepdims", 1)))
    b.step(run, inputs[:1], outputs[0])


def _length(x: Tensor, *, axes: list[int], keep: bool) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, dim=tuple(axes) or None, keepdim=keep)
    return lengths


def _expanded(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(x.shape, tuple(shape.tolist())))


OPERATIONS: dict[str, Translate] = {
    "Add": same(torch.add),
    "AveragePool": _pool("mean"),
    "BatchNormalization": _batch_norm,
    "Cast": same(graphs.unchanged),  # all is computed in the network's precision
    "Clip": _clip,
    "Concat": by_attributes(lambda a: partial(graphs.join, axis=a["axis"])),
    "Conv": _convolution,
    "Div": same(torch.div),
    "Dropout": same(graphs.unchanged),
    "Elu": _activation(F.elu, "alpha", 1.0),
    "Exp": same(torch.exp),
    "Expand": same(_expanded),
    "Flatten": by_attributes(lambda a: partial(_two_axes, axis=a.get("axis", 1))),
    "Gather": by_attributes(lambda a: partial(_taken, axis=a.get("axis", 0))),
    "Gemm": by_attributes(_product),
    "GlobalAveragePool": _global_pool("mean"),
    "GlobalMaxPool": _global_pool("max"),
    "HardSigmoid": by_attributes(
        lambda a: partial(
            _affine_clamp, alpha=float(a.get("alpha", 0.2)), beta=float(a.get("beta", 0.5))
        )
    ),
    "HardSwish": same(F.hardswish),
    "Identity": same(graphs.unchanged),
    "InstanceNormalization": by_attributes(
        lambda a: partial(_normalized_maps, eps=float(a.get("epsilon", 1e-5)))
    ),
    "LeakyRelu": _activation(F.leaky_relu, "negative_slope", 0.01),
    "LpNormalization": by_attributes(_norm),
    "MatMul": same(torch.matmul),
    "MaxPool": _pool("max"),
    "Mul": same(torch.mul),
    "PRelu": same(graphs.prelu),
    "Pow": same(torch.pow),
    "ReduceL2": _norm_reduction,
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceSum": _reduce("sum"),
    "Relu": same(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": same(torch.sigmoid),
    "Softmax": by_attributes(lambda a: partial(torch.softmax, dim=a.get("axis", -1))),
    "Split": _split,
    "Sqrt": same(torch.sqrt),
    "Squeeze": _with_axes(graphs.squeeze),
    "Sub": same(torch.sub),
    "Tanh": same(torch.tanh),
    "Transpose": by_attributes(lambda a: partial(_permuted, order=list(a.get("perm", [])))),
    "Unsqueeze": _with_axes(graphs.unsqueeze),
}
