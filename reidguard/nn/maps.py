"""Maps inside a network: which layers give them, and their values in a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reidguard.errors import InputError, did_you_mean

__all__ = ["find_layer", "map_at", "map_layers", "recorded"]

SHOWN = 40  # names of layers in an error


@contextmanager
def recorded(layer: nn.Module, *, leaf: bool = False) -> Iterator[list[Tensor]]:
    """Record what a layer gives in the passes inside.

    Args:
        layer: Part of a network.
        leaf: Cut the graph there, so that gradients by the recorded tensors can be computed.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with recorded(net[0]) as maps:
        ...     _ = net(torch.rand(3, 2))
        >>> maps[0].shape
        torch.Size([3, 2])
    """
    maps: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.detach().requires_grad_() if leaf else output
        maps.append(output)
        return output.clone()  # the next layer may change it in place

    handle = layer.register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


class _ReachedError(BaseException):
    """The end of a pass that is needed up to one layer."""


def map_at(model: Any, layer: nn.Module, images: Tensor) -> Tensor:
    """Return (N, D): what a layer gives for images, flattened, by a pass up to there.

    Args:
        model: Anything with ``features``.
        layer: Part of it.
        images: (N, 3, H, W) in [0, 1].

    Raises:
        InputError: If the layer is not reached, or gives another number of rows.
    """
    maps: list[Tensor] = []

    def stop(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        maps.append(output)
        raise _ReachedError

    handle = layer.register_forward_hook(stop)
    try:
        model.features(images)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    if not maps or len(maps[0]) != len(images):
        raise InputError(
            f"the layer gives {len(maps[0]) if maps else 'nothing'} for {len(images)} images: name "
            "one whose maps have a row for each image"
        )
    return maps[0].flatten(1)


def map_layers(model: Any, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the layers that give maps, (N, C, H, W) or (N, tokens, C), with the shapes of these.

    Args:
        model: Anything with ``features`` and ``named_modules``.
        images: (N, 3, H, W), for one pass.

    Returns:
        Shapes without N, in the order in which the layers finish.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(layer: nn.Module, inputs: Any, output: Any, *, name: str) -> None:
        if isinstance(output, Tensor) and output.dim() in (3, 4) and len(output) == len(images):
            shapes.pop(name, None)
            shapes[name] = tuple(output.shape[1:])

    with ExitStack() as stack, torch.no_grad():
        for name, layer in getattr(model, "named_modules", dict)():
            if name and not isinstance(layer, torch.jit.ScriptModule):
                hook = layer.register_forward_hook(partial(keep, name=name))
                stack.callback(hook.remove)
        model.features(images)
    return shapes


def find_layer(model: Any, name: str | None, images: Tensor) -> nn.Module:
    """Return the layer of a name; without one, the last stage before the final resolution.

    Of the layers whose maps have the last resolution but one, it is the last of the outermost:
    ``layer3`` of a ResNet, ``conv2`` of OSNet.

    Args:
        model: Anything with ``features`` and ``named_modules``.
        name: As in ``model.get_submodule(name)``, also without the prefix ``model.`` of a wrapper.
        images: (N, 3, H, W), for one pass where no name is given, or no such layer is there.

    Raises:
        InputError: Naming the layers that there are.
    """
    modules: dict[str, nn.Module] = dict(getattr(model, "named_modules", dict)())
    for known in (name, f"model.{name}"):
        if known in modules and known:
            return modules[known]
    shapes = map_layers(model, images)
    if name is None and (middle := _before_the_last_resolution(shapes)) is not None:
        return modules[middle]
    outermost = sorted(shapes, key=lambda key: key.count("."))[:SHOWN]
    listed = ", ".join(key.removeprefix("model.") for key in shapes if key in outermost)
    what = "has no map before its final resolution" if name is None else f"has no layer {name!r}"
    raise InputError(
        f"the surrogate {what}: {did_you_mean(str(name), shapes)}name one with layer=..., of "
        f"{listed or 'a network of torch layers, which this is not'}"
    )


def _before_the_last_resolution(shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Return the last of the outermost layers of the last resolution but one, if there are two."""
    if any(len(shape) == 2 for shape in shapes.values()):  # tokens have no resolution
        return None
    maps = {key: shape[1] * shape[2] for key, shape in shapes.items() if shape[1:] != (1, 1)}
    if len(resolutions := sorted(set(maps.values()))) < 2:
        return None
    middle = [key for key, resolution in maps.items() if resolution == resolutions[1]]
    depth = min(key.count(".") for key in middle)
    return [key for key in middle if key.count(".") == depth][-1]
