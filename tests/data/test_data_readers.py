"""Each reader against a tiny tree in the published layout."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from pathlib import Path

import pytest

from helpers.trees import (
    DRAWN,
    FIXED,
    build_cuhk01,
    build_deepchange,
    build_duke,
    build_msmt,
    build_msmt_v2,
    build_np,
    build_personx,
    build_personx_hard,
    build_randperson,
    build_unrealperson,
    build_viper,
    facts,
    images,
    listing,
    personx_facts,
    plant,
)
from reidguard.data import load_dataset, readers
from reidguard.data.readers.layout import random_half
from reidguard.data.readers.statistics import Count, Published
from reidguard.errors import DataError, InputError
from reidguard.testing import DATASET_CHECKS, TRAINING_SET_CHECKS, check_missing_folder

MODULES = [value for value in vars(readers).values() if inspect.ismodule(value)]
SUBSETS = readers.deepchange.SUBSETS.values()
ENTRIES = [*(entry for module in MODULES for entry in vars(module).values()), *SUBSETS]
PUBLISHED = {entry.name: entry for entry in ENTRIES if isinstance(entry, Published)}


@pytest.mark.parametrize("case", FIXED)
def test_the_published_layout_is_read(tmp_path, case):
    name, folder, build, expected = FIXED[case]
    root = plant(tmp_path, folder, build)
    dataset = load_dataset(case.split()[0], root)
    assert dataset.name == name
    assert facts(dataset) == expected
    dataset.check()
    # The parent folder will do, and moving the set keeps its fingerprint.
    prints = [dataset.fingerprint(split) for split in expected]
    moved = tmp_path / "elsewhere"
    root.parent.rename(moved)
    again = load_dataset(f"{case.split()[0]}:{moved}")
    assert facts(again) == expected
    assert [again.fingerprint(split) for split in expected] == prints


@pytest.mark.parametrize("case", [*FIXED, *DRAWN])
def test_the_contract_of_datasets_holds(tmp_path, case):
    folder, build = FIXED[case][1:3] if case in FIXED else DRAWN[case]
    root = plant(tmp_path, folder, build)
    name = case.split()[0]
    checks = TRAINING_SET_CHECKS if name in ("randperson", "unrealperson") else DATASET_CHECKS
    for check in checks:
        check(lambda: load_dataset(name, root))
    check_missing_folder(lambda place: load_dataset(name, place))


@pytest.mark.parametrize("case", [*FIXED, *DRAWN])
def test_terms_and_differing_counts_are_known(tmp_path, case):
    folder, build = FIXED[case][1:3] if case in FIXED else DRAWN[case]
    summary = load_dataset(case.split()[0], plant(tmp_path, folder, build)).summary()
    key = summary["name"].replace("-v1", "").replace("-v2", "")
    known = PUBLISHED["personx" if key == "personx-456" else key]
    assert summary["licence"] == known.licence
    for split in ("train", "query", "gallery"):
        published = known.of(split).images // (2 if key == "personx-456" else 1)
        found = summary[split]["images"]
        notes = [note for note in summary["notes"] if note.startswith(f"{split} holds")]
        if published == 0:
            assert not notes
        else:
            assert len(notes) == 1
            assert f"holds {found:,} images of" in notes[0]
            assert f"published are {published:,} images" in notes[0]


def test_a_complete_set_has_no_note_on_counts(tmp_path, monkeypatch):
    root = plant(tmp_path, "RandPerson", build_randperson)
    complete = PUBLISHED["randperson"]._replace(train=Count(images=2, identities=2))
    monkeypatch.setattr(readers.randperson, "PUBLISHED", complete)
    assert load_dataset("randperson", root).notes == ()


def test_the_withdrawal_of_duke_is_told_first(tmp_path):
    dataset = load_dataset("dukemtmc-reid", plant(tmp_path, "DukeMTMC-reID", build_duke))
    assert dataset.notes[0].startswith("withdrawn")
    assert "withdrawn by its authors" in dataset.licence


MISSING = [
    # case, what is taken away, what the message must name
    ("dukemtmc-reid", "bounding_box_train", r"bounding_box_train is missing.*16,522 images.*_c2_f"),
    ("dukemtmc-reid", "query", r"query is missing.*2,228 images"),
    ("msmt17", "list_query.txt", r"list_query.txt is missing.*11,659 lines like '0000/0000_000"),
    ("msmt17", "list_val.txt", r"list_val.txt is missing.*2,373 lines"),
    ("msmt17", "train", r"folder train \(V1\) or mask_train_v2 \(V2\).*32,621.*neither"),
    ("msmt17", "test", r"test is missing.*93,820 images"),
    ("msmt17 v2", "mask_test_v2", r"mask_test_v2 is missing"),
    (
        "msmt17",
        "test/3059/3059_001_03_0303afternoon_0015_0.jpg",
        r"1 of the 2 images that .*list_gallery.txt lists are missing: .*3059_001_03",
    ),
    ("msmt17", "train/0000", r"1 of the 1 images that .*list_train.txt lists are missing"),
    ("cuhk03-np-labeled", "bounding_box_test", r"bounding_box_test is missing.*5,328 images"),
    ("cuhk03-np-detected", "bounding_box_test", r"bounding_box_test is missing.*5,332 images"),
    ("personx", "3", r"lacks the folder of background 3; .*bounding_box_train/ with 14,760 images"),
    ("personx-456", "5/query", r"5.query is missing.*856 images.*0001_c1s1_33.jpg"),
    ("unrealperson", "unreal_v3.1/images", r"unreal_v3.1.images is missing.*333_c001_78.jpg"),
    ("deepchange", "test-set-query-bbox.txt", r"test-set-query-bbox.txt is missing.*17,527 lines"),
    ("deepchange", "train-set", r"train-set is missing.*75,083 images of 450 identities"),
    (
        "deepchange",
        "test-set-gallery/P900_C05_20200803_15_3_7.jpg",
        r"1 of the 2 images that .*test-set-gallery-bbox.txt lists.*P900_C05_20200803_15_3_7",
    ),
    ("viper", "cam_b", r"cam_b is missing.*632 images, named like 000_45.bmp"),
    ("cuhk01", "campus", r"does not hold this dataset; expected there: campus"),
]


@pytest.mark.parametrize(("case", "gone", "message"), MISSING, ids=lambda v: str(v)[:40])
def test_what_is_missing_is_named_with_the_published_number(tmp_path, case, gone, message):
    folder, build = FIXED[case][1:3] if case in FIXED else DRAWN[case]
    root = plant(tmp_path, folder, build)
    if (root / gone).is_dir():
        shutil.rmtree(root / gone)
    else:
        (root / gone).unlink()
    with pytest.raises(DataError, match=message):
        load_dataset(case.split()[0], root)


@pytest.mark.parametrize("case", [*FIXED, *DRAWN])
def test_a_wrong_place_says_what_is_expected(tmp_path, case):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"expected there: .*[\w.]+"):
            load_dataset(case.split()[0], place)


BAD_NAMES = [
    ("dukemtmc-reid", "query/0005_c2s1_000451_03.jpg"),
    ("dukemtmc-reid", "bounding_box_test/-1_c2_f0046985.jpg"),
    ("cuhk03-np-labeled", "query/3_1_22.png"),
    ("personx", "2/query/0001-c1.jpg"),
    ("randperson", "1_s0_f2.jpg"),
    ("unrealperson", "unreal_v3.1/images/x_c001_1.jpg"),
    ("viper", "cam_a/person.bmp"),
    ("cuhk01", "campus/00010010.png"),
]


@pytest.mark.parametrize(("case", "name"), BAD_NAMES)
def test_an_image_name_that_does_not_parse_is_named(tmp_path, case, name):
    folder, build = FIXED[case][1:3] if case in FIXED else DRAWN[case]
    root = plant(tmp_path, folder, build)
    images(root, name)
    with pytest.raises(DataError, match=re.escape(Path(name).name)):
        load_dataset(case, root)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("dukemtmc-reid", "query/0000_c2_f0046985.jpg"),
        ("dukemtmc-reid", "bounding_box_train/0000_c2_f0046985.jpg"),
        ("cuhk03-np-labeled", "bounding_box_test/0000_c2_1.png"),
    ],
)
def test_identity_zero_is_refused_where_identities_are_numbered_from_one(tmp_path, case, name):
    _, folder, build, _ = FIXED[case]
    root = plant(tmp_path, folder, build)
    images(root, name)
    with pytest.raises(DataError, match=f"identity 0: {Path(name).name}"):
        load_dataset(case, root)


@pytest.mark.parametrize(
    ("case", "name", "line", "message"),
    [
        (
            "msmt17",
            "list_query.txt",
            "0000/0000.jpg 0",
            r"list_query.txt, line 2 is '0000/0000.jpg",
        ),
        ("msmt17", "list_train.txt", "0000/0000_000_01_0303morning_0008_0.jpg", "line 2"),
        ("deepchange", "train-set-bbox.txt", "P1_C01_20200416_1.jpg", r"bbox.txt, line 3"),
    ],
)
def test_a_line_that_does_not_parse_is_named(tmp_path, case, name, line, message):
    _, folder, build, _ = FIXED[case]
    root = plant(tmp_path, folder, build)
    (root / name).write_text((root / name).read_text() + line + "\n")
    with pytest.raises(DataError, match=message):
        load_dataset(case, root)
    (root / name).write_text("\n")
    with pytest.raises(DataError, match=f"{re.escape(name)} is empty"):
        load_dataset(case, root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0000/a\x00_1_01_x.jpg 0\n", r"line 1 is .*a\\x00"),
        (b"0000/a\x1b[31m_1_01_x.jpg 0\n", r"line 1 is .*a\\x1b"),
        (b"\xff\n", r"cannot read the list .*list_query.txt"),
        (b"x" * 10**6, r"line 1 is 'x{200}\.\.\.'"),
        (None, "list_query.txt is missing"),
    ],
    ids=["null", "escape", "bytes", "long", "pipe"],
)
def test_a_list_that_is_no_text_is_one_short_line(tmp_path, content, message):
    root = plant(tmp_path, "MSMT17_V1", build_msmt)
    (root / "list_query.txt").unlink()
    if content is None:
        os.mkfifo(root / "list_query.txt")
    else:
        (root / "list_query.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("msmt17", root)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_an_image_that_a_list_names_twice_is_refused(tmp_path):
    root = plant(tmp_path, "MSMT17_V1", build_msmt)
    path = root / "list_query.txt"
    path.write_text(path.read_text() * 2)
    with pytest.raises(DataError, match=r"list_query\.txt lists images twice"):
        load_dataset("msmt17", root)


def test_msmt17_without_its_validation_list(tmp_path):
    dataset = load_dataset(
        "msmt17", plant(tmp_path, "MSMT17_V1", build_msmt), with_validation=False
    )
    assert [s.pid for s in dataset.train] == [1]
    assert "the images of list_val.txt are left out of train, as requested" in dataset.notes
    assert any("published are 30,248 images" in note for note in dataset.notes)


def test_two_versions_of_msmt17_are_not_guessed(tmp_path):
    plant(tmp_path, "MSMT17_V1", build_msmt)
    plant(tmp_path, "MSMT17_V2", build_msmt_v2)
    with pytest.raises(DataError, match="more than one copy: MSMT17_V1, MSMT17_V2"):
        load_dataset("msmt17", tmp_path / "data")
    build_msmt_v2(tmp_path / "data" / "MSMT17_V1")
    with pytest.raises(DataError, match="holds both"):
        load_dataset("msmt17", tmp_path / "data" / "MSMT17_V1")


def test_the_two_kinds_of_boxes_are_not_confused(tmp_path):
    for boxes in ("labeled", "detected"):
        plant(tmp_path, boxes, build_np)
    root = tmp_path / "data"
    assert load_dataset("cuhk03-np-detected", root).root == root / "detected"
    assert load_dataset("cuhk03-np-labeled", root).root == root / "labeled"
    with pytest.raises(DataError, match="cuhk03-np-detected"):
        load_dataset("cuhk03-np-labeled", root / "detected")


def test_some_backgrounds_of_personx(tmp_path):
    root = plant(tmp_path, "PersonX_v1", build_personx)
    dataset = load_dataset("personx", root, backgrounds=(6, 4))
    assert dataset.name == "personx-46"
    assert facts(dataset) == personx_facts([4, 6])
    assert any("published are 29,520 images of 410 identities" in note for note in dataset.notes)
    for wrong in ((), (0, 4)):
        with pytest.raises(InputError, match="backgrounds"):
            load_dataset("personx", root, backgrounds=wrong)
    hard = plant(tmp_path, "hard", build_personx_hard)
    with pytest.raises(DataError, match="harder subset"):
        load_dataset("personx-456", hard)


def test_names_of_personx_may_lack_sequence_and_number(tmp_path):
    root = plant(tmp_path, "PersonX", build_personx_hard)
    images(root, "query/0002_c12.jpg")
    query = load_dataset("personx", root).query
    assert [(s.path.name, s.pid, s.camid) for s in query][1] == ("0002_c12.jpg", 2, 12)


def test_randperson_as_its_archive_unpacks(tmp_path):
    build_randperson(tmp_path / "randperson_subset" / "randperson_subset")
    dataset = load_dataset("randperson", tmp_path)
    assert [s.pid for s in dataset.train] == [1, 8000]
    assert dataset.train_labels == {1: 0, 8000: 1}


def test_absent_folders_of_unrealperson_are_noted(tmp_path):
    dataset = load_dataset("unrealperson", plant(tmp_path, "UnrealPerson", build_unrealperson))
    note = next(note for note in dataset.notes if note.startswith("absent"))
    assert "unreal_v4.3" in note
    assert "unreal_v3.1" not in note
    assert len(dataset.notes[0].split(",")) == 12 - 3


def test_cameras_of_deepchange_may_have_three_digits(tmp_path):
    root = plant(tmp_path, "DeepChangeDataset", build_deepchange)
    name = "P7_C117_20200416_10_0_1.jpg"
    images(root / "train-set", name)
    listing(root, "train-set-bbox.txt", f"{name},9")
    assert facts(load_dataset("deepchange", root))["train"] == [(f"train-set/{name}", 8, 117)]


def test_the_validation_sets_of_deepchange(tmp_path):
    root = plant(tmp_path, "DeepChangeDataset", build_deepchange)
    dataset = load_dataset("deepchange", root, subset="val")
    assert dataset.name == "deepchange-val"
    assert facts(dataset)["query"] == [("val-set-query/P400_C01_20200416_15_3_7.jpg", 401, 30)]
    with pytest.raises(InputError, match="subset must be one of test, val"):
        load_dataset("deepchange", root, subset="train")


def test_deepchange_leaves_out_the_tracklet_or_the_camera(tmp_path):
    root = plant(tmp_path, "DeepChangeDataset", build_deepchange)
    own = load_dataset("deepchange", root)
    usual = load_dataset("deepchange", root, exclude="camera")
    # The query's person stands before its own camera twice: in its tracklet and on another day.
    assert [s.camid == own.query[0].camid for s in own.gallery] == [True, False]
    assert [s.camid == usual.query[0].camid for s in usual.gallery] == [True, True]
    assert any("tracklet" in note for note in own.notes)
    assert not any("tracklet" in note for note in usual.notes)
    with pytest.raises(InputError, match="exclude must be one of"):
        load_dataset("deepchange", root, exclude="clothes")


@pytest.mark.parametrize(
    ("name", "folder", "build", "sizes"),
    [
        ("viper", "VIPeR", build_viper, {"train": 4, "query": 2, "gallery": 2}),
        ("cuhk01", "CUHK01", build_cuhk01, {"train": 8, "query": 6, "gallery": 6}),
    ],
)
def test_random_splits(tmp_path, name, folder, build, sizes):
    root = plant(tmp_path, folder, build)
    dataset = load_dataset(name, root)
    assert {split: len(dataset.split(split)) for split in sizes} == sizes
    train = {s.pid for s in dataset.train}
    query = {s.pid for s in dataset.query}
    assert query == {s.pid for s in dataset.gallery}
    assert not train & query
    assert min(train | query) == 1
    assert {s.camid for s in dataset.train} == {1, 2}
    assert {s.camid for s in dataset.query} == {1}
    assert {s.camid for s in dataset.gallery} == {2}
    assert load_dataset(name, root).train == load_dataset(name, root, seed=0).train == dataset.train
    assert len({load_dataset(name, root, seed=seed).train for seed in range(12)}) > 1
    assert "random split of seed 3" in load_dataset(name, root, seed=3).notes[0]
    assert load_dataset(name, root.parent).query == dataset.query


def test_cuhk01_takes_the_folder_of_images_too(tmp_path):
    root = plant(tmp_path, "CUHK01", build_cuhk01)
    assert load_dataset("cuhk01", root / "campus").train == load_dataset("cuhk01", root).train


def test_the_drawn_half_is_fixed_and_fair():
    # Golden: a change of the draw would change every published figure.
    assert random_half(range(1, 11), seed=0) == {3, 4, 7, 9, 10}
    halves = [random_half(range(971), seed) for seed in range(200)]
    assert {len(half) for half in halves} == {485}
    drawn = [sum(person in half for half in halves) for person in range(971)]
    assert 60 < min(drawn) <= max(drawn) < 140  # 100 expected, standard deviation 7


def test_the_docs_state_the_known_counts():
    """The table in docs/datasets.rst must not drift from what the readers compare with."""
    page = Path(__file__).parents[2] / "docs" / "datasets.rst"
    rows = page.read_text("utf-8").split("   * - ")[2:]
    stated = [re.findall(r"([\d,]+) / ([\d,]*\d)", row) for row in rows]
    for name, known in PUBLISHED.items():
        counts = [known.of(split) for split in ("train", "query", "gallery")]
        row = [(f"{c.images:,}", f"{c.identities:,}") for c in counts if c.images]
        assert row in stated, name
