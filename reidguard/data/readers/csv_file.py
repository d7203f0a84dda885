"""Reader of custom data that a CSV file lists."""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.loading import register_dataset
from reidguard.data.readers.custom import Row, build_custom, parse_camera, parse_identity
from reidguard.errors import DataError, InputError, a_few, printable
from reidguard.records import read_file, to_path

__all__ = ["parse_csv", "read_csv"]

COLUMNS = ("path", "pid", "camid", "split")
OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@register_dataset("csv")
def read_csv(path: Path | str, *, columns: Mapping[str, str] | None = None) -> ReIDDataset:
    """List a dataset from a CSV file with a header and the columns path, pid, camid, split.

    ``path`` is relative to the CSV file's folder, or absolute; ``split`` is train, query or
    gallery. Other columns are ignored. If all identities are numbers, they are kept, and so are
    cameras; else all names are numbered in alphabetical order over the whole file, identities from
    1 and cameras from 0, so the same name is the same identity in every split, and "siteA/7" is
    never "siteB/7". The pid 0 marks a distractor in the gallery; −1 marks junk, which is left out
    and counted.

    Numbers may be written as floats, as pandas does where a column has gaps: ``7.0`` is 7, and
    ``-1.0`` is junk. Other negative numbers, fractions and missing values are errors.

    Without a column of cameras, queries and training images get camera 0 and the gallery camera 1,
    so that images of one camera count as matches: a warning and a note say so.

    Args:
        path: The file. "people.csv?pid=person&camid=camera" also names its columns.
        columns: The file's names of columns, by those above, where they differ:
            ``{"pid": "person"}``.

    Raises:
        DataError: Naming the line, if a column, file or value is missing or wrong.
        InputError: If ``columns`` names another column than those above.
    """
    if not to_path(path).is_file():
        path, _, named = str(path).partition("?")
        pairs = (pair.partition("=")[::2] for pair in named.split("&") if pair)
        columns = {**dict(pairs), **(columns or {})}
    _check_columns({} if columns is None else columns)
    path = to_path(path)
    if not path.is_file():
        raise DataError(f"there is no CSV file {path}; write csv:/path/to/file.csv")
    rows = parse_csv(read_file(path, error=DataError), path, columns)
    notes = []
    if all(row.camid == "" for row in rows):
        rows = [row._replace(camid=int(row.split == "gallery")) for row in rows]
        notes.append(
            "the file has no column of cameras, so images of the query's own camera count as "
            "matches; add the column camid, or name it: csv:people.csv?camid=camera"
        )
        warnings.warn(f"{printable(str(path))}: {notes[0]}", stacklevel=2)
    places = Counter((os.path.normpath(row.path), row.split) for row in rows)
    if twice := [place for (place, _), times in places.items() if times > 1]:
        raise DataError(f"{path} lists images twice in one split: {a_few(twice)}; remove one line")
    if missing := [str(row.path) for row in rows if not os.path.exists(row.path)]:
        raise DataError(
            f"{len(missing)} images that {path} lists do not exist: {a_few(missing)}; paths are "
            f"relative to {path.parent}"
        )
    return build_custom(path.stem, rows, root=path.parent, notes=notes, deep=False)


def _check_columns(columns: Mapping[str, str]) -> None:
    if not isinstance(columns, Mapping) or not all(isinstance(c, str) for c in columns.values()):
        raise InputError(f"columns must be a dict such as {{'pid': 'person'}}, not {columns!r}")
    if wrong := [name for name, own in columns.items() if name not in COLUMNS or not own]:
        raise InputError(
            f"a column is named as in people.csv?pid=person, with one of {', '.join(COLUMNS)} on "
            f"the left, not {wrong[0]!r}"
        )
    names = [columns.get(column, column) for column in COLUMNS]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"the column {twice[0]!r} is named for two of {', '.join(COLUMNS)}; name another one"
        )


def parse_csv(data: bytes, source: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """Return the rows of a CSV file; no image is looked for.

    Args:
        data: The file's bytes.
        source: The file, whose folder relative paths start from.
        columns: The file's names of columns, as in :func:`read_csv`.

    Returns:
        A row for each line; with "" as the camera where the file has no column of cameras.

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
    places: dict[str, int] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if places is None:
                places, width = _columns(cells, source, columns or {}), len(cells)
                continue
            where = f"{source}, line {reader.line_num}"
            if len(cells) > width:
                raise DataError(
                    f"{where} has {len(cells)} values, and the first line has {width}; write "
                    "values that contain a comma in double quotes"
                )
            values = {
                column: cells[place].strip() if place < len(cells) else ""
                for column, place in places.items()
            }
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


def _columns(cells: Sequence[str], source: Path, columns: Mapping[str, str]) -> dict[str, int]:
    """Return the position of each of COLUMNS in the header; of cameras, where there are any."""
    header = [cell.strip() for cell in cells]
    names = {column: columns.get(column, column) for column in COLUMNS}
    absent = [name for name in names.values() if name not in header]
    if absent == ["camid"] and not any(cell.lower().startswith("cam") for cell in header):
        del names["camid"]
    elif absent:
        used = [word for mark, word in OTHER_DELIMITERS.items() if mark in header[0]]
        hint = "; name others as in csv:people.csv?pid=person&camid=camera"
        if used:
            hint = f"; separate its values by commas, not by {used[0]}"
        raise DataError(
            f"{source} lacks the column {', '.join(absent)} in its first line; it must name "
            f"{', '.join(names.values())}{hint}"
        )
    if twice := [name for name in names.values() if header.count(name) > 1]:
        raise DataError(
            f"{source} names the column {', '.join(twice)} twice in its first line; remove one"
        )
    return {column: header.index(name) for column, name in names.items()}


def _parse_row(values: Mapping[str, str], source: Path, where: str) -> Row:
    if empty := [column for column, value in values.items() if not value]:
        raise DataError(f"{where}: {', '.join(empty)} is empty; fill it in")
    for column, value in values.items():
        if printable(value) != value:
            raise DataError(
                f"{where}: {column} contains a control character, in {value[:80]!r}; remove it "
                "(a line break may come from a double quote that is not closed)"
            )
    name, split = values["path"], values["split"]
    if split not in SPLITS:
        raise DataError(f"{where}: split is {split!r}; use one of {', '.join(SPLITS)}")
    try:
        path = source.parent / (to_path(name) if name.startswith("~") else name)
    except InputError as error:
        raise DataError(
            f"{where}: path is {error}; write ./{name} for a file of that name"
        ) from None
    camera = parse_camera(values["camid"], where) if "camid" in values else ""
    return Row(path, parse_identity(values["pid"], where), camera, split)
