"""Splits for torch's DataLoader, and the PK sampler as its batch sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from reidguard.data import PKSampler, ReIDDataset, decode_image
from reidguard.errors import DataError, InputError
from reidguard.types import ReIDSample

SIZE = (32, 16)


@pytest.fixture
def people(tmp_path):
    """Five identities of four images each, with numbers that are no labels."""
    samples = []
    for n, pid in enumerate([3, 9, 14, 20, 77] * 4):
        path = tmp_path / f"{pid}-{n}.png"
        noise = np.random.default_rng(n).integers(0, 256, (40, 20, 3), np.uint8)
        Image.fromarray(noise).save(path)
        samples.append(ReIDSample(path, pid, n % 3))
    return ReIDDataset("few", samples, samples[:5], samples[5:])


def test_items_of_a_training_split(people):
    train = people.as_torch(image_size=SIZE)
    assert len(train) == 20
    assert train.pids == [people.train_labels[s.pid] for s in people.train]
    for i in (0, 7, -1):
        item, sample = train[i], people.train[i]
        expected = decode_image(sample.path, SIZE).float() / 255
        assert torch.equal(item.image, expected)
        assert (item.pid, item.camid) == (people.train_labels[sample.pid], sample.camid)
        assert item.position == i % 20
    with pytest.raises(IndexError):
        train[20]


def test_queries_keep_their_identities(people):
    query = people.as_torch("query", image_size=SIZE)
    assert [item.pid for item in query] == [3, 9, 14, 20, 77]


def test_a_transform_gets_the_image_as_it_is(people):
    seen = []

    def transform(image):
        seen.append((image.mode, image.size))
        return torch.zeros(3, 2, 2)

    assert people.as_torch(transform=transform)[3].image.shape == (3, 2, 2)
    assert seen == [("RGB", (20, 40))]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_plain_dataloader(people, workers):
    train = people.as_torch(image_size=SIZE)
    sampler = PKSampler(train.pids, identities=2, images_per_identity=3, seed=5)
    loader = DataLoader(train, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler) == 2
    for number in range(2):  # each pass is the next epoch
        batches = list(loader)
        for batch, positions in zip(batches, sampler.epoch(number), strict=True):
            assert batch.position.tolist() == positions.tolist()
            assert batch.pid.tolist() == [train.pids[i] for i in positions]
            assert batch.image.shape == (6, 3, *SIZE)
            assert torch.equal(batch.image[0], train[int(positions[0])].image)
    sampler.set_epoch(0)
    assert list(sampler) == [batch.tolist() for batch in sampler.epoch(0)]
    assert list(sampler) != list(sampler)


def test_mistakes(people, tmp_path):
    with pytest.raises(InputError, match="unknown split 'test'"):
        people.as_torch("test")
    with pytest.raises(InputError, match="transform must be a function"):
        people.as_torch(transform=(32, 16))
    with pytest.raises(InputError, match="image_size must be"):
        people.as_torch(image_size=(0, 4))
    with pytest.raises(InputError, match="epoch's number must be"):
        PKSampler([1, 2], 1, 1).set_epoch(-1)
    people.train[0].path.write_bytes(b"no image")
    with pytest.raises(DataError, match="3-0"):
        people.as_torch()[0]
