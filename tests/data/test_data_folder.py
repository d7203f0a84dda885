from __future__ import annotations

from pathlib import Path

import pytest

from reidguard.data import load_dataset
from reidguard.data.readers.folder import read_csv, read_folder
from reidguard.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_csv(root: Path, text: str, *images: str) -> Path:
    touch(root, *images)
    path = root / "people.csv"
    path.write_text(text, "utf-8")
    return path


def facts(samples) -> list[tuple[str, int, int]]:
    return [(s.path.name, s.pid, s.camid) for s in samples]


# CSV


def test_numbers_are_kept(tmp_path):
    path = write_csv(
        tmp_path,
        "note,split,camid,pid,path\n"
        "x,train,4,12,a.jpg\n"
        'y,query,1,0007,"sub/b, c.jpg"\n'
        "z,gallery,2,7,d.jpg\n"
        "z,gallery,2,0,e.jpg\n"
        "z,gallery,3,-1,f.jpg\n",
        "a.jpg",
        "sub/b, c.jpg",
        "d.jpg",
        "e.jpg",
        "f.jpg",
    )
    dataset = read_csv(path)
    assert dataset.name == "people"
    assert facts(dataset.train) == [("a.jpg", 12, 4)]
    assert facts(dataset.query) == [("b, c.jpg", 7, 1)]
    assert facts(dataset.gallery) == [("d.jpg", 7, 2), ("e.jpg", 0, 2)]
    assert dataset.junk == 1
    assert dataset.summary()["distractors"] == 1
    assert load_dataset(f"csv:{path}").query == dataset.query


def test_names_are_numbered_alphabetically_over_all_splits(tmp_path):
    rows = [
        "a.jpg,siteB/7,roof,train",
        "b.jpg,siteA/7,door,query",
        "c.jpg,siteA/7,roof,gallery",
        "d.jpg,12,roof,gallery",
        "e.jpg,-1,roof,gallery",
        "f.jpg,0000,hall,gallery",
    ]
    images = [row.split(",")[0] for row in rows]
    header = "path,pid,camid,split\n"
    one = read_csv(write_csv(tmp_path, header + "\n".join(rows), *images))
    two = read_csv(write_csv(tmp_path, header + "\n".join(rows[::-1]), *images))
    # people: "12" 1, "siteA/7" 2, "siteB/7" 3; cameras: door 0, hall 1, roof 2
    assert facts(one.train) == [("a.jpg", 3, 2)]
    assert facts(one.query) == [("b.jpg", 2, 0)]
    assert facts(one.gallery) == [("c.jpg", 2, 2), ("d.jpg", 1, 2), ("f.jpg", 0, 1)]
    assert one.junk == 1
    for split in ("train", "query", "gallery"):
        assert set(one.split(split)) == set(two.split(split))


def test_a_camera_named_zero_among_names_is_numbered_like_the_others(tmp_path):
    text = "path,pid,camid,split\na.jpg,1,door,train\nb.jpg,1,0,train\nc.jpg,1,A,train\n"
    dataset = read_csv(write_csv(tmp_path, text, "a.jpg", "b.jpg", "c.jpg"))
    assert [s.camid for s in dataset.train] == [2, 0, 1]


def test_numbers_too_large_for_a_tensor_become_names(tmp_path):
    path = write_csv(tmp_path, f"path,pid,camid,split\na.jpg,{10**30},1,train\n", "a.jpg")
    assert facts(read_csv(path).train) == [("a.jpg", 1, 1)]


def test_absolute_paths_and_a_byte_order_mark(tmp_path):
    touch(tmp_path, "images/a.jpg")
    text = f"\ufeffpath,pid,camid,split\n{tmp_path}/images/a.jpg,1,1,train\n"
    assert read_csv(write_csv(tmp_path / "lists", text, "x")).train[0].path.is_file()


HEAD = "path,pid,camid,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the column path, pid, camid, split"),
        ("path,pid,split\na.jpg,1,train\n", "lacks the column camid"),
        ("a.jpg,1,1,train\n", "lacks the column path"),
        (HEAD, "lists no image"),
        (HEAD + "a.jpg,1,1,test\n", "line 2: split is 'test'"),
        (HEAD + "a.jpg,1,1,train\na.jpg,,1,query\n", "line 3: pid is empty"),
        (HEAD + "a.jpg,1\n", "line 2: camid, split is empty"),
        (HEAD + "b.jpg,1,1,train\n", r"1 images .* do not exist: .*b\.jpg"),
        (HEAD + "a.jpg,1,1,train\na.jpg,2,1,train\n", r"twice in one split: .*a\.jpg"),
        (HEAD + "a.jpg,0,1,query\n", r"a\.jpg.*number identities from 1"),
    ],
)
def test_a_wrong_csv_says_what_and_where(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_csv(write_csv(tmp_path, text, "a.jpg"))


def test_what_is_no_csv_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no CSV file.*csv:/path/to/file\.csv"):
        load_dataset("csv", tmp_path)
    path = tmp_path / "x.csv"
    for content in (b"\xff\xfe\x00\x01", b'path,pid,camid,split\n"a.jpg\x00' + b"," * 200000):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.csv"):
            read_csv(path)


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


def test_without_cameras_query_and_gallery_differ(tmp_path):
    touch(tmp_path, "train/5/a.jpg", "train/6/a.jpg", "query/1/b.jpg", "gallery/1/b.jpg")
    dataset = read_folder(tmp_path)
    assert [s.camid for s in dataset.train] == [0, 0]
    assert [s.camid for s in dataset.query] == [0]
    assert [s.camid for s in dataset.gallery] == [1]


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
        (["query/1/a.gif"], "1 holds no image"),
        (["query/.keep"], "query is empty"),
        (["query/1/a_c1.jpg", "gallery/1/b.jpg"], r"1 of 2 image names carry no camera.*b\.jpg"),
        (["query/0/a.jpg"], r"a\.jpg.*distractor"),
    ],
)
def test_another_layout_is_refused(tmp_path, names, message):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)
