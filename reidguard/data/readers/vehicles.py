"""Vehicles: VeRi-776 (Liu et al., 2016) and PKU VehicleID (Liu et al., CVPR 2016)."""

from __future__ import annotations

import re
from pathlib import Path

from reidguard.data.dataset import ReIDDataset
from reidguard.data.layouts import Layout
from reidguard.data.loading import register_dataset
from reidguard.data.readers.layout import (
    check_choice,
    draw_one_each,
    find_root,
    read_images,
    read_list,
)
from reidguard.data.readers.statistics import NO_TEXT, Count, Published, build_dataset
from reidguard.types import ReIDSample

__all__ = ["read_vehicleid", "read_veri776"]

VERI = Published("veri-776", NO_TEXT, Count(37778, 576), Count(1678, 200), Count(11579, 200))
VERI_FOLDERS = {"train": "image_train", "query": "image_query", "gallery": "image_test"}
VERI_EXAMPLE = "0001_c001_00016450_0.jpg"
VERI_NAME = re.compile(r"(?P<pid>[0-9]{1,9})_c(?P<camid>[0-9]{1,9})_.+", re.DOTALL)
VERI_LAYOUT = Layout(dict.fromkeys(VERI_FOLDERS.values(), VERI_NAME), ("VeRi", "VeRi-776"))

# Test lists: identities, and images in all.
VEHICLEID_TESTS = {800: 6493, 1600: 13377, 2400: 19777}
VEHICLEID_TRAIN = Count(113346, 13164)
LISTS = "train_test_split"
LINE_EXAMPLE = "0000001 12"
LINE = re.compile(r"(?P<path>[0-9]{1,18})\s+(?P<pid>[0-9]{1,18})")
VEHICLEID_LAYOUT = Layout(
    {"image": re.compile("[0-9]+"), f"{LISTS}/train_list.txt": None},
    ("VehicleID", "VehicleID_V1.0"),
)


@register_dataset("veri-776", VERI_LAYOUT)
def read_veri776(root: Path | str) -> ReIDDataset:
    """List VeRi-776: vehicles before 20 cameras.

    ``0001_c001_00016450_0.jpg`` shows vehicle 1, seen by camera 1.

    Args:
        root: The folder that holds ``image_train``, ``image_query`` and ``image_test``, or one
            above it, if there it is called ``VeRi``.

    Raises:
        DataError: If a folder is missing or empty, or a name does not follow the pattern. Another
            number of images than published is no error, but noted.
    """
    root = find_root(root, VERI_LAYOUT)
    splits = {
        split: read_images(
            root / folder, VERI_NAME, example=VERI_EXAMPLE, expected=VERI.of(split).images
        )
        for split, folder in VERI_FOLDERS.items()
    }
    return build_dataset(VERI, splits, root=root)


@register_dataset("vehicleid", VEHICLEID_LAYOUT)
def read_vehicleid(root: Path | str, *, size: int = 800, trial: int = 0) -> ReIDDataset:
    """List VehicleID with one image of each test vehicle in the gallery, drawn at random.

    A line ``0000001 12`` is ``image/0000001.jpg``, vehicle 12; here vehicle n becomes n + 1, so
    that none is number 0. No cameras are published: queries are camera 0, the gallery camera 1. The
    published protocol averages over ten random galleries: read the dataset with trials 0 to 9. The
    draw is ours, since no list of it is published.

    Args:
        root: The folder that holds ``image`` and ``train_test_split``, or one above it, if there it
            is called ``VehicleID_V1.0``.
        size: Vehicles of the test list, ``test_list_800.txt`` and so on: 800, 1600 or 2400.
        trial: Chooses the gallery.

    Raises:
        DataError: If a list, the folder or a listed image is missing.
        InputError: If there is no such test list.
    """
    check_choice("size", size, VEHICLEID_TESTS)
    root = find_root(root, VEHICLEID_LAYOUT)
    images = VEHICLEID_TESTS[size]
    published = Published(
        f"vehicleid-{size}",
        NO_TEXT,
        VEHICLEID_TRAIN,
        Count(images - size, size),
        Count(size, size),
    )
    lists = {"train_list.txt": VEHICLEID_TRAIN, f"test_list_{size}.txt": Count(images, size)}
    train, test = (
        read_list(
            root / LISTS / name,
            LINE,
            root / "image",
            example=LINE_EXAMPLE,
            expected=expected,
            shift=1,
            camera=0,
            suffix=".jpg",
        )
        for name, expected in lists.items()
    )
    gallery = draw_one_each(test, trial)
    drawn = {sample.path for sample in gallery}
    splits = {
        "train": train,
        "query": [sample for sample in test if sample.path not in drawn],
        "gallery": [ReIDSample(s.path, s.pid, 1) for s in gallery],
    }
    notes = [
        f"one random gallery image of each vehicle, trial {trial}; average over ten trials to "
        "compare"
    ]
    return build_dataset(published, splits, root=root, notes=notes)
