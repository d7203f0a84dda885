"""Which registered model the weights of a file belong to."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from reidguard.contexts import on_meta
from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import advised_models, without_wrappers
from reidguard.models.factory import MODELS
from reidguard.models.file_options import options_shown
from reidguard.models.weights import match_tensors, misfit

__all__ = ["nearest_model"]

SMALLEST_FRACTION = 0.1


def nearest_model(model: ReIDModel, tensors: Mapping[str, Tensor]) -> str:
    """Return a sentence that names the registered model which the tensors of a file fit best.

    All registered models are built without memory for their weights: with their default options
    but the backbone that the names in the file speak of, and with the options of ``model``.

    Args:
        model: That the file does not fit.
        tensors: As the file names them.
    """
    best, best_call = 0.0, ""
    for name, options in _calls(model, tensors):
        try:
            draft = _draft(MODELS.get(name), json.dumps(options))
        except Exception:  # other options, or code of a plugin that needs data
            continue
        state, report = match_tensors(draft, Path(), tensors)
        weights = draft.state_dict()
        body = {
            n: t.numel()
            for n, t in weights.items()
            # files from before torch 0.4.1 have no counters
            if not n.startswith(draft.head_prefixes) and not n.endswith("num_batches_tracked")
        }
        total, count = sum(body.values()), sum(body.get(n, 0) for n in report.loaded)
        fraction = count / total if total else 0.0
        arguments = "".join(f", {key}={value!r}" for key, value in options.items())
        call = f"create_model({name!r}{arguments})"
        if fraction == 1 and not misfit(draft, state, report):
            return f"It fits {call}: create that"
        if fraction > max(best, SMALLEST_FRACTION):  # earlier calls have fewer options
            best, best_call = fraction, call
    if not best_call:
        return "No registered model is near it: create the model that the file was saved from"
    percent = math.floor(100 * best)
    return (
        f"No registered model fits it; {percent} % of the numbers of the nearest, {best_call}, are "
        "in the file: create the model that the file was saved from"
    )


def _calls(model: ReIDModel, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and options of models to compare with."""
    own = dict(model.build_spec[1]) if model.build_spec else {}
    advised = [n for n in advised_models(without_wrappers(tensors)) if n in MODELS.list()]
    names = dict.fromkeys((*advised, *MODELS.list()))
    known = {name: _defaults(MODELS.get(name)) for name in names}
    for shown in options_shown(tensors) or [{}]:
        for name, defaults in known.items():
            yield name, {k: v for k, v in shown.items() if k in defaults and defaults[k] != v}
    for name, defaults in known.items():
        if own and own.keys() <= defaults.keys():
            yield name, own


def _defaults(factory: Callable[..., ReIDModel]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a plugin's callable may have none
        return {}
    return {parameter.name: parameter.default for parameter in parameters}


@lru_cache(maxsize=128)
def _draft(factory: Callable[..., ReIDModel], options: str) -> ReIDModel:
    """Return a model on the meta device, whose weights take no memory."""
    with warnings.catch_warnings(), on_meta():
        warnings.simplefilter("ignore")
        return factory(**json.loads(options))
