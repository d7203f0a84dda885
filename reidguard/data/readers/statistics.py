"""Published statistics of a dataset: its licence terms, and the images and identities per split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.decoding import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from reidguard.errors import a_few
from reidguard.types import ReIDSample

__all__ = ["Count", "Published", "build_dataset", "unread_images"]

ANY_IMAGE = (*IMAGE_SUFFIXES, *UNREAD_SUFFIXES)


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
    train: Count
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


def unread_images(root: Path, read: Iterable[Path], *, deep: bool = True) -> list[str]:
    """Return a note that counts the images that are not read, by folder; [] if all are.

    Args:
        root: The dataset's folder. Hidden files and folders do not count.
        read: Images that are read, or left out as junk.
        deep: Whether all folders below ``root`` are searched; else only those of ``read``.
    """
    known = {os.path.normpath(path) for path in read}
    unread: Counter[str] = Counter()
    folders = _walk(root) if deep else sorted({os.path.dirname(path) for path in known})
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:  # a folder that cannot be listed is none that a reader needs
            continue
        images = [n for n in names if n.lower().endswith(ANY_IMAGE) and not n.startswith(".")]
        count = sum(os.path.normpath(os.path.join(folder, n)) not in known for n in images)
        place = Path(os.path.relpath(folder, root)).as_posix()
        unread[place.partition("/")[0] if deep else place] += count
    total = sum(unread.values())
    each = a_few((f"{place} ({n:,})" for place, n in sorted(unread.items()) if n), shown=8)
    plural = "image is" if total == 1 else "images are"
    return [f"{total:,} {plural} not read: {each}"] if total else []


def _walk(root: Path) -> Iterator[str]:
    for folder, inner, _ in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        yield folder
