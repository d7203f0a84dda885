"""Counts of keys around bands, against Python loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidguard.metrics import near_keys, tiles


def by_sorting(tile, edges):
    return tiles.Bands(edges, tile.shape[1]).count(tile)


def by_gathering(tile, edges, step=8):
    """In tiles of ``step`` columns."""
    keys = near_keys.NearKeys(edges, step)
    counts = []
    for first in range(0, tile.shape[1], step):
        if keys.full(min(first + step, tile.shape[1])):
            counts.append(keys.count())
        assert keys.add(tile[:, first : first + step].contiguous(), first)
    counts.append(keys.count())
    before, through, rows, columns = zip(*counts, strict=True)
    rows, columns = torch.cat(rows), torch.cat(columns)
    order = rows.argsort(stable=True)
    return sum(before), sum(through), rows[order], columns[order]


def check(tile, edges, found, slack):
    """Compare with loops; ``slack`` is how far outside a band a key inside it may be."""
    before, through, rows, cols = (part.tolist() for part in found)
    assert rows == sorted(rows)
    listed = set(zip(rows, cols, strict=True))
    assert len(listed) == len(rows)
    for row, (keys, bounds) in enumerate(zip(tile.tolist(), edges.tolist(), strict=True)):
        bands = [band for band in zip(bounds[::2], bounds[1::2], strict=True) if band[0] < np.inf]
        span = slack * (bands[-1][1] - bands[0][0]) if bands else 0
        inside = {column for r, column in listed if r == row}
        for column, key in enumerate(keys):
            if any(low < key <= high for low, high in bands):
                assert column in inside
            if column in inside:
                assert any(low - span <= key <= high + span for low, high in bands)
        others = sorted(key for column, key in enumerate(keys) if column not in inside)
        number = 0  # of keys inside a band, so far
        for band, (low, _) in enumerate(bands):
            assert before[row][band] == sum(key <= low for key in others) + number
            number += through[row][band] - before[row][band]
        assert number == len(inside)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 150),
    columns=st.integers(1, 40),
    matches=st.integers(1, 5),
    spread=st.sampled_from([1e-3, 1, 1e30]),  # with few distinct keys: on the edges, too
    wide=st.booleans(),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("function", [by_sorting, tiles.by_searching])
def test_equals_loops(function, seed, rows, columns, matches, spread, wide):
    rng = np.random.default_rng(seed)
    tile = torch.from_numpy(rng.integers(-4, 5, (rows, columns)) * np.float32(spread)).float()
    tile = torch.where(torch.from_numpy(rng.random(tile.shape)) < 0.2, -tile, tile)  # -0.0, too
    if wide:
        tile[:, 0] = 1e38  # of an image that is left out
    edges = torch.from_numpy(rng.integers(-9, 10, (rows, 2 * matches)) / 2 * spread).float()
    edges = edges.sort(1).values
    edges[0, 2:] = edges[-1] = torch.inf  # rows with fewer matches, and without any
    check(tile, edges, function(tile, edges), 2 / tiles.LEVELS)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 60),
    columns=st.integers(1, 40),
    matches=st.integers(1, 5),
    full=st.sampled_from([1, 50, 10**6]),
    span=st.sampled_from([8, 16, near_keys.COLUMNS]),
    threads=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_near_keys_equal_loops(seed, rows, columns, matches, full, span, threads):
    """However often they are counted; the last column of the span is one like all others."""
    rng = np.random.default_rng(seed)
    tile = torch.from_numpy(rng.integers(-4, 5, (rows, columns))).float()
    tile = torch.where(torch.from_numpy(rng.random(tile.shape)) < 0.2, -tile, tile)  # -0.0, too
    edges = torch.from_numpy(rng.integers(-9, 10, (rows, 2 * matches)) / 2).float().sort(1).values
    edges = torch.where(edges == 0, -edges, edges)  # -0.0 equals keys of 0.0
    edges[0, 2:] = edges[-1] = torch.inf
    set_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_keys, "FEW", 1.0)
        patch.setattr(near_keys, "FULL", full)
        patch.setattr(near_keys, "COLUMNS", span)
        torch.set_num_threads(threads)
        try:
            found = by_gathering(tile, edges)
        finally:
            torch.set_num_threads(set_threads)
    check(tile, edges, found, 0)


def test_near_keys_leave_a_tile_with_many_of_them():
    tile = torch.linspace(0, 1, 64).repeat(3, 1)
    few, many = (torch.tensor([[edge - 0.01, edge]]).repeat(3, 1) for edge in (0.1, 0.5))
    assert near_keys.NearKeys(few, 64).add(tile, 0)
    keys = near_keys.NearKeys(many, 64)
    assert not keys.add(tile, 0)
    assert not keys.full(near_keys.COLUMNS + 1)  # nothing to count, wherever the next tile ends
    before, through, rows, _ = keys.count()
    assert not before.any()
    assert not through.any()
    assert len(rows) == 0


@pytest.mark.parametrize("columns", [511, 512, 513, 1300])
def test_several_segments(columns):
    g = torch.Generator().manual_seed(columns)
    tile, middle = torch.randn(20, columns, generator=g), torch.randn(20, 7, generator=g)
    tile[:, 40:60] = tile[:, 39:40]  # many keys in one band
    middle[:, 0] = tile[:, 39]
    middle = middle.sort(1).values
    edges = torch.stack([middle - 1e-3, middle + 1e-3], 2)
    edges[:, :-1, 1] = torch.minimum(edges[:, :-1, 1], edges[:, 1:, 0])
    edges = edges.flatten(1)
    bands = tiles.Bands(edges, 1400)
    check(tile, edges, bands.count(tile), 2 / tiles.LEVELS)
    short = tile[:, :100].contiguous()
    check(short, edges, bands.count(short), 2 / tiles.LEVELS)


def test_threads_change_nothing():
    g = torch.Generator().manual_seed(0)
    tile = torch.randn(300, 500, generator=g)
    edges = torch.randn(300, 6, generator=g).sort(1).values
    one = by_sorting(tile, edges)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = by_sorting(tile, edges)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    assert len(one[2]) > 0
