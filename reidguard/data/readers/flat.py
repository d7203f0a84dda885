"""Reader of custom data in flat folders, with identities and cameras in the images' names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from reidguard.data.dataset import SPLITS, ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.loading import register_dataset
from reidguard.data.readers.custom import (
    JUNK,
    Row,
    build_custom,
    parse_camera,
    parse_identity,
)
from reidguard.errors import DataError, InputError, a_few, printable
from reidguard.records import to_path

__all__ = ["read_flat"]

FIELDS = {
    "pid": "(?P<pid>.+?)",
    "camid": "(?P<camid>.+?)",
    "split": f"(?P<split>{'|'.join(SPLITS)})",
    "n": "(?:.*?)",
}
DISTRACTOR = 0


@register_dataset("flat")
def read_flat(root: Path | str, *, pattern: str = "{pid}_{n}") -> ReIDDataset:
    """List a folder of images, or its folders train, query and gallery, by a pattern of names.

    With the pattern "{pid}_{n}", ``0001_03.jpg`` shows identity 1. Where neither folders nor names
    say what is a query, it is the first image, by name, of each identity and camera, if another
    camera has an answer, and all images are the gallery; a note says so. Without cameras it is the
    first image of each identity, the others are the gallery, and a warning says that images of the
    query's own camera count as matches.

    Args:
        root: The folder.
        pattern: Name of an image without its extension. ``{pid}`` is the identity and ``{camid}``
            the camera, each a number or a name; ``{split}`` is train, query or gallery; ``{n}`` is
            any text, and may occur more than once. Identity 0 marks distractors (gallery only),
            −1 junk, which is left out and counted.

    Raises:
        DataError: If there are no images, or a name does not match the pattern.
        InputError: If the pattern has no ``{pid}``, an unknown field, or one twice.
    """
    root = to_path(root)
    compiled = _compile(pattern)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; expected there: images named like {pattern}")
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    places = folders or {"": root}
    rows = [row for split, place in places.items() for row in _rows(place, split, compiled)]
    if not rows:
        raise DataError(f"{root} holds no image; expected there: images named like {pattern}")
    notes = []
    has_cameras = "camid" in compiled.groupindex
    if not folders and "split" not in compiled.groupindex:
        rows = _split(rows, has_cameras)
        notes.append(
            "the first image of each identity and camera is a query, and all are the gallery"
            if has_cameras
            else "the first image of each identity is a query, and the others are the gallery"
        )
    if not has_cameras:
        rows = [row._replace(camid=int(row.split == "gallery")) for row in rows]
        notes.append(
            "the pattern has no camera, so images of the query's own camera count as matches; add "
            "{camid} if the names contain it"
        )
        warnings.warn(f"{printable(str(root))}: {notes[-1]}", stacklevel=2)
    return build_custom(root.resolve().name, rows, root=root, notes=notes)


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w*)\}", pattern) if isinstance(pattern, str) else [""]
    names = parts[1::2]
    unknown = [name for name in names if name not in FIELDS]
    twice = [name for name in FIELDS if name != "n" and names.count(name) > 1]
    if unknown or twice or "pid" not in names:
        raise InputError(
            f"the pattern {pattern!r} "
            + (f"has the unknown field {{{unknown[0]}}}" if unknown else "")
            + (f"has {{{twice[0]}}} twice" if twice and not unknown else "")
            + ("has no {pid}" if not unknown and not twice else "")
            + "; write it as {pid}_{camid}_{n}, with {pid} for the identity, {camid} for the "
            "camera, {split} for train, query or gallery, and {n} for anything else"
        )
    texts = [re.escape(text) if i % 2 == 0 else FIELDS[text] for i, text in enumerate(parts)]
    return re.compile("".join(texts), re.DOTALL)


def _rows(folder: Path, split: str, pattern: re.Pattern[str]) -> list[Row]:
    rows, wrong = [], []
    for path in list_images(folder):
        match = pattern.fullmatch(path.stem)
        if match is None:
            wrong.append(path.name)
            continue
        found = match.groupdict()
        camera = parse_camera(found["camid"], str(path)) if "camid" in found else ""
        pid = parse_identity(found["pid"], str(path))
        rows.append(Row(path, pid, camera, split or found.get("split", "")))
    if wrong:
        raise DataError(
            f"{len(wrong)} image names in {folder} do not match the pattern: {a_few(wrong)}; "
            "rename or remove them, or give another pattern"
        )
    return rows


def _split(rows: list[Row], has_cameras: bool) -> list[Row]:
    """Make the first image of each identity, or of its each camera, a query if it has an answer."""
    images: dict[int | str, list[Row]] = {}
    for row in rows:
        images.setdefault(row.pid, []).append(row)
    queries: list[Row] = []
    for pid, own in images.items():
        if pid in (JUNK, DISTRACTOR):
            continue
        first: dict[int | str, Row] = {}
        for row in own:
            first.setdefault(row.camid, row)
        if len(first if has_cameras else own) > 1:
            queries += first.values()
    taken = () if has_cameras else {row.path for row in queries}
    gallery = [row._replace(split="gallery") for row in rows if row.path not in taken]
    return [row._replace(split="query") for row in queries] + gallery
