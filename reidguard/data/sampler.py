"""PK sampling: batches of P identities with K images each, as triplet losses need them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from reidguard.errors import DataError, InputError
from reidguard.schema import MAX_SEED, checked

__all__ = ["PKSampler"]


class PKSampler:
    """Random batches of P identities × K images, a function of (seed, epoch number).

    It is also a batch sampler of torch, ``DataLoader(dataset, batch_sampler=sampler)``: each pass
    over it is the next epoch, from 0 on or from what :meth:`set_epoch` says.

    In each epoch an identity's images are shuffled and cut into groups of K:

    - A batch has P different identities with K images each, identity by identity.
    - An identity of n ≥ K images has ⌊n/K⌋ groups without a repeated image; the other n mod K
      images, redrawn each epoch, are unused. One of n < K images has one group, in which each
      image appears ⌊K/n⌋ or ⌈K/n⌉ times.
    - The number of batches B is the largest for which such groups exist; it is the same in every
      epoch. An identity with more than B groups uses B of them. Beyond that at most P−1 groups,
      redrawn each epoch, are unused because they do not fill a batch.
    - The identities of a batch are drawn at random, weighted by their remaining groups.

    Args:
        pids: Identity of every sample.
        identities: P.
        images_per_identity: K.
        seed: A non-negative number.

    Raises:
        DataError: If there are fewer than P identities.

    Example:
        >>> sampler = PKSampler([3, 3, 3, 8, 8, 9], identities=2, images_per_identity=2)
        >>> len(sampler), [batch.shape for batch in sampler.epoch(0)]
        (1, [(4,)])
        >>> [sorted(batch) for batch in sampler] == [sorted(b.tolist()) for b in sampler.epoch(0)]
        True
    """

    def __init__(
        self,
        pids: Sequence[int],
        identities: int = 8,
        images_per_identity: int = 8,
        seed: int = 0,
    ) -> None:
        self.identities = checked(int, "identities", identities, low=1, high=10**4)
        self.images_per_identity = checked(
            int, "images_per_identity", images_per_identity, low=1, high=10**4
        )
        self.seed = checked(int, "seed", seed, low=0, high=MAX_SEED)
        values = np.asarray(pids)
        if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu"):
            raise InputError(f"pids must be a sequence of whole numbers, not {pids!r:.80}")
        values = values.astype(np.int64)
        order = np.argsort(values, kind="stable")
        _, starts = np.unique(values[order], return_index=True)
        self._members: list[NDArray[np.int64]] = np.split(order, starts[1:]) if len(order) else []
        if len(self._members) < identities:
            count = len(self._members)
            cure = f"lower identities to {count} or add some" if count else "add training images"
            raise DataError(f"a batch needs {identities} identities, the data has {count}; {cure}")
        sizes = np.array([len(member) for member in self._members])
        self._groups = np.maximum(1, sizes // images_per_identity)
        self._batches = self._count_batches()
        self._next = 0

    def _count_batches(self) -> int:
        # B batches of P different identities exist exactly if Σ min(groups, B) ≥ P·B. The
        # difference is concave in B and not negative at 0, so it can be bisected.
        low, high = 0, int(self._groups.sum()) // self.identities
        while low < high:
            middle = (low + high + 1) // 2
            if np.minimum(self._groups, middle).sum() >= self.identities * middle:
                low = middle
            else:
                high = middle - 1
        return low

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the next epoch, as lists of P·K positions in ``pids``."""
        # At the first batch: a DataLoader with workers makes an iterator more than it uses.
        number, self._next = self._next, self._next + 1
        for batch in self.epoch(number):
            yield batch.tolist()

    def set_epoch(self, number: int) -> None:
        """Say which epoch the next pass is, as when a training is resumed.

        Raises:
            InputError: If it is no whole number from 0 on.
        """
        self._next = checked(int, "the epoch's number", number, low=0, high=10**9)

    def epoch(self, number: int) -> list[NDArray[np.int64]]:
        """Return the batches of one epoch as arrays of P·K positions in ``pids``."""
        number = checked(int, "the epoch's number", number, low=0, high=10**9)
        entropy = np.random.SeedSequence([self.seed, number])
        rng = np.random.Generator(np.random.PCG64(entropy))
        left = self._trim(rng)
        images = [iter(self._draw_groups(rng, member)) for member in self._members]
        batches = []
        for to_fill in range(self._batches, 0, -1):
            # Weighted choice without replacement (the largest of log-weight plus Gumbel noise).
            # An identity with a group for every remaining batch must be in this one.
            with np.errstate(divide="ignore"):
                keys = np.log(left) + rng.gumbel(size=len(left))
            keys[left == to_fill] = np.inf
            chosen = np.argsort(-keys, kind="stable")[: self.identities]
            left[chosen] -= 1
            batches.append(np.concatenate([next(images[i]) for i in chosen]))
        return batches

    def rows_of(self, rank: int, size: int) -> NDArray[np.int64]:
        """Return the rows of every batch for process ``rank``: all those of every size-th identity.

        Raises:
            InputError: If there are more processes than identities in a batch.
        """
        size = checked(int, "size", size, low=1)
        rank = checked(int, "rank", rank, low=0, high=size - 1)
        if size > self.identities:
            raise InputError(
                f"a batch of {self.identities} identities cannot be divided among {size} "
                "processes: raise identities, or start fewer processes"
            )
        rows = np.arange(self.identities * self.images_per_identity, dtype=np.int64)
        own: NDArray[np.int64] = rows[rows // self.images_per_identity % size == rank]
        return own

    def _trim(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the number of groups per identity in this epoch: P·B in all, B at most each."""
        left: NDArray[np.int64] = np.minimum(self._groups, self._batches)
        owners = np.repeat(np.arange(len(left)), left)
        excess = len(owners) - self.identities * self._batches
        np.subtract.at(left, rng.choice(owners, excess, replace=False), 1)
        return left

    def _draw_groups(
        self, rng: np.random.Generator, member: NDArray[np.int64]
    ) -> list[NDArray[np.int64]]:
        k = self.images_per_identity
        shuffled = rng.permutation(member)
        if len(shuffled) < k:
            return [np.resize(shuffled, k)]
        return [shuffled[start : start + k] for start in range(0, len(shuffled) - k + 1, k)]
