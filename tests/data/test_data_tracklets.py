"""Readers of tracklets, and rankings of their mean features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.public_trees import TREES, mars_names
from helpers.trees import plant
from reidguard import RetrievalAutoAttack
from reidguard.data import ReIDDataset, join_datasets, load_dataset
from reidguard.errors import DataError, InputError
from reidguard.evaluation import Protocol, evaluate
from reidguard.evaluation.retrieval import Retrieval
from reidguard.metrics import rank
from reidguard.models import wrap_model
from reidguard.types import InputSpec, ReIDSample

pytest.importorskip("scipy")
EUCLIDEAN = Protocol(image_size=(16, 8), metric="euclidean")


def tracklets(dataset: ReIDDataset, split: str) -> list[tuple[list[str], int, int]]:
    found: dict[int, list[ReIDSample]] = {}
    for sample in dataset.split(split):
        found.setdefault(sample.tracklet, []).append(sample)
    return [([s.path.name for s in own], own[0].pid, own[0].camid) for own in found.values()]


def test_mars(tmp_path):
    root = plant(tmp_path, *TREES["mars"])
    dataset = load_dataset("mars", root, frames=0)
    assert tracklets(dataset, "query") == [
        (mars_names("0002", 1, 1, 31), 2, 1),
        (mars_names("0002", 5, 1, 2), 2, 5),
    ]
    assert tracklets(dataset, "gallery") == [
        (mars_names("0000", 3, 1, 4), 0, 3),
        (mars_names("0002", 1, 2, 2), 2, 1),
        (mars_names("0002", 4, 1, 3), 2, 4),
    ]
    assert [pid for _, pid, _ in tracklets(dataset, "train")] == [1, 1, 3]
    assert dataset.junk == 2
    assert dataset.notes == (
        "tracklets: 3 (train), 2 (query), 3 (gallery); all frames (frames=...); their mean feature "
        "is compared",
    )
    few = load_dataset("mars", root)
    names = mars_names("0002", 1, 1, 31)
    assert [s.path.name for s in few.query[:15]] == names[0:30:2]  # 15 of them, 2 apart
    assert [len(own) for own, _, _ in tracklets(few, "train")] == [3, 15, 2]
    assert "21 images are not read: bbox_test (16), bbox_train (5)" in few.notes


def test_mars_whose_lists_do_not_fit_is_refused(tmp_path):
    from scipy.io import savemat

    root = plant(tmp_path, *TREES["mars"])
    savemat(root / "info" / "tracks_test_info.mat", {"track_test_info": [[1, 900, 2, 1]]})
    with pytest.raises(DataError, match=r"lists a tracklet \[1, 900, 2, 1\] of 44 names"):
        load_dataset("mars", root)
    (root / "info" / "test_name.txt").write_text("a.jpg")
    with pytest.raises(DataError, match=r"other lines than 0001C1T0001F001.jpg: a\.jpg"):
        load_dataset("mars", root)
    (root / "info" / "query_IDX.mat").unlink()
    with pytest.raises(DataError, match=r"query_IDX.mat is missing; expected: the MATLAB matrix"):
        load_dataset("mars", root)


def test_ilids_vid(tmp_path):
    from scipy.io import savemat

    root = plant(tmp_path, *TREES["ilids-vid"])
    dataset = load_dataset("ilids-vid", root)
    assert [(pid, camid) for _, pid, camid in tracklets(dataset, "train")] == [
        (4, 1),
        (4, 2),
        (7, 1),
        (7, 2),
    ]
    assert [(pid, camid) for _, pid, camid in tracklets(dataset, "query")] == [(1, 1), (2, 1)]
    assert [(pid, camid) for _, pid, camid in tracklets(dataset, "gallery")] == [(1, 2), (2, 2)]
    (root / "splits.json").unlink()
    matrix = root / "train-test people splits" / "train_test_splits_ilidsvid.mat"
    savemat(matrix, {"ls_set": [[4, 1, 3, 2]] * 10})
    by_matrix = load_dataset("ilids-vid", root)
    assert {s.pid for s in by_matrix.query} == {1, 7}  # the first half of the row is the test
    assert {s.pid for s in by_matrix.train} == {2, 4}
    savemat(matrix, {"ls_set": [[1, 1, 3, 2]] * 10})
    with pytest.raises(DataError, match="is no permutation of the 4 identities"):
        load_dataset("ilids-vid", root)


def test_a_missing_scipy_is_explained(tmp_path, monkeypatch):
    root = plant(tmp_path, *TREES["mars"])
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"pip install 'reidguard\[mat\]'"):
        load_dataset("mars", root)


def test_the_mean_feature_of_a_tracklet_is_ranked(tmp_path):
    dataset = load_dataset("mars", plant(tmp_path, *TREES["mars"]))
    generator = torch.Generator().manual_seed(0)
    query = torch.rand(len(dataset.query), 4, generator=generator)
    gallery = torch.rand(len(dataset.gallery), 4, generator=generator)
    model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
    shards = [gallery[:3], gallery[3:]]
    result = Retrieval(model, dataset, EUCLIDEAN).rank(query, dataset.query, shards)
    means = [gallery[a:b].mean(0) for a, b in ((0, 4), (4, 6), (6, 9))]
    expected = rank(
        torch.stack([query[:15].mean(0), query[15:].mean(0)]),
        torch.stack(means),
        query_pids=[2, 2],
        query_camids=[1, 5],
        gallery_pids=[0, 2, 2],
        gallery_camids=[3, 1, 4],
    )
    assert result.ap.tolist() == pytest.approx(expected.ap.tolist())
    evaluation = evaluate(model, dataset, protocol=EUCLIDEAN)
    assert evaluation.counts["query"] == 2
    assert evaluation.counts["gallery"] == 3
    assert evaluation.counts["distractors"] == 1
    with pytest.raises(InputError, match="a tracklet is the mean of its frames"):
        RetrievalAutoAttack().run(model, dataset, protocol=EUCLIDEAN)


def test_joined_tracklets_stay_distinct(tmp_path):
    first, second = (
        ReIDDataset(name, [ReIDSample(Path(f"{name}.jpg"), 1, 1, tracklet=3)]) for name in "ab"
    )
    assert [s.tracklet for s in join_datasets({"a": first, "b": second}).train] == [3, 6]
