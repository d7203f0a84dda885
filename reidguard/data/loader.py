"""Training batches: sampled, decoded once, augmented, and prefetched."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from reidguard.contexts import fixed_context
from reidguard.data.augment import Augment
from reidguard.data.dataset import ReIDDataset
from reidguard.data.images import ImageCache, prefetch, to_device
from reidguard.data.sampler import PKSampler
from reidguard.distributed import World
from reidguard.schema import checked
from reidguard.types import BatchShard, ReIDBatch

__all__ = ["BatchLoader"]


class BatchLoader:
    """Training batches of P identities × K images, a function of (seed, epoch, position).

    Args:
        dataset: Dataset whose ``train`` split is loaded, with its ``train_labels``.
        image_size: (height, width).
        identities: P; see :class:`PKSampler`, which also defines an epoch.
        images_per_identity: K.
        seed: Seed of the order and of the augmentation.
        augment: Augmentation of each batch; None leaves the images as they are.
        device: Device of the batches. Pixels are copied as 8 bits and become floats there.
        memory_limit: See :class:`ImageCache`.
        world: The processes that train together. Each gets its shard of the same batches, all
            images of some identities, augmented as in the joint batch, and reads no others.

    Raises:
        InputError: If there are more processes than identities in a batch.
        DataError: If there are fewer than P identities.

    Example:
        >>> from reidguard.data import load_dataset
        >>> data = load_dataset("market1501:/data")  # doctest: +SKIP
        >>> loader = BatchLoader(data)  # doctest: +SKIP
        >>> for batch in loader.epoch(0):  # doctest: +SKIP
        ...     loss = objective(model, batch)
    """

    @fixed_context()
    def __init__(
        self,
        dataset: ReIDDataset,
        *,
        image_size: tuple[int, int] = (256, 128),
        identities: int = 8,
        images_per_identity: int = 8,
        seed: int = 0,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
        memory_limit: int = 2**30,
        world: World | None = None,
    ) -> None:
        pids = [sample.pid for sample in dataset.train]
        self.sampler = PKSampler(pids, identities, images_per_identity, seed)
        self.shard: BatchShard | None = None
        if world is not None:
            rows = self.sampler.rows_of(world.rank, world.size)
            self.shard = BatchShard(torch.from_numpy(rows), identities * images_per_identity)
        self.samples = dataset.train
        self.cache = ImageCache(self.samples, image_size, memory_limit=memory_limit)
        self.seed = self.sampler.seed
        self.augment = augment
        self.device = torch.device(device)
        labels = dataset.train_labels
        self._labels = torch.tensor([labels[pid] for pid in pids])
        self._camids = torch.tensor([sample.camid for sample in dataset.train])

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return len(self.sampler)

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Iterate over one epoch; a background thread prepares the next batch.

        Args:
            number: Number of the epoch, from 0.
            start: Number of batches to skip, as when a run is resumed: the others are exactly
                those of the whole epoch, and skipped images are not read.

        Yields:
            Batches with float32 images in [0, 1] on ``device``.

        Raises:
            DataError: Naming the file, if an image cannot be read.
        """
        batches = self.sampler.epoch(number)
        start = checked(int, "start", start, low=0, high=len(batches))
        jobs = [(number, position, batches[position]) for position in range(start, len(batches))]
        return prefetch(self._prepare, jobs)

    def _prepare(self, job: tuple[int, int, NDArray[np.int64]]) -> ReIDBatch:
        number, position, positions = job
        if self.shard is not None:
            positions = positions[self.shard.rows.numpy()]
        indices = torch.from_numpy(positions)
        images = to_device(self.cache.batch(positions), self.device).to(torch.float32) / 255
        if self.augment is not None:
            images = self.augment(images, self._generator(number, position), self.shard)
        labels, camids = self._labels[indices], self._camids[indices]
        return ReIDBatch(images, labels, camids, indices, shard=self.shard).to(self.device)

    def _generator(self, number: int, position: int) -> torch.Generator:
        # As a spawn key the position cannot be mistaken for part of the seed.
        sequence = np.random.SeedSequence([self.seed, number], spawn_key=(position,))
        return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
