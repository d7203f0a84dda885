"""Feature extraction, and a cache of clean features for all attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import Attack, InstanceAttack
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset, iterate_images
from reidguard.data.dataset import CountCallback
from reidguard.errors import CheckpointError, InputError
from reidguard.files import remove_leftovers
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn import inference_view
from reidguard.records import to_path
from reidguard.schema import MAX_SIDE, checked
from reidguard.storage import fingerprint, load_tensors, save_tensors
from reidguard.types import ReIDSample

__all__ = ["CountCallback", "FeatureStore", "extract_features"]


def module_device(module: torch.nn.Module, default: torch.device | None = None) -> torch.device:
    """Return the device of a module's parameters and buffers; ``default`` if it has none.

    Raises:
        InputError: If they are on several devices.
    """
    devices = {t.device for group in (module.parameters(), module.buffers()) for t in group}
    if len(devices) > 1:
        raise InputError(
            f"{type(module).__name__} is spread over {', '.join(sorted(map(str, devices)))}; "
            "move it to one device first"
        )
    return devices.pop() if devices else default or torch.device("cpu")


def attack_device(attack: torch.nn.Module, default: torch.device | None = None) -> torch.device:
    """Return the device that an attack or model works on: a bound attack's is its target's.

    Raises:
        InputError: If it is spread over several devices, or an instance attack is not bound.
    """
    module = attack.target.model if isinstance(attack, InstanceAttack) else attack
    if isinstance(module, torch.nn.Module):
        return module_device(module, default)
    return default or torch.device("cpu")


def labelled(attack: Attack, samples: Sequence[ReIDSample], enabled: bool) -> Attack:
    """Return the attack for one batch; an instance attack gets the identities if ``enabled``."""
    if enabled and isinstance(attack, InstanceAttack):
        return attack.with_labels([sample.pid for sample in samples])
    return attack


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images; to a GPU from pinned memory, without waiting."""
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 images divided by 255, each value rounded once to ``dtype``.

    On a GPU the result is channels-last, which convolutions are faster on.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    on_gpu = pixels.device.type == "cuda"
    layout = torch.channels_last if on_gpu else torch.contiguous_format
    return pixels.to(wide, memory_format=layout).div_(255).to(dtype)


@fixed_context()
def extract_features(
    model: ReIDModel,
    samples: Sequence[ReIDSample],
    *,
    image_size: tuple[int, int] = (256, 128),
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    progress: CountCallback | None = None,
) -> Tensor:
    """Return the test-time features of images on disk.

    The model runs in eval mode on the device of its parameters and is not changed.

    Args:
        model: Computes the features.
        samples: Samples to read.
        image_size: (height, width) of the images that the model gets.
        batch_size: Images per forward pass.
        dtype: Float type of the images.
        progress: Called with (images done, images in all).

    Returns:
        (N, D) on the model's device, not normalised.

    Raises:
        DataError: If an image cannot be read.
        InputError: If there are no samples.
    """
    if not samples:
        raise InputError("there are no samples to extract features of")
    device = module_device(model)
    parts = []
    view = inference_view(model)
    with torch.no_grad():
        for place, pixels in iterate_images(samples, image_size, batch_size):
            parts.append(view.features(to_float(to_device(pixels, device), dtype)))
            if progress is not None:
                progress(place.stop, len(samples))
    return torch.cat(parts)


def features_key(
    model: Mapping[str, Any],
    dataset: ReIDDataset,
    split: str,
    *,
    image_size: tuple[int, int],
    dtype: torch.dtype,
    every: int = 1,
) -> dict[str, Any]:
    """Return what determines the features of a split, ``model`` being the model's key."""
    return {
        **model,
        "split": dataset.fingerprint(split),
        "order": fingerprint(dataset.names(split)),
        "every": every,
        "image_size": list(image_size),
        "dtype": str(dtype).removeprefix("torch."),
    }


class FeatureStore:
    """Cache of clean features, in memory and optionally on disk.

    The key consists of the model's weights and architecture, its InputSpec, a digest of its
    features of two fixed images, the content and order of the samples, the image size and the
    dtype. So features of a changed model or dataset are computed anew, and all attacks on one model
    share them. A damaged file is computed again.

    Args:
        directory: Folder that keeps features between runs; None caches in memory only.

    Raises:
        CheckpointError: If the directory cannot be made.

    Example:
        >>> store = FeatureStore()
        >>> len(store)
        0
    """

    def __init__(self, directory: Path | str | None = None) -> None:
        self.directory = None if directory is None else to_path(directory)
        self._memory: dict[str, Tensor] = {}
        if self.directory is not None:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                remove_leftovers(self.directory)
            except OSError as error:
                raise CheckpointError(
                    f"cannot make the feature folder {self.directory}: {error.strerror}; choose "
                    "another one"
                ) from error

    def __len__(self) -> int:
        return len(self._memory)

    def key(
        self,
        model: ReIDModel,
        dataset: ReIDDataset,
        split: str,
        *,
        image_size: tuple[int, int] = (256, 128),
        dtype: torch.dtype = torch.float32,
        every: int = 1,
    ) -> dict[str, Any]:
        """Return the key of the features of every ``every``-th sample of a split."""
        image_size = checked(tuple[int, int], "image_size", image_size, low=1, high=MAX_SIDE)
        every = checked(int, "every", every, low=1)
        key = model_key(model, image_size)
        return features_key(key, dataset, split, image_size=image_size, dtype=dtype, every=every)

    def get(self, key: dict[str, Any], device: torch.device) -> Tensor | None:
        """Return the (N, D) features of a key on ``device``; None if they are not cached."""
        name = fingerprint(key)[:32]
        if name not in self._memory and self.directory is not None:
            try:
                tensors, card = load_tensors(self._path(name), "features")
                features = tensors.get("features")
                if card.get("key") == key and features is not None and features.dim() == 2:
                    self._memory[name] = features
            except CheckpointError:
                return None  # absent or damaged: the caller computes them, put() replaces the file
        features = self._memory.get(name)
        if features is not None and features.device != device:
            features = self._memory[name] = features.to(device)
        return features

    def put(self, key: dict[str, Any], features: Tensor) -> None:
        """Cache features under their key, replacing a damaged file.

        Raises:
            CheckpointError: If the file cannot be written; they are in memory nevertheless.
        """
        name = fingerprint(key)[:32]
        self._memory[name] = features.detach()
        if self.directory is not None:
            save_tensors(self._path(name), {"features": features}, {"kind": "features", "key": key})

    def features(
        self,
        model: ReIDModel,
        dataset: ReIDDataset,
        split: str,
        *,
        image_size: tuple[int, int] = (256, 128),
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        progress: CountCallback | None = None,
        key: dict[str, Any] | None = None,
    ) -> Tensor:
        """Return the features of a split, extracting them at the first call.

        Arguments and result are those of :func:`extract_features`; ``progress`` is only called
        while extracting. ``key`` is what :meth:`key` returns for these features, where it is known
        already.
        """
        if key is None:
            key = self.key(model, dataset, split, image_size=image_size, dtype=dtype)
        features = self.get(key, module_device(model))
        if features is None:
            features = extract_features(
                model,
                dataset.split(split),
                image_size=image_size,
                batch_size=batch_size,
                dtype=dtype,
                progress=progress,
            )
            self.put(key, features)
        return features

    def _path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"features-{name}.safetensors"
