"""Reader of custom data that a CSV file lists."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset, register_dataset
from reidguard.data.readers.custom import Row, build_custom, parse_camera, parse_identity
from reidguard.errors import DataError, InputError, a_few, printable
from reidguard.records import read_file, to_path

__all__ = ["parse_csv", "read_csv"]

COLUMNS = ("path", "pid", "camid", "split")
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@register_dataset("csv")
def read_csv(path: Path | str) -> ReIDDataset:
    """List a dataset from a CSV file with a header and the columns path, pid, camid, split.

    ``path`` is relative to the CSV file's folder, or absolute; ``split`` is train, query or
    gallery. Other columns are ignored. If all identities are numbers, they are kept, and so are
    cameras; else all names are numbered in alphabetical order over the whole file, identities from
    1 and cameras from 0, so the same name is the same identity in every split, and "siteA/7" is
    never "siteB/7". The pid 0 marks a distractor in the gallery; −1 marks junk, which is left out
    and counted.

    Numbers may be written as floats, as pandas does where a column has gaps: ``7.0`` is 7, and
    ``-1.0`` is junk. Other negative numbers, fractions and missing values are errors.

    Raises:
        DataError: Naming the line, if a column, file or value is missing or wrong.
    """
    path = to_path(path)
    if not path.is_file():
        raise DataError(f"there is no CSV file {path}; write csv:/path/to/file.csv")
    rows = parse_csv(read_file(path, error=DataError), path)
    places = Counter((os.path.normpath(row.path), row.split) for row in rows)
    if twice := [place for (place, _), times in places.items() if times > 1]:
        raise DataError(f"{path} lists images twice in one split: {a_few(twice)}; remove one line")
    if missing := [str(row.path) for row in rows if not os.path.exists(row.path)]:
        raise DataError(
            f"{len(missing)} images that {path} lists do not exist: {a_few(missing)}; paths are "
            f"relative to {path.parent}"
        )
    return build_custom(path.stem, rows, root=path.parent)


def parse_csv(data: bytes, source: Path) -> list[Row]:
    """Return the rows of a CSV file; no image is looked for.

    Args:
        data: The file's bytes.
        source: The file, whose folder relative paths start from.

    Raises:
        DataError: Naming the file, the line and the column, if anything is missing or wrong.

    Example:
        >>> parse_csv(b"path,pid,camid,split\\na.jpg,7.0,1,query", Path("people.csv"))
        [Row(path=PosixPath('a.jpg'), pid=7, camid=1, split='query')]
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{source}, line {line} is not UTF-8 text; save the file as CSV UTF-8"
        ) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    places: list[int] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if places is None:
                places, width = _columns(cells, source), len(cells)
                continue
            where = f"{source}, line {reader.line_num}"
            if len(cells) > width:
                raise DataError(
                    f"{where} has {len(cells)} values, and the first line has {width}; write "
                    "values that contain a comma in double quotes"
                )
            values = [cells[place].strip() if place < len(cells) else "" for place in places]
            rows.append(_parse_row(values, source, where))
    except csv.Error as error:
        raise DataError(
            f"{source}, line {max(1, reader.line_num)} is no CSV ({error}); look for a double "
            "quote that is not closed"
        ) from error
    if places is None:
        raise DataError(f"{source} is empty; its first line must name {', '.join(COLUMNS)}")
    if not rows:
        raise DataError(f"{source} lists no image; it needs one line per image below its header")
    return rows


def _columns(cells: Sequence[str], source: Path) -> list[int]:
    """Return the position of each of COLUMNS in the header."""
    names = [cell.strip() for cell in cells]
    if absent := [column for column in COLUMNS if column not in names]:
        used = [word for mark, word in OTHER_DELIMITERS.items() if mark in names[0]]
        hint = f"; separate its values by commas, not by {used[0]}" if used else ""
        raise DataError(
            f"{source} lacks the column {', '.join(absent)} in its first line; it must name "
            f"{', '.join(COLUMNS)}{hint}"
        )
    if twice := [column for column in COLUMNS if names.count(column) > 1]:
        raise DataError(
            f"{source} names the column {', '.join(twice)} twice in its first line; remove one"
        )
    return [names.index(column) for column in COLUMNS]


def _parse_row(values: Sequence[str], source: Path, where: str) -> Row:
    if empty := [column for column, value in zip(COLUMNS, values, strict=True) if not value]:
        raise DataError(f"{where}: {', '.join(empty)} is empty; fill it in")
    for column, value in zip(COLUMNS, values, strict=True):
        if printable(value) != value:
            raise DataError(
                f"{where}: {column} contains a control character, in {value[:80]!r}; remove it "
                "(a line break may come from a double quote that is not closed)"
            )
    name, pid, camid, split = values
    if split not in SPLITS:
        raise DataError(f"{where}: split is {split!r}; use one of {', '.join(SPLITS)}")
    try:
        path = source.parent / (to_path(name) if name.startswith("~") else name)
    except InputError as error:
        raise DataError(
            f"{where}: path is {error}; write ./{name} for a file of that name"
        ) from None
    return Row(path, parse_identity(pid, where), parse_camera(camid, where), split)
