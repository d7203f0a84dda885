"""What is known of the published datasets: their terms in short, and how many images they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.types import ReIDSample

__all__ = ["PUBLISHED", "Count", "Published", "published_dataset"]


class Count(NamedTuple):
    """The size of a split; distractors are no identity."""

    images: int
    identities: int

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.identities:,} people"


NONE = Count(0, 0)


class Published(NamedTuple):
    """A dataset's terms in one line, and its splits as published."""

    licence: str
    train: Count
    query: Count = NONE
    gallery: Count = NONE

    def of(self, split: str) -> Count:
        """Return the size of "train", "query" or "gallery"."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}[split]


_CUHK = "academic research only"
_SYNTHETIC = "synthetic people; no licence text found with the images: treat as research only"
_DEEPCHANGE = (
    "non-commercial research only, on signed agreement; not to be distributed; block faces in "
    "whatever is shown"
)

PUBLISHED: Mapping[str, Published] = {
    "dukemtmc-reid": Published(
        "withdrawn by its authors in 2019; was CC BY-NC-SA 4.0: no commercial use",
        Count(16522, 702),
        Count(2228, 702),
        Count(17661, 1110),
    ),
    "msmt17": Published(
        "research only, on signed agreement; not to be distributed; no commercial use",
        Count(32621, 1041),
        Count(11659, 3060),
        Count(82161, 3060),
    ),
    "cuhk03-np-labeled": Published(_CUHK, Count(7368, 767), Count(1400, 700), Count(5328, 700)),
    "cuhk03-np-detected": Published(_CUHK, Count(7365, 767), Count(1400, 700), Count(5332, 700)),
    "cuhk01": Published(_CUHK, Count(1940, 485), Count(972, 486), Count(972, 486)),
    "viper": Published(
        "no licence text found with the images: treat as research only",
        Count(632, 316),
        Count(316, 316),
        Count(316, 316),
    ),
    "personx": Published(_SYNTHETIC, Count(88560, 410), Count(5136, 856), Count(184896, 856)),
    "personx-hard": Published(_SYNTHETIC, Count(9840, 410), Count(5136, 856), Count(30816, 856)),
    "randperson": Published(_SYNTHETIC, Count(132145, 8000)),
    "unrealperson": Published(_SYNTHETIC, Count(1256381, 6799)),
    "deepchange": Published(
        _DEEPCHANGE,
        Count(75083, 450),
        Count(17527, 521),
        Count(62956, 521),
    ),
    "deepchange-val": Published(
        _DEEPCHANGE,
        Count(75083, 450),
        Count(4976, 150),
        Count(17865, 150),
    ),
}


def published_dataset(
    name: str,
    facts: Published,
    splits: Mapping[str, Sequence[ReIDSample]],
    *,
    root: Path,
    notes: Sequence[str] = (),
) -> ReIDDataset:
    """Build a dataset that notes every split whose size is not the published one."""
    differing = []
    for split in SPLITS:
        samples = splits.get(split, ())
        found = Count(len(samples), len({s.pid for s in samples} - {0}))
        if found != facts.of(split):
            differing.append(f"{split} holds {found}; published are {facts.of(split)}")
    return ReIDDataset(
        name,
        splits.get("train", ()),
        splits.get("query", ()),
        splits.get("gallery", ()),
        root=root,
        licence=facts.licence,
        notes=[*notes, *differing],
    )
