from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from reidguard.data import ReIDDataset, decode_image, load_dataset
from reidguard.data.readers.csv_file import read_csv
from reidguard.data.readers.market1501 import read_market1501
from reidguard.errors import DataError
from reidguard.evaluation import evaluate
from reidguard.models import wrap_model
from reidguard.types import InputSpec, ReIDSample

FILES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0007_c3s2_000001_00.png"],
    "query": ["0010_c2s1_000001_00.jpg", "1488_c6s3_094992_00.jpg.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "-1_c6s1_000401_03.jpg",
        "0000_c4s6_022316_04.jpg",
        "0010_c5s1_000001_01.JPG",
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Market-1501's layout with empty files: listing reads no image."""
    root = tmp_path / "data" / "market1501"
    for folder, names in FILES.items():
        (root / folder).mkdir(parents=True)
        for name in [*names, "Thumbs.db", "._0002_c1s1_000451_03.jpg", "readme.txt"]:
            (root / folder / name).touch()
    return root


def test_names_become_people_and_cameras(root):
    dataset = read_market1501(root)
    assert dataset.train == (
        ReIDSample(root / "bounding_box_train" / "0002_c1s1_000451_03.jpg", 2, 1),
        ReIDSample(root / "bounding_box_train" / "0007_c3s2_000001_00.png", 7, 3),
    )
    assert [(s.pid, s.camid) for s in dataset.query] == [(10, 2), (1488, 6)]
    assert [(s.pid, s.camid) for s in dataset.gallery] == [(0, 4), (10, 5)]
    summary = dataset.summary()
    assert (summary["junk"], summary["distractors"]) == (2, 1)
    assert summary["gallery"]["identities"] == 1
    assert dataset.train_labels == {2: 0, 7: 1}


def test_camera_numbers_may_have_several_digits(root):
    (root / "query" / "0011_c12s1_000001_00.jpg").touch()
    assert [(s.pid, s.camid) for s in read_market1501(root).query][1] == (11, 12)


def test_a_subset_is_noted_and_no_error(root):
    assert read_market1501(root).summary()["notes"] == [
        "train holds 2 images of 2 identities; published are 12,936 images of 751 identities",
        "query holds 2 images of 2 identities; published are 3,368 images of 750 identities",
        "gallery holds 2 images of 1 identities; published are 15,913 images of 750 identities",
        "2 junk images; published are 3,819",
    ]


def test_the_path_may_be_the_folder_or_its_parent(root):
    assert read_market1501(root.parent).root == root
    assert load_dataset(f"market1501:{root.parent}").query == read_market1501(root).query
    official = root.parent / "Market-1501-v15.09.15"
    root.rename(official)
    assert read_market1501(root.parent).root == official


@pytest.mark.parametrize("folder", FILES)
def test_a_missing_or_empty_folder_is_named_with_what_belongs_there(root, folder):
    shutil.rmtree(root / folder)
    with pytest.raises(DataError, match=f"{folder} is missing; expected.*0002_c1s1_000451_03.jpg"):
        read_market1501(root)
    (root / folder).mkdir()
    (root / folder / "Thumbs.db").touch()
    with pytest.raises(DataError, match=f"{folder} holds no image; expected"):
        read_market1501(root)


def test_a_wrong_place_says_what_was_expected(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="bounding_box_train, query, bounding_box_test"):
            read_market1501(place)


@pytest.mark.parametrize(
    "name",
    [
        "photo.jpg",
        "0002_c1s1_000451_03 (1).jpg",
        "2_c_000451.png",
        "-2_c1s1_000451_03.jpg",
        "0002_c1_000451_03.jpg",
        "0002_c1s1_000451_03.jpg.png.jpg",
        "0002_c1s1_000451_03_jpg.jpg",
        "９_c1s1_000451_03.jpg",
    ],
)
def test_an_image_name_that_does_not_parse_is_named(root, name):
    (root / "query" / name).touch()
    with pytest.raises(DataError) as error:
        read_market1501(root)
    assert name in str(error.value)


def test_distractors_belong_into_the_gallery(root):
    for folder in ("query", "bounding_box_train"):
        path = root / folder / "0000_c1s1_000451_03.jpg"
        path.touch()
        with pytest.raises(DataError, match=f"{folder}.*0000.*bounding_box_test"):
            read_market1501(root)
        path.unlink()


def test_one_image_under_two_extensions_is_refused(root):
    (root / "query" / "0010_c2s1_000001_00.png").touch()
    with pytest.raises(DataError, match=r"0010_c2s1_000001_00\.(jpg|png)"):
        read_market1501(root)


def test_the_real_set_has_its_official_counts(market):
    assert market.summary() == {
        "name": "market1501",
        "licence": "research only; not to be distributed; no commercial use",
        "train": {"images": 12936, "identities": 751, "cameras": 6},
        "query": {"images": 3368, "identities": 750, "cameras": 6},
        "gallery": {"images": 19732 - 3819, "identities": 750, "cameras": 6},
        "distractors": 2798,
        "junk": 3819,
        "notes": [],
    }
    assert market.train_labels.keys().isdisjoint(s.pid for s in market.query)
    assert {s.pid for s in market.query} == {s.pid for s in market.gallery} - {0}


def test_images_of_gt_bbox_are_for_multi_query_search(root, market):
    assert read_market1501(root).multi_query == ()
    assert len(market.multi_query) == 25259
    seen = {(s.pid, s.camid) for s in market.multi_query}
    assert {(s.pid, s.camid) for s in market.query} <= seen
    (root / "gt_bbox").mkdir()
    (root / "gt_bbox" / "0010_c2s1_000001_00.jpg").touch()
    found = read_market1501(root)
    assert [(s.pid, s.camid) for s in found.multi_query] == [(10, 2)]
    assert found.notes == read_market1501(root).notes
    assert not any("gt_bbox" in note for note in found.notes)


def test_real_images_decode(market):
    for sample in random.Random(0).sample(market.gallery, 20):
        assert decode_image(sample.path).shape == (3, 256, 128)


def test_a_table_of_float_ids_gives_the_map_of_whole_numbers(market, tmp_path):
    rng = random.Random(0)
    pids = set(rng.sample(sorted(market.train_labels.keys() ^ {s.pid for s in market.query}), 60))
    query = [s for s in market.query if s.pid in pids][:40]
    gallery = [s for s in market.gallery if s.pid in pids or s.pid == 0][::12]
    junk = sorted((market.root / "bounding_box_test").glob("-1_*.jpg"))[::40]
    samples = [*query, *gallery, *(ReIDSample(p, -1, int(p.name[4])) for p in junk)]

    model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
    results = []
    for convert in (str, lambda number: str(float(number))):
        table = tmp_path / "market.csv"
        table.write_text(
            "path,pid,camid,split\n"
            + "".join(
                f"{s.path},{convert(s.pid)},{convert(s.camid)},"
                f"{'query' if s in query else 'gallery'}\n"
                for s in samples
            )
        )
        dataset = read_csv(table)
        assert dataset.junk == len(junk)
        results.append(evaluate(model, dataset).clean.mAP)
    assert results[0] == results[1]
    # Junk as an identity of its own, as a table of floats was once read, changes the figures.
    strangers = [ReIDSample(s.path, 9999, s.camid) for s in samples if s.pid == -1]
    wrong = ReIDDataset("wrong", query=query, gallery=[*gallery, *strangers])
    assert evaluate(model, wrong).clean.mAP < results[0]


@pytest.mark.slow
def test_no_real_image_is_damaged(market):
    market.check()
