"""DeepChange (Xu and Zhu, 2021): identities over a year, in changing clothes."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import check_choice, find_root, read_list
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.errors import DataError

__all__ = ["read_deepchange"]

LICENCE = (
    "non-commercial research only, on signed agreement; not to be distributed; block faces in "
    "whatever is shown"
)
TRAIN = Count(75083, 450)
SUBSETS = {
    "test": Published("deepchange", LICENCE, TRAIN, Count(17527, 521), Count(62956, 521)),
    "val": Published("deepchange-val", LICENCE, TRAIN, Count(4976, 150), Count(17865, 150)),
}
EXCLUDE = {"tracklet": "tracklet", "camera": "camid"}
EXAMPLE = "P0318_C05_20200416_15_3_7.jpg,1234"
LINE = re.compile(
    r"(?P<path>P(?P<pid>[0-9]{1,18})_C(?P<camid>[0-9]{1,9})_[^\s,/]+)"
    r"\s*,\s*(?P<tracklet>[0-9]{1,18})",
    re.IGNORECASE,
)
LAYOUTS = [
    Layout(
        dict.fromkeys(
            name
            for folder in ("train-set", f"{subset}-set-query", f"{subset}-set-gallery")
            for name in (folder, f"{folder}-bbox.txt")
        ),
        ("DeepChangeDataset", "DeepChange"),
    )
    for subset in SUBSETS
]


@register_dataset("deepchange", LAYOUTS[0])
def read_deepchange(
    root: Path | str, *, subset: str = "test", exclude: str = "tracklet"
) -> ReIDDataset:
    """List DeepChange in its own protocol.

    A line ``P0318_C05_20200416_15_3_7.jpg,1234`` is identity 318, seen by camera 5, in tracklet
    1234; the date stands for the clothes. Identity n becomes n + 1, so that none is number 0.

    A gallery image of the same identity and camera counts if it is of another tracklet: only the
    query's own tracklet is left out. :class:`reidguard.Protocol` leaves out the query's own
    *camera*, so the ``camid`` of query and gallery samples is the tracklet here. Training samples
    keep their camera. What a protocol cannot express: leaving out the gallery images in the
    query's clothes.

    Args:
        root: The folder with the lists (``train-set-bbox.txt`` and so on) and the folders they
            are named after (``train-set``), or its parent, if there it is called
            ``DeepChangeDataset`` or ``DeepChange``.
        subset: "test" takes ``test-set-query`` and ``test-set-gallery``; "val" the validation
            sets, whose 150 identities are in neither training nor test set.
        exclude: "tracklet" as its authors do; "camera" for the usual rule, with real cameras.

    Raises:
        DataError: If a list, a folder or a listed image is missing.
        InputError: If ``subset`` or ``exclude`` is unknown.
    """
    check_choice("subset", subset, SUBSETS)
    check_choice("exclude", exclude, EXCLUDE)
    published = SUBSETS[subset]
    folders = {
        "train": "train-set",
        "query": f"{subset}-set-query",
        "gallery": f"{subset}-set-gallery",
    }
    root = find_root(root, *LAYOUTS)
    splits = {}
    for split, name in folders.items():
        expected = published.of(split)
        if not (root / name).is_dir():
            raise DataError(f"the folder {root / name} is missing; expected there: {expected}")
        splits[split] = read_list(
            root / f"{name}-bbox.txt",
            LINE,
            root / name,
            example=EXAMPLE,
            expected=expected,
            shift=1,
            camera="camid" if split == "train" else EXCLUDE[exclude],
        )
    notes = []
    if exclude == "tracklet":
        notes.append(
            "the cameras of query and gallery are tracklets, so that the query's own tracklet is "
            "left out and not its camera, as in the authors' protocol"
        )
    return build_dataset(published, splits, root=root, notes=notes)
