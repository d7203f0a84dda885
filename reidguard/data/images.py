"""Image files as uint8 tensors: decoded in threads, streamed, and cached.

All pixels in this library are decoded as in :func:`decode_image`: Pillow, RGB, bilinear resize. So
two runs that name the same ``image_size`` see the same 8-bit images.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from reidguard.data.decoding import open_rgb
from reidguard.errors import DataError, InputError
from reidguard.records import to_path
from reidguard.schema import MAX_SIDE, checked
from reidguard.types import ReIDSample

__all__ = [
    "ImageCache",
    "decode_image",
    "iterate_images",
]

Job = TypeVar("Job")
Result = TypeVar("Result")


def _decode_into(path: Path, out: NDArray[np.uint8]) -> None:
    height, width = out.shape[1:]
    resized = open_rgb(path).resize((width, height), Image.Resampling.BILINEAR)
    out[...] = np.asarray(resized).transpose(2, 0, 1)


def _check_size(image_size: tuple[int, int]) -> tuple[int, int]:
    return checked(tuple[int, int], "image_size", image_size, low=1, high=MAX_SIDE)


def decode_image(path: Path | str, image_size: tuple[int, int] = (256, 128)) -> Tensor:
    """Read one image as RGB, resized bilinearly by Pillow.

    The image is turned as its EXIF orientation says. Alpha and colour profiles are dropped, and of
    several frames the first is read. A damaged file is an error, whatever the global
    ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says.

    Args:
        path: A BMP, GIF, JPEG, PNG, PPM or TIFF file, or AVIF, JPEG 2000 or WebP where Pillow was
            built with them.
        image_size: (height, width) of the result.

    Returns:
        uint8 tensor (3, height, width).

    Raises:
        DataError: Naming the file, if it is missing, no regular file, damaged, no image, larger
            than 33 megapixels, or has more than 8 bits per channel.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 128), (255, 0, 0)).save(f"{folder}/red.png")
        ...     decode_image(f"{folder}/red.png").float().mean((1, 2))
        tensor([255.,   0.,   0.])
    """
    out = np.empty((3, *_check_size(image_size)), np.uint8)
    _decode_into(to_path(path), out)
    return torch.from_numpy(out)


def thread_pool() -> ThreadPoolExecutor:
    """Return a pool of one thread per core that this process may use, 16 at most."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return ThreadPoolExecutor(min(cores, 16), thread_name_prefix="reidguard-decode")


def prefetch(prepare: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Yield ``prepare(job)`` in order while a background thread prepares the next one.

    An error inside ``prepare`` is raised where its result is due. Closing the generator waits for
    the job in progress and drops the rest.
    """
    worker = ThreadPoolExecutor(1, thread_name_prefix="reidguard-prefetch")
    try:
        ahead: Future[Result] | None = None
        for job in jobs:
            future = worker.submit(prepare, job)
            if ahead is not None:
                yield ahead.result()
            ahead = future
        if ahead is not None:
            yield ahead.result()
    finally:
        worker.shutdown(cancel_futures=True)


def iterate_images(
    samples: Sequence[ReIDSample],
    image_size: tuple[int, int] = (256, 128),
    batch_size: int = 64,
) -> Iterator[tuple[slice, Tensor]]:
    """Iterate over images in order, without a cache; the next batch is decoded in advance.

    Args:
        samples: Samples to read.
        image_size: (height, width).
        batch_size: Images per batch; the last may be smaller.

    Yields:
        The batch's slice of ``samples`` and its uint8 tensor (n, 3, height, width).

    Raises:
        DataError: Naming the file, if one cannot be read.

    Example:
        >>> from reidguard.testing import small_dataset
        >>> with small_dataset() as data:
        ...     [tuple(pixels.shape) for _, pixels in iterate_images(data.query, (32, 16), 3)]
        [(3, 3, 32, 16), (1, 3, 32, 16)]
    """
    size = _check_size(image_size)
    batch_size = checked(int, "batch_size", batch_size, low=1, high=10**6)
    places = [
        slice(start, min(start + batch_size, len(samples)))
        for start in range(0, len(samples), batch_size)
    ]
    return _iterate(samples, size, places)


def _iterate(
    samples: Sequence[ReIDSample], size: tuple[int, int], places: list[slice]
) -> Iterator[tuple[slice, Tensor]]:
    with thread_pool() as pool:

        def prepare(place: slice) -> tuple[slice, Tensor]:
            paths = [sample.path for sample in samples[place]]
            out = np.empty((len(paths), 3, *size), np.uint8)
            list(pool.map(_decode_into, paths, out))
            return place, torch.from_numpy(out)

        yield from prefetch(prepare, places)


def to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Move uint8 images; to a GPU from pinned memory, without waiting."""
    if device.type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


class ImageCache:
    """Cache of a split's images as uint8; each is decoded once, when first needed.

    A set above ``memory_limit`` is kept in a memory map on a temporary file without a name, which
    the system removes with the process, however that ends. ``TMPDIR`` sets its folder.

    Args:
        samples: Samples to read.
        image_size: (height, width).
        memory_limit: Bytes that may be cached in memory; larger sets use the memory map. One
            256×128 image takes 98,304 bytes.

    Raises:
        DataError: If the disk has no room for the memory map; nothing is decoded then.

    Example:
        >>> cache = ImageCache([], image_size=(128, 64))
        >>> cache.batch([]).shape
        torch.Size([0, 3, 128, 64])
    """

    def __init__(
        self,
        samples: Sequence[ReIDSample],
        image_size: tuple[int, int] = (256, 128),
        *,
        memory_limit: int = 2**30,
    ) -> None:
        self.samples = tuple(samples)
        self.image_size = _check_size(image_size)
        memory_limit = checked(int, "memory_limit", memory_limit, low=0, high=2**62)
        shape = (len(self.samples), 3, *self.image_size)
        size = int(np.prod(shape))
        self.on_disk = size > memory_limit
        if self.on_disk:
            self._store = np.frombuffer(_unnamed_map(size), np.uint8).reshape(shape)
        else:
            self._store = np.empty(shape, np.uint8)  # pages are taken when they are written
        self._decoded = np.zeros(len(self.samples), bool)
        self._pool = thread_pool()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: ArrayLike | Tensor) -> Tensor:
        """Return images by position, as a new uint8 tensor (n, 3, height, width).

        Args:
            indices: n positions in ``samples``; they may repeat.

        Raises:
            DataError: Naming the file, if one cannot be read.
            InputError: If a position does not exist.
        """
        positions = np.asarray(indices, dtype=np.int64).reshape(-1)
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            raise InputError(f"image positions must lie in 0..{len(self) - 1}")
        with self._lock:
            missing = np.unique(positions[~self._decoded[positions]])
            list(self._pool.map(self._decode, missing.tolist()))
        return torch.from_numpy(self._store[positions])

    def _decode(self, index: int) -> None:
        _decode_into(self.samples[index].path, self._store[index])
        self._decoded[index] = True


def _unnamed_map(size: int) -> mmap.mmap:
    """Map a temporary file without a name, its blocks reserved beforehand.

    Without the reservation a full disk would raise SIGBUS on some later write.
    """
    try:
        with tempfile.TemporaryFile(prefix="reidguard-") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
            else:  # macOS
                zeros = bytes(2**20)
                for start in range(0, size, len(zeros)):
                    stream.write(zeros[: size - start])
                stream.flush()
            return mmap.mmap(stream.fileno(), size)
    except OSError as error:
        raise DataError(
            f"cannot reserve {size / 2**20:,.0f} MiB for decoded images in "
            f"{tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a folder with room, or "
            "raise memory_limit to keep them in memory"
        ) from error
