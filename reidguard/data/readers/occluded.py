"""Occluded and partial people: Occluded-Duke, P-DukeMTMC-reID, Occluded-REID, Partial-REID."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.decoding import list_images
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers import dukemtmc
from reidguard.data.readers.layout import (
    MARKET_FOLDERS,
    find_root,
    read_images,
    read_market_folders,
)
from reidguard.data.readers.statistics import NO_TEXT, Count, Published, build_dataset
from reidguard.errors import DataError
from reidguard.types import ReIDSample

__all__ = [
    "read_occluded_duke",
    "read_occluded_reid",
    "read_p_dukemtmc_reid",
    "read_partial_reid",
]

OF_DUKE = "cut from DukeMTMC-reID, which its authors withdrew in 2019: no commercial use"
OCCLUDED_DUKE = Published("occluded-duke", OF_DUKE, sized=False)
P_DUKE = Published("p-dukemtmc-reid", OF_DUKE, sized=False)
OCCLUDED_REID = Published(
    "occluded-reid",
    "academic or educational use only",
    query=Count(1000, 200),
    gallery=Count(1000, 200),
)
PARTIAL_REID = Published("partial-reid", NO_TEXT, sized=False)
DUKE_LAYOUT = Layout(
    dict.fromkeys(MARKET_FOLDERS.values(), dukemtmc.NAME),
    ("Occluded-Duke", "Occluded-DukeMTMC", "Occluded-DukeMTMC-reID"),
)
OCCLUDED, WHOLE, PARTIAL = "occluded_body_images", "whole_body_images", "partial_body_images"
CAMERAS = {OCCLUDED: 1, PARTIAL: 1, WHOLE: 2}  # two views, so that each query finds whole images
EXAMPLE = "001_01.tif"
NAME = re.compile(r"(?P<pid>[0-9]{1,9})_.+", re.DOTALL)
P_DUKE_LAYOUT = Layout(
    {f"{part}/{body}/*": NAME for part in ("train", "test") for body in (OCCLUDED, WHOLE)},
    ("P-DukeMTMC-reID",),
)
OCCLUDED_REID_LAYOUT = Layout({f"{OCCLUDED}/*": NAME, f"{WHOLE}/*": NAME}, ("Occluded_REID",))
PARTIAL_REID_LAYOUT = Layout({PARTIAL: NAME, WHOLE: NAME}, ("Partial_REID", "Partial-REID_Dataset"))
VIEWS = "no cameras are published: occluded or partial images are camera 1, whole ones camera 2"


@register_dataset("occluded-duke", DUKE_LAYOUT)
def read_occluded_duke(root: Path | str) -> ReIDDataset:
    """List Occluded-Duke: DukeMTMC-reID, sorted anew so that all queries are occluded.

    Args:
        root: The folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``, or
            one above it, if there it is called ``Occluded_Duke``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern.
    """
    root = find_root(root, DUKE_LAYOUT)
    splits = read_market_folders(root, dukemtmc.NAME, example=dukemtmc.EXAMPLE)
    return build_dataset(OCCLUDED_DUKE, splits, root=root, notes=[dukemtmc.WITHDRAWN])


@register_dataset("p-dukemtmc-reid", P_DUKE_LAYOUT)
def read_p_dukemtmc_reid(root: Path | str) -> ReIDDataset:
    """List P-DukeMTMC-reID: occluded queries, whole people in the gallery.

    Args:
        root: The folder that holds ``train`` and ``test``, each with ``occluded_body_images`` and
            ``whole_body_images`` of one folder per identity, or one above it, if there it is called
            ``P-DukeMTMC-reid``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not begin with an identity.
    """
    root = find_root(root, P_DUKE_LAYOUT)
    splits = {
        "train": [s for body in (WHOLE, OCCLUDED) for s in _nested(root / "train" / body)],
        "query": _nested(root / "test" / OCCLUDED),
        "gallery": _nested(root / "test" / WHOLE),
    }
    return build_dataset(P_DUKE, splits, root=root, notes=[dukemtmc.WITHDRAWN, VIEWS])


@register_dataset("occluded-reid", OCCLUDED_REID_LAYOUT)
def read_occluded_reid(root: Path | str) -> ReIDDataset:
    """List Occluded-REID, a test set: occluded queries, whole people in the gallery.

    Args:
        root: The folder that holds ``occluded_body_images`` and ``whole_body_images``, each of one
            folder per identity, or one above it, if there it is called ``Occluded_REID``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not begin with an identity.
    """
    root = find_root(root, OCCLUDED_REID_LAYOUT)
    splits = {"query": _nested(root / OCCLUDED), "gallery": _nested(root / WHOLE)}
    return build_dataset(OCCLUDED_REID, splits, root=root, notes=[VIEWS])


@register_dataset("partial-reid", PARTIAL_REID_LAYOUT)
def read_partial_reid(root: Path | str) -> ReIDDataset:
    """List Partial-REID, a test set: cropped queries, whole people in the gallery.

    ``partial_body_images/001_001.jpg`` shows identity 1. The uncropped images of
    ``occluded_body_images`` are not read.

    Args:
        root: The folder that holds ``partial_body_images`` and ``whole_body_images``, or one above
            it, if there it is called ``Partial_REID``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not begin with an identity.
    """
    root = find_root(root, PARTIAL_REID_LAYOUT)
    splits = {
        split: read_images(root / body, NAME, example="001_001.jpg", camera=CAMERAS[body])
        for split, body in (("query", PARTIAL), ("gallery", WHOLE))
    }
    return build_dataset(PARTIAL_REID, splits, root=root, notes=[VIEWS])


def _nested(folder: Path) -> list[ReIDSample]:
    """List the images of the subfolders; their names begin with the identity."""
    content = f"expected there: one folder per identity with images such as {EXAMPLE}"
    if not folder.is_dir():
        raise DataError(f"the folder {folder} is missing; {content}")
    samples = [
        sample
        for place in sorted(folder.iterdir())
        if place.is_dir() and list_images(place)
        for sample in read_images(place, NAME, example=EXAMPLE, camera=CAMERAS[folder.name])
    ]
    if not samples:
        raise DataError(f"the folder {folder} holds no image in its folders; {content}")
    return samples
