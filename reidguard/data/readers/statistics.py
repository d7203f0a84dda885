"""Published statistics of a dataset: its licence terms, and the images and identities per split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.unread import unread_images
from reidguard.types import ReIDSample

__all__ = ["NO_TEXT", "SYNTHETIC", "Count", "Published", "build_dataset"]

NO_TEXT = "no licence text found with the images: treat as research only"
SYNTHETIC = f"synthetic people; {NO_TEXT}"


class Count(NamedTuple):
    """The size of a split; distractors are not counted as an identity."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.identities:,} identities"


class Published(NamedTuple):
    """A dataset's name, its terms in one line, and the published size of each split.

    ``sized`` is False where no source for the sizes of the splits was seen, so that they are not
    compared.
    """

    name: str
    licence: str
    train: Count = Count(0, 0)
    query: Count = Count(0, 0)
    gallery: Count = Count(0, 0)
    junk: int = 0
    sized: bool = True

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
        splits: Samples of "train", "query" and "gallery", and "multi_query" where there are some;
            those of "junk" are only counted.
        root: Folder of the dataset. Images in it that are in no split are counted in a note.
        notes: Further notes, which come first.
    """
    differing = []
    for split in SPLITS:
        samples = splits.get(split, ())
        count = Count(len(samples), len({s.pid for s in samples} - {0}))
        if published.sized and count != published.of(split):
            differing.append(f"{split} holds {count}; published are {published.of(split)}")
    junk = len(splits.get("junk", ()))
    read = (sample.path for samples in splits.values() for sample in samples)
    if published.sized and junk != published.junk:
        differing.append(f"{junk:,} junk images; published are {published.junk:,}")
    dataset = ReIDDataset(
        published.name,
        *(splits.get(split, ()) for split in SPLITS),
        root=root,
        licence=published.licence,
        junk=junk,
        notes=[*notes, *differing, *unread_images(root, read)],
    )
    dataset.multi_query = tuple(splits.get("multi_query", ()))
    return dataset
