"""Tiny trees of drawn images in the layouts of published datasets, and what readers say of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

Facts = dict[str, list[tuple[str, int, int]]]  # by split: path, identity, camera


def images(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 4), (len(name), 90, 30)).save(path)


def listing(root: Path, name: str, *lines: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(lines) + "\n", "utf-8")


def facts(dataset) -> Facts:
    return {
        split: [(s.path.relative_to(dataset.root).as_posix(), s.pid, s.camid) for s in samples]
        for split, samples in (
            ("train", dataset.train),
            ("query", dataset.query),
            ("gallery", dataset.gallery),
        )
    }


def build_duke(root: Path) -> None:
    images(
        root,
        "bounding_box_train/0001_c2_f0046182.jpg",
        "bounding_box_train/0002_c1_f0046182.jpg",
        "query/0005_c2_f0046985.jpg",
        "bounding_box_test/0005_c8_f0046985.jpg",
        "bounding_box_test/7139_c12_f0100000.jpg",
    )
    (root / "query" / "Thumbs.db").touch()


DUKE: Facts = {
    "train": [
        ("bounding_box_train/0001_c2_f0046182.jpg", 1, 2),
        ("bounding_box_train/0002_c1_f0046182.jpg", 2, 1),
    ],
    "query": [("query/0005_c2_f0046985.jpg", 5, 2)],
    "gallery": [
        ("bounding_box_test/0005_c8_f0046985.jpg", 5, 8),
        ("bounding_box_test/7139_c12_f0100000.jpg", 7139, 12),
    ],
}


def build_msmt(root: Path, train: str = "train", test: str = "test") -> None:
    names = {
        (train, "list_train.txt"): ["0000/0000_000_01_0303morning_0008_0.jpg 0"],
        (train, "list_val.txt"): ["0114/0114_019_10_0303noon_0284_2_ex.jpg 114"],
        (test, "list_query.txt"): ["0000/0000_000_15_0303morning_0015_0.jpg 0"],
        (test, "list_gallery.txt"): [
            "0000/0000_001_03_0303morning_0020_0.jpg 0",
            "3059/3059_001_03_0303afternoon_0015_0.jpg 3059",
        ],
    }
    for (folder, name), lines in names.items():
        listing(root, name, *lines)
        images(root / folder, *(line.split()[0] for line in lines))


def build_msmt_v2(root: Path) -> None:
    build_msmt(root, "mask_train_v2", "mask_test_v2")


def msmt_facts(train: str, test: str) -> Facts:
    return {
        "train": [
            (f"{train}/0000/0000_000_01_0303morning_0008_0.jpg", 1, 1),
            (f"{train}/0114/0114_019_10_0303noon_0284_2_ex.jpg", 115, 10),
        ],
        "query": [(f"{test}/0000/0000_000_15_0303morning_0015_0.jpg", 1042, 15)],
        "gallery": [
            (f"{test}/0000/0000_001_03_0303morning_0020_0.jpg", 1042, 3),
            (f"{test}/3059/3059_001_03_0303afternoon_0015_0.jpg", 4101, 3),
        ],
    }


def build_np(root: Path) -> None:
    images(
        root,
        "bounding_box_train/0001_c1_1.png",
        "bounding_box_train/0002_c2_1.png",
        "query/0003_c1_22.png",
        "query/0003_c2_27.png",
        "bounding_box_test/0003_c1_21.png",
    )


NP: Facts = {
    "train": [
        ("bounding_box_train/0001_c1_1.png", 1, 1),
        ("bounding_box_train/0002_c2_1.png", 2, 2),
    ],
    "query": [("query/0003_c1_22.png", 3, 1), ("query/0003_c2_27.png", 3, 2)],
    "gallery": [("bounding_box_test/0003_c1_21.png", 3, 1)],
}


def build_personx(root: Path) -> None:
    for background in range(1, 7):
        images(
            root / str(background),
            f"bounding_box_train/0004_c{background}s1_01.jpg",
            f"bounding_box_train/0005_c{background}s1_01.jpg",
            f"query/0001_c{background}s1_32.jpg",
            f"bounding_box_test/0001_c{background}s1_32.jpg",
        )


def personx_facts(backgrounds: list[int]) -> Facts:
    return {
        "train": [
            (f"{b}/bounding_box_train/000{pid}_c{b}s1_01.jpg", pid, b)
            for b in backgrounds
            for pid in (4, 5)
        ],
        "query": [(f"{b}/query/0001_c{b}s1_32.jpg", 1, b) for b in backgrounds],
        "gallery": [(f"{b}/bounding_box_test/0001_c{b}s1_32.jpg", 1, b) for b in backgrounds],
    }


def build_personx_hard(root: Path) -> None:
    images(
        root,
        "bounding_box_train/0004_c3s1_01.jpg",
        "bounding_box_train/0005_c3s1_01.jpg",
        "query/0001_c12s1_32.jpg",
        "bounding_box_test/0001_c8s1_32.jpg",
    )


PERSONX_HARD: Facts = {
    "train": [
        ("bounding_box_train/0004_c3s1_01.jpg", 4, 3),
        ("bounding_box_train/0005_c3s1_01.jpg", 5, 3),
    ],
    "query": [("query/0001_c12s1_32.jpg", 1, 12)],
    "gallery": [("bounding_box_test/0001_c8s1_32.jpg", 1, 8)],
}


def build_randperson(root: Path) -> None:
    images(root, "000000_s00_c00_f000264.jpg", "007999_s10_c03_f001032.jpg")


RANDPERSON: Facts = {
    "train": [
        ("000000_s00_c00_f000264.jpg", 1, 0),
        ("007999_s10_c03_f001032.jpg", 8000, 1003),
    ],
    "query": [],
    "gallery": [],
}


def build_unrealperson(root: Path) -> None:
    images(
        root,
        "unreal_v1.1/images/0_c001_78.jpg",
        "unreal_v3.1/images/0_c001_78.jpg",
        "unreal_v3.2/images/0_c004_5.jpg",
    )


UNREALPERSON: Facts = {
    "train": [
        ("unreal_v1.1/images/0_c001_78.jpg", 100000, 1001),  # one person in two scenes
        ("unreal_v3.1/images/0_c001_78.jpg", 100000, 3001),
        ("unreal_v3.2/images/0_c004_5.jpg", 200000, 3004),  # another kind of models
    ],
    "query": [],
    "gallery": [],
}

DEEPCHANGE_NAMES = {
    "train-set": [("P0_C02_20200416_10_0_1.jpg", 17), ("P318_C05_20200612_15_3_7.jpg", 18)],
    "val-set-query": [("P400_C01_20200416_15_3_7.jpg", 30)],
    "val-set-gallery": [("P400_C01_20200417_15_3_7.jpg", 31)],
    "test-set-query": [("P900_C05_20200416_15_3_7.jpg", 40)],
    "test-set-gallery": [
        ("P900_C05_20200416_15_3_8.jpg", 40),
        ("P900_C05_20200803_15_3_7.jpg", 41),
    ],
}


def build_deepchange(root: Path) -> None:
    for folder, names in DEEPCHANGE_NAMES.items():
        images(root / folder, *(name for name, _ in names))
        listing(root, f"{folder}-bbox.txt", *(f"{name},{tracklet}" for name, tracklet in names))


DEEPCHANGE: Facts = {
    "train": [
        ("train-set/P0_C02_20200416_10_0_1.jpg", 1, 2),
        ("train-set/P318_C05_20200612_15_3_7.jpg", 319, 5),
    ],
    "query": [("test-set-query/P900_C05_20200416_15_3_7.jpg", 901, 40)],
    "gallery": [
        ("test-set-gallery/P900_C05_20200416_15_3_8.jpg", 901, 40),
        ("test-set-gallery/P900_C05_20200803_15_3_7.jpg", 901, 41),
    ],
}


def build_viper(root: Path) -> None:
    images(root, *(f"cam_a/{p:03}_45.bmp" for p in range(4)))
    images(root, *(f"cam_b/{p:03}_90.bmp" for p in range(4)))


def build_cuhk01(root: Path) -> None:
    images(root / "campus", *(f"{p:04}{view:03}.png" for p in range(1, 6) for view in range(1, 5)))


FIXED = {
    # registered name: (name of the dataset, official folder, build, facts)
    "dukemtmc-reid": ("dukemtmc-reid", "DukeMTMC-reID", build_duke, DUKE),
    "msmt17": ("msmt17-v1", "MSMT17_V1", build_msmt, msmt_facts("train", "test")),
    "msmt17 v2": (
        "msmt17-v2",
        "MSMT17_V2",
        build_msmt_v2,
        msmt_facts("mask_train_v2", "mask_test_v2"),
    ),
    "cuhk03-np-labeled": ("cuhk03-np-labeled", "labeled", build_np, NP),
    "cuhk03-np-detected": ("cuhk03-np-detected", "detected", build_np, NP),
    "personx": ("personx", "PersonX_v1", build_personx, personx_facts([1, 2, 3, 4, 5, 6])),
    "personx-456": ("personx-456", "PersonX_v1", build_personx, personx_facts([4, 5, 6])),
    "personx hard": ("personx-hard", "PersonX", build_personx_hard, PERSONX_HARD),
    "randperson": ("randperson", "randperson_subset", build_randperson, RANDPERSON),
    "unrealperson": ("unrealperson", "UnrealPerson", build_unrealperson, UNREALPERSON),
    "deepchange": ("deepchange", "DeepChangeDataset", build_deepchange, DEEPCHANGE),
}
DRAWN = {"viper": ("VIPeR", build_viper), "cuhk01": ("CUHK01", build_cuhk01)}


def plant(tmp_path: Path, folder: str, build: Callable[[Path], None]) -> Path:
    root = tmp_path / "data" / folder
    build(root)
    return root
