"""Market-1501 (Zheng et al., ICCV 2015)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import (
    MARKET_FOLDERS,
    find_root,
    parse_folder,
    read_images,
    read_market_folders,
)
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.types import ReIDSample

__all__ = ["EXAMPLE", "NAME", "read_market1501"]

PUBLISHED = Published(
    "market1501",
    "research only; not to be distributed; no commercial use",
    Count(12936, 751),
    Count(3368, 750),
    Count(15913, 750),
    junk=3819,
)
EXAMPLE = "0002_c1s1_000451_03.jpg"
# Official names include 1488_c1s6_023021_00.jpg.jpg, hence the optional end.
NAME = re.compile(r"(?P<pid>-1|[0-9]{1,18})_c(?P<camid>[0-9]{1,9})s[0-9]+_[0-9]+_[0-9]+(?:\.jpg)?")
DISTRACTOR = re.compile(r"(?:-1|0+)_c(?P<camid>[0-9]{1,9}).*", re.DOTALL)
LAYOUT = Layout(
    dict.fromkeys(MARKET_FOLDERS.values(), NAME), ("market1501", "Market-1501-v15.09.15")
)


@register_dataset("market1501", LAYOUT)
def read_market1501(root: Path | str, *, distractors_500k: bool = False) -> ReIDDataset:
    """List Market-1501, also with its 500k distractors.

    ``0002_c1s1_000451_03.jpg`` shows identity 2, seen by camera 1. Junk (−1) is left out and
    counted; identity 0000 marks distractors in the gallery. The images in ``gt_bbox``, if it is
    there, are for multi-query search.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``,
            or one above it, if there it is called ``market1501`` or ``Market-1501-v15.09.15``.
        distractors_500k: Add the images of the folder ``images`` to the gallery, as distractors.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    root = find_root(root, LAYOUT)
    splits = read_market_folders(root, NAME, example=EXAMPLE, published=PUBLISHED, distractors=True)
    if (several := root / "gt_bbox").is_dir():
        splits["multi_query"] = read_images(several, NAME, example=EXAMPLE)
    published, notes = PUBLISHED, []
    if distractors_500k:
        more = _distractors(root / "images")
        splits["gallery"] += more
        count = PUBLISHED.gallery
        published = PUBLISHED._replace(
            name="market1501-500k", gallery=Count(count.images + len(more), count.identities)
        )
        notes.append(f"{len(more):,} distractors of images are in the gallery")
    elif (root / "images").is_dir():
        notes.append("images may hold the 500k distractors, which distractors_500k=true adds")
    return build_dataset(published, splits, root=root, notes=notes)


def _distractors(folder: Path) -> list[ReIDSample]:
    """List the images of a folder as distractors; the identity in their names is 0 or −1."""
    parsed = parse_folder(folder, DISTRACTOR, example="0000_c1s1_000451_03.jpg")
    return [ReIDSample(path, 0, int(match["camid"])) for path, match in parsed]
