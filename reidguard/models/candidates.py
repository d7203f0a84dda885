"""Registered models compared with the tensors of a file, by names and by shapes.

The models are built without memory for their weights.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reidguard.contexts import on_meta
from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import advised_models, without_wrappers
from reidguard.models.dependence import feature_dependence
from reidguard.models.factory import MODELS
from reidguard.models.file_options import options_shown
from reidguard.models.weights import LoadReport, match_tensors, misfit

__all__ = ["Candidate", "by_names", "by_shapes", "weight_shapes"]

COMPARED = 12  # models whose names are compared, of those with the most shapes in common
CHECKED = 5  # of these, models of which every tensor is checked
SMALLEST_FRACTION = 0.1


@dataclass(frozen=True)
class Candidate:
    """A registered model and how far a file fits it.

    Args:
        name: In the registry.
        options: Of its constructor, besides the defaults.
        model: Without memory for its weights.
        problem: Why the features would not be those of the file's network; empty if they are.
        fraction: Of the model's numbers, those that the file has.
        used: Of the file's numbers, those that the model has.
        report: Which tensors fit; None if only shapes were compared.
        heads: Shapes of the file's matrices that may be classifiers of identities.
        named: Weights that the file still has under their names, where shapes were compared.
    """

    name: str
    options: dict[str, Any]
    model: ReIDModel
    problem: str
    fraction: float
    used: float
    report: LoadReport | None = None
    heads: tuple[tuple[int, ...], ...] = ()
    named: int = 0

    @property
    def call(self) -> str:
        """The line that creates the model."""
        arguments = "".join(f", {key}={value!r}" for key, value in self.options.items())
        return f"create_model({self.name!r}{arguments})"

    @property
    def fit(self) -> tuple[bool, float, float, int]:
        """How well it fits; equal for models that a file does not tell apart."""
        return not self.problem, round(self.used, 4), round(self.fraction, 4), self.named

    @property
    def rank(self) -> tuple[tuple[bool, float, float, int], int]:
        """What candidates are sorted by."""
        return self.fit, -len(self.options)


def by_names(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None = None
) -> list[Candidate]:
    """Return the registered models that a file's names and shapes are nearest to, best first.

    Args:
        tensors: As the file names them; they may be without memory.
        options: Further options to try.
    """
    if advised := [n for n in advised_models(without_wrappers(tensors)) if n in MODELS]:
        found = _fitting(tensors, options, advised)
        if found and not found[0].problem:
            return found
    return _fitting(tensors, options, MODELS.list())


def _fitting(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None, names: Sequence[str]
) -> list[Candidate]:
    """Return what :func:`by_names` does, of some models."""
    file = Counter(tuple(t.shape) for t in tensors.values())

    def alike(draft: _Draft) -> float:
        return _overlap(file, Counter(tuple(t.shape) for t in _body(draft.model).values()))

    matched = []
    for draft in sorted(_drafts(tensors, options, names), key=alike, reverse=True)[:COMPARED]:
        state, report = match_tensors(draft.model, Path(), tensors)
        matched.append((*_fractions(draft.model, state, report), draft, state, report))
    matched.sort(key=lambda entry: entry[:2], reverse=True)
    found: list[Candidate] = []
    for used, fraction, draft, state, report in matched[:CHECKED]:
        if any(not c.problem and c.used > used for c in found):
            break  # the others fit less
        if fraction > SMALLEST_FRACTION:
            model = draft.model
            heads = {n: tuple(t.shape) for n, t in state.items() if t.dim() == 2}
            heads = {n: s for n, s in heads.items() if n.startswith(model.head_prefixes)}
            classifiers = [shape for name, shape in heads.items() if "classifier" in name]
            problem = misfit(model, state, report)
            call = draft.name, draft.options, model
            found.append(
                Candidate(
                    *call, problem, fraction, used, report, tuple(classifiers or heads.values())
                )
            )
    return sorted(found, key=lambda match: match.rank, reverse=True)


def by_shapes(
    shapes: Mapping[tuple[int, ...], int],
    names: Iterable[str] = (),
    *,
    instance_norm: bool | None = None,
) -> list[Candidate]:
    """Return the registered models that the shapes of a file's weights are nearest to, best first.

    Args:
        shapes: Of convolutions and linear layers as :func:`weight_shapes` has them, and how many.
        names: Names in the file, which may show the options of a model.
        instance_norm: Whether the network has such layers, if that is known.
    """
    file, names = Counter(shapes), list(names)
    endings = {ending for name in names for ending in _endings(name)}
    hints = {name: torch.empty(0, device="meta") for name in names}

    def alike(draft: _Draft) -> float:
        return _overlap(file, weight_shapes(t.shape for t in _body(draft.model).values()))

    drafts = sorted(_drafts(hints, None, MODELS.list()), key=alike, reverse=True)
    if instance_norm is not None:
        drafts = [d for d in drafts if _has_instance_norm(d.model) == instance_norm]
    found = []
    for draft in drafts[:CHECKED]:
        body = _body(draft.model)
        needed = feature_dependence(draft.model).names
        own = weight_shapes(t.shape for n, t in body.items() if n in needed)
        common = _numbers(own & file)
        fraction, used = common / max(_numbers(own), 1), common / max(_numbers(file), 1)
        if fraction > SMALLEST_FRACTION:
            problem = "" if own == file else _differing(own, file)
            named = len(endings & {n for n, t in body.items() if t.dim() > 1})
            call = draft.name, draft.options, draft.model
            found.append(Candidate(*call, problem, fraction, used, named=named))
    return sorted(found, key=lambda match: match.rank, reverse=True)


def weight_shapes(shapes: Iterable[Iterable[int]]) -> Counter[tuple[int, ...]]:
    """Return the shapes of convolutions and linear layers, in whatever layout a file has them.

    Vectors are left out: files merge batch norms into convolutions. The two sides of a matrix are
    sorted, and a convolution of single pixels is a matrix.
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for shape in map(tuple, shapes):
        if len(shape) < 2 or math.prod(shape) == max(shape):
            continue
        if len(shape) == 5:  # OpenVINO's groups
            shape = (shape[0] * shape[1], *shape[2:])
        if all(side == 1 for side in shape[2:]):
            shape = tuple(sorted(shape[:2]))
        counts[shape] += 1
    return counts


@dataclass(frozen=True)
class _Draft:
    """A registered model without memory for its weights."""

    name: str
    options: dict[str, Any]
    model: ReIDModel


def _drafts(
    tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None, names: Sequence[str]
) -> Iterator[_Draft]:
    shown = options_shown(tensors)
    for name in names:
        factory = MODELS.get(name)
        defaults = _defaults(factory)
        variants = [{}, *({k: v for k, v in s.items() if _takes(defaults, k, v)} for s in shown)]
        if options and options.keys() <= defaults.keys():
            variants.append(dict(options))
        for number, arguments in enumerate(variants):
            if arguments in variants[:number]:
                continue
            try:
                model = _draft(factory, json.dumps(arguments))
            except Exception:  # other options, or code of a plugin that needs data
                continue
            yield _Draft(name, arguments, model)


def _defaults(factory: Callable[..., ReIDModel]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a plugin's callable may have none
        return {}
    return {parameter.name: parameter.default for parameter in parameters}


def _takes(defaults: Mapping[str, Any], name: str, value: Any) -> bool:
    """Return whether an option is one of a model, of this type and not its default."""
    return name in defaults and type(defaults[name]) is type(value) and defaults[name] != value


@lru_cache(maxsize=256)
def _draft(factory: Callable[..., ReIDModel], options: str) -> ReIDModel:
    """Return a model on the meta device, whose weights take no memory."""
    with warnings.catch_warnings(), on_meta(), _WithoutDraws():
        warnings.simplefilter("ignore")
        return factory(**json.loads(options))


class _WithoutDraws(TorchFunctionMode):
    """Leaves random initial weights out, which take half of the time of building a model."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def _body(model: ReIDModel) -> dict[str, Tensor]:
    """Return the tensors of a model that are no classifiers, nor counters of batches."""
    return {
        n: t
        for n, t in model.state_dict().items()
        if isinstance(t, Tensor) and t.dim() and not n.startswith(model.head_prefixes)
    }


def _has_instance_norm(model: ReIDModel) -> bool:
    return any(isinstance(m, nn.InstanceNorm1d | nn.InstanceNorm2d) for m in model.modules())


def _endings(name: str) -> Iterator[str]:
    """Yield a name without each of its beginnings, and without what converters append."""
    for suffix in ("", "_quantized"):
        parts = name.removesuffix(suffix).split(".")
        yield from (".".join(parts[start:]) for start in range(len(parts)))


def _numbers(shapes: Mapping[tuple[int, ...], int]) -> int:
    return sum(count * math.prod(shape) for shape, count in shapes.items())


def _overlap(file: Counter[tuple[int, ...]], own: Counter[tuple[int, ...]]) -> float:
    common = _numbers(file & own)
    return common / max(_numbers(file) + _numbers(own) - common, 1)


def _fractions(
    model: ReIDModel, state: Mapping[str, Tensor], report: LoadReport
) -> tuple[float, float]:
    """Return which part of the file's numbers the model has, and the reverse, without heads."""
    body = _body(model)
    common = sum(body[n].numel() for n in report.loaded if n in body)
    heads = {*report.dropped_heads, *(n for n in report.loaded if n not in body)}
    file = sum(t.numel() for n, t in state.items() if n not in heads and t.dim())
    return common / max(file, 1), common / max(sum(t.numel() for t in body.values()), 1)


def _differing(own: Counter[tuple[int, ...]], file: Counter[tuple[int, ...]]) -> str:
    """Return which weights differ, in words."""

    def some(shapes: Counter[tuple[int, ...]]) -> str:
        listed = [f"{'×'.join(map(str, s))} ({n})" for s, n in shapes.most_common(3)]
        return ", ".join(listed) + (", ..." if len(shapes) > 3 else "")

    missing, others = own - file, file - own
    parts = [f"{missing.total()} weights are not in the file: {some(missing)}"] if missing else []
    if others:
        parts.append(f"{others.total()} weights of the file have no place in it: {some(others)}")
    return "; ".join(parts)
