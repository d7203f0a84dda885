"""MSMT17 (Wei et al., CVPR 2018), version 1 and the version 2 with masked faces."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset, register_dataset
from reidguard.data.readers.layout import check_files, find_root, read_lines
from reidguard.data.readers.statistics import PUBLISHED, Count, published_dataset
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = ["read_msmt17"]

# The folder of training images tells the version.
VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
TRAIN_PEOPLE = 1041
EXAMPLE = "0000/0000_000_01_0303morning_0008_0.jpg 0"
LINE = re.compile(
    r"(?P<path>(?:[^\s/]+/)*[0-9]+_[0-9]+_(?P<camera>[0-9]{1,9})_[^\s/]+)\s+(?P<person>[0-9]{1,18})"
)
LISTS = {
    "list_train.txt": Count(30248, TRAIN_PEOPLE),
    "list_val.txt": Count(2373, TRAIN_PEOPLE),
    "list_query.txt": PUBLISHED["msmt17"].query,
    "list_gallery.txt": PUBLISHED["msmt17"].gallery,
}


@register_dataset("msmt17")
def read_msmt17(root: Path | str, *, with_validation: bool = True) -> ReIDDataset:
    """List MSMT17, V1 or V2, whichever the folder holds.

    People and images come from the four lists, cameras from the third number of a name:
    ``0000/0000_000_01_0303morning_0008_0.jpg 0`` is person 0 before camera 1. The lists number
    people from 0, and training and test people anew; here training person n becomes n + 1, and
    test person n becomes n + 1,042, so that no two people share a number.

    Args:
        root: The folder with the lists (``list_train.txt`` and so on) and with ``train`` and
            ``test`` (V1) or ``mask_train_v2`` and ``mask_test_v2`` (V2), or its parent, if there
            it is called ``MSMT17_V1``, ``MSMT17_V2`` or ``MSMT17``.
        with_validation: Train on the 2,373 images of ``list_val.txt`` too: they show people of the
            training list, and the published training set of 32,621 images includes them.

    Raises:
        DataError: If a list or folder is missing, images that a list names are, or the parent
            holds both versions.
    """
    marks = [folder for folders in VERSIONS.values() for folder in folders]
    root = find_root(Path(root), ["msmt17_v1", "msmt17_v2", "msmt17"], [*LISTS, *marks])
    found = [v for v, folders in VERSIONS.items() if (root / folders[0]).is_dir()]
    if len(found) != 1:
        raise DataError(
            f"{root} must hold the folder train (V1) or mask_train_v2 (V2), with 32,621 images in "
            f"one folder per person, beside its lists, but holds {'both' if found else 'neither'}"
        )
    train_folder, test_folder = (root / name for name in VERSIONS[found[0]])
    if not test_folder.is_dir():
        raise DataError(
            f"the folder {test_folder} is missing; expected there: 93,820 images in one folder "
            "per person"
        )
    train = _read(root / "list_train.txt", train_folder, shift=1)
    notes = []
    if with_validation:
        train += _read(root / "list_val.txt", train_folder, shift=1)
    else:
        notes.append("train leaves out the images of list_val.txt, as asked")
    splits = {
        "train": train,
        "query": _read(root / "list_query.txt", test_folder, shift=1 + TRAIN_PEOPLE),
        "gallery": _read(root / "list_gallery.txt", test_folder, shift=1 + TRAIN_PEOPLE),
    }
    facts = PUBLISHED["msmt17"]
    if not with_validation:
        facts = facts._replace(train=LISTS["list_train.txt"])
    return published_dataset(f"msmt17-{found[0]}", facts, splits, root=root, notes=notes)


def _read(path: Path, folder: Path, *, shift: int) -> list[ReIDSample]:
    lines = read_lines(path, LINE, example=EXAMPLE, expected=LISTS[path.name])
    samples = [
        ReIDSample(folder / line["path"], int(line["person"]) + shift, int(line["camera"]))
        for line in lines
    ]
    check_files([sample.path for sample in samples], listed_in=path)
    return samples
