"""Layouts: how datasets lie on disk, and which of them a folder has."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from reidguard.data.decoding import IMAGE_SUFFIXES
from reidguard.errors import InputError, a_few

__all__ = ["Layout", "Recognition", "normal_name", "recognise"]

DEPTH = 3  # levels of folders above a dataset
MANY = 64  # a folder with more subfolders than these is none above a dataset
PLACES = 500  # folders of a level that are looked at
LISTED = 2000  # entries of a folder that are looked at
NAMES = 20  # image names of a folder that are compared with a pattern


@dataclass(frozen=True)
class Layout:
    """What the folder of a dataset holds.

    Args:
        entries: Paths of files and folders in it, each with the pattern of the names, without
            extension, of the images in it; None where it need only exist. Images may lie in
            subfolders; ``"train/*"`` says that they must. ``"."`` is the folder itself.
        folders: Names that the folder goes by. Case, and what is neither letter nor digit, do not
            matter. They decide between datasets with the same entries.

    Example:
        >>> layout = Layout({"query": re.compile("[0-9]+_c[0-9]")}, folders=("My-Set",))
        >>> layout.missing(Path("nowhere"))
        ['query']
    """

    entries: Mapping[str, re.Pattern[str] | None]
    folders: tuple[str, ...] = ()

    def missing(self, root: Path) -> list[str]:
        """Return what a folder lacks of this layout, in words."""
        return [
            problem
            for entry, pattern in self.entries.items()
            if (problem := _problem(root, entry, pattern))
        ]

    def is_named(self, root: Path) -> bool:
        """Return whether the folder, or one of the two above it, has a name of this dataset."""
        names = {normal_name(folder) for folder in self.folders}
        return any(normal_name(part) in names for part in root.resolve().parts[-3:])


class Recognition(NamedTuple):
    """A dataset that was recognised: its registered name, its folder, and why."""

    name: str
    root: Path
    reason: str


def normal_name(name: str) -> str:
    """Return a folder's name in lower case, without what is neither letter nor digit.

    Example:
        >>> normal_name("Market-1501-v15.09.15")
        'market1501v150915'
    """
    return re.sub("[^a-z0-9]", "", name.lower())


def recognise(path: Path, layouts: Mapping[str, tuple[Layout, ...]]) -> Recognition:
    """Return which dataset a folder, or the folder in it that is nearest to it, holds.

    Args:
        path: The folder, or one up to three levels above it.
        layouts: The layouts of each registered name.

    Raises:
        InputError: If it is no known layout, which names the nearest ones and what is missing; or
            if there are several.
    """
    for places in _levels(path):
        found = {}
        for place in places:
            matches = [
                (name, layout)
                for name, known in layouts.items()
                for layout in known
                if not layout.missing(place)
            ]
            if matches:
                found[place] = matches
        if len(found) > 1:
            each = [f"{matches[0][0]} in {place}" for place, matches in found.items()]
            raise InputError(
                f"{path} holds several datasets: {a_few(each)}; give the path of one of them"
            )
        for place, matches in found.items():
            return _choose(place, matches)
    raise InputError(_nearest(path, layouts))


def _choose(place: Path, matches: list[tuple[str, Layout]]) -> Recognition:
    most = max(len(layout.entries) for _, layout in matches)
    matches = [match for match in matches if len(match[1].entries) == most]
    named = [match for match in matches if match[1].is_named(place)]
    chosen = named or matches
    names = sorted({name for name, _ in chosen})
    if len(names) > 1:
        raise InputError(
            f"{place} may be {' or '.join(names)}, which have the same layout; say which: "
            + " or ".join(f"{name}:{place}" for name in names)
        )
    name, layout = chosen[0]
    example = next((n for entry in layout.entries for n in first_images(place / entry)), "")
    entries = [entry.removesuffix("/*") for entry in layout.entries if entry != "."]
    reason = [f"{place} holds {a_few(entries, shown=6)}"] if entries else [str(place)]
    reason += [f"images such as {example}"] if example else []
    others = {name for name, _ in matches} - set(names)
    reason += [f"its name tells it from {', '.join(sorted(others))}"] if others else []
    return Recognition(name, place, "; ".join(reason))


def _levels(path: Path) -> Iterator[list[Path]]:
    """Yield a folder, the folders in it, and so on, level by level."""
    level = [path]
    for _ in range(DEPTH + 1):
        yield level
        below = [_subfolders(place) for place in level]
        level = [place for places in below if len(places) <= MANY for place in places][:PLACES]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            listed = [e for e in islice(entries, LISTED) if not e.name.startswith(".")]
    except OSError:
        return []
    return sorted(listed, key=lambda entry: entry.name)


def _subfolders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if entry.is_dir()]


def first_images(folder: Path, depth: int = DEPTH) -> list[str]:
    """Return names of images in a folder, or else in the first of its subfolders that has any.

    A last part ``*`` of the path asks for subfolders.
    """
    nested = folder.name == "*"
    entries = _entries(folder.parent if nested else folder)
    if images := [e.name for e in entries if e.name.lower().endswith(IMAGE_SUFFIXES)]:
        return [] if nested else images[:NAMES]
    folders = [Path(entry.path) for entry in entries if entry.is_dir()][: depth and 3]
    return next(filter(None, (first_images(inner, depth - 1) for inner in folders)), [])


def _problem(root: Path, entry: str, pattern: re.Pattern[str] | None) -> str | None:
    place = root / entry
    if not (place.parent if place.name == "*" else place).exists():
        return entry.removesuffix("/*")
    if pattern is None:
        return None
    names = first_images(place, 0 if entry == "." else DEPTH)
    where = "the folder" if entry == "." else entry
    if not names:
        return f"images in {'subfolders of ' if place.name == '*' else ''}{entry}"
    wrong = [name for name in names if not pattern.fullmatch(os.path.splitext(name)[0])]
    return f"names of its pattern in {where} (not {wrong[0]})" if wrong else None


def _nearest(path: Path, layouts: Mapping[str, tuple[Layout, ...]]) -> str:
    """Say that a folder has no known layout, and which ones are nearest."""
    for above in (path.parent, path.parent.parent):
        inside = [n for n, known in layouts.items() if any(not k.missing(above) for k in known)]
        if inside and above != path:
            return f"{path} is a part of {' or '.join(sorted(inside))} in {above}; give that folder"
    lacks = sorted(
        (len(missing) / len(layout.entries), name, missing)
        for name, known in layouts.items()
        for layout in known
        if len(missing := layout.missing(path)) < len(layout.entries)
    )
    near = [f"{name} (missing: {', '.join(missing)})" for _, name, missing in lacks[:3]]
    message = f"{path} has the layout of no known dataset"
    if near:
        message += f"; nearest: {', '.join(near)}"
    images = [e.name for e in _entries(path) if e.name.lower().endswith(IMAGE_SUFFIXES)]
    if images:
        message += (
            f"; for a folder of images such as {images[0]}, name the parts of a name: "
            "--pattern '{pid}_{n}', or pattern='{pid}_{n}' in Python"
        )
    elif not near:
        held = [entry.name for entry in _entries(path)]
        message += f"; it holds {a_few(held)}" if held else "; it is empty"
    return message + "; or name the dataset: NAME:PATH (all names: reidguard list datasets)"
