"""Custom data that a CSV file lists, and the identities and cameras in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reidguard.data import ReIDDataset, load_dataset
from reidguard.data.readers.csv_file import parse_csv, read_csv
from reidguard.errors import DataError, InputError

HEAD = "path,pid,camid,split\n"


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "people.csv is empty"),
        ("path,pid,camera,split\na.jpg,1,1,train\n", r"lacks the column camid.*\?pid=person"),
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


def rows_of(lines: str) -> list[tuple[object, ...]]:
    rows = parse_csv((HEAD + lines).encode(), Path("people.csv"))
    return [(str(row.path), row.pid, row.camid, row.split) for row in rows]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("0007", 7),
        ("7.0", 7),
        ("7.", 7),
        ("+7", 7),
        (" 7 ", 7),
        ("1e3", 1000),
        ("1.5E1", 15),
        ("0.0", 0),
        ("-0.0", 0),
        ("0000", 0),
        ("-1", -1),
        ("-1.0", -1),
        ("-1e0", -1),
        ("9223372036854775807", 2**63 - 1),
        ("9007199254740991.0", 2**53 - 1),
    ],
)
def test_a_number_is_the_same_identity_however_it_is_written(text, number):
    assert rows_of(f"a.jpg,{text},1.0,query") == [("a.jpg", number, 1, "query")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-2", "line 2: pid is -2; number identities from 1"),
        ("-2.0", "line 2: pid is -2.0"),
        ("nan", "line 2: pid is 'nan', a missing value"),
        ("None", "missing value"),
        ("<NA>", "missing value"),
        ("inf", "missing value"),
        ("1.5", "pid is 1.5, no whole number"),
        ("-1.5", "no whole number"),
        ("1e-3", "no whole number"),
        ("9007199254740992.0", "lost digits"),
        ("1e30", "lost digits"),
        ("1e999", "lost digits"),
        ("", "line 2: pid is empty"),
        ("  ", "line 2: pid is empty"),
    ],
)
def test_what_is_no_identity_is_refused_with_its_line(text, message):
    with pytest.raises(DataError, match=rf"people\.csv, .*{message}"):
        rows_of(f"a.jpg,{text},1,query")


@pytest.mark.parametrize("text", ["-1", "nan", "0.5", "-1.0"])
def test_what_is_no_camera_is_refused_with_its_line(text):
    with pytest.raises(DataError, match=r"people\.csv, line 2: camid is .*number cameras from 0"):
        rows_of(f"a.jpg,1,{text},query")


def test_floats_give_the_dataset_of_the_whole_numbers(tmp_path):
    pids, cameras = [12, 7, 7, 0, -1], [4, 1, 2, 2, 3]
    splits = ["train", "query", "gallery", "gallery", "gallery"]
    images = [f"{number}.jpg" for number in range(5)]
    datasets = []
    for write in (str, lambda number: str(float(number)), lambda number: f"{number:05d}"):
        lines = [
            f"{image},{write(pid)},{write(camera)},{split}\n"
            for image, pid, camera, split in zip(images, pids, cameras, splits, strict=True)
        ]
        datasets.append(read_csv(write_csv(tmp_path, HEAD + "".join(lines), *images)))
    for dataset in datasets[1:]:
        for split in ("train", "query", "gallery"):
            assert dataset.split(split) == datasets[0].split(split)
        assert dataset.summary() == datasets[0].summary()
    assert datasets[1].junk == datasets[1].summary()["distractors"] == 1


def test_a_number_among_names_is_one_identity_in_every_spelling():
    lines = "a.jpg,bob,1,query\nb.jpg,0007,1,gallery\nc.jpg,7.0,1,gallery\n"
    assert [row[1] for row in rows_of(lines)] == ["bob", 7, 7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path;pid;camid;split\na.jpg;1;1;train\n", "by commas, not by semicolons"),
        (b"path\tpid\tcamid\tsplit\na.jpg\t1\t1\ttrain\n", "not by tabs"),
        (b"a.jpg,1,1,train\n", "lacks the column path, pid, camid, split in its first line"),
        (b"path,pid,camid,split,pid\na.jpg,1,1,train,2\n", "names the column pid twice"),
        (b"path,pid,camid,split\na, b.jpg,1,1,train\n", "line 2 has 5 values.*double quotes"),
        (b"path,pid,camid,split\na.jpg,1,1\n", "line 2: split is empty"),
        (b'path,pid,camid,split\na.jpg,1,1,train\n"b.jpg,1,1,train\n', "line 3 is no CSV.*quote"),
        (b'path,pid,camid,split\n"b\n.jpg",1,1,train\n', "line 3: path contains a control"),
        (b"path,pid,camid,split\na\x00.jpg,1,1,train\n", r"line 2(: path contains a| is no CSV)"),
        (b"path,pid,camid,split\na.jpg,\x1b[31m,1,train\n", "line 2: pid contains a control"),
        (b"path,pid,camid,split\na.jpg,1,1,train\n\xff.jpg,1,1,train\n", "line 3 is not UTF-8"),
        (b"path,pid,camid,split\n" + b"x" * 200_000 + b",1,1,train\n", "line 2 is no CSV"),
        (b"path,pid,camid,split\n~nosuchuser/a.jpg,1,1,train\n", "line 2: path is not a path"),
        ("path,pid,camid,split\n".encode("utf-16"), "line 1 is not UTF-8.*CSV UTF-8"),
        (b"\n\n", "is empty"),
    ],
)  # fmt: skip
def test_a_table_of_another_form_names_file_line_column_and_cure(data, message):
    with pytest.raises(DataError, match=rf"^people\.csv.*{message}"):
        parse_csv(data, Path("people.csv"))


def test_the_usual_forms_of_csv_are_read():
    expected = [("a, b.jpg", 7, 1, "query"), ("c.jpg", 8, 2, "gallery")]
    lines = [
        '"path", pid ,camid,split,note',
        '"a, b.jpg",7, 1 ,query,',
        ",,,,",
        "",
        "c.jpg,8,2,gallery,",
    ]
    text = "\r\n".join(lines)
    for data in (text, "\ufeff" + text, text.replace("\r\n", "\n"), text.replace("\r\n", "\r")):
        rows = parse_csv(data.encode(), Path("people.csv"))
        assert [(str(row.path), row.pid, row.camid, row.split) for row in rows] == expected


@given(
    st.one_of(st.binary(), st.text().map(str.encode), st.text().map(lambda t: (HEAD + t).encode()))
)
def test_any_bytes_are_rows_or_one_error(data):
    try:
        assert parse_csv(data, Path("people.csv"))
    except DataError as error:
        if "people.csv" not in str(error):
            raise


def test_an_image_listed_twice_under_two_spellings_is_refused(tmp_path):
    text = HEAD + "a.jpg,1,1,train\nsub/../a.jpg,2,1,train\n"
    with pytest.raises(DataError, match="twice in one split"):
        read_csv(write_csv(tmp_path, text, "a.jpg", "sub/b.jpg"))


def test_names_for_changed_queries_never_leave_their_folder(tmp_path):
    root = tmp_path / "inner" / "lists"
    text = HEAD + "../x/1.png,1,1,query\n../../y/1.png,2,1,query\n1.png,3,1,query\n"
    touch(tmp_path, "inner/x/1.png", "y/1.png")
    dataset = read_csv(write_csv(root, text, "1.png"))
    assert dataset.query_names == ("inner/x/1", "y/1", "inner/lists/1")
    relative = ReIDDataset("mine", query=[s for s in dataset.query if ".." in str(s.path)])
    assert not any(".." in name or name.startswith("/") for name in relative.query_names)


def test_a_csv_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(DataError, match="no CSV file"):
        load_dataset(f"csv:{tmp_path / 'x.csv'}")


def test_columns_under_other_names(tmp_path):
    text = "file,who,camera,split\na.jpg,anna,2,query\nb.jpg,anna,1,gallery\n"
    path = write_csv(tmp_path, text, "a.jpg", "b.jpg")
    columns = {"path": "file", "pid": "who", "camid": "camera"}
    named = load_dataset("csv", path, columns=columns)
    assert facts(named.query) == [("a.jpg", 1, 2)]
    assert facts(named.gallery) == [("b.jpg", 1, 1)]
    short = load_dataset(f"csv:{path}?path=file&pid=who&camid=camera")
    assert short.query == named.query
    assert load_dataset("csv", f"{path}?path=file&pid=x", columns=columns).query == named.query
    for wrong in ("person=who", "pid", "pid="):
        with pytest.raises(InputError, match=r"named as in people\.csv\?pid=person"):
            load_dataset(f"csv:{path}?{wrong}")
    with pytest.raises(DataError, match="lacks the column name"):
        load_dataset(f"csv:{path}?path=name&pid=who&camid=camera")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pid": "camera", "camid": "camera"}, "'camera' is named for two"),
        ({"pid": "camid"}, "'camid' is named for two"),
        ({"pid": 3}, "must be a dict"),
        (["pid"], "must be a dict"),
        ("pid=person", "must be a dict"),
    ],
)
def test_a_column_has_one_meaning(tmp_path, columns, message):
    text = "path,pid,camera,camid,split\na.jpg,1,2,3,query\n"
    with pytest.raises(InputError, match=message):
        load_dataset("csv", write_csv(tmp_path, text, "a.jpg"), columns=columns)


def test_a_question_mark_in_the_name_of_a_file(tmp_path):
    path = write_csv(tmp_path, HEAD + "a.jpg,1,1,train\n", "a.jpg").rename(tmp_path / "a?pid=b")
    assert len(load_dataset("csv", path).train) == 1


def test_without_cameras_no_pair_is_left_out(tmp_path):
    text = "path,pid,split\na.jpg,1,query\nb.jpg,1,gallery\nc.jpg,2,train\n"
    path = write_csv(tmp_path, text, "a.jpg", "b.jpg", "c.jpg")
    with pytest.warns(UserWarning, match="no column of cameras"):
        dataset = load_dataset("csv", path)
    cameras = [[s.camid for s in dataset.split(split)] for split in ("train", "query", "gallery")]
    assert cameras == [[0], [0], [1]]
    assert "no column of cameras" in dataset.notes[0]
