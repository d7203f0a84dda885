"""Networks of files as torch modules: a list of operations, with their weights as layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.errors import InputError

__all__ = [
    "Attributes",
    "GraphBuilder",
    "GraphNetwork",
    "Translate",
    "by_attributes",
    "no_translation",
    "same",
]

Array = npt.NDArray[Any]


def no_translation(what: str) -> InputError:
    """Return the error for an operation that has no translation."""
    return InputError(
        f"{what} has no translation to torch: load the network without differentiable=True, and "
        "attack it by queries ('square')"
    )


@dataclass(frozen=True)
class Step:
    """One operation.

    Args:
        run: A function of tensors, or the name of a layer of the network.
        inputs: Names of the values that it takes.
        outputs: Names of those that it makes; several only if it returns a sequence.
        last: Of the inputs, those that no later step takes.
    """

    run: Callable[..., Any] | str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...] = ()


class GraphNetwork(nn.Module):
    """A network that runs the steps of a :class:`GraphBuilder`, in order.

    Args:
        image: Name of the input.
        features: Name of the output.
        steps: Operations.
        layers: Layers by name.
        constants: Values that steps take besides the input, by name.
    """

    def __init__(
        self,
        image: str,
        features: str,
        steps: Sequence[Step],
        layers: Mapping[str, nn.Module],
        constants: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.image, self.features = image, features
        self.steps = _with_last_uses(steps, features)
        self.layers = nn.ModuleDict(layers)
        # Indices and shapes stay on the CPU and keep their type, whatever becomes of the weights.
        self.integers = {n: v for n, v in constants.items() if not v.is_floating_point()}
        self.buffer_names: dict[str, str] = {}
        for number, (name, value) in enumerate(constants.items()):
            if value.is_floating_point():
                self.buffer_names[name] = f"constant{number}"
                self.register_buffer(f"constant{number}", value)

    def constants(self) -> dict[str, Any]:
        """Return the values that steps take besides the input, by name."""
        buffers = {name: getattr(self, buffer) for name, buffer in self.buffer_names.items()}
        return {**self.integers, **buffers}

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for (N, 3, H, W) inputs."""
        values = {**self.constants(), self.image: x}
        for step in self.steps:
            run = self.layers[step.run] if isinstance(step.run, str) else step.run
            results = run(*(values[name] for name in step.inputs))
            if len(step.outputs) == 1:
                results = (results,)
            values.update(zip(step.outputs, results, strict=True))
            for name in step.last:
                del values[name]
        features: Tensor = values[self.features]
        return features


def _with_last_uses(steps: Sequence[Step], features: str) -> list[Step]:
    """Return the steps with the values to forget after each, so that memory is bounded."""
    seen, result = {features}, []
    for step in reversed(steps):
        names = dict.fromkeys((*step.inputs, *step.outputs))
        last = tuple(name for name in names if name not in seen)
        seen.update(names)
        result.append(Step(step.run, step.inputs, step.outputs, last))
    return result[::-1]


@dataclass
class GraphBuilder:
    """Collects the operations of a network.

    Args:
        batch: Images that the file's network takes at once; None for any number. Shapes of the
            file that begin with it are those of any number here.
    """

    batch: int | None
    steps: list[Step] = field(default_factory=list)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def constant(self, name: str, value: Array) -> None:
        """Add a constant; floating point becomes float32."""
        array = np.asarray(value)
        kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
        self.constants[name] = torch.from_numpy(np.array(array, dtype=kind))

    def known(self, name: str, what: str) -> Tensor:
        """Return a constant.

        Raises:
            InputError: If it is computed from the image.
        """
        if name not in self.constants:
            raise no_translation(f"{what}, which depends on the image,")
        return self.constants[name]

    def numbers(self, name: str, what: str) -> list[int]:
        """Return a constant as whole numbers."""
        return [int(number) for number in self.known(name, what).flatten().tolist()]

    def step(self, run: Callable[..., Any], inputs: Sequence[str], *outputs: str) -> None:
        """Add an operation without weights."""
        self.steps.append(Step(run, tuple(inputs), outputs))

    def layer(self, module: nn.Module, source: str, output: str) -> None:
        """Add an operation with weights, on one value."""
        name = f"layer{len(self.layers)}"
        self.layers[name] = module
        self.steps.append(Step(name, (source,), (output,)))

    def network(self, image: str, features: str) -> GraphNetwork:
        """Return the network, in eval mode."""
        taken = {name for step in self.steps for name in step.inputs}
        constants = {name: value for name, value in self.constants.items() if name in taken}
        return GraphNetwork(image, features, self.steps, self.layers, constants).eval()

    def convolution(
        self,
        names: Sequence[str],
        output: str,
        *,
        stride: Sequence[int],
        pads: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
    ) -> None:
        """Add a convolution of images; ``pads`` are top, left, bottom and right.

        Args:
            names: Of the images, the weight (out, in / groups, height, width) and maybe the bias.
            output: Name of the result.
            stride: Two numbers.
            pads: Four numbers.
            dilation: Two numbers.
            groups: Number of groups.
        """
        weight = self.known(names[1], "a convolution's weight")
        if weight.dim() != 4:
            raise no_translation(f"a convolution with weights of shape {tuple(weight.shape)}")
        top, left, bottom, right = pads
        is_even = (top, left) == (bottom, right)
        layer = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            stride=(stride[0], stride[1]),
            padding=(top, left) if is_even else 0,
            dilation=(dilation[0], dilation[1]),
            groups=groups,
            bias=len(names) > 2,
            device="meta",
        )
        state = {"weight": weight}
        if len(names) > 2:
            state["bias"] = self.known(names[2], "a convolution's bias").flatten()
        layer.load_state_dict(state, assign=True)
        module = (
            layer if is_even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)
        )
        self.layer(module, names[0], output)

    def reshape(self, source: str, shape: str, output: str, *, zero_copies: bool) -> None:
        """Add a change of shape. Where the file's shape begins with its batch, any number does."""
        if shape in self.constants:
            target = self.numbers(shape, "a shape")
            run = partial(_reshape, target=target, batch=self.batch, zero_copies=zero_copies)
            self.step(run, [source], output)
        else:
            self.step(partial(_reshape_to, zero_copies=zero_copies), [source, shape], output)


Attributes = dict[str, Any]
Translate = Callable[[GraphBuilder, Attributes, list[str], list[str]], None]
"""``(builder, attributes, inputs, outputs)``: adds the operation to the builder."""


def by_attributes(make: Callable[[Attributes], Callable[..., Any]]) -> Translate:
    """Return the translation of an operation on all inputs, whose function depends on attributes.

    Args:
        make: Returns the function for the attributes.
    """

    def translate(b: GraphBuilder, a: Attributes, inputs: list[str], outputs: list[str]) -> None:
        b.step(make(a), inputs, outputs[0])

    return translate


def same(function: Callable[..., Any]) -> Translate:
    """Return the translation of an operation that takes tensors and has no attributes."""
    return by_attributes(lambda a: function)


def _reshape(x: Tensor, *, target: Sequence[int], batch: int | None, zero_copies: bool) -> Tensor:
    shape = [
        x.shape[i] if number == 0 and zero_copies else number for i, number in enumerate(target)
    ]
    if batch is not None and shape and shape[0] == batch:
        # The file's network takes so many images; this one takes any number.
        rest = math.prod(shape[1:])
        if rest < 0:
            shape[0] = len(x)
        elif rest > 0 and x.numel() % rest == 0:
            shape[0] = x.numel() // rest
    return x.reshape(shape)


def _reshape_to(x: Tensor, shape: Tensor, *, zero_copies: bool) -> Tensor:
    return _reshape(x, target=shape.tolist(), batch=None, zero_copies=zero_copies)


def pool(
    x: Tensor,
    *,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    ceil: bool = False,
    count_pads: bool = False,
) -> Tensor:
    """Return the maxima ("max") or means ("mean") of windows; pads: top, left, bottom, right."""
    top, left, bottom, right = pads
    size, step = [int(k) for k in kernel], [int(s) for s in stride]
    around = [left, right, top, bottom]
    if kind == "max":
        if (top, left) == (bottom, right) and 2 * top <= size[0] and 2 * left <= size[1]:
            return F.max_pool2d(x, size, step, (top, left), ceil_mode=ceil)
        return F.max_pool2d(F.pad(x, around, value=-math.inf), size, step, ceil_mode=ceil)
    if (top, left) == (bottom, right) and 2 * top <= size[0] and 2 * left <= size[1]:
        return F.avg_pool2d(x, size, step, (top, left), ceil, count_pads)
    sums = F.avg_pool2d(F.pad(x, around), size, step, ceil_mode=ceil)
    if count_pads:
        return sums
    inside = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), around), size, step, ceil_mode=ceil)
    return sums / inside


def reduce(x: Tensor, *, kind: str, axes: Sequence[int], keep: bool) -> Tensor:
    """Return "mean", "max", "min" or "sum" over some axes; of none, over all."""
    dims = tuple(axes) or tuple(range(x.dim()))
    found: Tensor = getattr(torch, {"max": "amax", "min": "amin"}.get(kind, kind))(x, dims, keep)
    return found


def normalize(x: Tensor, *, axes: Sequence[int], eps: float, inside: bool, scaled: bool) -> Tensor:
    """Return x minus its mean over some axes and, if scaled, over its standard deviation."""
    centred = x - x.mean(tuple(axes), keepdim=True)
    if not scaled:
        return centred
    variance = centred.square().mean(tuple(axes), keepdim=True)
    return centred / ((variance + eps).sqrt() if inside else variance.sqrt() + eps)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """Return x where it is positive, else x times a slope, one for all or one per channel."""
    if slope.numel() > 1 and slope.numel() == x.shape[1]:
        slope = slope.reshape(1, -1, *[1] * (x.dim() - 2))
    return torch.where(x >= 0, x, x * slope)


def swish(x: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return x times the sigmoid of x, or of x times a factor."""
    return x * torch.sigmoid(x if factor is None else factor * x)


def matmul(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """Return the matrix product."""
    return (a.transpose(-1, -2) if transpose_a else a) @ (b.transpose(-1, -2) if transpose_b else b)


def join(*parts: Tensor, axis: int) -> Tensor:
    """Return the values, one after another along an axis."""
    return torch.cat(parts, axis)


def parts(x: Tensor, *, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
    """Return parts of these sizes along an axis."""
    return tuple(torch.split(x, list(sizes), axis))


def halves(x: Tensor, *, count: int, axis: int) -> tuple[Tensor, ...]:
    """Return so many equal parts along an axis."""
    return tuple(torch.chunk(x, count, axis))


def squeeze(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Return x without some axes of length 1; without all of them if none is given."""
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


def unsqueeze(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Return x with new axes at these places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def clip(x: Tensor, *, low: float | None, high: float | None) -> Tensor:
    """Return x within bounds."""
    return x if low is None and high is None else x.clamp(low, high)


def unchanged(x: Tensor) -> Tensor:
    """Return x."""
    return x
