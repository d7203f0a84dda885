"""ACT, HM, GOAT and free training by one process and by two, in float64.

Run by test_shared_defenses.py through torchrun. Each process first fits alone, on joint batches,
and then together with the other. It writes what differs, by case.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from reidguard.defenses import (
    ACT,
    GOAT,
    HM,
    CollapsePairs,
    FreeTraining,
    GuideSampling,
    RaiseHardness,
)
from reidguard.distributed import gather, join
from reidguard.objectives.defense import DefenseObjective
from reidguard.testing import small_dataset, small_model

# 9 images, of which one process has 6 and the other 3.
RUN = {"image_size": (32, 16), "identities": 3, "images_per_identity": 3, "steps": 4}
CASES = {
    "act": lambda: ACT(CollapsePairs(steps=3)),
    "act, statistics of the batch": lambda: ACT(
        CollapsePairs(steps=3), attack_mode="train", batch_norm="separate", awp=0.01
    ),
    "hm": lambda: HM(RaiseHardness(steps=3), adversarial=0.6),
    "hm, with clean images": lambda: HM(
        RaiseHardness(steps=3, hardness=0.5), clean=True, adversarial=0.4, attack_mode="train"
    ),
    "goat": lambda: GOAT(GuideSampling(steps=3)),
    "free": lambda: FreeTraining(replays=2),
    "free, with clean images": lambda: FreeTraining(
        replays=2, clean=True, adversarial=0.5, batch_norm="separate", awp=0.01
    ),
}


def fitted(defense, data):
    """Weights at the end; images, loss and gradients of each step."""
    steps = []
    call, step = DefenseObjective.__call__, torch.optim.Adam.step

    def objective(self, model, batch, *more):
        loss = call(self, model, batch, *more)
        images = gather(batch.images.detach(), batch.shard)
        steps.append(
            {"images": images, "labels": gather(batch.pids, batch.shard), "loss": loss.detach()}
        )
        return loss

    def update(self, *arguments):
        groups = self.param_groups
        gradients = [p.grad for g in groups for p in g["params"] if p.grad is not None]
        steps[-1]["gradient"] = torch.cat([g.flatten() for g in gradients])
        return step(self, *arguments)

    DefenseObjective.__call__, torch.optim.Adam.step = objective, update
    try:
        robust = defense.fit(small_model(4).double(), data, **RUN)
    finally:
        DefenseObjective.__call__, torch.optim.Adam.step = call, step
    weights = [t.double().flatten() for t in robust.state_dict().values()]
    return {"weights": torch.cat(weights), "steps": steps}


def compared(one, two):
    """How far two fits are apart; gradients and weights relative to their length."""
    pairs = list(zip(one["steps"], two["steps"], strict=True))
    moved = [(a["images"] - b["images"]).abs() > 1e-6 for a, b in pairs]
    with_gradient = [(a["gradient"], b["gradient"]) for a, b in pairs if "gradient" in a]
    return {
        "steps": len(with_gradient),
        "images": [len(a["images"]) for a, _ in pairs],
        "labels": all(torch.equal(a["labels"], b["labels"]) for a, b in pairs),
        "pixels": max(float(mask.double().mean()) for mask in moved),
        "loss": max(float((a["loss"] - b["loss"]).abs() / a["loss"].abs()) for a, b in pairs),
        "gradient": max(float((a - b).norm() / a.norm()) for a, b in with_gradient),
        "weights": float((one["weights"] - two["weights"]).norm() / one["weights"].norm()),
    }


def main():
    torch.set_num_threads(1)
    with small_dataset() as data:
        alone = {name: fitted(make(), data) for name, make in CASES.items()}
        with join() as together:
            result = {"size": together.size, "refusal": None}
            for name, make in CASES.items():
                shared = fitted(make(), data)
                result[name] = compared(alone[name], shared)
                high, low = shared["weights"].clone(), shared["weights"].clone()
                dist.all_reduce(high, dist.ReduceOp.MAX)
                dist.all_reduce(low, dist.ReduceOp.MIN)
                result[name]["bits"] = torch.equal(high, low)
            try:
                ACT(CollapsePairs(steps=1), adversarial=0.1).fit(small_model(4), data, **RUN)
            except ValueError as error:
                result["refusal"] = str(error)
            results = [None] * together.size
            dist.all_gather_object(results, result)
    if together.rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
