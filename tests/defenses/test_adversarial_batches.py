"""Batches with adversarial images, each against the rows that it has to hold."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from helpers import random_batch, rng
from reidguard.data import Augment
from reidguard.defenses.batches import AdversarialBatches, geometry
from reidguard.training.loop import derived_seed
from reidguard.types import BatchShard

FILL = (1.0, 0.0, 0.5)
ERASING = Augment(erase=1.0, erase_area=(0.2, 0.4), erase_value=FILL)


class Loader:
    """Three fixed batches of six images: three identities, seen by two cameras."""

    def __init__(self) -> None:
        self.batches = []
        for seed in range(3):
            batch = random_batch(3, 2, (32, 16), seed=seed, low=0.1, high=0.4)
            place = torch.arange(6)
            self.batches.append(
                replace(batch, camids=place % 2, indices=50 + 10 * seed + place * 5 % 6)
            )

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0):
        yield from self.batches[start:]


def brighter(batch, chosen, shard):
    return batch.images[chosen] + 0.1


def batches(loader=None, craft=brighter, **options):
    usual = {"augment": None, "fraction": 0.5, "clean": True, "domain": "d", "seed": 3}
    return AdversarialBatches(loader or Loader(), craft, role="meta-train", **{**usual, **options})


def chosen_rows(result, batch, clean):
    rows = {int(index): row for row, index in enumerate(batch.indices)}
    return [rows[int(index)] for index in result.indices[len(batch) if clean else 0 :]]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 2), (0.5, 3), (1.0, 6)])
def test_every_row_is_a_clean_image_or_made_of_one(fraction, count, clean):
    if not clean and not count:
        pytest.skip("an empty batch")
    loader = Loader()
    results = list(batches(loader, fraction=fraction, clean=clean).epoch(2))
    assert len(results) == 3
    choices = []
    for result, batch in zip(results, loader.batches, strict=True):
        rows = chosen_rows(result, batch, clean)
        assert rows == sorted(set(rows))
        assert len(rows) == result.adversarial == count
        choices.append(tuple(rows))
        whole = torch.tensor([*(range(6) if clean else ()), *rows], dtype=torch.int64)
        images = batch.images[rows] + 0.1
        assert torch.equal(result.images, torch.cat([batch.images, images]) if clean else images)
        assert torch.equal(result.pids, batch.pids[whole])
        assert torch.equal(result.camids, batch.camids[whole])
        assert torch.equal(result.indices, batch.indices[whole])
        assert result.domain == "d"
        assert result.shard is None
        assert not result.images.requires_grad
    assert count in (0, 6) or len(set(choices)) > 1  # other images in other steps


def test_no_image_is_crafted_where_none_is_attacked():
    def fails(batch, chosen, shard):
        raise AssertionError("nothing is attacked")

    result = next(iter(batches(craft=fails, fraction=0.0).epoch(0)))
    assert len(result) == 6


def test_the_step_is_announced_before_its_images_are_crafted():
    events = []

    def craft(batch, chosen, shard):
        events.append("craft")
        assert not torch.is_grad_enabled()
        return brighter(batch, chosen, shard)

    made = batches(craft=craft, before=events.append)
    for _ in made.epoch(2, 1):
        events.append("yielded")
    assert events == [7, "craft", "yielded", 8, "craft", "yielded"]


def test_the_draws_of_a_step_do_not_depend_on_where_the_epoch_starts():
    every = [r.indices for r in batches(augment=ERASING).epoch(2)]
    later = [r.indices for r in batches(augment=ERASING).epoch(2, 1)]
    assert all(torch.equal(a, b) for a, b in zip(every[1:], later, strict=True))
    other = [r.indices for r in batches(augment=ERASING).epoch(3)]
    assert not all(torch.equal(a, b) for a, b in zip(every, other, strict=True))


@pytest.mark.parametrize("clean", [True, False])
def test_both_images_of_a_pair_are_erased_at_one_place_and_nowhere_cropped(clean):
    loader = Loader()
    fill = torch.tensor(FILL).view(3, 1, 1)
    for result, batch in zip(
        batches(loader, augment=ERASING, clean=clean).epoch(0), loader.batches, strict=True
    ):
        rows = chosen_rows(result, batch, clean)
        erased = (result.images == fill).all(1, keepdim=True)
        assert 0.1 < float(erased[-1].float().mean()) < 0.5
        first = batch.images if clean else batch.images[:0]
        before = torch.cat([first, batch.images[rows] + 0.1])
        assert torch.equal(result.images, torch.where(erased, fill, before))
        if clean:
            assert torch.equal(erased[6:], erased[:6][rows])
        assert not torch.equal(erased[-1], erased[-2])


def test_without_erasing_images_stay():
    for augment in (Augment(erase=0.0), geometry(Augment())):
        loader = Loader()
        result = next(iter(batches(loader, augment=augment, fraction=0.0).epoch(0)))
        assert torch.equal(result.images, loader.batches[0].images)


def test_what_comes_before_the_attack_is_all_but_erasing():
    augment = Augment(flip=0.3, crop="pad", padding=4, erase=0.7)
    assert geometry(augment) == replace(augment, erase=0.0)
    assert geometry(None) is None


def test_seeds_are_bytes_of_a_hash_of_the_key():
    digest = hashlib.sha256(b"3/meta-train/7").hexdigest()
    assert derived_seed(3, "meta-train", 7) == int(digest[:14], 16)
    assert derived_seed("x") == int(hashlib.sha256(b"x").hexdigest()[:14], 16)


@pytest.mark.parametrize("clean", [True, False])
def test_processes_make_the_rows_of_one_joint_batch(clean):
    """Two processes with shards: same choice, same erasing, and rows that add up to the whole."""
    options = {"augment": ERASING, "clean": clean, "fraction": 0.5}
    loader = Loader()
    for position, batch in enumerate(loader.batches):
        (expected, *_) = batches(loader, **options).epoch(0, position)
        shards = [torch.tensor([0, 2, 3]), torch.tensor([1, 4, 5])]
        images = torch.zeros_like(expected.images)
        indices = torch.zeros_like(expected.indices)
        seen = []
        for rows in shards:
            part = replace(
                batch,
                images=batch.images[rows],
                pids=batch.pids[rows],
                camids=batch.camids[rows],
                indices=batch.indices[rows],
                shard=BatchShard(rows, 6),
            )
            part_loader = Loader()
            part_loader.batches[position] = part
            (result, *_) = batches(part_loader, **options).epoch(0, position)
            assert result.shard.total == len(expected)
            assert len(result) == len(result.shard.rows)
            assert result.adversarial == len(result) - (3 if clean else 0)
            images[result.shard.rows] = result.images
            indices[result.shard.rows] = result.indices
            seen += result.shard.rows.tolist()
        assert sorted(seen) == list(range(len(expected)))
        assert torch.equal(images, expected.images)
        assert torch.equal(indices, expected.indices)


def test_choice_and_holes_follow_from_seed_role_and_step():
    """As documented: seed, role and the number of the step, in this order."""
    loader = Loader()
    for step, result in enumerate(batches(loader, augment=ERASING).epoch(0)):
        batch = loader.batches[step]
        generator = rng(derived_seed(3, "meta-train", step))
        chosen = torch.randperm(6, generator=generator)[:3].sort().values
        assert torch.equal(result.indices[6:], batch.indices[chosen])
        holes = replace(ERASING, flip=0.0, crop="none")(batch.images, generator)
        torch.testing.assert_close(result.images[:6], holes)
    other = AdversarialBatches(
        Loader(), brighter, augment=None, fraction=0.5, clean=True, domain=None, seed=3, role="b"
    )
    assert [r.indices.tolist() for r in other.epoch(0)] != [
        r.indices.tolist() for r in batches().epoch(0)
    ]
