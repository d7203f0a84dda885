"""Wrappers that make a re-ID model of any network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.models.base import Metric, ReIDModel
from reidguard.types import InputSpec

__all__ = ["WrappedModel", "wrap_model"]

Features = str | Callable[[nn.Module, Tensor], Tensor]


class WrappedModel(ReIDModel):
    """The result of :func:`wrap_model`; ``network`` is the wrapped module."""

    memory_format = torch.contiguous_format  # a wrapped network may call view()
    head_prefixes = ("network.classifier.", "network.fc.", "network.head.")  # usual names

    def __init__(
        self, network: nn.Module, input_spec: InputSpec, metric: Metric, features: Features | None
    ) -> None:
        super().__init__(input_spec=input_spec, metric=metric)
        self.network = network
        self._source = features

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the network's vectors, or its maps averaged over all places."""
        if self._source is None:
            output: Any = _call(self.network, inputs)
        elif isinstance(self._source, str):
            output = getattr(self.network, self._source)(inputs)
        else:
            output = self._source(self.network, inputs)
        kind = f"a {type(output).__name__}"
        if isinstance(output, Tensor):
            if output.shape[:1] == inputs.shape[:1] and output.dim() in (2, 4):
                return output if output.dim() == 2 else output.mean((2, 3))
            kind = f"shape {tuple(output.shape)}"
        raise InputError(
            f"{type(self.network).__name__} gives {kind} for {len(inputs)} images, where features "
            "(N, D) or maps (N, C, H, W) are needed; say how to get them, as in "
            "wrap_model(module, features=lambda module, x: module(x)[0])"
        )

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take checkpoints of the network itself, too."""
        if any(name.startswith("network.") for name in state):
            return state
        return {f"network.{name}": tensor for name, tensor in state.items()}

    def extra_repr(self) -> str:
        """Return where the features come from."""
        return f"features={self._source!r}"


class FixedBatch(nn.Module):
    """A network that takes only so many images at a time, for any number of them.

    Args:
        network: It is called with full batches; the last one is filled up.
        size: Images in each.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, inputs: Tensor) -> Any:
        """Return the network's output for each image."""
        return in_batches(self.network, inputs, self.size)


def in_batches(network: Callable[[Tensor], Any], inputs: Tensor, size: int) -> Any:
    """Return what a network that takes ``size`` images at a time gives for any number of them."""
    parts = []
    for images in torch.split(inputs, size):
        filled = torch.cat([images, images[-1:].expand(size - len(images), -1, -1, -1)])
        output = network(filled)
        if not isinstance(output, Tensor):
            return output
        parts.append(output[: len(images)])
    return torch.cat(parts)


def _call(network: nn.Module, inputs: Tensor) -> Any:
    """Return what a network gives; one of ``torch.export`` gets the batch that it was made for."""
    size = None
    if isinstance(network, torch.fx.GraphModule):
        example = next((n.meta.get("val") for n in network.graph.nodes if n.op == "placeholder"), 0)
        size = example.shape[0] if isinstance(example, Tensor) and example.dim() else None
    if not isinstance(size, int):  # any
        return network(inputs)
    try:
        return in_batches(network, inputs, size)
    except AssertionError as error:  # a guard of torch.export
        raise InputError(
            f"the exported network takes other images than {(size, *inputs.shape[1:])} ({error}): "
            "give it their size with input_spec=InputSpec(size=(height, width))"
        ) from error


def wrap_model(
    module: nn.Module,
    *,
    input_spec: InputSpec | None = None,
    metric: Metric = "cosine",
    features: Features | None = None,
) -> ReIDModel:
    """Turn any network into a :class:`ReIDModel`, which needs no labels and has no classifier.

    Args:
        module: Takes normalised (N, 3, H, W) images and gives features (N, D), or maps
            (N, C, H, W) that are then averaged over all places. It is not copied.
        input_spec: Size and normalisation that the network was trained with. By default 256×128,
            and the mean and standard deviation that a timm network names, else ImageNet's.
        metric: How its features are compared, "euclidean" or "cosine".
        features: Where the features come from if calling the module does not give them: the name
            of a method, or a function of (module, images). The function should use the module
            that it gets, which may be a copy with other weights.

    Raises:
        InputError: If the module is none, or has no such method; and in the first call, if the
            output has another shape.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> wrap_model(net, input_spec=InputSpec(size=None)).features(torch.rand(2, 3, 9, 7)).shape
        torch.Size([2, 8])
    """
    if isinstance(module, ReIDModel):
        raise InputError(f"{type(module).__name__} is a ReIDModel already; use it as it is")
    if not isinstance(module, nn.Module):
        raise InputError(f"wrap_model needs a torch.nn.Module, not a {type(module).__name__}")
    if features is not None and not callable(features):
        if not isinstance(features, str):
            raise InputError("features must be the name of a method or a function, or be left out")
        if not callable(getattr(module, features, None)):
            raise InputError(f"{type(module).__name__} has no method {features!r} to take features")
    return WrappedModel(module, input_spec or _default_spec(module), metric, features)


def _default_spec(module: nn.Module) -> InputSpec:
    cfg = getattr(module, "pretrained_cfg", None)  # timm's record
    if isinstance(cfg, dict) and "mean" in cfg and "std" in cfg:
        return InputSpec(mean=tuple(cfg["mean"]), std=tuple(cfg["std"]))
    return InputSpec()
