"""Several processes find what one finds with the joint batch. See distributed_driver.py."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from reidguard.attacks import DeltaAttack
from reidguard.data import Augment, BatchLoader, load_dataset
from reidguard.distributed import World
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.types import BatchShard, InputSpec

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs torch with gloo"
)
LEARNERS = ("plain", "joint", "first_order", "hessian_free", "maml")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def found(work, studio_root):
    """What two processes of torchrun found: figures, and a fit."""
    (work / "run").mkdir()
    driver = str(Path(__file__).with_name("distributed_driver.py"))
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*call, driver, str(work / "out.json"), str(studio_root), str(work / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((work / "out.json").read_text("utf-8"))


CASES = [
    *(f"{attack} {name}" for attack in ("delta", "color", "combinatorial") for name in LEARNERS),
    *(f"defense {norms} {name}" for norms in ("shared", "separate") for name in LEARNERS),
    *(f"defense {r} perturbed {name}" for r in ("trades", "mart") for name in ("joint", "maml")),
    "defense in turns plain",
    "defense frozen plain",
    "defense frozen maml",
    "defense recomputed first_order",
    "reid mean",
    "reid sum",
    "gather transpose",
    "gather second",
    "average transpose",
    "average second",
    "delta, diverse",
    *(f"copies, look-ahead and small batches {name}" for name in ("joint", "maml")),
    *(f"over networks {name}" for name in ("triplet", "fia")),
]


@pytest.mark.parametrize("case", CASES)
def test_gradients_losses_and_statistics_are_those_of_the_joint_batch(case, found):
    # hessian_free divides the rounding of two gradients by a small number.
    assert found["differences"][case] < (1e-6 if "hessian_free" in case else 1e-10)


def test_all_cases_were_looked_at(found):
    assert found["size"] == 2
    assert sorted(found["differences"]) == sorted(CASES)


def test_a_fit_learns_the_same_in_all_processes(found, studio_root):
    fit = found["fit"]
    assert fit["bits"]
    assert fit["moved"] > 0
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=2), torch.nn.Tanh(), torch.nn.Flatten()
    )
    model = wrap_model(network, input_spec=InputSpec(size=(32, 16)), metric="euclidean")
    data = load_dataset("virtual", studio_root)
    alone = DeltaAttack(size=(32, 16))
    alone.fit(
        model,
        data,
        data,
        learner="maml",
        steps=6,
        identities=3,
        images_per_identity=3,
        image_size=(32, 16),
    )
    assert fit["facts"] == json.loads(json.dumps(alone.provenance))
    # Single pixels may turn the other way where the sum of gradients is zero up to rounding.
    off = (alone.delta.detach().flatten() - torch.tensor(fit["delta"])).abs() > 1e-6
    assert off.float().mean() < 0.01


def test_one_process_writes_and_tells(found):
    fit = found["fit"]
    assert fit["reports"][0] > 0
    assert fit["reports"][1] == 0
    assert fit["files"] == ["checkpoint"]
    assert fit["resumed_tells"] == [2, 3, 4, 5, 6]


def test_processes_at_different_things_are_refused(found):
    assert found["fit"]["refusal"].startswith(
        "the processes have different settings (model: 0 in process 0, 1 in process 1)"
    )


def test_loaders_share_the_joint_batch(studio):
    options = {"image_size": (32, 16), "identities": 3, "images_per_identity": 2, "seed": 5}

    def first(world=None):
        loader = BatchLoader(studio, augment=Augment(), world=world, **options)
        return next(loader.epoch(1, 1))

    joint, shares = first(), [first(World(rank, 2)) for rank in range(2)]
    rows = torch.cat([s.shard.rows for s in shares])
    assert rows.sort().values.tolist() == list(range(6))
    assert [len(s) for s in shares] == [4, 2]
    for name in ("images", "pids", "camids", "indices"):
        values = torch.cat([getattr(s, name) for s in shares])
        assert torch.equal(getattr(joint, name)[rows], values), name
    assert not set(shares[0].pids.tolist()) & set(shares[1].pids.tolist())
    assert joint.shard is None
    assert replace(shares[0]).to("cpu").shard.total == 6


def test_more_processes_than_identities_are_refused(studio):
    data = studio
    with pytest.raises(InputError, match="3 identities cannot be divided among 4"):
        BatchLoader(data, identities=3, world=World(0, 4))


def test_the_share_of_what_was_chosen():
    shares = [BatchShard(torch.tensor([0, 1, 4, 5]), 7), BatchShard(torch.tensor([2, 3, 6]), 7)]
    chosen = torch.tensor([1, 2, 5, 6])
    parts = [share.choose(chosen) for share in shares]
    assert [here.tolist() for here, _ in parts] == [[1, 3], [0, 2]]
    assert [of.rows.tolist() for _, of in parts] == [[0, 2], [1, 3]]
    both = shares[1].followed_by(parts[1][1])
    assert (both.rows.tolist(), both.total) == ([2, 3, 6, 8, 10], 11)
