from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reidguard.data import PKSampler
from reidguard.errors import DataError, InputError


@st.composite
def settings_and_pids(draw):
    p = draw(st.integers(1, 6))
    k = draw(st.integers(1, 6))
    sizes = draw(st.lists(st.integers(1, 40), min_size=p, max_size=25))
    names = draw(st.lists(st.integers(0, 9999), min_size=len(sizes), max_size=99, unique=True))
    pids = [pid for pid, size in zip(names, sizes, strict=False) for _ in range(size)]
    return draw(st.permutations(pids)), p, k, draw(st.integers(0, 2**40)), draw(st.integers(0, 99))


def longest_epoch(groups: list[int], p: int) -> int:
    """Most batches of p different identities, by taking the p with most groups left each time."""
    left = sorted(groups, reverse=True)
    count = 0
    while len(left) >= p and left[p - 1] > 0:
        left = sorted([g - 1 for g in left[:p]] + left[p:], reverse=True)
        count += 1
    return count


@given(settings_and_pids())
@settings(max_examples=150, deadline=None)
def test_every_promise_of_the_docstring(case):
    pids, p, k, seed, number = case
    sampler = PKSampler(pids, p, k, seed)
    batches = sampler.epoch(number)
    sizes = Counter(pids)
    groups = {pid: max(1, size // k) for pid, size in sizes.items()}

    assert len(batches) == len(sampler) == longest_epoch(list(groups.values()), p) >= 1

    given_groups: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    for batch in batches:
        assert batch.dtype == np.int64
        assert batch.shape == (p * k,)
        people = []
        for group in batch.reshape(p, k):
            (person,) = {pids[i] for i in group}
            people.append(person)
            repeats = Counter(group.tolist())
            if sizes[person] >= k:
                assert len(repeats) == k
            else:
                assert len(repeats) == sizes[person]
                assert max(repeats.values()) - min(repeats.values()) <= 1
        assert len(set(people)) == p
        given_groups.update(people)
        seen.update(batch.tolist())

    for i, count in seen.items():
        if sizes[pids[i]] >= k:
            assert count == 1
    offered = {pid: min(g, len(sampler)) for pid, g in groups.items()}
    resting = {pid: offered[pid] - given_groups[pid] for pid in groups}
    assert all(rest >= 0 for rest in resting.values())
    assert sum(resting.values()) <= p - 1


@given(settings_and_pids())
@settings(max_examples=30, deadline=None)
def test_an_epoch_depends_on_seed_and_number_only(case):
    pids, p, k, seed, number = case
    used = PKSampler(pids, p, k, seed)
    used.epoch(number + 1)
    fresh = PKSampler(np.array(pids), p, k, seed)
    for one, two in zip(used.epoch(number), fresh.epoch(number), strict=True):
        assert np.array_equal(one, two)


PIDS = np.repeat(np.arange(40), np.arange(40) + 2)


def test_epochs_and_seeds_differ():
    def order(seed: int, number: int) -> tuple[int, ...]:
        return tuple(np.concatenate(PKSampler(PIDS, 4, 4, seed).epoch(number)))

    assert len({order(seed, number) for seed in range(4) for number in range(4)}) == 16


def test_over_epochs_everything_is_drawn_in_proportion():
    sampler = PKSampler(PIDS, 4, 4, seed=1)
    epochs = 200
    seen = np.bincount(
        np.concatenate([i for n in range(epochs) for i in sampler.epoch(n)]), minlength=len(PIDS)
    )
    assert (seen > 0).all()  # leftovers are others in every epoch
    sizes = np.bincount(PIDS)
    per_epoch = np.bincount(PIDS, weights=seen) / epochs
    expected = 4 * np.maximum(1, sizes // 4)
    # up to 3 of 190 groups rest in an epoch, any of them
    assert np.all(per_epoch <= expected)
    assert np.all(per_epoch >= 0.93 * expected)
    # within one identity no image is preferred
    for pid in (10, 25, 38):
        counts = seen[pid == PIDS]
        assert counts.std() < 4 * np.sqrt(counts.mean())


def test_large_identities_are_spread_over_the_epoch():
    sampler = PKSampler(PIDS, 4, 4, seed=0)
    places = [
        np.mean([b for b, batch in enumerate(sampler.epoch(n)) if (PIDS[batch] == 39).any()])
        for n in range(50)
    ]
    middle = (len(sampler) - 1) / 2
    assert abs(np.mean(places) - middle) < 0.1 * len(sampler)


def test_one_dominant_person_cannot_fill_batches_alone():
    pids = [1] * 1000 + [2] * 8 + [3] * 8
    sampler = PKSampler(pids, identities=2, images_per_identity=4)
    assert len(sampler) == 4  # persons 2 and 3 offer four groups in all
    for batch in sampler.epoch(0):
        assert len({pids[i] for i in batch}) == 2


def test_too_few_people_names_the_cure():
    with pytest.raises(DataError, match="lower identities to 3"):
        PKSampler([1, 2, 3, 3], identities=4)
    with pytest.raises(DataError, match="has 0; add training images"):
        PKSampler([])


@pytest.mark.parametrize("wrong", [{"identities": 0}, {"images_per_identity": 0}, {"seed": -1}])
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(InputError):
        PKSampler([1, 2], **wrong)
    with pytest.raises(InputError, match=r"number must be .* at least 0"):
        PKSampler([1, 2], 2, 1).epoch(-1)


def test_the_real_training_set(market):
    sampler = PKSampler([s.pid for s in market.train])
    assert len(sampler) == len(sampler.epoch(3)) == 176
