"""Two processes make of a model what one makes of it: ACT, HM, GOAT and free training.

See shared_defenses_driver.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from reidguard.defenses.batches import Choice, _whole_triplets
from reidguard.distributed import World
from reidguard.errors import InputError

CASES = (
    "act",
    "act, statistics of the batch",
    "hm",
    "hm, with clean images",
    "goat",
    "free",
    "free, with clean images",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What differs between one process and two, as each of the two sees it."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("needs torch with gloo")
    out = tmp_path_factory.mktemp("shared") / "out.json"
    driver = str(Path(__file__).with_name("shared_defenses_driver.py"))
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*call, driver, str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text("utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_images_gradients_and_weights_are_those_of_one_process(case, results):
    assert [result["size"] for result in results] == [2, 2]
    for result in results:
        found = result[case]
        assert found["steps"] == 4
        assert found["labels"]
        assert found["pixels"] == 0
        assert found["loss"] < 1e-9
        assert found["gradient"] < 1e-9
        assert found["weights"] < 1e-9  # running statistics included
        assert found["bits"]  # all processes have the same


@pytest.mark.slow
def test_too_few_triplets_are_refused_by_all_processes(results):
    for result in results:
        assert "1 triplets cannot be divided among 2 processes" in result["refusal"]


def test_processes_divide_whole_triplets():
    """Five triplets of three images: rows t, 5 + t and 10 + t belong together."""
    choice = Choice(torch.arange(15), torch.arange(15).view(3, 5).T)
    shards = [_whole_triplets(choice, World(rank, 2)) for rank in range(2)]
    assert [shard.rows.tolist() for shard in shards] == [
        [0, 1, 2, 5, 6, 7, 10, 11, 12],
        [3, 4, 8, 9, 13, 14],
    ]
    assert [shard.total for shard in shards] == [15, 15]
    with pytest.raises(InputError, match="5 triplets cannot be divided among 6"):
        _whole_triplets(choice, World(0, 6))
