"""MSMT17 (Wei et al., CVPR 2018), version 1 and version 2 with masked faces."""

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
    read_list,
)
from reidguard.data.readers.statistics import Count, Published, build_dataset
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample

__all__ = ["read_msmt17"]

TRAIN_IDENTITIES = 1041
PUBLISHED = Published(
    "msmt17",
    "research only, on signed agreement; not to be distributed; no commercial use",
    Count(32621, TRAIN_IDENTITIES),
    Count(11659, 3060),
    Count(82161, 3060),
)
LISTS = {
    "list_train.txt": Count(30248, TRAIN_IDENTITIES),
    "list_val.txt": Count(2373, TRAIN_IDENTITIES),
    "list_query.txt": PUBLISHED.query,
    "list_gallery.txt": PUBLISHED.gallery,
}
# The version is known by the folder of training images.
VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
EXAMPLE = "0000/0000_000_01_0303morning_0008_0.jpg 0"
LINE = re.compile(
    r"(?P<path>(?:[^\s/]+/)*[0-9]+_[0-9]+_(?P<camid>[0-9]{1,9})_[^\s/]+)\s+(?P<pid>[0-9]{1,18})"
)
# As others sort it into Market-1501's folders: renamed, or under its own names.
MARKET_EXAMPLE = "0000_c1_0000.jpg"
MARKET_NAME = re.compile(
    r"(?P<pid>[0-9]{4})_(?:c(?P<camid>[0-9]{1,2})_[0-9]{3,}(?:_.*)?|[0-9]+_(?P<own>[0-9]{2})_.+)"
)
FOLDERS = ("MSMT17_V1", "MSMT17_V2", "MSMT17")
LAYOUTS = [
    Layout({**dict.fromkeys(LISTS), **dict.fromkeys(folders)}, FOLDERS)
    for folders in VERSIONS.values()
]
MARKET_LAYOUT = Layout(dict.fromkeys(MARKET_FOLDERS.values(), MARKET_NAME), FOLDERS)


@register_dataset("msmt17", *LAYOUTS, MARKET_LAYOUT)
def read_msmt17(root: Path | str, *, with_validation: bool = True) -> ReIDDataset:
    """List MSMT17, V1 or V2, whichever the folder holds.

    Identities and images come from the four lists, cameras from the third number of a name:
    ``0000/0000_000_01_0303morning_0008_0.jpg 0`` is identity 0, seen by camera 1. The lists number
    training and test identities from 0 each; here training identity n becomes n + 1, and test
    identity n becomes n + 1,042, so that no number stands for two identities.

    A copy in Market-1501's folders is read, too, with the same numbers: ``0000_c1_0000.jpg``, or
    MSMT17's own names, where the first number is the identity.

    Args:
        root: The folder with the lists (``list_train.txt`` and so on) and with ``train`` and
            ``test`` (V1) or ``mask_train_v2`` and ``mask_test_v2`` (V2), or with
            ``bounding_box_train``, ``query`` and ``bounding_box_test``; or a folder above it, if
            there it is called ``MSMT17_V1``, ``MSMT17_V2`` or ``MSMT17``.
        with_validation: Train on the 2,373 images of ``list_val.txt`` too: they show identities of
            the training list, and the published training set of 32,621 images includes them.
            Without the lists they cannot be told from the others.

    Raises:
        DataError: If a list, a folder or a listed image is missing, or the parent holds both
            versions.
        InputError: If ``with_validation`` is False and there are no lists.
    """
    root = find_root(root, *LAYOUTS, MARKET_LAYOUT)
    if any((root / folder).is_dir() for folder in MARKET_FOLDERS.values()):
        return _read_market(root, with_validation)
    versions = [v for v, folders in VERSIONS.items() if (root / folders[0]).is_dir()]
    if len(versions) != 1:
        raise DataError(
            f"{root} must hold the folder train (V1) or mask_train_v2 (V2), with 32,621 images in "
            "one folder per identity, beside its lists, but holds "
            + ("both" if versions else "neither")
        )
    train_folder, test_folder = (root / name for name in VERSIONS[versions[0]])
    if not test_folder.is_dir():
        raise DataError(
            f"the folder {test_folder} is missing; expected there: 93,820 images in one folder "
            "per identity"
        )
    published = PUBLISHED._replace(name=f"msmt17-{versions[0]}")
    notes = []
    train = _read(root / "list_train.txt", train_folder, shift=1)
    if with_validation:
        train += _read(root / "list_val.txt", train_folder, shift=1)
    else:
        published = published._replace(train=LISTS["list_train.txt"])
        notes.append("the images of list_val.txt are left out of train, as requested")
    splits = {
        "train": train,
        "query": _read(root / "list_query.txt", test_folder, shift=1 + TRAIN_IDENTITIES),
        "gallery": _read(root / "list_gallery.txt", test_folder, shift=1 + TRAIN_IDENTITIES),
    }
    return build_dataset(published, splits, root=root, notes=notes)


def _read_market(root: Path, with_validation: bool) -> ReIDDataset:
    if not with_validation:
        raise InputError(
            f"{root} has no lists, so that the validation images cannot be left out; leave "
            "with_validation out"
        )
    splits: dict[str, list[ReIDSample]] = {}
    for split, name in MARKET_FOLDERS.items():
        shift = 1 if split == "train" else 1 + TRAIN_IDENTITIES
        parsed = parse_folder(
            root / name,
            MARKET_NAME,
            example=MARKET_EXAMPLE,
            expected=PUBLISHED.of(split).images,
        )
        splits[split] = [
            ReIDSample(path, int(m["pid"]) + shift, int(m["camid"] or m["own"]))
            for path, m in parsed
        ]
    notes = ["sorted into Market-1501's folders, so identities come from the names, not from lists"]
    return build_dataset(PUBLISHED, splits, root=root, notes=notes)


def _read(path: Path, folder: Path, *, shift: int) -> list[ReIDSample]:
    return read_list(path, LINE, folder, example=EXAMPLE, expected=LISTS[path.name], shift=shift)
