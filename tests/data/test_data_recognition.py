"""A path without a name: which dataset it is, why, and what to do if that is unknown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers.public_trees import TREES
from helpers.trees import DRAWN, FIXED, build_duke, build_np, images, plant
from reidguard.data import DATASETS, Layout, ReIDDataset, load_dataset, register_dataset
from reidguard.data.loading import LAYOUTS
from reidguard.errors import DataError, InputError
from reidguard.testing import TEST_SET_CHECKS, check_missing_folder
from reidguard.types import ReIDSample

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0007_c3s2_000001_00.jpg",
    "query/0010_c2s1_000001_00.jpg",
    "bounding_box_test/0010_c5s1_000001_01.jpg",
    "bounding_box_test/-1_c5s1_000001_01.jpg",
]
OWN_FOLDER = {"cuhk03-np-labeled", "cuhk03-np-detected"}


def build_market(root: Path) -> None:
    images(root, *MARKET)


def build_msmt_in_market_folders(root: Path) -> None:
    images(
        root,
        "bounding_box_train/0000_c1_0000.jpg",
        "bounding_box_train/1040_c15_0017.jpg",
        "query/0000_c14_0002.jpg",
        "bounding_box_test/0000_c3_0102.jpg",
        "bounding_box_test/3059_001_03_0303afternoon_0015_0.jpg",
    )


@pytest.mark.parametrize("case", [case for case in FIXED if case != "personx-456"] + [*DRAWN])
def test_every_layout_is_recognised_in_its_folder_and_above_it(tmp_path, case):
    name = case.split()[0]
    folder, build = FIXED[case][1:3] if case in FIXED else DRAWN[case]
    root = plant(tmp_path, folder, build)
    known = load_dataset(name, root)
    for path in (root, str(root), root.parent, root.parent.parent):
        dataset = load_dataset(path)
        assert dataset.name == known.name
        assert (dataset.train, dataset.query, dataset.gallery) == (
            known.train,
            known.query,
            known.gallery,
        )
        assert dataset.notes[0].startswith(f"recognised as {name}: {root}")
        assert dataset.notes[1:] == known.notes


@pytest.mark.parametrize(
    "folder",
    [
        "Market-1501",
        "Market1501",
        "market1501",
        "Market-1501-v15.09.15",
        "market1501/Market-1501-v15.09.15",
        "data/anything",
    ],
)
def test_market1501_is_found_under_the_folders_that_people_have(tmp_path, folder):
    build_market(tmp_path / folder)
    assert load_dataset(tmp_path).root == tmp_path / folder
    if folder != "data/anything":
        assert load_dataset("market1501", tmp_path).root == tmp_path / folder


def test_msmt17_in_folders_of_market1501(tmp_path):
    build_msmt_in_market_folders(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.name == "msmt17"
    assert [(s.pid, s.camid) for s in dataset.train] == [(1, 1), (1041, 15)]
    assert [(s.pid, s.camid) for s in dataset.query] == [(1042, 14)]
    assert [(s.pid, s.camid) for s in dataset.gallery] == [(1042, 3), (4101, 3)]
    with pytest.raises(InputError, match="has no lists"):
        load_dataset("msmt17", tmp_path, with_validation=False)


def test_the_folders_name_tells_datasets_of_one_layout_apart(tmp_path):
    build_np(tmp_path / "boxes")
    both = r"cuhk03-np-detected or cuhk03-np-labeled, which have the same layout; say which: "
    with pytest.raises(InputError, match=both + "cuhk03-np-detected:.*/boxes or "):
        load_dataset(tmp_path)
    (tmp_path / "boxes").rename(tmp_path / "detected")
    dataset = load_dataset(tmp_path)
    assert dataset.name == "cuhk03-np-detected"
    assert "its name tells it from cuhk03-np-labeled" in dataset.notes[0]


def test_several_datasets_are_not_guessed(tmp_path):
    build_market(tmp_path / "a")
    build_duke(tmp_path / "b")
    with pytest.raises(InputError, match=r"market1501 in .*a, dukemtmc-reid in .*b; give the path"):
        load_dataset(tmp_path)


def test_what_is_unknown_names_the_nearest_layouts_and_what_they_lack(tmp_path):
    build_market(tmp_path)
    for path in (tmp_path / "query").iterdir():
        path.rename(tmp_path / "query" / "0007_x.jpg")
    with pytest.raises(InputError, match=r"market1501 \(missing: names of its pattern in query "):
        load_dataset(tmp_path)
    for path in (tmp_path / "query").iterdir():
        path.unlink()
    (tmp_path / "query").rmdir()
    with pytest.raises(InputError, match=r"nearest: market1501 \(missing: query\)"):
        load_dataset(tmp_path)
    with pytest.raises(InputError, match="part of viper in"):
        load_dataset(plant(tmp_path, *DRAWN["viper"]) / "cam_a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no known dataset; it is empty"):
        load_dataset(tmp_path / "empty")
    images(tmp_path / "crops", "0001_03.jpg")
    with pytest.raises(InputError, match=r"such as 0001_03.jpg.*--pattern '\{pid\}_\{n\}'"):
        load_dataset(tmp_path / "crops")
    with pytest.raises(DataError, match="there is no folder or file"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="a dataset is a folder or a CSV file"):
        load_dataset(tmp_path / "a.txt")


def test_a_path_that_the_system_refuses_is_one_error(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"cannot read .*Permission denied; check its permissions"):
        load_dataset(tmp_path)


def test_a_virtual_set_is_no_market1501(studio_root):
    assert load_dataset(studio_root).name == "virtual:studio"


def test_a_csv_file_and_folders_of_identities_need_no_name(tmp_path):
    images(tmp_path, "query/7/a_c1.jpg", "gallery/7/b_c2.jpg", "train/8/c_c1.jpg")
    dataset = load_dataset(tmp_path)
    assert dataset.notes[0].startswith("recognised as folder")
    assert [(s.pid, s.camid) for s in dataset.gallery] == [(7, 2)]
    table = tmp_path / "people.csv"
    table.write_text("path,pid,camid,split\nquery/7/a_c1.jpg,7,1,query\n")
    assert len(load_dataset(table).query) == 1


def test_unread_images_are_counted_in_a_note(tmp_path):
    build_market(tmp_path)
    assert not any("not read" in note for note in load_dataset(tmp_path).notes)
    images(tmp_path, "other/1.jpg", "other/2.jpg", "extra/deep/3.png", ".hidden/4.png")
    (tmp_path / "query" / "5.txt").touch()
    expected = "3 images are not read: extra (1), other (2)"
    assert load_dataset(tmp_path).notes[-1] == expected
    assert load_dataset("market1501", tmp_path).summary()["notes"][-1] == expected
    table = tmp_path / "people.csv"
    table.write_text("path,pid,camid,split\nother/1.jpg,7,1,query\n")
    assert load_dataset(table).notes == ("1 image is not read: other (1)",)


def test_unread_images_of_a_strangers_reader_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS._factories))

    @register_dataset("strangers")
    def read(root: Path) -> ReIDDataset:
        sample = ReIDSample(root / "a" / "1.png", 1, 1)
        return ReIDDataset("strangers", [sample], root=root, junk=1)

    images(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    note = "1 image is not read: a (1) (junk is among them)"
    assert load_dataset("strangers", tmp_path).notes == (note,)


def test_a_strangers_layout_is_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr(DATASETS, "_factories", dict(DATASETS._factories))
    monkeypatch.setattr("reidguard.data.loading.LAYOUTS", LAYOUTS)
    monkeypatch.delitem(LAYOUTS, "strangers", raising=False)

    @register_dataset("strangers", Layout({"people": re.compile("x[0-9]+")}))
    def read(root: Path, *, seed: int = 0) -> ReIDDataset:
        return ReIDDataset(f"seed {seed}", root=root)

    try:
        images(tmp_path, "people/x1.png")
        assert load_dataset(f"{tmp_path}?seed=3").name == "seed 3"
        assert load_dataset(f"strangers:{tmp_path}?seed=4").name == "seed 4"
        with pytest.raises(InputError, match="no option 'sed': did you mean 'seed'"):
            load_dataset(f"strangers:{tmp_path}?sed=4")
        with pytest.raises(InputError, match="seed must be a whole number, not 'x'"):
            load_dataset(f"strangers:{tmp_path}?seed=x")
    finally:
        LAYOUTS.pop("strangers")


def test_options_beside_a_path_are_of_the_readers_types(tmp_path):
    root = plant(tmp_path, "PersonX_v1", FIXED["personx"][2])
    assert load_dataset(f"{root}?backgrounds=4,6").name == "personx-46"
    msmt = plant(tmp_path, "MSMT17_V1", FIXED["msmt17"][2])
    assert len(load_dataset(f"msmt17:{msmt}?with_validation=false").train) == 1
    with pytest.raises(InputError, match="must be true or false"):
        load_dataset(f"msmt17:{msmt}?with_validation=maybe")
    viper = plant(tmp_path, *DRAWN["viper"])
    assert load_dataset(f"viper:{viper}?seed=3").train == load_dataset("viper", viper, seed=3).train


ROWS = {
    # what a row is called: (folders, what lies there, pattern of image names)
    "Market-1501": ("Market-1501", build_market, None),
    "market1501/Market-1501-v15.09.15": ("market1501/Market-1501-v15.09.15", build_market, None),
    **{folder: (folder, build, None) for _, folder, build, _ in FIXED.values()},
    **{folder: (folder, build, None) for folder, build in DRAWN.values()},
    **{folder: (folder, build, None) for folder, build in TREES.values()},
    "MSMT17 in Market-1501's folders": ("MSMT17", build_msmt_in_market_folders, None),
    "crops": ("crops", lambda root: images(root, "0001_03.jpg", "0001_04.jpg"), "{pid}_{n}"),
}


@pytest.mark.filterwarnings("ignore:.*has no camera")
def test_the_docs_state_what_each_tree_is_taken_for(tmp_path):
    """The table of docs/datasets.rst: each tree, and what `reidguard data PATH` says of it."""
    lines = []
    for number, (name, (folder, build, pattern)) in enumerate(ROWS.items()):
        above = tmp_path / str(number)
        build(above / folder)
        path = above / folder if pattern else above
        options = {} if pattern is None else {"pattern": pattern}
        dataset = load_dataset(path, **options)
        said = dataset.notes[0].replace(f"{above}/", "")
        lines += [f"   * - {name}", f"     - {dataset.name}", f"     - {said}"]
    page = (Path(__file__).parents[2] / "docs" / "datasets.rst").read_text("utf-8")
    table = page.partition("   * - Tree\n     - Dataset\n     - First note\n")[2]
    assert table.partition("\n\n")[0].split("\n") == lines


def flat(dataset: ReIDDataset) -> dict[str, list[tuple[str, int, int]]]:
    return {
        split: [(s.path.name, s.pid, s.camid) for s in dataset.split(split)]
        for split in ("train", "query", "gallery")
    }


def test_a_flat_folder_without_cameras(tmp_path):
    images(tmp_path, "0001_03.jpg", "0001_04.jpg", "0002_01.jpg", "0000_01.jpg", "-1_1.jpg")
    with pytest.warns(UserWarning, match="has no camera"):
        dataset = load_dataset(tmp_path, pattern="{pid}_{n}")
    assert flat(dataset) == {
        "train": [],
        "query": [("0001_03.jpg", 1, 0)],
        "gallery": [("0000_01.jpg", 0, 1), ("0001_04.jpg", 1, 1), ("0002_01.jpg", 2, 1)],
    }
    assert dataset.junk == 1
    assert dataset.notes[0] == (
        "the first image of each identity is a query, and the others are the gallery"
    )


def test_a_flat_folder_with_cameras(tmp_path):
    images(tmp_path, "ann-c1-1.jpg", "ann-c1-2.jpg", "ann-c2-1.jpg", "bob-c1-1.jpg")
    dataset = load_dataset(f"{tmp_path}?pattern={{pid}}-c{{camid}}-{{n}}")
    assert flat(dataset)["query"] == [("ann-c1-1.jpg", 1, 1), ("ann-c2-1.jpg", 1, 2)]
    assert [row[0] for row in flat(dataset)["gallery"]] == [
        "ann-c1-1.jpg",
        "ann-c1-2.jpg",
        "ann-c2-1.jpg",
        "bob-c1-1.jpg",
    ]


def test_flat_folders_and_names_of_splits(tmp_path):
    images(tmp_path / "a", "query/7_1_0.jpg", "gallery/7_2_0.jpg", "train/9_1_0.jpg")
    by_folder = flat(load_dataset("flat", tmp_path / "a", pattern="{pid}_{camid}_{n}"))
    images(tmp_path / "b", "query_7_1_0.jpg", "gallery_7_2_0.jpg", "train_9_1_0.jpg")
    by_name = flat(load_dataset("flat", tmp_path / "b", pattern="{split}_{pid}_{camid}_{n}"))
    for found in (by_folder, by_name):
        assert [rows[0][1:] for rows in found.values()] == [(9, 1), (7, 1), (7, 2)]


@pytest.mark.filterwarnings("ignore:.*has no camera")
@pytest.mark.parametrize("check", TEST_SET_CHECKS[:-1])  # custom data have no terms
def test_the_contract_of_flat_folders(check, tmp_path):
    images(tmp_path, "1_1.jpg", "1_2.jpg", "2_1.jpg")
    check(lambda: load_dataset("flat", tmp_path))
    check_missing_folder(lambda root: load_dataset("flat", root))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{n}", r"has no \{pid\}"),
        ("{pid}_{pid}", r"has \{pid\} twice"),
        ("{pid}_{camera}", r"unknown field \{camera\}"),
        (3, "has no"),
    ],
)
def test_a_wrong_pattern_is_explained(tmp_path, pattern, message):
    with pytest.raises(InputError, match=message):
        load_dataset("flat", tmp_path, pattern=pattern)


def test_names_that_do_not_match_the_pattern_are_named(tmp_path):
    images(tmp_path, "1_1.jpg", "x.jpg")
    with pytest.raises(DataError, match=r"1 image names in .* do not match the pattern: x.jpg"):
        load_dataset("flat", tmp_path)
