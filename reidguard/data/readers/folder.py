"""Reader of custom data in one folder per identity."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.decoding import format_names, list_images
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.custom import Row, build_custom, parse_identity
from reidguard.errors import DataError, a_few, printable
from reidguard.records import to_path

__all__ = ["read_folder"]

CAMERA = re.compile(r"(?:_c|cam(?:era)?[ _-]?)([0-9]{1,18})", re.IGNORECASE)
# Identities are folders of images; a split may be absent.
LAYOUTS = [
    Layout({f"{split}/*": re.compile(".*", re.DOTALL) for split in splits})
    for splits in (SPLITS, ("query", "gallery"), ("train",))
]


@register_dataset("folder", *LAYOUTS)
def read_folder(root: Path | str) -> ReIDDataset:
    """List ``ROOT/{train,query,gallery}/<identity>/<image>``; a split's folder may be absent.

    An identity is a folder's name; the same name is the same identity in every split. Names that
    are all numbers are kept, else identities are numbered from 1 in alphabetical order. ``0``
    holds distractors (gallery only), ``-1`` holds junk, which is left out and counted.

    The camera is the number after the first ``_c``, ``cam`` or ``camera`` in the image's name
    (``x_c3_17.jpg``, ``cam12-001.png``, ``camera_1_x.png``). Where no image of query and gallery
    has one, all queries get camera 0 and the gallery camera 1, so that images of one camera count
    as matches: a warning and a note say so. Training images without cameras all get camera 0.

    Raises:
        DataError: Naming the folder or image, if the layout is another.
    """
    root = to_path(root)
    present = [split for split in SPLITS if (root / split).is_dir()]
    if not present:
        raise DataError(
            f"{root} holds none of the folders {', '.join(SPLITS)}; expected: "
            "ROOT/query/<identity>/<image> and so on"
        )
    rows = {split: _list_identities(root / split, split) for split in present}
    test = [*rows.get("query", ()), *rows.get("gallery", ())]
    notes = []
    if test and not any(row.camid for row in test):
        notes.append(
            f"the names of query and gallery images, such as {printable(test[0].path.name)}, "
            "carry no camera, so images of the query's own camera count as matches; add "
            "_c<number> to the names, or list cameras in a CSV file"
        )
        warnings.warn(f"{printable(str(root))}: {notes[0]}", stacklevel=2)
    rows_with_cameras = _with_cameras(rows.get("train", [])) + _with_cameras(test)
    return build_custom(root.resolve().name, rows_with_cameras, root=root, notes=notes)


def _list_identities(folder: Path, split: str) -> list[Row]:
    if loose := list_images(folder):
        raise DataError(
            f"images lie directly in {folder} ({a_few(p.name for p in loose)}); expected: "
            f"{folder}/<identity>/<image>"
        )
    rows = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        if place.name.startswith("."):
            continue
        images = list_images(place)
        if not images:
            raise DataError(f"{place} holds no image ({format_names()}); remove it")
        pid = parse_identity(place.name, str(place))
        for image in images:
            match = CAMERA.search(image.stem)
            rows.append(Row(image, pid, match[1] if match else "", split))
    if not rows:
        raise DataError(f"{folder} is empty; expected: {folder}/<identity>/<image>")
    return rows


def _with_cameras(rows: list[Row]) -> list[Row]:
    without = [str(row.path) for row in rows if not row.camid]
    if len(without) not in (0, len(rows)):
        raise DataError(
            f"{len(without)} of {len(rows)} image names carry no camera ({a_few(without)}); add "
            "_c<number> to these names, or to none"
        )
    if without:
        return [row._replace(camid=int(row.split == "gallery")) for row in rows]
    return [row._replace(camid=int(row.camid)) for row in rows]
