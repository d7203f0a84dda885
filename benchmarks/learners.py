"""Seconds and peak memory of one step, for every learner, beside the plain one.

Run: python benchmarks/learners.py. Needs REIDGUARD_WEIGHTS. A combinatorial attack learns on a
frozen OSNet x0.25 and on an IDE with resnet18, from 32 and 32 random images of 256×128. Learners
take turns in one process; the ratio is that of the medians. Memory is the peak of a process of its
own, less what it held before its first step.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import osnet, save
from speed import alternate

from reidguard.attacks import CombinatorialAttack
from reidguard.meta import LEARNERS
from reidguard.models import create_model, frozen
from reidguard.objectives import FeatureObjective, MisrankingTriplet, comparable_features
from reidguard.training import MISGD
from reidguard.types import ReIDBatch

NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")
MODELS = {
    "osnet_x0_25": osnet,
    "ide resnet18": lambda: create_model("ide", backbone="resnet18"),
}
LIMITS = {"first_order": (2.2, 2.2), "hessian_free": (3.3, 3.3), "maml": (5.5, 4.5)}


def batch(model, seed: int) -> ReIDBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (32, 3, 256, 128), generator=generator) / 255
    index = torch.arange(32)
    with torch.no_grad():
        clean = comparable_features(model, images)
    return ReIDBatch(images, index // 4, index, index, clean)


def steps(model) -> dict:
    """A function for each learner that takes one step."""
    train, test = batch(model, 0), batch(model, 1)
    objective = FeatureObjective(model, MisrankingTriplet())

    def make(name):
        attack, learner = CombinatorialAttack(), LEARNERS.create(name)
        optimizer = MISGD(attack.parameters(), lr=0.1 * attack.budget.eps, momentum=0.5)

        def step():
            learner.step(attack, objective, train, test, optimizer=optimizer)
            optimizer.step()
            attack.clip_parameters()

        return step

    return {name: make(name) for name in NAMES}


def peak() -> int:
    """Peak memory of this process in KiB (Linux; getrusage would inherit the caller's)."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmHWM:")[1].split()[0])


def memory(model_name: str, learner: str) -> None:
    """Print the growth of this process's peak over one step, in MiB."""
    model = MODELS[model_name]()
    with frozen(model):
        step = steps(model)[learner]
        Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak so far is forgotten
        before = peak()
        step()
        print(json.dumps({"mib": round((peak() - before) / 1024)}))


def measure(model_name: str, repeats: int) -> dict:
    model = MODELS[model_name]()
    with frozen(model):
        seconds = alternate(steps(model), repeats)
    rows = {}
    for name in NAMES:
        call = [sys.executable, __file__, "--memory", model_name, name]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        rows[name] = {
            "seconds": round(seconds[name], 3),
            "times_plain": round(seconds[name] / seconds["plain"], 2),
            **json.loads(done.stdout.splitlines()[-1]),
        }
    return {"model": model_name, "learners": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=("MODEL", "LEARNER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(*options.memory)
        return
    results = []
    for number, name in enumerate(MODELS):
        results.append(measure(name, options.repeats))
        for learner, row in results[-1]["learners"].items():
            limit = LIMITS.get(learner, (None, None))[number]
            told = "" if limit is None else f" (at most {limit})"
            print(
                f"{name:12s} {learner:12s} {row['seconds']:.2f} s, {row['times_plain']:.2f} times "
                f"plain{told}, {row['mib']} MiB",
                flush=True,
            )
        save("learners", {"step": results})


if __name__ == "__main__":
    main()
