from __future__ import annotations

import os
from pathlib import Path

import pytest

from reidguard.data import ReIDDataset, load_dataset
from reidguard.data.decoding import IMAGE_SUFFIXES
from reidguard.data.readers.folder import read_folder
from reidguard.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def facts(samples) -> list[tuple[str, int, int]]:
    return [(s.path.name, s.pid, s.camid) for s in samples]


# One folder per person


def test_folders_are_people_and_names_carry_cameras(tmp_path):
    touch(
        tmp_path,
        "train/bob/x_c3_17.jpg",
        "train/bob/cam12-001.png",
        "query/alice/Front_CAM2.jpg",
        "gallery/alice/0002_c1s1_000451_03.jpg",
        "gallery/0000/y_c4.jpg",
        "gallery/-1/y_c4.jpg",
        "gallery/alice/Thumbs.db",
        "gallery/.cache/z.jpg",
    )
    dataset = read_folder(tmp_path)
    assert facts(dataset.train) == [("cam12-001.png", 2, 12), ("x_c3_17.jpg", 2, 3)]
    assert facts(dataset.query) == [("Front_CAM2.jpg", 1, 2)]
    assert facts(dataset.gallery) == [("y_c4.jpg", 0, 4), ("0002_c1s1_000451_03.jpg", 1, 1)]
    assert dataset.junk == 1
    assert dataset.name == tmp_path.name


def test_numbered_folders_keep_their_numbers(tmp_path):
    touch(tmp_path, "query/0017/a_c1.jpg", "gallery/17/b_c2.jpg", "gallery/-1/b_c2.jpg")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert [s.pid for s in (*dataset.query, *dataset.gallery)] == [17, 17]


def test_without_cameras_query_and_gallery_differ_and_a_warning_says_so(tmp_path):
    touch(tmp_path, "train/5/a.jpg", "train/6/a.jpg", "query/1/b.jpg", "gallery/1/b.jpg")
    with pytest.warns(UserWarning, match=r"b\.jpg, carry no camera.*_c<number>"):
        dataset = read_folder(tmp_path)
    (note,) = dataset.summary()["notes"]
    assert "count as matches" in note
    assert [s.camid for s in dataset.train] == [0, 0]
    assert [s.camid for s in dataset.query] == [0]
    assert [s.camid for s in dataset.gallery] == [1]


@pytest.mark.parametrize(
    "name", ["camera_3_x", "camera-3", "cam 3", "Camera3_0001", "x_cam_3", "0007_C3s1_000451_03"]
)
def test_cameras_are_read_from_the_usual_names(tmp_path, name, recwarn):
    touch(tmp_path, f"query/1/{name}.png", f"gallery/1/{name}_2.png")
    dataset = read_folder(tmp_path)
    assert [s.camid for s in (*dataset.query, *dataset.gallery)] == [3, 3]
    assert not dataset.notes
    assert not recwarn


FORMATS = ["avif", "BMP", "gif", "jfif", "JPEG", "jp2", "JPG", "pgm", "PPM", "TIF", "tiff", "WebP"]


def test_images_of_every_format_are_listed(tmp_path):
    suffixes = [suffix for suffix in FORMATS if f".{suffix.lower()}" in IMAGE_SUFFIXES]
    touch(tmp_path, *(f"query/1/{n}_c1.{suffix}" for n, suffix in enumerate(suffixes)))
    assert len(read_folder(tmp_path).query) == len(suffixes) >= 9  # as Pillow was built


def test_images_that_are_not_read_are_an_error_in_every_reader(tmp_path):
    touch(tmp_path, "query/1/a_c1.jpg", "query/1/b_c2.HEIC")
    with pytest.raises(DataError, match=r"b_c2\.HEIC; convert them to PNG"):
        read_folder(tmp_path)
    market = tmp_path / "market"
    names = {"bounding_box_train": "0002_c1s1_000451_03", "query": "0003_c1s1_000451_03"}
    for folder, name in {**names, "bounding_box_test": "0003_c2s1_000451_03"}.items():
        touch(market, f"{folder}/{name}.webp")
    assert len(load_dataset(f"market1501:{market}").query) == 1
    touch(market, "bounding_box_test/0003_c3s1_000451_03.psd")
    with pytest.raises(DataError, match=r"0003_c3s1_000451_03\.psd"):
        load_dataset(f"market1501:{market}")


@pytest.mark.parametrize("identity", ["-2", "nan", "1.5"])
def test_folders_that_no_identity_can_have_are_refused(tmp_path, identity):
    touch(tmp_path, f"query/{identity}/a_c1.jpg")
    with pytest.raises(DataError, match=rf"query/{identity}: pid is '?{identity}"):
        read_folder(tmp_path)


def test_names_that_are_no_utf8_or_hold_escapes_are_read_and_printed_safely(tmp_path):
    folder = os.fsencode(tmp_path / "query" / "1")
    os.makedirs(folder)
    for name in (b"\xff_c1.jpg", b"\x1b[31m_c2.jpg"):
        with open(folder + b"/" + name, "wb") as stream:
            stream.write(b"no image")
    dataset = read_folder(tmp_path)
    assert len(dataset.query) == 2
    assert len(dataset.fingerprint("query")) == 64
    with pytest.raises(DataError) as caught:
        dataset.check()
    text = str(caught.value)
    assert text.encode().isascii()  # UTF-8 can write it, and no terminal obeys it
    assert "\\x1b[31m_c2.jpg" in text
    assert "\\udcff_c1.jpg" in text
    assert ReIDDataset("a\x1b\udcff", notes=["b\n"]).summary()["name"] == "a\\x1b\\udcff"


def test_training_cameras_are_independent_of_the_tests(tmp_path):
    touch(tmp_path, "train/5/a.jpg", "query/1/b_c7.jpg", "gallery/1/b_c8.jpg")
    dataset = read_folder(tmp_path)
    assert [s.camid for s in (*dataset.train, *dataset.query, *dataset.gallery)] == [0, 7, 8]


def test_a_split_may_be_absent(tmp_path):
    touch(tmp_path, "train/5/a.jpg")
    dataset = read_folder(tmp_path)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (1, 0, 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["training/1/a.jpg"], "none of the folders train, query, gallery"),
        (["query/a.jpg"], r"directly in .*query .a\.jpg.*<identity>/<image>"),
        (["query/1/a.txt"], "1 holds no image"),
        (["query/.keep"], "query is empty"),
        (["query/1/a_c1.jpg", "gallery/1/b.jpg"], r"1 of 2 image names carry no camera.*b\.jpg"),
        (["query/0/a_c1.jpg"], r"a_c1\.jpg.*distractor"),
    ],
)
def test_another_layout_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)
