"""DeepChange (Xu and Zhu, 2021): the same people over a year, in changing clothes."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.readers.layout import check_files, find_root, read_lines
from reidguard.data.readers.statistics import PUBLISHED, Count, published_dataset
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample

__all__ = ["read_deepchange"]

SUBSETS = {"test": "deepchange", "val": "deepchange-val"}
EXCLUDE = ("tracklet", "camera")
EXAMPLE = "P0318_C05_20200416_15_3_7.jpg,1234"
LINE = re.compile(
    r"(?P<name>P(?P<person>[0-9]{1,18})_C(?P<camera>[0-9]{1,9})_[^\s,/]+)\s*,\s*(?P<tracklet>[0-9]{1,18})",
    re.IGNORECASE,
)


@register_dataset("deepchange")
def read_deepchange(
    root: Path | str, *, subset: str = "test", exclude: str = "tracklet"
) -> ReIDDataset:
    """List DeepChange in its own protocol.

    A line ``P0318_C05_20200416_15_3_7.jpg,1234`` is person 318 before camera 5, in tracklet 1234;
    the date stands for the clothes. Person n becomes n + 1, so that nobody is number 0.

    A search may find the same person before the same camera in another tracklet: only the query's
    own tracklet is left out. :class:`reidguard.Protocol` leaves out the query's own *camera*, so
    the ``camid`` of query and gallery samples is the tracklet here. Training samples keep their
    camera. What a protocol cannot express: leaving out the gallery images in the query's clothes.

    Args:
        root: The folder with the lists (``train-set-bbox.txt`` and so on) and the folders they
            are named after (``train-set``), or its parent, if there it is called
            ``DeepChangeDataset`` or ``DeepChange``.
        subset: "test" searches ``test-set-query`` in ``test-set-gallery``; "val" does so in the
            validation sets, whose 150 people are in neither training nor test set.
        exclude: "tracklet" as its authors do; "camera" for the usual rule, with real cameras.

    Raises:
        DataError: If a list or folder is missing, or images that a list names are.
        InputError: If ``subset`` or ``exclude`` is unknown.
    """
    if subset not in SUBSETS:
        raise InputError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}")
    if exclude not in EXCLUDE:
        raise InputError(f"exclude must be one of {', '.join(EXCLUDE)}, not {exclude!r}")
    name = SUBSETS[subset]
    facts = PUBLISHED[name]
    folders = {
        "train": "train-set",
        "query": f"{subset}-set-query",
        "gallery": f"{subset}-set-gallery",
    }
    lists = [f"{folder}-bbox.txt" for folder in folders.values()]
    root = find_root(Path(root), ["deepchangedataset", "deepchange"], [*lists, *folders.values()])
    splits = {
        split: _read(
            root / folder,
            facts.of(split),
            camera="camera" if split == "train" else exclude,
        )
        for split, folder in folders.items()
    }
    notes = []
    if exclude == "tracklet":
        notes.append(
            "the cameras of query and gallery are tracklets, so that a search leaves out the "
            "query's own tracklet and not its camera, as the authors' protocol does"
        )
    return published_dataset(name, facts, splits, root=root, notes=notes)


def _read(folder: Path, expected: Count, *, camera: str) -> list[ReIDSample]:
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; expected there: {expected}")
    path = folder.with_name(f"{folder.name}-bbox.txt")
    lines = read_lines(path, LINE, example=EXAMPLE, expected=expected)
    samples = [
        ReIDSample(folder / line["name"], int(line["person"]) + 1, int(line[camera]))
        for line in lines
    ]
    check_files([sample.path for sample in samples], listed_in=path)
    return samples
