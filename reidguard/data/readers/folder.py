"""Readers for one's own data: a CSV file, or one folder per person."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset, a_few, register_dataset
from reidguard.data.images import IMAGE_SUFFIXES, list_images
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = ["read_csv", "read_folder"]

COLUMNS = ("path", "pid", "camid", "split")
WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")  # fits int64
CAMERA = re.compile(r"(?:_c|cam)([0-9]{1,18})", re.IGNORECASE)


class _Row(NamedTuple):
    path: Path
    person: str
    camera: str
    split: str


@register_dataset("csv")
def read_csv(path: Path | str) -> ReIDDataset:
    """List a dataset from a CSV file with a header and the columns path, pid, camid, split.

    ``path`` is relative to the CSV file's folder, or absolute; ``split`` is train, query or
    gallery. Other columns are ignored. Identities and cameras may be numbers, kept as they are, or
    any names: then all names are numbered in alphabetical order over the whole file, people from
    1 and cameras from 0, so the same name is the same person in every split, and "siteA/7" is
    never "siteB/7". The id 0 marks a distractor in the gallery; −1 marks junk, which is dropped
    and counted.

    Raises:
        DataError: Naming the line, if a column, file or value is missing or wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no CSV file {path}; write csv:/path/to/file.csv")
    rows = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if absent:
                raise DataError(
                    f"{path} lacks the column {a_few(absent)} in its first line; it must name "
                    f"{', '.join(COLUMNS)}"
                )
            for cells in reader:
                rows.append(_parse_row(cells, path, reader.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path} as a UTF-8 CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} lists no image; it needs one line per image below its header")
    twice = [str(p) for (p, _), n in Counter((r.path, r.split) for r in rows).items() if n > 1]
    if twice:
        raise DataError(f"{path} lists images twice in one split: {a_few(twice)}; remove one line")
    absent = [str(row.path) for row in rows if not row.path.is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} images that {path} lists do not exist: {a_few(absent)}; paths are "
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
    image = path.parent / Path(values["path"]).expanduser()
    return _Row(image, values["pid"], values["camid"], values["split"])


@register_dataset("folder")
def read_folder(root: Path | str) -> ReIDDataset:
    """List ``ROOT/{train,query,gallery}/<person>/<image>``; a split's folder may be absent.

    A person is a folder's name; the same name is the same person in every split. Names that are
    all numbers are kept as they are, else people are numbered from 1 in alphabetical order.
    ``0`` holds distractors (gallery only), ``-1`` holds junk, which is dropped and counted.

    The camera is the number after the first ``_c`` or ``cam`` in the image's name
    (``x_c3_17.jpg``, ``cam12-001.png``). Where no image of query and gallery has one, all queries
    come from camera 0 and the gallery from camera 1, so that no pair is left out as "same
    camera"; training images without cameras all get camera 0.

    Raises:
        DataError: Naming the folder or image, if the layout is another.
    """
    root = Path(root)
    present = [split for split in SPLITS if (root / split).is_dir()]
    if not present:
        raise DataError(
            f"{root} holds none of the folders {', '.join(SPLITS)}; expected: "
            "ROOT/query/<person>/<image> and so on"
        )
    rows = [row for split in present for row in _list_people(root / split, split)]
    train = [row for row in rows if row.split == "train"]
    test = [row for row in rows if row.split != "train"]
    return _build(root.resolve().name, _with_cameras(train) + _with_cameras(test), root=root)


def _list_people(folder: Path, split: str) -> list[_Row]:
    if loose := list_images(folder):
        raise DataError(
            f"images lie directly in {folder} ({a_few(p.name for p in loose)}); expected: "
            f"{folder}/<person>/<image>"
        )
    rows = []
    for person in sorted(path for path in folder.iterdir() if path.is_dir()):
        if person.name.startswith("."):
            continue
        images = list_images(person)
        if not images:
            raise DataError(f"{person} holds no image ({', '.join(IMAGE_SUFFIXES)}); remove it")
        for image in images:
            match = CAMERA.search(image.stem)
            rows.append(_Row(image, person.name, match[1] if match else "", split))
    if not rows:
        raise DataError(f"{folder} is empty; expected: {folder}/<person>/<image>")
    return rows


def _with_cameras(rows: list[_Row]) -> list[_Row]:
    without = [str(row.path) for row in rows if not row.camera]
    if len(without) not in (0, len(rows)):
        raise DataError(
            f"{len(without)} of {len(rows)} image names carry no camera ({a_few(without)}); add "
            "_c<number> to these names, or to none"
        )
    if without:
        return [row._replace(camera="1" if row.split == "gallery" else "0") for row in rows]
    return rows


def _build(name: str, rows: Iterable[_Row], *, root: Path) -> ReIDDataset:
    rows = list(rows)
    people = _number((row.person for row in rows), first=1, special={"-1": -1})
    cameras = _number((row.camera for row in rows), first=0, special={})
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    junk = 0
    for row in rows:
        if people[row.person] < 0:
            junk += 1
            continue
        sample = ReIDSample(row.path, people[row.person], cameras[row.camera])
        splits[row.split].append(sample)
    return ReIDDataset(
        name, splits["train"], splits["query"], splits["gallery"], root=root, junk=junk
    )


def _number(names: Iterable[str], *, first: int, special: dict[str, int]) -> dict[str, int]:
    """Keep numbers if all names are numbers; else number the names in alphabetical order."""
    distinct = sorted(set(names))
    numbers = {name: special[name] for name in distinct if name in special}
    others = [name for name in distinct if name not in special]
    if all(WHOLE_NUMBER.fullmatch(name) for name in others):
        return numbers | {name: int(name) for name in others}
    if first == 1:  # a name that reads as zero marks distractors among named people too
        numbers |= {name: 0 for name in others if name.strip("0") == ""}
        others = [name for name in others if name not in numbers]
    return numbers | {name: number for number, name in enumerate(others, first)}
