"""Published statistics of a dataset: its licence terms, and the images and identities per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.types import ReIDSample

__all__ = ["Count", "Published", "build_dataset"]


class Count(NamedTuple):
    """The size of a split; distractors are not counted as an identity."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.identities:,} identities"


class Published(NamedTuple):
    """A dataset's name, its terms in one line, and the published size of each split."""

    name: str
    licence: str
    train: Count
    query: Count = Count(0, 0)
    gallery: Count = Count(0, 0)
    junk: int = 0

    def of(self, split: str) -> Count:
        """Return the size of "train", "query" or "gallery"."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}[split]


def build_dataset(
    published: Published,
    splits: Mapping[str, Sequence[ReIDSample]],
    *,
    root: Path,
    notes: Sequence[str] = (),
) -> ReIDDataset:
    """Build a dataset that notes each split whose size differs from the published one.

    Args:
        published: Name, terms and sizes.
        splits: Samples of "train", "query" and "gallery"; those of "junk" are only counted.
        root: Folder of the dataset.
        notes: Further notes, which come first.
    """
    differing = []
    for split in SPLITS:
        samples = splits.get(split, ())
        count = Count(len(samples), len({s.pid for s in samples} - {0}))
        if count != published.of(split):
            differing.append(f"{split} holds {count}; published are {published.of(split)}")
    junk = len(splits.get("junk", ()))
    if junk != published.junk:
        differing.append(f"{junk:,} junk images; published are {published.junk:,}")
    return ReIDDataset(
        published.name,
        *(splits.get(split, ()) for split in SPLITS),
        root=root,
        licence=published.licence,
        junk=junk,
        notes=[*notes, *differing],
    )
