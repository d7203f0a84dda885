from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from reidguard.data import decode_image, load_dataset, read_synthetic, write_synthetic
from reidguard.errors import DataError, InputError

SMALL = {"identities": 2, "cameras": 2, "images_per_camera": 2}


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one = contents(write_synthetic(tmp_path / "one", **SMALL, seed=4))
    assert one == contents(write_synthetic(tmp_path / "two", **SMALL, seed=4))
    other = contents(write_synthetic(tmp_path / "three", **SMALL, seed=5))
    images = [name for name in one if name.endswith(".png")]
    assert all(one[name] != other[name] for name in images)
    assert len({one[name] for name in images}) == len(images)  # no image twice


def test_it_has_the_market_layout(synthetic_dataset):
    assert synthetic_dataset.summary() == {
        "name": "synthetic",
        "licence": "drawn by reidguard, free",
        "train": {"images": 144, "identities": 16, "cameras": 3},
        "query": {"images": 48, "identities": 16, "cameras": 3},
        "gallery": {"images": 96 + 6, "identities": 16, "cameras": 3},
        "distractors": 6,
        "junk": 4,
        "notes": [],
    }
    test = {s.pid for s in synthetic_dataset.query}
    assert test.isdisjoint(s.pid for s in synthetic_dataset.train)
    assert test == {s.pid for s in synthetic_dataset.gallery} - {0}
    synthetic_dataset.check()


def test_drawing_the_default_set_is_quick(tmp_path):
    start = time.process_time()
    write_synthetic(tmp_path / "set")
    assert time.process_time() - start < 3


def test_people_can_be_told_apart_across_cameras_but_not_by_the_background(synthetic_dataset):
    def pixels(samples) -> torch.Tensor:
        return torch.stack([decode_image(s.path, (16, 8)) for s in samples]).float() / 255

    def first_match(queries: torch.Tensor, gallery: torch.Tensor) -> float:
        hits = 0
        for row, sample in zip(torch.cdist(queries, gallery), synthetic_dataset.query, strict=True):
            allowed = torch.tensor([g.camid != sample.camid for g in synthetic_dataset.gallery])
            best = int(torch.where(allowed, row, torch.inf).argmin())
            hits += synthetic_dataset.gallery[best].pid == sample.pid
        return hits / len(synthetic_dataset.query)

    query, gallery = pixels(synthetic_dataset.query), pixels(synthetic_dataset.gallery)
    person = (slice(None), slice(None), slice(2, 14), slice(3, 5))
    edges = [0, 7]
    chance = 1 / 16
    assert first_match(query[person].flatten(1), gallery[person].flatten(1)) > 6 * chance
    background = first_match(query[..., edges].flatten(1), gallery[..., edges].flatten(1))
    assert background < 4 * chance


def test_a_set_that_is_there_is_reused(tmp_path):
    root = write_synthetic(tmp_path / "set", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    write_synthetic(root, **SMALL)
    assert len(read_synthetic(root, **SMALL).query) == 4
    assert len(load_dataset(f"synthetic:{root}").query) == 4  # whatever its parameters
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_nothing_else_is_overwritten(tmp_path):
    root = write_synthetic(tmp_path / "set", **SMALL)
    with pytest.raises(DataError, match="other parameters"):
        write_synthetic(root, **SMALL, seed=9)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    for write in (write_synthetic, read_synthetic):
        with pytest.raises(DataError, match="other files"):
            write(tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        write_synthetic(tmp_path / "file")
    with pytest.raises(DataError, match="cannot write"):
        write_synthetic(tmp_path / "file" / "below")


def test_an_empty_folder_may_be_there(tmp_path):
    assert len(read_synthetic(tmp_path, **SMALL).query) == 4
    assert [p for p in tmp_path.parent.iterdir() if p.name.startswith(f".{tmp_path.name}")] == []


def test_lost_images_are_noticed(tmp_path):
    root = write_synthetic(tmp_path / "set", **SMALL)
    next((root / "query").iterdir()).unlink()
    with pytest.raises(DataError, match="delete that folder"):
        load_dataset(f"synthetic:{root}")


def test_without_a_path_it_lives_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = load_dataset("synthetic")
    assert dataset.root is not None
    assert dataset.root.parent == tmp_path / "reidguard"
    assert load_dataset("synthetic").root == dataset.root
    assert read_synthetic(**SMALL).root != dataset.root
    assert len(list((tmp_path / "reidguard").iterdir())) == 2


def test_writers_at_the_same_time_do_not_disturb_each_other(tmp_path):
    start = threading.Barrier(4)

    def write() -> str:
        start.wait()
        return read_synthetic(tmp_path / "set", **SMALL).fingerprint("query")

    with ThreadPoolExecutor(4) as pool:
        results = {future.result() for future in [pool.submit(write) for _ in range(4)]}
    assert len(results) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("instant", range(3))
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, instant):
    saved = []
    original = Image.Image.save

    def save(image, path, **options):
        if len(saved) == 7 * instant:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        original(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(DataError, match=r"No space left.*choose another folder"):
        write_synthetic(tmp_path / "set", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_follows_the_umask(tmp_path):
    root = write_synthetic(tmp_path / "set", **SMALL)
    (tmp_path / "plain").mkdir()
    assert os.stat(root).st_mode == os.stat(tmp_path / "plain").st_mode


@pytest.mark.parametrize(
    "wrong", [{"identities": 0}, {"cameras": 1}, {"images_per_camera": 1}, {"seed": -1}]
)
def test_senseless_parameters_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        write_synthetic(tmp_path / "set", **wrong)
    with pytest.raises(InputError, match="unknown parameter 'people'"):
        read_synthetic(people=3)
