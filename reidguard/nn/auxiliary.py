"""Auxiliary batch norms: weights and statistics of their own for adversarial images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reidguard.errors import InputError
from reidguard.nn.batch_norm import without_memory
from reidguard.nn.derivatives import Replaced

__all__ = ["AuxiliaryNorms"]


class AuxiliaryNorms(nn.Module):
    """A second set of a model's batch norms, for adversarial images (Xie et al., CVPR 2020).

    In AdvProp, clean and adversarial images share all layers but the batch norms, as their
    statistics differ. At the test the model's own are used, and these are dropped. They start as
    copies, and only their weights and biases matter: in train mode the images are normalised by
    their own statistics, so none are kept.

    Args:
        model: Whose batch norms are copied; those without weights have nothing to copy. Weights
            that require no gradient require none here.

    Raises:
        InputError: If the model has no batch norm with weights.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> norms = AuxiliaryNorms(model)
        >>> _ = nn.init.constant_(norms.weights[0], 2.0)
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> one = model(x)
        >>> with norms.used_in(model):
        ...     two = model(x)
        >>> torch.allclose(two, 2 * one, atol=1e-4)
        True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        norms = _norms(model)
        if not norms:
            raise InputError(
                f"{type(model).__name__} has no batch norm with weights of its own: take "
                "batch_norm='shared'"
            )
        self.weights = nn.ParameterList([_copied(norm.weight) for norm in norms])
        self.biases = nn.ParameterList([_copied(norm.bias) for norm in norms])

    @contextmanager
    def used_in(self, model: Any) -> Iterator[None]:
        """Use these weights in the model's batch norms, whose running statistics stay.

        Args:
            model: That of the constructor, or a copy of it whose weights are others.
        """
        own = [norm.weight for norm in _norms(model)]
        pairs = zip(self.weights, self.biases, strict=True)
        table = {id(weight): pair for weight, pair in zip(own, pairs, strict=True)}

        def batch_norm(
            x: Tensor, mean: Any, variance: Any, weight: Any = None, bias: Any = None, *args: Any,
            **kwargs: Any,
        ) -> Tensor:  # fmt: skip
            weight, bias = table.get(id(weight), (weight, bias))
            return F.batch_norm(x, mean, variance, weight, bias, *args, **kwargs)

        with without_memory(model), Replaced({F.batch_norm: batch_norm}):
            yield


def _norms(model: nn.Module) -> list[_BatchNorm]:
    found: dict[int, _BatchNorm] = {}
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None:
            found.setdefault(id(module.weight), module)
    return list(found.values())


def _copied(parameter: Tensor) -> nn.Parameter:
    flag = parameter.requires_grad
    return nn.Parameter(copy.deepcopy(parameter.detach()), requires_grad=flag)
