"""Feature extraction, and a cache of clean features for all attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import Attack, InstanceAttack
from reidguard.attacks.devices import attack_device, module_device
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset, iterate_images
from reidguard.data.dataset import CountCallback
from reidguard.data.images import to_device
from reidguard.distributed import gather_rows, rows_here
from reidguard.errors import CheckpointError, InputError
from reidguard.files import remove_leftovers
from reidguard.fingerprint import fingerprint
from reidguard.models import ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, depends_on_cameras, with_cameras
from reidguard.records import to_path
from reidguard.schema import MAX_SIDE, checked
from reidguard.storage import load_tensors, save_tensors
from reidguard.types import ReIDSample

__all__ = ["CountCallback", "FeatureStore", "attack_device", "extract_features", "module_device"]


def for_samples(attack: Attack, samples: Sequence[ReIDSample], with_labels: bool) -> Attack:
    """Return the attack for one batch.

    An instance attack gets the identities if ``with_labels``, and the cameras if its target model
    depends on them.
    """
    if not isinstance(attack, InstanceAttack):
        return attack
    if with_labels:
        attack = attack.with_labels([sample.pid for sample in samples])
    if depends_on_cameras(attack.target.model):
        attack = attack.with_cameras(cameras_of(samples))
    return attack


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

    Example:
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     extract_features(small_model(), data.gallery, image_size=(32, 16)).shape[0]
        12
    """
    if not samples:
        raise InputError("there are no samples to extract features of")
    device = module_device(model)
    parts = []
    view = inference_view(model)
    with torch.no_grad():
        for place, pixels in iterate_images(samples, image_size, batch_size):
            seen = with_cameras(view, cameras_of(samples[place]))
            parts.append(seen.features(to_float(to_device(pixels, device), dtype)))
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


SHARD = 1 << 16  # rows of a file of features
MAPPED = 1 << 26  # bytes from which a file is mapped into memory, not read


def shards_of(rows: slice, batch_size: int) -> list[slice]:
    """Return the shards of some rows: whole batches, about ``SHARD`` rows at most."""
    step = max(SHARD // batch_size, 1) * batch_size
    starts = range(rows.start, rows.stop, step)
    return [slice(start, min(start + step, rows.stop)) for start in starts]


class FeatureStore:
    """Cache of clean features, in memory or on disk.

    The key consists of the model's weights and architecture, its InputSpec, a digest of its
    features of two fixed images, the content and order of the samples, the image size and the
    dtype. So features of a changed model or dataset are computed anew, and all attacks on one model
    share them. A damaged file is computed again.

    On disk the features of a split are files of at most 65,536 rows, each written as soon as it is
    complete, so that an interrupted extraction goes on where it was. Large ones are mapped into
    memory, not read: a gallery may be larger than the memory.

    Args:
        directory: Folder that keeps features between runs; None caches in memory only.
        dtype: Float type that features are rounded to, in memory and on disk, such as
            ``torch.float16``; None leaves them as the model returns them.

    Raises:
        CheckpointError: If the directory cannot be made.

    Example:
        >>> store = FeatureStore()
        >>> len(store)
        0
    """

    def __init__(
        self, directory: Path | str | None = None, *, dtype: torch.dtype | None = None
    ) -> None:
        self.dtype = dtype
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

    def _stored_key(self, key: dict[str, Any]) -> dict[str, Any]:
        if self.dtype is None:
            return key
        return {**key, "stored": str(self.dtype).removeprefix("torch.")}

    def get(self, key: dict[str, Any], device: torch.device) -> Tensor | None:
        """Return the (N, D) features of a key on ``device``; None if they are not cached."""
        key = self._stored_key(key)
        name = fingerprint(key)[:32]
        if name not in self._memory and self.directory is not None:
            try:
                path = self._path(name)
                mapped = path.exists() and path.stat().st_size >= MAPPED
                tensors, card = load_tensors(path, "features", mapped=mapped)
                features = tensors.get("features")
                if card.get("key") == key and features is not None and features.dim() == 2:
                    self._memory[name] = features
            except CheckpointError:
                return None  # absent or damaged: the caller computes them, put() replaces the file
        features = self._memory.get(name)
        if features is not None and features.device != device:
            features = self._memory[name] = features.to(device)
        return features

    def put(self, key: dict[str, Any], features: Tensor) -> Tensor:
        """Cache features under their key, replacing a damaged file, and return what is cached.

        Raises:
            CheckpointError: If the file cannot be written; they are in memory nevertheless.
        """
        stored_key = self._stored_key(key)
        name = fingerprint(stored_key)[:32]
        features = features.detach().to(self.dtype or features.dtype)
        self._memory[name] = features
        if self.directory is None:
            return features
        save_tensors(
            self._path(name), {"features": features}, {"kind": "features", "key": stored_key}
        )
        if features.device.type == "cpu" and features.nbytes >= MAPPED:
            del self._memory[name]  # from now on it is the file, mapped into memory
        cached = self.get(key, features.device)
        return features if cached is None else cached

    def shards(
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
    ) -> list[Tensor]:
        """Return the features of a split in shards, extracting those that are not cached.

        Of several processes that ``torch.distributed`` connects, each extracts and returns its
        part: the rows :func:`~reidguard.distributed.rows_here`.

        Arguments are those of :func:`extract_features`; ``progress`` is only called while
        extracting. ``key`` is what :meth:`key` returns for these features, where it is known
        already.
        """
        batch_size = checked(int, "batch_size", batch_size, low=1)
        if key is None:
            key = self.key(model, dataset, split, image_size=image_size, dtype=dtype)
        samples = dataset.split(split)
        rows = rows_here(len(samples), batch_size)
        device = module_device(model)
        result = []
        for place in shards_of(rows, batch_size):
            shard_key = key_of_rows(key, place, len(samples))
            features = self.get(shard_key, device)
            if features is None:
                features = extract_features(
                    model,
                    samples[place],
                    image_size=image_size,
                    batch_size=batch_size,
                    dtype=dtype,
                    progress=_offset(progress, place.start - rows.start, rows.stop - rows.start),
                )
                features = self.put(shard_key, features)
            result.append(features)
        return result

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
        """Return the features of a whole split as one tensor, extracting them at the first call.

        Arguments and result are those of :func:`extract_features`; ``progress`` is only called
        while extracting. ``key`` is what :meth:`key` returns for these features, where it is known
        already.
        """
        shards = self.shards(
            model,
            dataset,
            split,
            image_size=image_size,
            dtype=dtype,
            batch_size=batch_size,
            progress=progress,
            key=key,
        )
        total = len(dataset.split(split))
        return whole(shards, rows_here(total, batch_size), total)

    def _path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"features-{name}.safetensors"


def key_of_rows(key: dict[str, Any], rows: slice, total: int) -> dict[str, Any]:
    """Return the key of some rows of a split; that of the split for all of them."""
    if (rows.start, rows.stop) == (0, total):
        return key
    return {**key, "rows": [rows.start, rows.stop]}


def whole(shards: Sequence[Tensor], rows: slice, total: int) -> Tensor:
    """Return the shards of all processes as one tensor; collective.

    Args:
        shards: Those of this process, in order.
        rows: Where they stand.
        total: Rows of all processes.
    """
    own = None
    if shards:
        own = shards[0] if len(shards) == 1 else torch.cat(list(shards))
    return gather_rows(own, rows, total)


def _offset(progress: CountCallback | None, before: int, total: int) -> CountCallback | None:
    """Return a callback that counts on from ``before``."""
    return None if progress is None else lambda done, _: progress(before + done, total)
