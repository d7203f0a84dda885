"""Readers of clothes-change, occluded, vehicle and infrared sets against tiny trees of theirs."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.public_trees import TEST_ONLY, TREES
from helpers.trees import images, plant
from reidguard.data import ReIDDataset, join_datasets, load_dataset
from reidguard.errors import DataError, InputError
from reidguard.evaluation import Protocol, evaluate
from reidguard.evaluation.labels import ranking_labels
from reidguard.evaluation.retrieval import Retrieval
from reidguard.metrics import rank
from reidguard.models import wrap_model
from reidguard.testing import DATASET_CHECKS, TEST_SET_CHECKS, check_missing_folder
from reidguard.types import InputSpec, ReIDSample

EUCLIDEAN = Protocol(image_size=(16, 8), metric="euclidean")


@pytest.mark.parametrize("name", TREES)
def test_the_contract_of_datasets_holds(tmp_path, name):
    root = plant(tmp_path, *TREES[name])
    for check in TEST_SET_CHECKS if name in TEST_ONLY else DATASET_CHECKS:
        check(lambda: load_dataset(name, root))
    check_missing_folder(lambda place: load_dataset(name, place))


@pytest.mark.parametrize("name", TREES)
def test_the_layout_is_recognised(tmp_path, name):
    root = plant(tmp_path, *TREES[name])
    known = load_dataset(name, root.parent)
    for path in (root, tmp_path):
        dataset = load_dataset(path)
        assert dataset.notes[0].startswith(f"recognised as {name}: {root}")
        assert dataset.notes[1:] == known.notes
        assert dataset.fingerprint("query") == known.fingerprint("query")


def rows(dataset: ReIDDataset, split: str) -> list[tuple[str, int, int]]:
    return [
        (s.path.relative_to(dataset.root).as_posix(), s.pid, s.camid) for s in dataset.split(split)
    ]


def pairs(dataset: ReIDDataset, split: str) -> list[tuple[int, int]]:
    return [(s.pid, s.camid) for s in dataset.split(split)]


def test_prcc(tmp_path):
    root = plant(tmp_path, *TREES["prcc"])
    dataset = load_dataset("prcc", root)
    assert dataset.name == "prcc-change"
    assert pairs(dataset, "train") == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert pairs(dataset, "query") == [(75, 3)] * 2 + [(103, 3)] * 2
    assert pairs(dataset, "gallery") == [(75, 1)] * 2 + [(103, 1)] * 2
    assert any(note == "6 images are not read: rgb (5), sketch (1)" for note in dataset.notes)
    same = load_dataset(f"prcc:{root}?clothes=same")
    assert pairs(same, "query") == [(75, 2)] * 2 + [(103, 2)] * 2
    assert same.gallery == dataset.gallery
    trials = [load_dataset(f"prcc:{root}?trial={trial}").gallery for trial in range(10)]
    assert {tuple(s.pid for s in gallery) for gallery in trials} == {(75, 103)}
    assert len(set(trials)) > 1
    with pytest.raises(InputError, match="clothes must be one of change, same, not 'any'"):
        load_dataset("prcc", root, clothes="any")


def test_ltcc_leaves_out_the_clothes_of_the_query(tmp_path):
    root = plant(tmp_path, *TREES["ltcc"])
    standard, change = (load_dataset("ltcc", root, clothes=value) for value in ("any", "change"))
    assert rows(standard, "query")[0] == ("query/103_1_c1_000100.png", 104, 1)
    assert pairs(standard, "train") == [(1, 3), (8, 12)]
    assert rows(standard, "gallery") == rows(change, "gallery")
    assert [s.clothes for s in change.query] == [1, 2]
    assert [s.clothes for s in change.gallery] == [1, 1, 2, 3]
    assert not any(s.clothes for s in standard.gallery)
    assert standard.fingerprint("query") != change.fingerprint("query")
    query, gallery = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.1], [0.5], [0.3]])
    model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
    first = [
        Retrieval(model, dataset, EUCLIDEAN)
        .rank(query, dataset.query, [gallery])
        .first_match.tolist()
        for dataset in (standard, change)
    ]
    # Query 1 (clothes 1, camera 1): 0.0 is its camera; standard finds 0.1 first, a change 0.5 after
    # 0.3. Query 2 (clothes 2, camera 2): 0.5 is a match in the standard protocol alone.
    assert first == [[1, 1], [2, 2]]


def test_ranking_with_clothes_equals_a_loop():
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> int:
        return int(torch.randint(1, high, (1,), generator=generator))

    samples = [
        [ReIDSample(Path(f"{k}{i}"), draw(6), draw(4), draw(4)) for i in range(n)]
        for k, n in (("q", 20), ("g", 60))
    ]
    features = [torch.rand(n, 3, generator=generator, dtype=torch.float64) for n in (20, 60)]
    result = rank(*features, **ranking_labels(*samples))
    for i, query in enumerate(samples[0]):
        kept = [
            (float((features[0][i] - features[1][j]).norm()), g.pid == query.pid)
            for j, g in enumerate(samples[1])
            if g.pid != query.pid or (g.camid != query.camid and g.clothes != query.clothes)
        ]
        hits = [r for r, (_, match) in enumerate(sorted(kept), 1) if match]
        expected = sum(n / r for n, r in enumerate(hits, 1)) / len(hits) if hits else float("nan")
        assert float(result.ap[i]) == pytest.approx(expected, nan_ok=True)


def test_vc_clothes_by_cameras(tmp_path):
    root = plant(tmp_path, *TREES["vc-clothes"])
    cameras = {"change": {3, 4}, "same": {2, 3}, "any": {1, 2, 3, 4}}
    for clothes, expected in cameras.items():
        dataset = load_dataset("vc-clothes", root, clothes=clothes)
        for split in ("query", "gallery"):
            assert {camid for _, camid in pairs(dataset, split)} == expected
        assert pairs(dataset, "train") == [(1, 1), (2, 2)]
    assert rows(dataset, "query")[0] == ("query/0300-01-01-01.jpg", 300, 1)


def test_occluded_sets(tmp_path):
    duke = load_dataset("occluded-duke", plant(tmp_path, *TREES["occluded-duke"]))
    assert pairs(duke, "query") == [(5, 2)]
    assert duke.notes[0].startswith("withdrawn")
    assert "its name tells it from dukemtmc-reid" in load_dataset(duke.root).notes[0]
    (duke.root).rename(tmp_path / "some")
    with pytest.raises(InputError, match="may be dukemtmc-reid or occluded-duke"):
        load_dataset(tmp_path / "some")
    parts = load_dataset("p-dukemtmc-reid", plant(tmp_path, *TREES["p-dukemtmc-reid"]))
    assert pairs(parts, "train") == [(1, 2), (2, 2), (1, 1), (2, 1)]
    assert (pairs(parts, "query"), pairs(parts, "gallery")) == ([(5, 1), (6, 1)], [(5, 2), (6, 2)])
    whole = load_dataset("occluded-reid", plant(tmp_path, *TREES["occluded-reid"]))
    assert pairs(whole, "query") == [(1, 1), (2, 1)]
    assert pairs(whole, "gallery") == [(1, 2), (1, 2), (2, 2), (2, 2)]
    partial = load_dataset("partial-reid", plant(tmp_path, *TREES["partial-reid"]))
    assert rows(partial, "query") == [
        ("partial_body_images/001_001.jpg", 1, 1),
        ("partial_body_images/060_001.jpg", 60, 1),
    ]
    assert partial.notes[-1] == "2 images are not read: occluded_body_images (2)"


def test_vehicles(tmp_path):
    veri = load_dataset("veri-776", plant(tmp_path, *TREES["veri-776"]))
    assert pairs(veri, "train") == [(1, 1), (3, 20)]
    assert (pairs(veri, "query"), pairs(veri, "gallery")) == ([(2, 2)], [(2, 3), (5, 2)])
    root = plant(tmp_path, *TREES["vehicleid"])
    seen = []
    for trial in range(10):
        small = load_dataset(f"vehicleid:{root}?trial={trial}")
        assert sorted(pid for pid, _ in pairs(small, "gallery")) == [4, 5, 6, 7]
        assert len(small.query) + len(small.gallery) == 12
        assert not {s.path for s in small.query} & {s.path for s in small.gallery}
        assert {c for _, c in pairs(small, "query")} == {0}
        assert {c for _, c in pairs(small, "gallery")} == {1}
        seen.append(small.gallery)
    assert len(set(seen)) > 1
    assert pairs(small, "train") == [(8, 0), (8, 0), (9, 0)]
    assert len(load_dataset("vehicleid", root, size=2400).query) == 16
    assert any("published are 5,693 images of 800 identities" in note for note in small.notes)
    with pytest.raises(InputError, match="size must be one of 800, 1600, 2400, not 900"):
        load_dataset("vehicleid", root, size=900)


def test_sysu_draws_as_agw_does(tmp_path):
    root = plant(tmp_path, *TREES["sysu-mm01"])
    for mode, cameras in (("all", (1, 2, 4, 5)), ("indoor", (1, 2))):
        for trial in (0, 7):
            dataset = load_dataset(f"sysu-mm01:{root}?mode={mode}&trial={trial}")
            random.seed(trial)
            expected = [
                (random.choice([f"cam{c}/{pid}/{n:04}.jpg" for n in range(1, 5)]), int(pid), c)
                for pid in ("0006", "0010")
                for c in cameras
                if (c, pid) != (4, "0010")
            ]
            assert rows(dataset, "gallery") == expected
            assert {camid for _, camid in pairs(dataset, "query")} == {3, 6}
            assert len(dataset.query) == 2 * 2 * 4
    assert {pid for pid, _ in pairs(dataset, "train")} == {1, 3, 5}
    assert len(dataset.train) == (3 * 6 - 1) * 4
    assert dataset.hidden == {3: {2}}
    with pytest.raises(DataError, match=r"rand_perm_cam.mat is missing"):
        load_dataset("sysu-mm01", root, shots=10)
    with pytest.raises(InputError, match="trial"):
        load_dataset("sysu-mm01", root, trial=10)


def test_sysu_takes_the_authors_permutations(tmp_path):
    io = pytest.importorskip("scipy.io")
    root = plant(tmp_path, *TREES["sysu-mm01"])
    images(root, *(f"cam1/0006/{n:04}.jpg" for n in range(5, 13)))
    cells = np.empty((6, 1), dtype=object)
    for camera in range(6):
        inner = np.empty((10, 1), dtype=object)
        for pid in range(10):
            inner[pid, 0] = np.array([np.roll([1, 2, 3, 4], trial + camera) for trial in range(10)])
        cells[camera, 0] = inner
    cells[0, 0][5, 0] = np.array([np.roll(np.arange(1, 13), trial) for trial in range(10)])
    cells[3, 0][9, 0] = np.zeros((0, 0))
    io.savemat(root / "exp" / "rand_perm_cam.mat", {"rand_perm_cam": cells})
    dataset = load_dataset("sysu-mm01", root, trial=2)
    assert [row[0] for row in rows(dataset, "gallery")] == [
        "cam1/0006/0011.jpg",  # 1 to 12, rolled by two places
        "cam2/0006/0002.jpg",
        "cam4/0006/0004.jpg",
        "cam5/0006/0003.jpg",
        "cam1/0010/0003.jpg",
        "cam2/0010/0002.jpg",
        "cam5/0010/0003.jpg",
    ]
    many = load_dataset("sysu-mm01", root, trial=0, shots=10, mode="indoor")
    assert [pair for pair in pairs(many, "gallery") if pair == (6, 1)] == [(6, 1)] * 10
    (root / "exp" / "rand_perm_cam.mat").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot read .*rand_perm_cam.mat"):
        load_dataset("sysu-mm01", root)


def test_queries_do_not_search_hidden_cameras(tmp_path):
    dataset = load_dataset("sysu-mm01", plant(tmp_path, *TREES["sysu-mm01"]))
    generator = torch.Generator().manual_seed(1)
    query = torch.rand(len(dataset.query), 4, generator=generator, dtype=torch.float64)
    gallery = torch.rand(len(dataset.gallery), 4, generator=generator, dtype=torch.float64)
    model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
    result = Retrieval(model, dataset, EUCLIDEAN).rank(query, dataset.query, [gallery])
    expected = []
    for i, sample in enumerate(dataset.query):
        seen = [
            (float((query[i] - gallery[j]).norm()), other.pid == sample.pid)
            for j, other in enumerate(dataset.gallery)
            if not (sample.camid == 3 and other.camid == 2)
        ]
        hits = [r for r, (_, match) in enumerate(sorted(seen), 1) if match]
        expected.append(sum(n / r for n, r in enumerate(hits, 1)) / len(hits))
    assert result.ap.tolist() == pytest.approx(expected)
    assert result.mAP == pytest.approx(sum(expected) / len(expected))
    dataset.hidden = {}
    assert (
        Retrieval(model, dataset, EUCLIDEAN).rank(query, dataset.query, [gallery]).mAP != result.mAP
    )


def test_joined_sets_keep_clothes_and_hidden_cameras(tmp_path):
    sysu = load_dataset("sysu-mm01", plant(tmp_path, *TREES["sysu-mm01"]))
    ltcc = load_dataset("ltcc", plant(tmp_path, *TREES["ltcc"]))
    both = join_datasets({"a": ltcc, "b": sysu})
    shift = max(s.camid for split in ("train", "query", "gallery") for s in ltcc.split(split)) + 1
    assert both.hidden == {3 + shift: {2 + shift}}
    assert [s.clothes for s in both.query[:2]] == [1, 2]
    assert sysu.with_query is not None
    result = evaluate(
        wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8))),
        both,
        protocol=Protocol((16, 8)),
    )
    assert 0 < result.clean.mAP <= 1


def test_regdb(tmp_path):
    root = plant(tmp_path, *TREES["regdb"])
    dataset = load_dataset("regdb", root)
    assert dataset.name == "regdb-visible-to-thermal"
    assert pairs(dataset, "train") == [(1, 1)] * 2 + [(2, 1)] * 2 + [(1, 2)] * 2 + [(2, 2)] * 2
    assert pairs(dataset, "query") == [(207, 1)] * 2 + [(208, 1)] * 2
    assert pairs(dataset, "gallery") == [(207, 2)] * 2 + [(208, 2)] * 2
    other = load_dataset("regdb", root, query="thermal", trial=2)
    assert rows(other, "query")[0] == ("Thermal/3/t_00003_1.bmp", 207, 2)
    with pytest.raises(InputError, match="trial"):
        load_dataset("regdb", root, trial=0)


def test_llcm_draws_as_its_authors_do(tmp_path):
    root = plant(tmp_path, *TREES["llcm"])
    for query, other, trial in (("nir", "vis", 0), ("vis", "nir", 5)):
        dataset = load_dataset("llcm", root, query=query, trial=trial)
        random.seed(trial)
        expected = [
            (
                random.choice([f"test_{other}/cam{c}/{pid}/{pid}_{n}.jpg" for n in "abc"]),
                int(pid),
                c,
            )
            for pid in ("0004", "0009")
            for c in (1, 2, 8)
        ]
        assert rows(dataset, "gallery") == expected
        assert len(dataset.query) == 2 * 3 * 3
        assert {path.partition("/")[0] for path, *_ in rows(dataset, "query")} == {f"test_{query}"}
    assert pairs(dataset, "train")[:4] == [(10_000, 1), (10_000, 2), (10_001, 1), (10_001, 2)]


def test_clonedperson(tmp_path):
    dataset = load_dataset("clonedperson", plant(tmp_path, *TREES["clonedperson"]))
    assert pairs(dataset, "train") == [(700000, 0), (700001, 1)]
    assert pairs(dataset, "query") == [(705227, 2)]
    assert pairs(dataset, "gallery") == [(705227, 0), (705228, 2)]


def test_cuhk03_of_torchreid(tmp_path):
    root = plant(tmp_path, *TREES["cuhk03"])
    dataset = load_dataset("cuhk03", root)
    assert dataset.name == "cuhk03-detected"
    assert rows(dataset, "train")[0] == ("images_detected/1_001_1_01.png", 10_000, 1)
    assert pairs(dataset, "query") == [(4, 1), (5, 1)]
    assert pairs(dataset, "gallery") == [(4, 2), (5, 2)]
    classic = load_dataset(f"cuhk03:{root}?boxes=labeled&protocol=classic&trial=19")
    assert classic.query == classic.gallery
    assert rows(classic, "query")[0] == ("images_labeled/1_003_1_01.png", 4, 1)
    with pytest.raises(InputError, match="has 1 splits, so there is no trial 1"):
        load_dataset("cuhk03", root, trial=1)
    (root / "splits_new_detected.json").write_text('[{"train": 3}]')
    with pytest.raises(DataError, match="let torchreid make it again"):
        load_dataset("cuhk03", root)


def write_cuhk03_matlab(root: Path) -> None:
    """Write two camera pairs of two identities as MATLAB 7.3 does, in cells of cells."""
    h5py, io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    (root / "cuhk03_release").mkdir(parents=True)
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "w") as file:
        places = iter(range(10**6))

        def reference(array: np.ndarray) -> h5py.Reference:
            dtype = h5py.ref_dtype if array.dtype == object else array.dtype
            return file.create_dataset(f"#refs#/{next(places)}", data=array.T, dtype=dtype).ref

        for boxes in ("detected", "labeled"):
            pairs = np.empty((2, 1), dtype=object)
            for pair in range(2):
                people = np.empty((2, 10), dtype=object)
                for person, image in np.ndindex(2, 10):
                    seen = image in (0, 1, 5)
                    pixels = np.full((6, 4, 3), 100 * pair + 10 * person + image, dtype=np.uint8)
                    pixels[0, :, 0] = 255
                    people[person, image] = reference(pixels if seen else np.zeros((0, 0)))
                pairs[pair, 0] = reference(people)
            file.create_dataset(boxes, data=pairs.T, dtype=h5py.ref_dtype)
        tests = np.empty((20, 1), dtype=object)
        for trial in range(20):
            tests[trial, 0] = reference(
                np.array([[1 + trial % 2, 1], [1 + trial % 2, 2]], dtype=float)
            )
        file.create_dataset("testsets", data=tests.T, dtype=h5py.ref_dtype)
    names = [f"{c}_{p:03}_{v}_{n:02}.png" for c in (1, 2) for p in (1, 2) for v, n in SHOTS]
    cells = np.empty((len(names), 1), dtype=object)
    cells[:, 0] = names
    splits = {"train_idx": [1, 2, 3, 4, 5, 6], "query_idx": [7, 10], "gallery_idx": [9, 12]}
    labels = [[1]] * 3 + [[2]] * 3 + [[5]] * 3 + [[6]] * 3
    for boxes in ("detected", "labeled"):
        content = {"filelist": cells, "labels": labels, **splits}
        io.savemat(root / f"cuhk03_new_protocol_config_{boxes}.mat", content)


SHOTS = ((1, 1), (1, 2), (2, 6))


def test_cuhk03_of_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_cuhk03_matlab(tmp_path / "cuhk03")
    dataset = load_dataset(tmp_path / "cuhk03")
    assert dataset.name == "cuhk03-detected"
    assert pairs(dataset, "train") == [(10_000, c) for c in (1, 1, 2)] + [
        (10_001, c) for c in (1, 1, 2)
    ]
    assert rows(dataset, "query") == [("2_001_1_01.png", 6, 1), ("2_002_1_01.png", 7, 1)]
    assert rows(dataset, "gallery") == [("2_001_2_06.png", 6, 2), ("2_002_2_06.png", 7, 2)]
    with Image.open(dataset.query[1].path) as image:
        assert image.size == (4, 6)
        assert image.getpixel((1, 0)) == (255, 110, 110)
        assert image.getpixel((1, 1)) == (110, 110, 110)
    classic = load_dataset("cuhk03", tmp_path / "cuhk03", protocol="classic", trial=1)
    assert [name[0] for name, *_ in rows(classic, "query")] == ["2"] * 6
    assert [name[0] for name, *_ in rows(classic, "train")] == ["1"] * 6
    assert {pid for pid, _ in pairs(classic, "query")} == {1, 2}
    for check in DATASET_CHECKS:
        check(lambda: load_dataset("cuhk03", tmp_path, boxes="labeled"))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'reidguard\[cuhk03\]'"):
        load_dataset("cuhk03", tmp_path, protocol="classic")


def test_a_damaged_cuhk03_is_one_error(tmp_path, monkeypatch):
    pytest.importorskip("h5py")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cuhk-03.mat").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"cannot extract the images of .*cuhk-03.mat"):
        load_dataset("cuhk03", tmp_path)
    assert not list((tmp_path / "cache" / "reidguard").glob("*"))


def test_market1501_with_more_distractors(tmp_path):
    images(
        tmp_path,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "query/0010_c2s1_000001_00.jpg",
        "bounding_box_test/0010_c5s1_000001_01.jpg",
        "images/0000_c1s1_000001_00.jpg",
        "images/-1_c6s2_000001_00.jpg",
    )
    plain = load_dataset(tmp_path)
    assert "2 images are not read: images (2)" in plain.notes
    assert any("distractors_500k=true adds" in note for note in plain.notes)
    more = load_dataset(f"{tmp_path}?distractors_500k=true")
    assert more.name == "market1501-500k"
    assert pairs(more, "gallery") == [(10, 5), (0, 6), (0, 1)]
    assert more.summary()["distractors"] == 2


MISSING = [
    ("clonedperson", "test/query", "query is missing"),
    ("cuhk03", "images_detected", "torchreid extracts from cuhk-03.mat"),
    ("prcc", "rgb/test/C", "folder .*C is missing; expected there: one folder per identity"),
    ("ltcc", "test", "test is missing; expected there: images, named like 103_1_c12"),
    ("vc-clothes", "query", "query is missing"),
    ("p-dukemtmc-reid", "test/whole_body_images", "whole_body_images is missing"),
    ("occluded-reid", "occluded_body_images", "occluded_body_images is missing"),
    ("partial-reid", "whole_body_images", "whole_body_images is missing"),
    ("veri-776", "image_query", "image_query is missing; expected there: 1,678 images"),
    ("vehicleid", "train_test_split/test_list_800.txt", "missing; expected: 6,493 lines like"),
    ("vehicleid", "image/0000009.jpg", "1 of the 12 images that .*test_list_800.txt lists"),
    ("sysu-mm01", "exp/val_id.txt", "val_id.txt is missing; expected: identities such as 6,10,17"),
    ("regdb", "idx/test_thermal_1.txt", "missing; expected: lines like 'Visible/1/"),
    ("llcm", "idx/test_id.txt", "test_id.txt is missing"),
]


@pytest.mark.parametrize(("name", "gone", "message"), MISSING)
def test_what_is_missing_is_named(tmp_path, name, gone, message):
    root = plant(tmp_path, *TREES[name])
    (root / gone).rename(tmp_path / "gone")
    with pytest.raises(DataError, match=message):
        load_dataset(name, root)


def test_other_damage_is_named(tmp_path):
    sysu = plant(tmp_path, *TREES["sysu-mm01"])
    (sysu / "exp" / "test_id.txt").write_text("six, ten")
    with pytest.raises(DataError, match=r"test_id.txt begins with 'six, ten'"):
        load_dataset("sysu-mm01", sysu)
    prcc = plant(tmp_path, *TREES["prcc"])
    images(prcc, "rgb/test/A/people/x.jpg")
    with pytest.raises(DataError, match="are no identities: people"):
        load_dataset("prcc", prcc)
