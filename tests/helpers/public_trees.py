"""Tiny trees of sets with protocols of their own, as public readers expect them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from helpers.trees import images, listing


def build_prcc(root: Path) -> None:
    for pid in ("001", "002"):
        images(root, *(f"rgb/train/{pid}/{camera}_cropped_rgb00{n}.jpg" for camera, n in TRAIN))
    for camera in "ABC":
        for pid in ("075", "103"):
            images(root, *(f"rgb/test/{camera}/{pid}/cropped_rgb00{n}.jpg" for n in (1, 2)))
    images(root, "rgb/val/005/A_cropped_rgb001.jpg", "sketch/train/001/A_001.jpg")


TRAIN = (("A", 1), ("B", 2), ("C", 3))


def build_ltcc(root: Path) -> None:
    images(
        root,
        "train/000_1_c3_015833.png",
        "train/007_2_c12_001843.png",
        "query/103_1_c1_000100.png",
        "query/103_2_c2_000200.png",
        "test/103_1_c1_000101.png",
        "test/103_1_c4_000102.png",
        "test/103_2_c5_000201.png",
        "test/104_1_c5_000301.png",
    )


def build_vc_clothes(root: Path) -> None:
    images(root, "train/0001-01-01-01.jpg", "train/0002-02-01-01.jpg")
    for folder, number in (("query", 1), ("gallery", 2)):
        images(
            root,
            *(
                f"{folder}/{pid}-0{camera}-{clothes:02}-0{number}.jpg"
                for pid in ("0300", "0301")
                for camera, clothes in ((1, 1), (2, 1), (3, 1), (4, 2))
            ),
        )


def build_occluded_duke(root: Path) -> None:
    images(
        root,
        "bounding_box_train/0001_c2_f0046182.jpg",
        "bounding_box_train/0002_c1_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c8_f0046985.jpg",
        "bounding_box_test/7139_c1_f0100000.jpg",
    )


def build_p_duke(root: Path) -> None:
    for part, pids in (("train", ("0001", "0002")), ("test", ("0005", "0006"))):
        for pid in pids:
            images(
                root,
                f"{part}/occluded_body_images/{pid}/{pid}_c1_f0046302.jpg",
                f"{part}/whole_body_images/{pid}/{pid}_c2_f0046182.jpg",
            )


def build_occluded_reid(root: Path) -> None:
    for pid in ("001", "002"):
        images(root, f"occluded_body_images/{pid}/{pid}_01.tif")
        images(root, *(f"whole_body_images/{pid}/{pid}_0{n}.tif" for n in (6, 7)))


def build_partial_reid(root: Path) -> None:
    for pid in ("001", "060"):
        images(root, *(f"{part}_body_images/{pid}_001.jpg" for part in ("partial", "whole")))
        images(root, f"occluded_body_images/{pid}_001.jpg")


def build_veri(root: Path) -> None:
    images(
        root,
        "image_train/0001_c001_00016450_0.jpg",
        "image_train/0003_c020_00016450_0.jpg",
        "image_query/0002_c002_00030600_0.jpg",
        "image_test/0002_c003_00030605_0.jpg",
        "image_test/0005_c002_00030605_1.jpg",
    )


VEHICLES = {"train_list": [(1, 7), (2, 7), (3, 8)]} | {
    f"test_list_{size}": [(n, n // 3) for n in range(9, 9 + 6 * (1 + size // 800))]
    for size in (800, 1600, 2400)
}


def build_vehicleid(root: Path) -> None:
    for name, pairs in VEHICLES.items():
        listing(root / "train_test_split", f"{name}.txt", *(f"{n:07} {pid}" for n, pid in pairs))
        images(root / "image", *(f"{n:07}.jpg" for n, _ in pairs))


def build_sysu(root: Path) -> None:
    for name, pids in (("train", "1,3"), ("val", "5"), ("test", "10,6")):
        listing(root / "exp", f"{name}_id.txt", pids)
    for camera in range(1, 7):
        for pid in (1, 3, 5, 6, 10):
            if (camera, pid) not in ((4, 10), (2, 3)):
                images(root, *(f"cam{camera}/{pid:04}/{n:04}.jpg" for n in range(1, 5)))


def build_regdb(root: Path) -> None:
    for trial in range(1, 11):
        for split, pids in (("train", (0, 1)), ("test", (0, 1))):
            for part, view in (("visible", "v"), ("thermal", "t")):
                lines = [
                    f"{part.title()}/{person}/{view}_{person:05}_{n}.bmp {pid}"
                    for pid in pids
                    for person in [pid + (1 if split == "train" else 3) + 4 * (trial % 2)]
                    for n in (1, 2)
                ]
                listing(root / "idx", f"{split}_{part}_{trial}.txt", *lines)
                images(root, *(line.split()[0] for line in lines))


def build_llcm(root: Path) -> None:
    listing(root / "idx", "test_id.txt", "4,9")
    for part in ("vis", "nir"):
        lines = [
            f"{part}/cam{c}/{p + 1:04}/{p + 1:04}_c0{c}.jpg {p}" for p in (0, 1) for c in (1, 2)
        ]
        listing(root / "idx", f"train_{part}.txt", *lines)
        images(root, *(line.split()[0] for line in lines))
        for camera in (1, 2, 8):
            for pid in (4, 9):
                images(root, *(f"test_{part}/cam{camera}/{pid:04}/{pid:04}_{n}.jpg" for n in "abc"))


def build_clonedperson(root: Path) -> None:
    images(
        root,
        "train/700000_s02_c00_f023389.jpg",
        "train/700001_s06_c01_f023413.jpg",
        "test/query/705227_s02_c02_f001117.jpg",
        "test/gallery/705227_s12_c00_f003229.jpg",
        "test/gallery/705228_s06_c02_f005521.jpg",
    )


def build_cuhk03(root: Path) -> None:
    for boxes in ("detected", "labeled"):
        names = [f"1_{pid:03}_{view}_0{view}.png" for pid in (1, 2, 3, 4) for view in (1, 2)]
        images(root / f"images_{boxes}", *names)
        rows = [(f"/old/machine/{n}", int(n[2:5]), int(n[6]) - 1) for n in names]
        train = [(name, pid - 1, camid) for name, pid, camid in rows[:4]]
        new = {"train": train, "query": rows[4::2], "gallery": rows[5::2], "num_train_pids": 2}
        listing(root, f"splits_new_{boxes}.json", json.dumps([new]))
        classic = {"train": train, "query": rows[4:], "gallery": rows[4:]}
        listing(root, f"splits_classic_{boxes}.json", json.dumps([classic] * 20))


def mars_names(pid: str, camera: int, number: int, frames: int) -> list[str]:
    return [f"{pid}C{camera}T{number:04}F{frame:03}.jpg" for frame in range(1, frames + 1)]


MARS = {
    # part: tracklets of identity, camera, number, frames
    "train": [("0001", 1, 1, 3), ("0001", 2, 1, 20), ("0003", 1, 1, 2)],
    "test": [
        ("00-1", 1, 1, 2),
        ("0000", 3, 1, 4),
        ("0002", 1, 1, 31),
        ("0002", 1, 2, 2),
        ("0002", 4, 1, 3),
        ("0002", 5, 1, 2),
    ],
}


def build_mars(root: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    for part, tracklets in MARS.items():
        names, tracks = [], []
        for pid, camera, number, frames in tracklets:
            own = mars_names(pid, camera, number, frames)
            tracks.append([len(names) + 1, len(names) + frames, int(pid.lstrip("0") or 0), camera])
            names += own
        images(root, *(f"bbox_{part}/{name[:4]}/{name}" for name in names))
        listing(root / "info", f"{part}_name.txt", *names)
        variable = {f"track_{part}_info": np.array(tracks)}
        savemat(root / "info" / f"tracks_{part}_info.mat", variable)
    savemat(root / "info" / "query_IDX.mat", {"query_IDX": np.array([[3, 6]])})


def build_ilids(root: Path) -> None:
    people = ["person001", "person002", "person004", "person007"]
    for camera in (1, 2):
        for person in people:
            place = f"i-LIDS-VID/sequences/cam{camera}/{person}"
            images(root, *(f"{place}/cam{camera}_{person}_{n:05}.png" for n in range(1, 4)))
    splits = [
        {"train": [people[t % 4], people[(t + 1) % 4]], "test": [people[t - 2], people[t - 1]]}
        for t in range(2, 4)
    ]
    listing(root, "splits.json", json.dumps(splits * 5))
    (root / "train-test people splits").mkdir()


Tree = tuple[str, Callable[[Path], None]]  # official folder, builder
TREES: dict[str, Tree] = {
    "prcc": ("prcc", build_prcc),
    "ltcc": ("LTCC_ReID", build_ltcc),
    "vc-clothes": ("VC-Clothes", build_vc_clothes),
    "occluded-duke": ("Occluded_Duke", build_occluded_duke),
    "p-dukemtmc-reid": ("P-DukeMTMC-reid", build_p_duke),
    "occluded-reid": ("Occluded_REID", build_occluded_reid),
    "partial-reid": ("Partial_REID", build_partial_reid),
    "veri-776": ("VeRi", build_veri),
    "vehicleid": ("VehicleID_V1.0", build_vehicleid),
    "sysu-mm01": ("SYSU-MM01", build_sysu),
    "regdb": ("RegDB", build_regdb),
    "llcm": ("LLCM", build_llcm),
    "clonedperson": ("clonedperson", build_clonedperson),
    "cuhk03": ("cuhk03", build_cuhk03),
    "mars": ("mars", build_mars),
    "ilids-vid": ("ilids-vid", build_ilids),
}
TEST_ONLY = {"occluded-reid", "partial-reid"}
