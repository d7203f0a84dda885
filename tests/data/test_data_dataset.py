from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from reidguard.data import (
    DATASETS,
    ReIDDataset,
    decode_image,
    load_dataset,
    register_dataset,
)
from reidguard.data.readers.market1501 import read_market1501
from reidguard.errors import DataError, InputError, RegistryError
from reidguard.types import ReIDSample


def tiny(root: Path, contents: dict[str, bytes]) -> ReIDDataset:
    """A gallery of files `PID_CAM.bin` below root; the bytes need not be images."""
    samples = []
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        pid, camid = Path(name).stem.split("_")
        samples.append(ReIDSample(root / name, int(pid), int(camid)))
    return ReIDDataset("tiny", [], [], samples, root=root)


CONTENTS = {"a/1_2.bin": b"one", "a/3_1.bin": b"two", "b/1_2.bin": b"one"}


def test_names_are_relative_where_they_can_be(tmp_path):
    inside = tiny(tmp_path / "set", CONTENTS)
    elsewhere = ReIDDataset("tiny", [], [], inside.gallery, root=tmp_path / "other")
    assert inside.names("gallery") == tuple(CONTENTS)
    assert elsewhere.names("gallery") == ("1_2.bin", "3_1.bin", "1_2.bin")
    assert inside.names("train") == ()
    with pytest.raises(InputError, match="unknown split 'test'"):
        inside.names("test")


def test_fingerprint_is_the_documented_hash(tmp_path):
    lines = ""
    for name, pid, camid in [("a/1_2.bin", 1, 2), ("a/3_1.bin", 3, 1), ("b/1_2.bin", 1, 2)]:
        digest = hashlib.sha256(CONTENTS[name]).hexdigest()
        lines += f'["{name}", {pid}, {camid}, "{digest}"]\n'
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert tiny(tmp_path, CONTENTS).fingerprint("gallery") == expected


def test_fingerprint_ignores_place_and_order(tmp_path):
    one = tiny(tmp_path / "one", CONTENTS)
    two = tiny(tmp_path / "elsewhere", dict(reversed(CONTENTS.items())))
    assert one.fingerprint("gallery") == two.fingerprint("gallery")
    assert one.fingerprint("gallery") != one.fingerprint("train")


@pytest.mark.parametrize(
    "changed",
    [
        {**CONTENTS, "a/1_2.bin": b"One"},
        {k.replace("3_1", "4_1"): v for k, v in CONTENTS.items()},
        {k.replace("3_1", "3_2"): v for k, v in CONTENTS.items()},
        {k.replace("b/", "c/"): v for k, v in CONTENTS.items()},
        {k: v for k, v in CONTENTS.items() if k != "b/1_2.bin"},
    ],
    ids=["byte", "pid", "camera", "name", "count"],
)
def test_fingerprint_sees_every_change(tmp_path, changed):
    before = tiny(tmp_path / "one", CONTENTS).fingerprint("gallery")
    assert tiny(tmp_path / "two", changed).fingerprint("gallery") != before


def test_fingerprint_is_computed_once_and_names_a_lost_file(tmp_path):
    dataset = tiny(tmp_path, CONTENTS)
    again = tiny(tmp_path, CONTENTS)
    before = dataset.fingerprint("gallery")
    (tmp_path / "a/3_1.bin").unlink()
    assert dataset.fingerprint("gallery") == before
    with pytest.raises(DataError, match=r"3_1\.bin"):
        again.fingerprint("gallery")


def test_labels_are_consecutive_in_order_of_the_raw_number():
    train = [ReIDSample(Path(f"{i}"), pid, 0) for i, pid in enumerate([9, 2, 1500, 2, 9])]
    dataset = ReIDDataset("mine", train, [], [])
    assert dataset.train_labels == {2: 0, 9: 1, 1500: 2}
    assert dataset.num_train_pids == 3
    assert ReIDDataset("none", [], [], []).train_labels == {}


def test_summary_counts_and_is_json():
    def split(*pairs):
        return [ReIDSample(Path(f"{i}"), *pair) for i, pair in enumerate(pairs)]

    dataset = ReIDDataset(
        "mine",
        split((0, 1), (5, 1)),
        split((1, 1), (1, 2), (2, 2)),
        split((1, 1), (0, 3), (0, 4)),
        junk=7,
        licence="free",
        notes=["a note"],
    )
    assert json.loads(json.dumps(dataset.summary())) == {
        "name": "mine",
        "licence": "free",
        "train": {"images": 2, "identities": 2, "cameras": 1},
        "query": {"images": 3, "identities": 2, "cameras": 2},
        "gallery": {"images": 3, "identities": 1, "cameras": 3},
        "distractors": 2,
        "junk": 7,
        "notes": ["a note"],
    }


@pytest.mark.parametrize(("split", "pid"), [("train", -1), ("query", 0), ("gallery", -1)])
def test_numbers_that_no_person_has_are_refused(split, pid):
    splits = {"train": [], "query": [], "gallery": [], split: [ReIDSample(Path("x.jpg"), pid, 0)]}
    with pytest.raises(DataError, match=rf"{split}.*x\.jpg"):
        ReIDDataset("mine", **splits)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": None},
        {"name": Path("a")},
        {"train": None},
        {"query": ["a.jpg"]},
        {"gallery": [("a.jpg", 1, 0)]},
        {"train": "a.jpg"},
        {"root": 3},
        {"root": "~nosuchuser/data"},
        {"junk": -1},
        {"junk": 0.5},
        {"junk": True},
        {"licence": None},
        {"notes": "a note"},
        {"notes": [1]},
    ],
    ids=repr,
)
def test_a_dataset_of_other_types_is_refused_when_it_is_built(arguments):
    with pytest.raises(InputError):
        ReIDDataset(**{"name": "mine", **arguments})


def test_a_dataset_takes_paths_as_text_and_any_iterable():
    rows = [("a.jpg", 7.0, 1), ("b.jpg", 3, 1)]
    dataset = ReIDDataset("mine", (ReIDSample(*row) for row in rows), root="data", junk=2)
    assert dataset.train_labels == {3: 0, 7: 1}
    assert dataset.root == Path("data")
    assert dataset.summary()["junk"] == 2


def test_an_unknown_split_is_refused(studio):
    with pytest.raises(InputError, match="train, query, gallery"):
        studio.fingerprint("test")


def test_check_names_all_damaged_images_at_once(studio_root, tmp_path):
    shutil.copytree(studio_root, tmp_path / "copy")
    dataset = load_dataset("virtual", tmp_path / "copy")
    seen = []
    dataset.check(progress=lambda done, total: seen.append((done, total)))
    total = sum(len(dataset.split(s)) for s in ("train", "query", "gallery"))
    assert seen == [(i + 1, total) for i in range(total)]
    bad = [dataset.train[0].path, dataset.query[3].path, *(s.path for s in dataset.gallery[10:20])]
    for path in bad:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=f"12 of {total}") as error:
        dataset.check()
    assert all(str(path) in str(error.value) for path in bad)
    assert str(dataset.train[1].path) not in str(error.value)


# A folder of changed queries


def copy_queries(dataset: ReIDDataset, folder: Path) -> Path:
    folder.mkdir()
    for name, sample in zip(dataset.query_names, dataset.query, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.path, folder / f"{name}.png")
    return folder


def test_with_query_reads_the_images_of_another_folder(studio, tmp_path):
    folder = copy_queries(studio, tmp_path / "adversarial")
    (folder / "Thumbs.db").write_bytes(b"")
    before = {s: studio.fingerprint(s) for s in ("query", "gallery")}
    changed = studio.with_query(folder)
    assert [s.path.parent for s in changed.query] == [folder] * len(studio.query)
    for old, new in zip(studio.query, changed.query, strict=True):
        assert (old.path.stem, old.pid, old.camid) == (new.path.stem, new.pid, new.camid)
        assert decode_image(old.path).equal(decode_image(new.path))
    assert changed.gallery == studio.gallery
    assert changed.train == studio.train
    assert changed.fingerprint("gallery") == before["gallery"]
    changed.query[0].path.write_bytes(b"other")
    assert studio.with_query(folder).fingerprint("query") != before["query"]
    assert str(folder) in changed.summary()["notes"][0]
    # and the result can be replaced once more
    assert len(changed.with_query(folder).query) == len(changed.query)


def test_with_query_names_what_is_missing_and_what_is_too_much(studio, tmp_path):
    folder = copy_queries(studio, tmp_path / "adversarial")
    first = studio.query[0].path.stem
    (folder / f"{first}.png").rename(folder / "stranger.png")
    with pytest.raises(DataError, match=f"1 of 48 are missing .{first}.*1 belong.*stranger"):
        studio.with_query(folder)
    with pytest.raises(DataError, match="no folder"):
        studio.with_query(tmp_path / "nowhere")


def test_with_query_refuses_one_query_twice(studio, tmp_path):
    folder = copy_queries(studio, tmp_path / "adversarial")
    first = studio.query[0].path.stem
    shutil.copy(folder / f"{first}.png", folder / f"{first}.jpg")
    with pytest.raises(DataError, match=rf"{first}\.jpg and {first}\.png"):
        studio.with_query(folder)


def test_query_names_are_paths_where_stems_are_shared(tmp_path, studio):
    source = studio.query[0].path
    for person in ("alice", "bob"):
        (tmp_path / "q" / person).mkdir(parents=True)
        shutil.copy(source, tmp_path / "q" / person / "001.png")
    query = [
        ReIDSample(tmp_path / "q" / "alice" / "001.png", 1, 0),
        ReIDSample(tmp_path / "q" / "bob" / "001.png", 2, 0),
    ]
    dataset = ReIDDataset("mine", [], query, [])
    assert dataset.query_names == ("alice/001", "bob/001")
    folder = copy_queries(dataset, tmp_path / "adversarial")
    assert [s.path.parent.name for s in dataset.with_query(folder).query] == ["alice", "bob"]
    clash = ReIDDataset("mine", [], [query[0], ReIDSample(Path(query[0].path), 3, 0)], [])
    with pytest.raises(DataError, match="001"):
        _ = clash.query_names


def test_unique_queries_in_subfolders_go_by_their_stem(tmp_path, studio):
    query = []
    for pid, person in enumerate(("alice", "bob"), 1):
        (tmp_path / "q" / person).mkdir(parents=True)
        path = tmp_path / "q" / person / f"{person}.png"
        shutil.copy(studio.query[0].path, path)
        query.append(ReIDSample(path, pid, 0))
    dataset = ReIDDataset("mine", [], query, [])
    assert dataset.query_names == ("alice", "bob")
    flat = copy_queries(dataset, tmp_path / "flat")
    assert [s.path for s in dataset.with_query(flat).query] == [
        flat / "alice.png",
        flat / "bob.png",
    ]
    assert dataset.with_query(tmp_path / "q").query == dataset.query


# Names


def test_the_built_in_readers_are_registered():
    assert {"market1501", "csv", "folder", "virtual"} <= set(DATASETS.list())


def test_a_dataset_is_found_by_name_and_path(studio_root):
    for dataset in (
        load_dataset(f"virtual:{studio_root}"),
        load_dataset("virtual", studio_root),
        load_dataset("virtual", str(studio_root)),
        load_dataset(f"market1501:{studio_root}"),
    ):
        assert len(dataset.query) == 48


def test_home_is_expanded(studio_root, monkeypatch):
    monkeypatch.setenv("HOME", str(studio_root.parent))
    assert load_dataset(f"market1501:~/{studio_root.name}").root == studio_root
    assert load_dataset("market1501", f"~/{studio_root.name}").root == studio_root


def test_wrong_names_and_paths_end_in_clear_errors(tmp_path):
    with pytest.raises(RegistryError, match="did you mean 'market1501'"):
        load_dataset("market-1501:/data")
    with pytest.raises(DataError, match="market1501:/path/to/it"):
        load_dataset("market1501")
    with pytest.raises(InputError, match="empty"):
        load_dataset("market1501:")
    with pytest.raises(InputError, match="two paths"):
        load_dataset("market1501:/a", "/b")
    with pytest.raises(DataError, match="nowhere"):
        load_dataset("market1501", tmp_path / "nowhere")


@pytest.mark.parametrize("name", sorted(set(DATASETS.list()) - {"virtual"}))
def test_a_path_that_no_reader_can_read_is_one_error(name, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for path in ("~nosuchuser/x", tmp_path / "none", file, "a\0b", "x" * 300, tmp_path, file / "x"):
        with pytest.raises((DataError, InputError)) as caught:
            load_dataset(name, path)
        assert "\0" not in str(caught.value)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/x"), OSError("disk")])
def test_what_the_system_refuses_is_a_data_error_that_names_the_dataset(
    tmp_path, monkeypatch, error
):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(DataError, match=r"cannot read dataset 'market1501': .*permissions"):
        load_dataset("market1501", tmp_path)


def test_a_dataset_has_a_name_of_text_and_a_path():
    for name in (None, 3):
        with pytest.raises(InputError, match="named by text"):
            load_dataset(name)
    with pytest.raises(InputError, match="empty"):
        load_dataset("market1501", "")


def test_a_strangers_reader_gets_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS._factories))

    @register_dataset("strangers")
    def read(root: Path) -> ReIDDataset:
        return ReIDDataset("strangers", [], [], [], root=root)

    assert load_dataset(f"strangers:{tmp_path}").root == tmp_path
    with pytest.raises(DataError, match="strangers:/path"):
        load_dataset("strangers")
    with pytest.raises(InputError, match=r"'strangers'.*unexpected.*'seed'"):
        load_dataset("strangers", tmp_path, seed=1)
    assert DATASETS.get("market1501") is read_market1501


def test_options_go_to_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS._factories))

    @register_dataset("optional")
    def read(root: Path = Path("here"), *, seed: int = 0) -> ReIDDataset:
        return ReIDDataset(f"seed {seed}", root=root)

    assert load_dataset("optional", seed=3).name == "seed 3"
    assert load_dataset(f"optional:{tmp_path}", seed=4).root == tmp_path
    with pytest.raises(InputError, match=r"'optional'.*'sed'"):
        load_dataset("optional", sed=3)


def test_names_that_begin_alike_are_proposed():
    with pytest.raises(RegistryError) as error:
        load_dataset("cuhk03-np:/data")
    proposed = str(error.value).partition("?")[0]
    assert "did you mean 'cuhk03-np-" in proposed
    assert "cuhk01" not in proposed
