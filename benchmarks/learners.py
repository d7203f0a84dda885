"""Seconds and peak memory of one step, for every learner, beside the plain one.

Run: python benchmarks/learners.py. Needs REIDGUARD_WEIGHTS. A combinatorial attack learns on a
frozen OSNet x0.25 and on an IDE with resnet18, from 32 and 32 random images of 256×128; and the IDE
itself learns (a defense, the paper's Table 19) from 32 clean and 16 adversarial ones of each.
Learners take turns in one process; the ratio is that of the medians. Memory is the peak of a
process of its own, less what it held before its first step. --only runs some of the cases and
leaves the others' figures as they are.
"""

import argparse
import copy
import json
import subprocess
import sys
from pathlib import Path

import torch
from common import RESULTS, commit, osnet, save
from speed import alternate

from reidguard.attacks import CombinatorialAttack
from reidguard.learners import LEARNERS
from reidguard.models import create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet, normalized_features
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.training import MISGD
from reidguard.types import ReIDBatch

NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")
PEOPLE = {"real": 751, "virtual": 100}
CASES = {
    "attack, osnet_x0_25": osnet,
    "attack, ide resnet18": lambda: create_model("ide", backbone="resnet18"),
    "defense, ide resnet18": lambda: create_model("ide", backbone="resnet18", num_classes=PEOPLE),
}
LIMITS = {"first_order": (2.2, 2.2, 2.2), "hessian_free": (3.3, 3.3, 3.3), "maml": (5.5, 4.5, 4.5)}


def batch(model, seed: int) -> ReIDBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (32, 3, 256, 128), generator=generator) / 255
    index = torch.arange(32)
    with torch.no_grad():
        clean = normalized_features(model, images)
    return ReIDBatch(images, index // 4, index, index, clean)


def defense_batch(domain: str, seed: int) -> DefenseBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (48, 3, 256, 128), generator=generator) / 255
    index = torch.cat((torch.arange(32), torch.arange(0, 32, 2)))
    return DefenseBatch(images, index // 4, index, index, domain=domain, adversarial=16)


def defense_steps(model) -> dict:
    """A function for each learner that takes one step of a defense; each has its own copy."""
    train, test = (defense_batch(domain, seed) for seed, domain in enumerate(PEOPLE))
    objective = DefenseObjective()

    def make(name):
        own = copy.deepcopy(model).train()
        inner = {} if name in ("plain", "joint") else {"inner": "sgd"}
        learner = LEARNERS.create(name, **inner)
        optimizer = torch.optim.Adam(own.parameters(), lr=3e-4)

        def step():
            learner.step(own, objective, train, test, optimizer=optimizer)
            optimizer.step()

        return step

    return {name: make(name) for name in NAMES}


def steps(model) -> dict:
    """A function for each learner that takes one step of an attack."""
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


def prepared(case: str) -> dict:
    """The steps of a case."""
    model = CASES[case]()
    return defense_steps(model) if case.startswith("defense") else steps(inference_view(model))


def memory(case: str, learner: str) -> None:
    """Print the growth of this process's peak over one step, in MiB."""
    step = prepared(case)[learner]
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak so far is forgotten
    before = peak()
    step()
    print(json.dumps({"mib": round((peak() - before) / 1024)}))


def measure(case: str, repeats: int) -> dict:
    seconds = alternate(prepared(case), repeats)
    rows = {}
    for name in NAMES:
        call = [sys.executable, __file__, "--memory", case, name]
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        rows[name] = {
            "seconds": round(seconds[name], 3),
            "times_plain": round(seconds[name] / seconds["plain"], 2),
            **json.loads(done.stdout.splitlines()[-1]),
        }
    return {"model": case, "learners": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "LEARNER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        memory(*options.memory)
        return
    path = RESULTS / "learners.json"
    known = json.loads(path.read_text("utf-8"))["step"] if path.exists() else []
    found = {row["model"]: row for row in known if row["model"] in CASES}
    for number, case in enumerate(CASES):
        if case not in options.only:
            continue
        found[case] = {**measure(case, options.repeats), "commit": commit()}
        for learner, row in found[case]["learners"].items():
            limit = LIMITS[learner][number] if learner in LIMITS else None
            suffix = "" if limit is None else f" (at most {limit})"
            print(
                f"{case:22s} {learner:12s} {row['seconds']:.2f} s, {row['times_plain']:.2f} times "
                f"plain{suffix}, {row['mib']} MiB",
                flush=True,
            )
        save("learners", {"step": [found[case] for case in CASES if case in found]})


if __name__ == "__main__":
    main()
