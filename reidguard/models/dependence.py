"""Which weights the features of a model depend on, found by following a pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reidguard.models.base import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import probe_cameras, with_cameras

__all__ = ["FeatureDependence", "feature_dependence"]


@dataclass(frozen=True)
class FeatureDependence:
    """What the features of a model depend on.

    Args:
        names: Parameters and buffers, as in the state dict.
        width: Length of a feature; None if no pass is possible.
    """

    names: frozenset[str]
    width: int | None


def feature_dependence(model: ReIDModel) -> FeatureDependence:
    """Return the parameters and buffers that the features of a model in eval mode depend on.

    One image passes through a view of the model, without data (on torch's meta device) where the
    model's code allows that. If no pass is possible, everything counts but the classifiers.

    Args:
        model: It is not changed.

    Example:
        >>> from reidguard.models import create_model
        >>> dependence = feature_dependence(create_model("osnet_x0_25", num_classes=3))
        >>> {"fc.1.running_var", "conv1.conv.weight"} <= dependence.names
        True
        >>> [n for n in dependence.names if "classifier" in n or "num_batches" in n]
        []
    """
    for without_data in (True, False):
        try:
            return _follow(model, without_data)
        except Exception:  # a model's code may fail in any way without data, or for this size
            continue
    body = (n for n in model.state_dict() if not n.startswith(model.head_prefixes))
    return FeatureDependence(frozenset(body), None)


def _follow(model: ReIDModel, without_data: bool) -> FeatureDependence:
    view = inference_view(model, fold=False)
    if without_data:
        view = view.to("meta")
    weights = {n: t for n, t in view.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}
    device = next((tensor.device for tensor in weights.values()), torch.device("cpu"))
    size = model.input_spec.size or (256, 128)
    with torch.inference_mode(False), torch.no_grad(), _Origins(weights.items()) as origins:
        seen = with_cameras(view, probe_cameras(view, 1))
        features = seen.features(torch.zeros(1, 3, *size, device=device))
    return FeatureDependence(origins.of([features]), int(features.shape[1]))


class _Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records for each tensor the named tensors that it was computed from."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Tensors with the same memory, such as views, are one. All are kept alive, so that no
        # place in memory is used twice.
        self._names: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []
        for name, tensor in named:
            self._add(tensor, frozenset([name]))

    def of(self, tensors: Sequence[Any]) -> frozenset[str]:
        names = (self._names.get(_place(t), frozenset()) for t in tensors if isinstance(t, Tensor))
        return frozenset().union(*names)

    def _add(self, tensor: Tensor, names: frozenset[str]) -> None:
        self._alive.append(tensor)
        self._names[_place(tensor)] = self._names.get(_place(tensor), frozenset()) | names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = tree_leaves((args, kwargs or {}))
        if names := self.of(inputs):
            changed = inputs if func._schema.is_mutable else []
            for tensor in [*tree_leaves(result), *changed]:
                if isinstance(tensor, Tensor):
                    self._add(tensor, names)
        return result


def _place(tensor: Tensor) -> int:
    if tensor.layout != torch.strided:  # no memory of its own
        return id(tensor)
    return cast(int, tensor.untyped_storage()._cdata)
