"""``benchmarks/hardening.py``: its methods, and what it makes of values over restarts and seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from reidguard.defenses import Defense
from reidguard.options import DefenseOptions
from reidguard.schema import resolve

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import hardening

    yield hardening
    for name in ("hardening", "attacks", "common", "page"):
        sys.modules.pop(name, None)


def test_every_method_is_a_defense_with_valid_options(benchmark):
    attack = benchmark.FAMILIES["delta"]()
    torch.nn.init.constant_(attack.delta, 0.01)
    slugs = set()
    for name, method in benchmark.METHODS.items():
        slugs.add(benchmark.slug(name))
        if method is not None:
            make, _ = method
            assert isinstance(make(attack), Defense)
            resolve(DefenseOptions, benchmark.options_of_fit(name))
    assert len(slugs) == len(benchmark.METHODS)


def values(precision):
    return {"mAP": precision, "rank1": precision + 10}


def test_the_worst_restart_counts(benchmark):
    known = {"method": "trades", "seed": 0, "clean": values(70.0), "SMA": values(3.0)}
    for k, family in enumerate(benchmark.FAMILIES):
        known |= {f"{family}, adaptive {r}": values(20.0 + k - r) for r in range(2)}
    found = benchmark.worst(known)
    assert found["blocks, adaptive"] == values(20.0)
    assert found["universal"] == found["delta, adaptive"] == values(19.0)
    assert found["clean"] == values(70.0)


def test_the_page_has_a_row_for_each_method(benchmark, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import page

    rows = []
    for seed, precision in enumerate((10.0, 14.0)):
        known = {"method": "act", "seed": seed, "clean": values(precision), "commit": "x"}
        rows.append({**known, "processor_seconds_per_step": 1.5})
    summary = benchmark.summary([*rows, {"method": "normal", "seed": 0, "clean": values(80.0)}])
    assert [line["method"] for line in summary] == ["normal", "act"]
    assert summary[1]["clean mAP"] == [12.0, 2.83]
    text = "\n".join(page.hardening({"setting": "A", "query_every": 8, "summary": summary}))
    assert "act,2,1.5,12.0 ± 2.8 / 22.0 ± 2.8" in text
