from __future__ import annotations

import threading

import pytest
import torch

from reidguard.data import Augment, BatchLoader, ReIDDataset, decode_image, images
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDBatch, ReIDSample

SIZE = (32, 16)


def make(dataset, **changes) -> BatchLoader:
    options = {"image_size": SIZE, "identities": 4, "images_per_identity": 3, "seed": 3}
    return BatchLoader(dataset, **{**options, **changes})


def equal(one: ReIDBatch, two: ReIDBatch) -> bool:
    names = ("images", "pids", "camids", "indices")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def test_a_batch_holds_what_its_indices_say(studio):
    loader = make(studio)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == 144 // 12
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.shape == (12, 3, *SIZE)
        assert batch.indices.dtype == batch.pids.dtype == batch.camids.dtype == torch.int64
        for position, index in enumerate(batch.indices.tolist()):
            sample = studio.train[index]
            pixels = decode_image(sample.path, SIZE)
            assert torch.equal(batch.images[position], pixels.float() / 255)
            assert batch.pids[position] == studio.train_labels[sample.pid]
            assert batch.camids[position] == sample.camid
    assert {int(pid) for batch in batches for pid in batch.pids} == set(range(16))


@pytest.mark.parametrize("augment", [None, Augment()])
def test_an_epoch_can_begin_anywhere(studio, augment):
    whole = list(make(studio, augment=augment).epoch(5))
    for start in (0, 1, 7, len(whole)):
        rest = list(make(studio, augment=augment).epoch(5, start))
        assert len(rest) == len(whole) - start
        assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_skipped_batches_are_not_read(studio, monkeypatch):
    opened = []
    original = images.open_rgb
    monkeypatch.setattr(images, "open_rgb", lambda path: opened.append(path) or original(path))
    loader = make(studio)
    (last,) = loader.epoch(0, start=len(loader) - 1)
    assert {studio.train[i].path for i in last.indices.tolist()} == set(opened)


def test_augmentation_depends_on_seed_epoch_and_batch(studio):
    plain = make(studio)
    one = make(studio, augment=Augment())
    for batch, augmented in zip(plain.epoch(0), one.epoch(0), strict=True):
        assert torch.equal(batch.indices, augmented.indices)
        assert not torch.equal(batch.images, augmented.images)
    seeds = {
        make(studio, seed=seed)._generator(number, position).initial_seed()
        for seed in range(3)
        for number in range(3)
        for position in range(3)
    }
    assert len(seeds) == 27


def test_global_random_state_is_neither_used_nor_changed(studio):
    torch.manual_seed(0)
    one = next(make(studio, augment=Augment()).epoch(0))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(77)
    assert equal(one, next(make(studio, augment=Augment()).epoch(0)))


def test_stopping_early_ends_the_background_thread(studio):
    def workers() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if "prefetch" in t.name}

    before = workers()
    batches = make(studio).epoch(0)
    next(batches)
    assert workers() - before
    batches.close()
    assert not workers() - before


def test_a_damaged_image_is_named(studio, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"oops")
    samples = [*studio.train[:9], ReIDSample(tmp_path / "broken.png", 1, 0)]
    loader = BatchLoader(ReIDDataset("broken", samples), identities=1, images_per_identity=10)
    with pytest.raises(DataError, match=r"broken\.png"):
        list(loader.epoch(0))


def test_mistakes_are_refused(studio):
    with pytest.raises(DataError, match="lower identities to 16"):
        make(studio, identities=17)
    with pytest.raises(InputError, match="start"):
        make(studio).epoch(0, start=13)
