"""The model that an option of the command line names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from reidguard.cli.options import errors_name, fraction, image_size
from reidguard.cli.progress import note
from reidguard.contexts import seeded
from reidguard.errors import InputError
from reidguard.input_spec import PREPROCESSING, InputSpec
from reidguard.models import (
    MODELS,
    EnsembleModel,
    ReIDModel,
    create_model,
    identify_weights,
    load_model,
    load_module,
    load_onnx,
    load_openvino,
)
from reidguard.models.module_files import module_kind
from reidguard.records import to_path
from reidguard.storage import lacks_card

__all__ = ["model_from", "preprocessing", "surrogate_from"]

FILES = {".onnx": load_onnx, ".xml": load_openvino, ".pt2": load_module}  # whole networks


def preprocessing(text: str) -> dict[str, Any]:
    """Read ``--input``, such as "bgr,255,96x48", as arguments of an InputSpec.

    Raises:
        InputError: If a part is none of those that there are.
    """
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, numbers = part.partition("=")
        if name in ("mean", "std") and equals:
            values[name] = tuple(fraction(number) for number in numbers.split("/"))
        elif part in ("1", "255"):
            values["value_range"] = int(part)
        elif part in PREPROCESSING["channels"]:
            values["channels"] = part
        elif part in PREPROCESSING["interpolation"]:
            values["interpolation"] = part
        elif re.fullmatch(r"\d+x\d+", part):
            values["size"] = image_size(part)
        else:
            raise InputError(
                f"--input has no part {part!r}: write rgb or bgr, 1 or 255, HEIGHTxWIDTH, "
                "bilinear, bicubic or nearest, mean=R/G/B, std=R/G/B, with commas between them"
            )
    if values.get("value_range") == 255:
        values = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **values}
    return values


def model_from(
    spec: str,
    arguments: Mapping[str, Any],
    *,
    seed: int = 0,
    num_classes: int | None = None,
    prepared: str | None = None,
) -> ReIDModel:
    """Build the model that an option names.

    Args:
        spec: A file that reidguard saved, NAME[:WEIGHTS], weights that are recognised, or a
            network's file in ONNX, OpenVINO's IR, TorchScript or of torch.export.
        arguments: Of the model's constructor, or of the function that loads the file.
        seed: Fixes the initial weights.
        num_classes: Training identities, where a fresh model is to be trained.
        prepared: Preprocessing as ``--input`` has it.
    """
    given = {} if prepared is None else preprocessing(prepared)
    load = FILES.get(PurePath(spec).suffix)
    if load is None and spec not in MODELS and module_kind(to_path(spec)) is not None:
        load = load_module
    if load is not None:
        input_spec = InputSpec(**{"size": None, **given}) if given else None
        with errors_name("--model-set"):
            return load(to_path(spec), input_spec=input_spec, **arguments)
    model = _torch_model(spec, arguments, seed, num_classes)
    if given:
        model.input_spec = replace(model.input_spec, **given)
    return model


def surrogate_from(
    specs: Sequence[str], arguments: Mapping[str, Any], *, seed: int = 0, prepared: str | None
) -> ReIDModel | None:
    """Build the second model, or the ensemble of several, that ``--surrogate`` names.

    Args:
        specs: As for :func:`model_from`.
        arguments: ``--surrogate-set``, where there is one.
        seed: Fixes the initial weights.
        prepared: ``--surrogate-input``, where there is one.
    """
    if len(specs) == 1:
        return model_from(specs[0], arguments, seed=seed, prepared=prepared)
    flags = {"--surrogate-set": arguments, "--surrogate-input": prepared}
    for name in [name for name, value in flags.items() if value]:
        owner = "one --surrogate, and there are several: leave it out, or use fit([...]) in Python"
        raise InputError(
            f"{name} belongs to {owner if specs else 'a second model: give --surrogate, too'}"
        )
    models = [model_from(spec, {}, seed=seed) for spec in specs]
    return EnsembleModel(models) if models else None


def _torch_model(
    spec: str, arguments: Mapping[str, Any], seed: int, num_classes: int | None
) -> ReIDModel:
    name, colon, weights = spec.partition(":")
    is_file = not colon and spec not in MODELS and to_path(spec).is_file()
    if is_file or (not colon and spec.endswith(".safetensors")):
        if spec.endswith(".safetensors") and not lacks_card(to_path(spec)):
            if arguments:
                raise InputError(f"{spec} contains the options of its model; leave --model-set out")
            return load_model(spec)
        return _identified(spec, arguments, seed, num_classes)
    if colon and not weights:
        raise InputError(f"the path after {name!r}: is empty; write {name}:/path/to/weights")
    with seeded(seed):
        path = to_path(weights) if weights else None
        with errors_name("--model-set"):
            model = create_model(name, num_classes=num_classes, weights=path, **arguments)
    if not weights and num_classes is None:
        note(
            f"warning: no weights are given for {name}, so it keeps its initial ones (usually "
            f"random); give {name}:/path/to/weights"
        )
    return model


def _identified(
    spec: str, arguments: Mapping[str, Any], seed: int, num_classes: int | None
) -> ReIDModel:
    """Return the model whose weights a file has, and say which it is."""
    path = to_path(spec)
    result = identify_weights(path)
    if not result.exact or result.architecture is None:
        known = ", ".join([result.in_words()["architecture"], *result.notes])
        raise InputError(
            f"say which network {spec} belongs to: --model NAME:{spec}. It is not clear: {known}"
        )
    words = "; ".join(f"{name} {text}" for name, text in result.in_words().items())
    note(f"{path.name} was identified: {words}")
    options = {**result.options, **arguments}
    return _torch_model(f"{result.architecture}:{spec}", options, seed, num_classes)
