"""The objects that options name: device, models, attacks, learners, feature store."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from reidguard.cli.options import Options
from reidguard.cli.progress import note
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import FeatureStore
from reidguard.models import MODELS, ReIDModel, create_model, load_model

__all__ = ["build", "device_name", "feature_store", "file_digest", "model_from", "use_device"]

T = TypeVar("T")


def device_name(options: Options) -> str:
    """Return the device of ``--device``, by default a GPU if there is one, its own per process."""
    name: str = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    alone = "LOCAL_RANK" not in os.environ
    return name if name != "cuda" or alone else f"cuda:{os.environ['LOCAL_RANK']}"


def use_device(options: Options) -> torch.device:
    """Set the number of threads and return the device.

    Raises:
        InputError: If there is no such device.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    name = device_name(options)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0][:80]}); try cpu"
        ) from error
    return device


def build(flag: str, factory: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a constructor with the values of an option; its errors name the option."""
    try:
        return factory(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError | CheckpointError):
            raise
        raise InputError(f"{flag}: {error}") from error


def model_from(
    spec: str, settings: Mapping[str, Any], *, seed: int = 0, num_classes: int | None = None
) -> ReIDModel:
    """Build the model that an option names.

    Args:
        spec: A file that reidguard saved, or NAME[:WEIGHTS].
        settings: Options of the model's constructor.
        seed: Fixes the initial weights.
        num_classes: Training identities, where a fresh model is to be trained.
    """
    name, colon, weights = spec.partition(":")
    if not colon and spec not in MODELS and (spec.endswith(".safetensors") or Path(spec).is_file()):
        if settings:
            raise InputError(f"{spec} knows how its model was built; leave --model-set out")
        if not spec.endswith(".safetensors"):
            raise InputError(f"say which network {spec} belongs to: --model NAME:{spec}")
        return load_model(Path(spec).expanduser())
    if colon and not weights:
        raise InputError(f"the path after {name!r}: is empty; write {name}:/path/to/weights")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(
            "--model-set",
            create_model,
            name,
            num_classes=num_classes,
            weights=Path(weights).expanduser() if weights else None,
            **settings,
        )
    if not weights and num_classes is None:
        note(
            f"warning: no weights are given for {name}, so it keeps its initial ones (usually "
            f"random); give {name}:/path/to/weights"
        )
    return model


def feature_store(folder: Path | None) -> FeatureStore:
    """Return the store of clean features in the folder of ``--cache``, or in the user's."""
    if folder is not None:
        return FeatureStore(folder)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        return FeatureStore(Path(cache) / "reidguard" / "features")
    except CheckpointError as error:
        warnings.warn(f"{error} with --cache; features are not cached this time", stacklevel=2)
        return FeatureStore()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
