"""One of the two processes of gpu.py's last section; started by torchrun."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import torch
from common import RESULTS  # puts the repository's root on the path

from benchmarks.gpu_setup import Setup, attack_objective, batch_of, combinatorial, on, seconds_of
from reidguard.distributed import join
from reidguard.learners import LEARNERS
from reidguard.training import MISGD
from reidguard.types import BatchShard, ReIDBatch

EACH = 4


def shard_of(batch: ReIDBatch, rank: int) -> ReIDBatch:
    """Return the identities of one of two processes, all images of each."""
    rows = (batch.pids % 2 == rank).nonzero().flatten()
    parts = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, **parts, shard=BatchShard(rows, len(batch)))


def main() -> None:
    kind = sys.argv[1]
    setup = Setup(kind, "--small" in sys.argv, 0)
    rank = int(os.environ["RANK"])
    device = f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else "cpu"
    with join(device):
        result = {"ok": True, "difference": {}, "two_s / one_s": {}}
        objective = attack_objective(on(setup.model(), device, torch.float64))
        for learner in ("plain", "first_order", "maml"):
            attack = on(combinatorial(setup), device, torch.float64)
            optimizer = MISGD(attack.parameters(), lr=0.8 / 255, momentum=0.5)
            joint = [batch_of(setup.images(32, s).double(), EACH, device) for s in (1, 2)]
            own = [shard_of(batch, rank) for batch in joint]
            made = LEARNERS.create(learner)
            seconds, gradients = [], []
            for batches in (joint, own):

                def step(batches=batches, made=made, attack=attack, optimizer=optimizer):
                    made.step(attack, objective, *batches, optimizer=optimizer)

                step()
                gradients.append(torch.cat([p.grad.flatten() for p in attack.parameters()]))
                seconds.append(seconds_of(step, kind))
            one, two = gradients
            apart = float((two - one).norm() / one.norm())
            result["difference"][learner] = apart
            result["two_s / one_s"][learner] = round(seconds[1] / seconds[0], 2)
            result["ok"] &= apart <= 1e-8
    if rank == 0:
        print(json.dumps(result))


if __name__ == "__main__":
    assert RESULTS.is_dir()
    main()
