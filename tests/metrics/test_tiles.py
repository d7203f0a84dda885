"""Counts of keys up to edges, against Python loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reidguard.metrics import tiles


def loops(tile, edges):
    counts, inside = [], []
    for row, (keys, bounds) in enumerate(zip(tile.tolist(), edges.tolist(), strict=True)):
        counts.append([sum(key <= bound for key in keys) for bound in bounds])
        for column, key in enumerate(keys):
            pairs = zip(bounds[::2], bounds[1::2], strict=True)
            inside += [(row, column) for low, high in pairs if low < key <= high]
    return counts, sorted(inside)


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 150),
    columns=st.integers(1, 40),
    matches=st.integers(1, 5),
    spread=st.sampled_from([1e-3, 1, 1e30]),  # with few distinct keys: on the edges, too
)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("function", [tiles.by_sorting, tiles.by_searching])
def test_equals_loops(function, seed, rows, columns, matches, spread):
    rng = np.random.default_rng(seed)
    tile = torch.from_numpy(rng.integers(-4, 5, (rows, columns)) * np.float32(spread)).float()
    tile = torch.where(torch.rand(tile.shape) < 0.2, -tile, tile)  # -0.0 as well as 0.0
    edges = torch.from_numpy(rng.integers(-9, 10, (rows, 2 * matches)) / 2 * spread).float()
    edges = edges.sort(1).values
    counts, row, column = function(tile, edges)
    expected, inside = loops(tile, edges)
    assert counts.tolist() == expected
    assert sorted(zip(row.tolist(), column.tolist(), strict=True)) == inside
    assert row.tolist() == sorted(row.tolist())


def test_threads_change_nothing():
    g = torch.Generator().manual_seed(0)
    tile = torch.randn(300, 500, generator=g)
    edges = torch.randn(300, 6, generator=g).sort(1).values
    one = tiles.by_sorting(tile, edges)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        three = tiles.by_sorting(tile, edges, torch.empty(300 * 500 + 7))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
    assert len(one[1]) > 0
