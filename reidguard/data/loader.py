"""Training batches: sampled, decoded once, augmented, and prepared one ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from reidguard.data.augment import Augment
from reidguard.data.images import ImageCache, prefetch
from reidguard.data.sampler import PKSampler
from reidguard.distributed import World
from reidguard.errors import DataError, InputError
from reidguard.types import BatchShard, ReIDBatch, ReIDSample

__all__ = ["BatchLoader"]


class BatchLoader:
    """Batches of P identities × K images, the same for the same (seed, epoch, position).

    Args:
        samples: Training samples.
        labels: Training label of each ``pid``, as :attr:`ReIDDataset.train_labels` gives it.
        image_size: (height, width).
        identities: P; see :class:`PKSampler`, which also says what an epoch covers.
        images_per_identity: K.
        seed: Fixes the order and the augmentation.
        augment: What to do to each batch; None leaves the images as they are.
        device: Where batches end up. Pixels travel as 8 bits and become floats there.
        memory_limit: See :class:`ImageCache`.
        world: Of several processes, each gets its shard of the same batches, whole
            identities, augmented as in the joint batch; what is not its own it need not read.

    Raises:
        InputError: If there are more processes than identities in a batch.
        DataError: If a sample's ``pid`` has no label, or there are fewer than P identities.

    Example:
        >>> from reidguard.data import load_dataset
        >>> data = load_dataset("market1501:/data")  # doctest: +SKIP
        >>> loader = BatchLoader(data.train, data.train_labels)  # doctest: +SKIP
        >>> for batch in loader.epoch(0):  # doctest: +SKIP
        ...     loss = objective(model, batch)
    """

    def __init__(
        self,
        samples: Sequence[ReIDSample],
        labels: Mapping[int, int],
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
        pids = [sample.pid for sample in samples]
        if unknown := sorted(set(pids) - set(labels)):
            raise DataError(
                f"{len(unknown)} identities have no label (first: {unknown[0]}); pass the "
                "train_labels of the dataset that the samples come from"
            )
        self.samples = tuple(samples)
        self.sampler = PKSampler(pids, identities, images_per_identity, seed)
        self.shard: BatchShard | None = None
        if world is not None:
            rows = self.sampler.rows_of(world.rank, world.size)
            self.shard = BatchShard(torch.from_numpy(rows), identities * images_per_identity)
        self.cache = ImageCache(self.samples, image_size, memory_limit=memory_limit)
        self.seed = seed
        self.augment = augment
        self.device = torch.device(device)
        self._labels = torch.tensor([labels[pid] for pid in pids])
        self._camids = torch.tensor([sample.camid for sample in samples])

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sampler)

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        """Iterate over one epoch while the next batch is prepared in a background thread.

        Args:
            number: Which epoch, from 0.
            start: How many batches to skip, as when a run is resumed: the others are exactly
                those of the whole epoch, and skipped images are not read.

        Yields:
            Batches with float32 images in [0, 1] on ``device``.

        Raises:
            DataError: Naming the file, if an image cannot be read.
        """
        batches = self.sampler.epoch(number)
        if not 0 <= start <= len(batches):
            raise InputError(f"start must lie in 0..{len(batches)}, the batches of an epoch")
        jobs = [(number, position, batches[position]) for position in range(start, len(batches))]
        return prefetch(self._prepare, jobs)

    def _prepare(self, job: tuple[int, int, NDArray[np.int64]]) -> ReIDBatch:
        number, position, positions = job
        if self.shard is not None:
            positions = positions[self.shard.rows.numpy()]
        indices = torch.from_numpy(positions)
        images = self.cache.batch(positions).to(self.device).to(torch.float32) / 255
        if self.augment is not None:
            images = self.augment(images, self._generator(number, position), self.shard)
        batch = ReIDBatch(
            images,
            self._labels[indices],
            self._camids[indices],
            indices,
            shard=self.shard,
        )
        return batch.to(self.device)

    def _generator(self, number: int, position: int) -> torch.Generator:
        # As a spawn key the position cannot be mistaken for part of the seed.
        sequence = np.random.SeedSequence([self.seed, number], spawn_key=(position,))
        return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)
