"""All universal attacks after the same number of steps: OSNet x0.25 on Market-1501.

Run: python benchmarks/universal.py [--steps 100] [--query-every 8] [--seeds 0] [--only delta ...]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder in which clean features
are kept for the next run. Every attack learns from batches of 8 people × 4 images, with its own
optimiser and rate. MisRank's networks work at half the size of the images with half their usual
width: in full, a step takes most of a minute on one processor. Rows that results/universal.json has
already are not run again, so a run that was stopped goes on; --fresh starts anew.
"""

import json
import os
import time

import torch
from attacks import parser, shares, summary, table
from common import RESULTS, commit, market, osnet, save

from reidguard.attacks import create_attack
from reidguard.data import load_dataset
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.types import Budget

BATCH = {"identities": 8, "images_per_identity": 4}

PLAZA = {"meta_test": "virtual:plaza"}
NARROW = {"size": (128, 64), "width": 16}

# What it is called here: the attack, its options, and the arguments of fit.
ATTACKS = {
    "delta": ("delta", {}, {}),
    "color": ("color", {}, {}),
    "combinatorial": ("combinatorial", {}, {}),
    "uap, pair-wise": ("uap", {}, {"objective": "pairwise"}),
    "uap, label-wise": ("uap", {}, {"objective": "labelwise"}),
    "uap, list-wise": ("uap", {}, {"objective": "listwise"}),
    "uap w/ SMA": ("uap", {}, {"objective": "self_metric"}),
    "meta": ("meta", {}, PLAZA),
    "misrank, width 16 at 128x64": ("misrank", NARROW, {}),
    "misrank with virtual:plaza, width 16 at 128x64": (
        "misrank",
        NARROW,
        {"learner": "joint", **PLAZA},
    ),
}


def row(label, seed, steps, surrogate, model, dataset, store, query_every) -> dict:
    """Learn one attack and measure it."""
    name, options, given = ATTACKS[label]
    fit = {k: load_dataset(v) if k == "meta_test" else v for k, v in given.items()}
    attack = create_attack(name, budget=Budget(8 / 255), **options)
    began, learning = time.perf_counter(), []

    def clock(progress) -> None:
        if progress.phase == "learning":
            learning.append(time.perf_counter())

    work = time.process_time()
    attack.fit(surrogate, dataset, steps=steps, seed=seed, progress=clock, **BATCH, **fit)
    work = time.process_time() - work
    result = evaluate(model, dataset, attack, store=store, query_every=query_every)
    return {
        "attack": label,
        "seed": seed,
        "steps": steps,
        "commit": commit(),
        "float": shares(result.attacked),
        "8bit": shares(result.attacked_8bit),
        "seconds_before": round(learning[0] - began, 1),
        "seconds_per_step": round((learning[-1] - learning[0]) / steps, 3),
        "processor_seconds": round(work, 1),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=100)
    made.set_defaults(seeds=[0], query_every=8)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    dataset = market()
    model = osnet()
    # The label-wise loss and MisRank ask the classifier, which the published weights have. The
    # model without it is the one whose gallery features other benchmarks have kept.
    surrogate = osnet(num_classes=dataset.num_train_pids)
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    path = RESULTS / "universal.json"
    rows = []
    if path.exists() and not options.fresh:
        rows = json.loads(path.read_text("utf-8"))["rows"]
    done = {(r["attack"], r["seed"], r["steps"]) for r in rows}
    clean = evaluate(model, dataset, store=store, query_every=options.query_every).clean
    setting = {
        "setting": f"OSNet x0.25, Market-1501, ε = 8/255, batches of {BATCH}",
        "query_every": options.query_every,
        "clean": {"mAP": round(100 * clean.mAP, 2), "rank1": round(100 * clean.rank_k(1), 2)},
    }
    print("clean", setting["clean"], flush=True)
    steps = options.steps

    def same_steps() -> list[dict]:
        return [r for r in rows if r["steps"] == steps]

    for label in ATTACKS:
        for seed in options.seeds:
            if (label, seed, steps) in done or (options.only and label not in options.only):
                continue
            arguments = (label, seed, steps, surrogate, model, dataset, store)
            rows.append(row(*arguments, options.query_every))
            print(rows[-1], flush=True)
            figures = {"rows": rows, "summary": {"steps": steps, "of": summary(same_steps())}}
            save("universal", {**setting, **figures}, dataset)
    for line in table(same_steps()):
        print(line)


if __name__ == "__main__":
    main()
