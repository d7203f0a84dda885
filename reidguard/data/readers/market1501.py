"""Market-1501 as its authors distribute it (Zheng et al., ICCV 2015)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, a_few, register_dataset
from reidguard.data.images import list_images
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = ["read_market1501"]

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
OFFICIAL = {"train": 12936, "query": 3368, "gallery": 19732}
LICENCE = "research only; not to be distributed; no commercial use"
# Official names include 1488_c1s6_023021_00.jpg.jpg, hence the optional end.
NAME = re.compile(r"(-1|[0-9]{1,18})_c([0-9]{1,9})s[0-9]+_[0-9]+_[0-9]+(?:\.jpg)?")


@register_dataset("market1501")
def read_market1501(root: Path | str) -> ReIDDataset:
    """List Market-1501.

    Identities and cameras come from the file names: ``0002_c1s1_000451_03.jpg`` shows person 2
    before camera 1. Junk (−1) is dropped and counted; person 0000 is kept in the gallery as
    distractors. Files that are no images by their extension are ignored.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``,
            or its parent, if there it is called ``market1501`` or ``Market-1501-v15.09.15``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. A
            subset of the official images is no error, but noted in the summary.
    """
    return read_market_layout(Path(root), name="market1501", licence=LICENCE, official=OFFICIAL)


def read_market_layout(
    root: Path, *, name: str, licence: str, official: Mapping[str, int] | None = None
) -> ReIDDataset:
    """List any dataset that has Market-1501's folders and file names."""
    root = _find_root(root)
    splits: dict[str, list[ReIDSample]] = {}
    junk = 0
    notes = []
    for split, folder in FOLDERS.items():
        paths = _list_split(root / folder, split)
        if official is not None and len(paths) != official[split]:
            notes.append(f"{folder} holds {len(paths):,} of {official[split]:,} official images")
        samples = [_parse(path) for path in paths]
        splits[split] = [sample for sample in samples if sample.pid >= 0]
        junk += len(samples) - len(splits[split])
        people = 0 if split == "gallery" else sum(sample.pid == 0 for sample in samples)
        if people:
            raise DataError(
                f"{root / folder} holds {people} images of person 0000, which marks distractors; "
                f"they belong into {FOLDERS['gallery']} only"
            )
    return ReIDDataset(
        name,
        splits["train"],
        splits["query"],
        splits["gallery"],
        root=root,
        licence=licence,
        junk=junk,
        notes=notes,
    )


def _find_root(root: Path) -> Path:
    expected = f"expected there: {', '.join(f'{folder}/' for folder in FOLDERS.values())}"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {expected}")
    for place in (root, root / "market1501", root / "Market-1501-v15.09.15"):
        if any((place / folder).is_dir() for folder in FOLDERS.values()):
            return place
    raise DataError(f"{root} is not a folder in Market-1501's layout; {expected}")


def _list_split(folder: Path, split: str) -> list[Path]:
    expected = f"expected there: the {split} images, named like 0002_c1s1_000451_03.jpg"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {expected}")
    paths = list_images(folder)
    if not paths:
        raise DataError(f"the folder {folder} holds no image; {expected}")
    stems = {path.stem: path for path in paths}
    if len(stems) < len(paths):
        twice = [path.name for path in paths if stems[path.stem] != path]
        raise DataError(f"images are in {folder} under two extensions: {a_few(twice)}; keep one")
    return paths


def _parse(path: Path) -> ReIDSample:
    match = NAME.fullmatch(path.stem)
    if match is None:
        raise DataError(
            f"the image name {path} does not read like 0002_c1s1_000451_03.jpg (person 0002, "
            "camera 1); rename or remove it"
        )
    return ReIDSample(path, pid=int(match[1]), camid=int(match[2]))
