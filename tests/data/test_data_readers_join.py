from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from reidguard import InputSpec, Protocol, evaluate, wrap_model
from reidguard.data import (
    SPLITS,
    BatchLoader,
    ReIDDataset,
    join_datasets,
    load_dataset,
)
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample


def make(root: Path, name: str, shade: int) -> ReIDDataset:
    """Two people before two cameras in each split, and a distractor; the same names everywhere."""
    splits: dict[str, list[ReIDSample]] = {split: [] for split in SPLITS}
    for split, pids in (("train", (1, 9)), ("query", (2, 30)), ("gallery", (0, 2, 30))):
        for pid in pids:
            for camera in (0, 4):
                path = root / name / split / f"{pid:04}_c{camera}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 8), (shade, 5 * pid, 50 * camera)).save(path)
                splits[split].append(ReIDSample(path, pid, camera))
    return ReIDDataset(
        name,
        splits["train"],
        splits["query"],
        splits["gallery"],
        root=root / name,
        licence=f"terms of {name}",
        junk=shade,
        notes=[f"a note on {name}"],
    )


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, ReIDDataset]:
    return {"a": make(tmp_path, "a", 1), "b": make(tmp_path, "b", 2), "c": make(tmp_path, "c", 3)}


def test_no_two_people_or_cameras_become_one(sources):
    joined = join_datasets(sources)
    for split in SPLITS:
        samples = iter(joined.split(split))
        owner_of_person: dict[int, tuple[str, int]] = {}
        owner_of_camera: dict[int, tuple[str, int]] = {}
        for name, source in sources.items():
            for old in source.split(split):
                new = next(samples)
                assert new.path == old.path
                assert (new.pid == 0) == (old.pid == 0)
                person = (name, old.pid) if old.pid else ("distractor", 0)
                assert owner_of_person.setdefault(new.pid, person) == person
                assert owner_of_camera.setdefault(new.camid, (name, old.camid)) == (name, old.camid)
        assert len(set(owner_of_person.values())) == len(owner_of_person)
        assert next(samples, None) is None
    # A person keeps one number from split to split, so queries find their matches.
    assert {s.pid for s in joined.query} == {s.pid for s in joined.gallery} - {0}
    assert not {s.pid for s in joined.train} & {s.pid for s in joined.query}
    assert joined.num_train_pids == 6
    assert sorted(joined.train_labels.values()) == list(range(6))


def test_counts_terms_and_notes_are_joined(sources):
    summary = join_datasets(sources).summary()
    assert summary["name"] == "a+b+c"
    assert summary["licence"] == "a: terms of a; b: terms of b; c: terms of c"
    assert summary["junk"] == 6
    assert summary["distractors"] == 6
    assert summary["gallery"] == {"images": 18, "identities": 6, "cameras": 6}
    assert summary["notes"] == [
        "a: identities are shifted by 0, cameras by 0",
        "a: a note on a",
        "b: identities are shifted by 30, cameras by 5",
        "b: a note on b",
        "c: identities are shifted by 60, cameras by 10",
        "c: a note on c",
    ]


def test_training_sets_alone(sources):
    joined = join_datasets(sources, splits=("train",))
    everything = join_datasets(sources)
    assert (joined.query, joined.gallery, joined.junk) == ((), (), 0)
    assert joined.train == everything.train  # numbers do not depend on what is joined
    assert joined.fingerprint("train") == everything.fingerprint("train")


def test_fingerprints_tell_joined_sets_apart_but_not_their_place(sources, tmp_path):
    joined = join_datasets(sources)
    prints = {split: joined.fingerprint(split) for split in SPLITS}
    assert len(set(prints.values())) == 3
    moved = join_datasets(
        {name: make(tmp_path / "new", name, i) for name, i in zip("abc", (1, 2, 3), strict=True)}
    )
    assert {split: moved.fingerprint(split) for split in SPLITS} == prints
    fewer = join_datasets({name: sources[name] for name in "ab"})
    assert fewer.fingerprint("train") != prints["train"]
    sources["b"].train[0].path.write_bytes(sources["b"].train[1].path.read_bytes())
    assert join_datasets(sources).fingerprint("train") != prints["train"]


def test_damaged_images_of_all_sources_are_named_at_once(sources):
    damaged = [
        sources["a"].train[0].path,
        sources["b"].query[1].path,
        sources["c"].gallery[2].path,
    ]
    joined = join_datasets(sources)
    joined.check()
    for path in damaged:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"3 of 42 images of a\+b\+c are damaged") as error:
        joined.check()
    assert all(str(path) in str(error.value) for path in damaged)


def test_a_joined_set_trains_and_is_evaluated(sources):
    joined = join_datasets(sources)
    loader = BatchLoader(
        joined,
        image_size=(16, 8),
        identities=6,
        images_per_identity=2,
    )
    batch = next(iter(loader.epoch(0)))
    assert sorted(set(batch.pids.tolist())) == list(range(6))

    class Colours(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))[:, :2] * 255  # the source's shade, and the person

    spec = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
    model = wrap_model(Colours(), input_spec=spec)
    assert len(set(joined.query_names)) == 12
    result = evaluate(model, joined, protocol=Protocol(image_size=(16, 8)))
    assert result.clean.mAP == pytest.approx(1)


def test_joins_can_be_joined(sources):
    twice = join_datasets({"ab": join_datasets({k: sources[k] for k in "ab"}), "c": sources["c"]})
    once = join_datasets(sources)
    assert all(twice.split(split) == once.split(split) for split in SPLITS)
    assert "ab: b: a note on b" in twice.notes


def test_a_set_without_tests_joins_one_with_them(sources, tmp_path):
    only_train = ReIDDataset("t", make(tmp_path, "t", 9).train, [], [])
    joined = join_datasets({"t": only_train, "a": sources["a"]})
    assert len(joined.train) == 8
    assert [s.path for s in joined.query] == [s.path for s in sources["a"].query]


def test_csv_and_folder_sources_are_namespaced(tmp_path):
    for site in ("north", "south"):
        path = tmp_path / site / "train" / "7" / "x_c1.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (4, 8)).save(path)
    joined = join_datasets(
        {site: load_dataset("folder", tmp_path / site) for site in ("north", "south")}
    )
    assert [(s.pid, s.camid) for s in joined.train] == [(7, 1), (14, 3)]


def test_mistakes_name_the_cure(sources):
    with pytest.raises(InputError, match="nothing to join; give at least one"):
        join_datasets({})
    with pytest.raises(InputError, match="unknown split 'test': choose from train, query, gallery"):
        join_datasets(sources, splits=("test",))
    with pytest.raises(InputError, match=r"'a' and 'again' share 14 images .*join a source only"):
        join_datasets({"a": sources["a"], "again": sources["a"]})
