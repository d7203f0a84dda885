"""Readers of custom data: a CSV file, or one folder per identity."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset, register_dataset
from reidguard.data.images import IMAGE_SUFFIXES, list_images
from reidguard.errors import DataError, a_few
from reidguard.records import to_path
from reidguard.types import ReIDSample

__all__ = ["read_csv", "read_folder"]

COLUMNS = ("path", "pid", "camid", "split")
WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")  # fits int64
CAMERA = re.compile(r"(?:_c|cam)([0-9]{1,18})", re.IGNORECASE)


class _Row(NamedTuple):
    path: Path
    pid: str
    camid: str
    split: str


@register_dataset("csv")
def read_csv(path: Path | str) -> ReIDDataset:
    """List a dataset from a CSV file with a header and the columns path, pid, camid, split.

    ``path`` is relative to the CSV file's folder, or absolute; ``split`` is train, query or
    gallery. Other columns are ignored. If all identities are numbers, they are kept, and so are
    cameras; else all names are numbered in alphabetical order over the whole file, identities from
    1 and cameras from 0, so the same name is the same identity in every split, and "siteA/7" is
    never "siteB/7". The pid 0 marks a distractor in the gallery; −1 marks junk, which is left out
    and counted.

    Raises:
        DataError: Naming the line, if a column, file or value is missing or wrong.
    """
    path = to_path(path)
    if not path.is_file():
        raise DataError(f"there is no CSV file {path}; write csv:/path/to/file.csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise DataError(
                    f"{path} lacks the column {a_few(absent)} in its first line; it must name "
                    f"{', '.join(COLUMNS)}"
                )
            rows = [_parse_row(cells, path, reader.line_num) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as a UTF-8 CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} lists no image; it needs one line per image below its header")
    twice = [str(p) for (p, _), n in Counter((r.path, r.split) for r in rows).items() if n > 1]
    if twice:
        raise DataError(f"{path} lists images twice in one split: {a_few(twice)}; remove one line")
    if missing := [str(row.path) for row in rows if not row.path.is_file()]:
        raise DataError(
            f"{len(missing)} images that {path} lists do not exist: {a_few(missing)}; paths are "
            f"relative to {path.parent}"
        )
    return _build(path.stem, rows, root=path.parent)


def _parse_row(cells: dict[str, str | None], path: Path, line: int) -> _Row:
    values = {column: (cells[column] or "").strip() for column in COLUMNS}
    if empty := [column for column in COLUMNS if not values[column]]:
        raise DataError(f"{path}, line {line}: {a_few(empty)} is empty; fill it in")
    if values["split"] not in SPLITS:
        raise DataError(
            f"{path}, line {line}: split is {values['split']!r}; use one of {', '.join(SPLITS)}"
        )
    image = path.parent / to_path(values["path"])
    return _Row(image, values["pid"], values["camid"], values["split"])


@register_dataset("folder")
def read_folder(root: Path | str) -> ReIDDataset:
    """List ``ROOT/{train,query,gallery}/<identity>/<image>``; a split's folder may be absent.

    An identity is a folder's name; the same name is the same identity in every split. Names that
    are all numbers are kept, else identities are numbered from 1 in alphabetical order. ``0``
    holds distractors (gallery only), ``-1`` holds junk, which is left out and counted.

    The camera is the number after the first ``_c`` or ``cam`` in the image's name
    (``x_c3_17.jpg``, ``cam12-001.png``). Where no image of query and gallery has one, all queries
    come from camera 0 and the gallery from camera 1, so that no pair is left out as "same
    camera"; training images without cameras all get camera 0.

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
    test = _with_cameras([*rows.get("query", ()), *rows.get("gallery", ())])
    return _build(root.resolve().name, _with_cameras(rows.get("train", [])) + test, root=root)


def _list_identities(folder: Path, split: str) -> list[_Row]:
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
            raise DataError(f"{place} holds no image ({', '.join(IMAGE_SUFFIXES)}); remove it")
        for image in images:
            match = CAMERA.search(image.stem)
            rows.append(_Row(image, place.name, match[1] if match else "", split))
    if not rows:
        raise DataError(f"{folder} is empty; expected: {folder}/<identity>/<image>")
    return rows


def _with_cameras(rows: list[_Row]) -> list[_Row]:
    without = [str(row.path) for row in rows if not row.camid]
    if len(without) not in (0, len(rows)):
        raise DataError(
            f"{len(without)} of {len(rows)} image names carry no camera ({a_few(without)}); add "
            "_c<number> to these names, or to none"
        )
    if without:
        return [row._replace(camid="1" if row.split == "gallery" else "0") for row in rows]
    return rows


def _build(name: str, rows: list[_Row], *, root: Path) -> ReIDDataset:
    junk = [row for row in rows if row.pid == "-1"]
    pids = _number((row.pid for row in rows if row.pid != "-1"), first=1)
    camids = _number((row.camid for row in rows), first=0)
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for row in rows:
        if row.pid != "-1":
            splits[row.split].append(ReIDSample(row.path, pids[row.pid], camids[row.camid]))
    return ReIDDataset(name, *splits.values(), root=root, junk=len(junk))


def _number(names: Iterable[str], *, first: int) -> dict[str, int]:
    """Keep numbers if all names are numbers; else number the names in alphabetical order."""
    distinct = sorted(set(names))
    if all(WHOLE_NUMBER.fullmatch(name) for name in distinct):
        return {name: int(name) for name in distinct}
    # A name that reads as zero marks distractors among named identities too.
    zeros = {name: 0 for name in distinct if first == 1 and name.strip("0") == ""}
    others = [name for name in distinct if name not in zeros]
    return zeros | {name: number for number, name in enumerate(others, first)}
