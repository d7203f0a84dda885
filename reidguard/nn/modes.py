"""Inference views: copies of a model that share its weights and leave the model itself alone."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from reidguard.nn.batch_norm import fold_batch_norm
from reidguard.nn.derivatives import convolve

__all__ = ["inference_view", "shared_copy"]

M = TypeVar("M", bound=nn.Module)


@torch.inference_mode(False)
@torch.no_grad()
def inference_view(model: M, *, fold: bool = True) -> M:
    """Return a copy of a model for inference and attacks, which shares the model's weights.

    The view is in eval mode and none of its parameters requires a gradient; gradients to the input
    still flow. The model itself is never changed, neither now nor by passes of the view: it may
    meanwhile be evaluated in other threads, copied and saved, and nothing has to be restored.

    Parameters and buffers share the storage of the model's, so that an in-place change of the model
    shows in the view. What is folded does not follow such changes:

    * convolution weights of a :class:`~reidguard.models.ReIDModel` that are not in its
      ``memory_format`` are converted to it, which saves the same conversion in every pass;
    * batch norms become the affine maps that fixed statistics make of them, which makes passes and
      second derivatives cheaper.

    Convolutions become linear maps with one derivative for all orders: torch's own second
    derivative computes the gradient of the weights, group by group, though none is needed.

    Args:
        model: Any module. Hooks, parametrizations and tied weights are those of the model; all
            attributes that are neither modules nor weights are shared with it. A TorchScript module
            is copied by torch, a module of ``torch.compile`` is not compiled in the view.
        fold: Whether to fold. Without it the view computes bit by bit what the model in eval mode
            does.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> view = inference_view(net)
        >>> view[1].training, view[0].weight.requires_grad
        (False, False)
        >>> net[1].training, net[0].weight.requires_grad
        (True, True)
        >>> view[0].weight.data_ptr() == net[0].weight.data_ptr()
        True
    """
    view = shared_copy(model)
    modules = list(view.modules())
    for module in modules:
        # Set the flags themselves: train() and eval() reach children, and may be overridden.
        module.training = False
    if not fold:
        return view
    # A model inside another, as in an ensemble, has its own layout.
    layouts = {
        id(parameter): layout
        for module in modules
        if isinstance(layout := getattr(module, "memory_format", None), torch.memory_format)
        for parameter in module.parameters()
    }
    for parameter in view.parameters():
        if parameter.dim() == 4:
            layout = layouts.get(id(parameter), torch.contiguous_format)
            parameter.data = parameter.data.contiguous(memory_format=layout)
    for module in modules:
        fold_batch_norm(module)
        if (
            type(module) is nn.Conv2d  # a subclass may do more
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module.__class__ = _LinearConv2d
    return view


class _LinearConv2d(nn.Conv2d):
    """A convolution with constant weights."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (self.stride, self.padding, self.dilation, self.groups)
        return convolve(x, self.weight, self.bias, shape)

    def _get_name(self) -> str:  # a model's fingerprint has it
        return "Conv2d"


def shared_copy(model: M) -> M:
    """Return a copy of the module tree whose weights share the storage of the model's.

    Modes are those of the model, parameters require no gradient; buffers that a pass changes in
    place change in the model, too. All other attributes are shared by reference; where they are or
    contain modules or weights of the tree, bound methods of them included, the copy has its own.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> other = shared_copy(norm)
        >>> other.training, other.weight.requires_grad
        (True, False)
    """
    twins: dict[int, Any] = {}
    _copy_tree(model, twins)
    for twin in [twin for twin in twins.values() if isinstance(twin, nn.Module)]:
        if not isinstance(twin, torch.jit.ScriptModule):
            for name, value in vars(twin).items():
                if name not in ("_modules", "_parameters", "_buffers"):
                    vars(twin)[name] = _with_twins(value, twins)
    return cast(M, twins[id(model)])


def _copy_tree(module: nn.Module, twins: dict[int, Any]) -> nn.Module:
    if id(module) in twins:
        return cast(nn.Module, twins[id(module)])
    if isinstance(module, torch.jit.ScriptModule):  # its attributes are not Python's
        script: nn.Module = copy.deepcopy(module)
        for name in ("named_parameters", "named_buffers"):
            originals = dict(getattr(module, name)())
            for key, tensor in getattr(script, name)():
                tensor.requires_grad_(False)
                tensor.data = originals[key].data
        twins[id(module)] = script
        return script
    if isinstance(compiled := module._modules.get("_orig_mod"), nn.Module):  # torch.compile
        twins[id(module)] = _copy_tree(compiled, twins)
        return cast(nn.Module, twins[id(module)])
    twin = object.__new__(type(module))
    twins[id(module)] = twin
    # Copies of the dictionaries, so that hooks and layers added to one are not in the other.
    vars(twin).update(
        {
            name: value.copy() if name in _REGISTERS else value
            for name, value in vars(module).items()
        }
    )
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in twins:  # tied weights are tied in the copy
                twins[id(parameter)] = nn.Parameter(_shared(parameter), requires_grad=False)
            twin._parameters[name] = twins[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            twin._buffers[name] = twins.setdefault(id(buffer), _shared(buffer))
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _copy_tree(child, twins)
    return twin


def _shared(tensor: Tensor) -> Tensor:
    """Return the tensor without its graph; a copy of one of inference mode, which can have none."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


_REGISTERS = {name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}


def _with_twins(value: Any, twins: dict[int, Any]) -> Any:
    """Return the value with modules and weights of the tree replaced by their copies."""
    if isinstance(value, (nn.Module, Tensor)):
        return twins.get(id(value), value)
    if isinstance(value, types.MethodType):
        owner = twins.get(id(value.__self__))
        return value if owner is None else types.MethodType(value.__func__, owner)
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
        replaced = [_with_twins(part, twins) for part in parts]
        if all(a is b for a, b in zip(parts, replaced, strict=True)):
            return value
        return functools.partial(replaced[0], *replaced[1], **replaced[2])
    if type(value) in (list, tuple):
        items = [_with_twins(item, twins) for item in value]
        same = all(a is b for a, b in zip(value, items, strict=True))
        return value if same else type(value)(items)
    if isinstance(value, dict):
        changed = {
            key: twin
            for key, item in value.items()
            if (twin := _with_twins(item, twins)) is not item
        }
        if changed:
            value = copy.copy(value)
            value.update(changed)
    return value
