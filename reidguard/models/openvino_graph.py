"""Translation of OpenVINO's operations to torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

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

__all__ = ["translate_openvino"]


def translate_openvino(model: Any, batch: int | None) -> GraphNetwork:
    """Return an OpenVINO model as a torch network with the same weights, in float32.

    Args:
        model: What ``openvino.Core().read_model`` returns. Its first input takes images, its first
            output is the result.
        batch: Images that it takes at once; None for any number.

    Raises:
        InputError: If an operation has no translation.
    """
    builder = GraphBuilder(batch)
    names: dict[Any, list[str]] = {}
    for number, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        outputs = [f"{number}.{i}" for i in range(operation.get_output_size())]
        names[operation.get_friendly_name()] = outputs
        inputs = []
        for entry in operation.inputs():
            source = entry.get_source_output()
            inputs.append(names[source.get_node().get_friendly_name()][source.get_index()])
        if kind in ("Parameter", "Result"):
            continue
        if kind == "Constant":
            builder.constant(outputs[0], operation.data)
        elif kind == "Convert" and inputs[0] in builder.constants:
            # Weights that are stored in half precision.
            builder.constants[outputs[0]] = builder.constants[inputs[0]].float()
        elif kind not in OPERATIONS:
            raise no_translation(f"OpenVINO's operation {kind} ({operation.get_friendly_name()})")
        else:
            OPERATIONS[kind](builder, operation.get_attributes(), inputs, outputs)
    image, result = model.input(0).get_node(), model.output(0).get_node()
    source = result.input(0).get_source_output()
    features = names[source.get_node().get_friendly_name()][source.get_index()]
    return builder.network(names[image.get_friendly_name()][0], features)


def _pads(a: Attributes) -> list[int]:
    if a.get("auto_pad", "explicit") == "valid":
        return [0, 0, 0, 0]
    if a.get("auto_pad", "explicit") not in ("explicit", "notset"):
        raise no_translation(f"padding {a['auto_pad']!r}")
    return [*a["pads_begin"], *a["pads_end"]]


def _convolution(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    options = {"stride": a["strides"], "pads": _pads(a), "dilation": a["dilations"]}
    b.convolution(inputs, outputs[0], **options)


def _group_convolution(
    b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]
) -> None:
    weight = b.known(inputs[1], "a convolution's weight")  # (groups, out, in, height, width)
    b.constants[f"{outputs[0]} weight"] = weight.flatten(0, 1)
    options = {"stride": a["strides"], "pads": _pads(a), "dilation": a["dilations"]}
    taken = [inputs[0], f"{outputs[0]} weight"]
    b.convolution(taken, outputs[0], groups=len(weight), **options)


def _pool(kind: str) -> Translate:
    def pooling(a: Attributes) -> Callable[..., Any]:
        if any(step != 1 for step in a.get("dilations", ())):
            raise no_translation("a pooling with dilation")
        return partial(
            graphs.pool,
            kind=kind,
            kernel=list(a["kernel"]),
            stride=list(a["strides"]),
            pads=_pads(a),
            ceil=a.get("rounding_type", "floor") == "ceil",
            count_pads=not a.get("exclude-pad", True),
        )

    return by_attributes(pooling)


def _reduce(kind: str) -> Translate:
    def translate(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
        axes = b.numbers(inputs[1], "axes")
        b.step(
            partial(graphs.reduce, kind=kind, axes=axes, keep=bool(a.get("keep_dims", False))),
            inputs[:1],
            outputs[0],
        )

    return translate


def _product(a: Attributes) -> Callable[..., Any]:
    first, second = (bool(a.get(name, False)) for name in ("transpose_a", "transpose_b"))
    return partial(graphs.matmul, transpose_a=first, transpose_b=second)


def _reshape(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    b.reshape(inputs[0], inputs[1], outputs[0], zero_copies=bool(a.get("special_zero", False)))


def _split(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    (axis,) = b.numbers(inputs[1], "an axis")
    run = partial(graphs.halves, count=int(a["num_splits"]), axis=axis)
    b.step(run, inputs[:1], *outputs)


def _variadic_split(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    (axis,) = b.numbers(inputs[1], "an axis")
    sizes = b.numbers(inputs[2], "lengths")
    b.step(partial(graphs.parts, sizes=sizes, axis=axis), inputs[:1], *outputs)


def _mvn(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    axes = b.numbers(inputs[1], "axes") if len(inputs) > 1 else list(a["reduction_axes"])
    run = partial(
        graphs.normalize,
        axes=axes,
        eps=float(a["eps"]),
        inside=a.get("eps_mode", "inside_sqrt").lower() == "inside_sqrt",
        scaled=bool(a["normalize_variance"]),
    )
    b.step(run, inputs[:1], outputs[0])


def _axes(function: Callable[..., Any]) -> Translate:
    def translate(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
        axes: Sequence[int] = b.numbers(inputs[1], "axes") if len(inputs) > 1 else []
        b.step(partial(function, axes=axes), inputs[:1], outputs[0])

    return translate


def _transpose(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
    b.step(partial(torch.permute, dims=b.numbers(inputs[1], "axes")), inputs[:1], outputs[0])


OPERATIONS: dict[str, Translate] = {
    "Add": same(torch.add),
    "AvgPool": _pool("mean"),
    "Clamp": by_attributes(
        lambda a: partial(graphs.clip, low=float(a["min"]), high=float(a["max"]))
    ),
    "Concat": by_attributes(lambda a: partial(graphs.join, axis=int(a["axis"]))),
    "Convert": same(graphs.unchanged),  # all is computed in the network's own precision
    "Convolution": _convolution,
    "Divide": same(torch.div),
    "Elu": by_attributes(lambda a: partial(F.elu, alpha=float(a["alpha"]))),
    "Exp": same(torch.exp),
    "GroupConvolution": _group_convolution,
    "HSwish": same(F.hardswish),
    "MVN": _mvn,
    "MatMul": by_attributes(_product),
    "MaxPool": _pool("max"),
    "Multiply": same(torch.mul),
    "PRelu": same(graphs.prelu),
    "Power": same(torch.pow),
    "ReduceMax": _reduce("max"),
    "ReduceMean": _reduce("mean"),
    "ReduceMin": _reduce("min"),
    "ReduceSum": _reduce("sum"),
    "Relu": same(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": same(torch.sigmoid),
    "SoftMax": by_attributes(lambda a: partial(torch.softmax, dim=int(a["axis"]))),
    "Softmax": by_attributes(lambda a: partial(torch.softmax, dim=int(a["axis"]))),
    "Split": _split,
    "Sqrt": same(torch.sqrt),
    "Squeeze": _axes(graphs.squeeze),
    "Subtract": same(torch.sub),
    "Swish": same(graphs.swish),
    "Tanh": same(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _axes(graphs.unsqueeze),
    "VariadicSplit": _variadic_split,
}
