"""Identities and cameras of custom data: numbers or names, as found in a table or in folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.unread import unread_images
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = ["Row", "build_custom", "parse_camera", "parse_identity"]

NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?P<float>\.[0-9]{0,40})?(?P<exponent>[eE][+-]?[0-9]{1,3})?")
MISSING = frozenset({"nan", "none", "null", "na", "n/a", "<na>", "nat", "inf", "-inf"})
JUNK = -1


class Row(NamedTuple):
    """One image of custom data. ``pid`` and ``camid`` are numbers, or names to be numbered."""

    path: Path
    pid: int | str
    camid: int | str
    split: str


def parse_identity(text: str, where: str) -> int | str:
    """Return an identity: a number from −1 on, or a name.

    A number may be written as a float (``7.0``, as pandas does) or with leading zeros. Whole
    numbers that no 64-bit integer holds are names.

    Args:
        text: The identity, without blanks around it.
        where: Where it stands, for error messages.

    Raises:
        DataError: If it is a fraction, a negative number other than −1, a placeholder for a
            missing value, such as "nan", or a float so large that digits are lost.

    Example:
        >>> parse_identity("0007", "line 2"), parse_identity("-1.0", "line 2")
        (7, -1)
        >>> parse_identity("alice", "line 2")
        'alice'
    """
    value = _parse(text, f"{where}: pid", "number identities from 1 (0: distractor, -1: junk)")
    if isinstance(value, int) and value < JUNK:
        raise DataError(
            f"{where}: pid is {text}; number identities from 1 (0: distractor, -1: junk)"
        )
    return value


def parse_camera(text: str, where: str) -> int | str:
    """Return a camera: a number from 0 on, or a name; as :func:`parse_identity`."""
    value = _parse(text, f"{where}: camid", "number cameras from 0")
    if isinstance(value, int) and value < 0:
        raise DataError(f"{where}: camid is {text}; number cameras from 0")
    return value


def _parse(text: str, where: str, cure: str) -> int | str:
    if text.lower() in MISSING:
        raise DataError(f"{where} is {text!r}, a missing value; {cure}")
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    number = Decimal(text)
    if match["float"] is None and match["exponent"] is None:
        return int(number) if abs(number) < 2**63 else text
    if abs(number) >= 2**53:
        raise DataError(
            f"{where} is {text}, a float that has lost digits; write whole numbers, as text"
        )
    if number != number.to_integral_value():
        raise DataError(f"{where} is {text}, no whole number; {cure}, or write names with a letter")
    return int(number)


def build_custom(
    name: str, rows: Iterable[Row], *, root: Path, notes: Iterable[str] = (), deep: bool = True
) -> ReIDDataset:
    """Build a dataset of rows: junk is left out and counted, names are numbered.

    If all identities are numbers they are kept, and so are cameras; else all are numbered in
    alphabetical order, identities from 1 and cameras from 0. 0 stays the mark of distractors. A
    note counts the images that are in no row: with ``deep`` of all folders below ``root``, else of
    those that hold an image of a row.
    """
    rows = list(rows)
    kept = [row for row in rows if row.pid != JUNK]
    pids = _number({row.pid for row in kept}, first=1)
    camids = _number({row.camid for row in rows}, first=0)
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for row in kept:
        splits[row.split].append(ReIDSample(row.path, pids[row.pid], camids[row.camid]))
    return ReIDDataset(
        name,
        *splits.values(),
        root=root,
        junk=len(rows) - len(kept),
        notes=[*notes, *unread_images(root, [row.path for row in rows], deep=deep)],
    )


def _number(found: set[int | str], *, first: int) -> dict[int | str, int]:
    numbers: dict[int | str, int] = {value: value for value in found if isinstance(value, int)}
    if len(numbers) == len(found):
        return numbers
    zeros: dict[int | str, int] = {0: 0} if first == 1 and 0 in found else {}
    others = sorted((value for value in found if value not in zeros), key=str)
    return zeros | {value: number for number, value in enumerate(others, first)}
