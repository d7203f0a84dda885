"""The attacks on real data: OSNet x0.25 on Market-1501, 100 steps of 32 training images.

Run: python benchmarks/attacks.py [--seeds 0 1 2] [--query-every 1] [--only delta ...]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder in which clean features
are kept for the next run. Rows that results/NAME.json has already are not run
again, so a run that was stopped goes on; --fresh starts anew.
"""

import argparse
import json
import os
import statistics
import time

import torch
from common import RESULTS, commit, market, osnet, save

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.data import iterate_images
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.types import Budget

EIGHT, SIXTEEN = Budget(8 / 255), Budget(16 / 255)
STEPS, BATCH = 100, {"identities": 8, "images_per_identity": 4}

ATTACKS = {
    "delta": lambda: DeltaAttack(EIGHT),
    "color": lambda: ColorAttack(EIGHT),
    "combinatorial, joint": lambda: CombinatorialAttack(EIGHT),
    "combinatorial, stacked (2ε = 16/255)": lambda: CombinatorialAttack(EIGHT, stacked=True),
    "delta, ε = 16/255": lambda: DeltaAttack(SIXTEEN),
}


def shares(result) -> dict:
    return {
        "mAP": round(100 * result.ranking.mAP, 2),
        "rank1": round(100 * result.ranking.rank_k(1), 2),
        "mINP": round(100 * result.ranking.mINP, 2),
        "linf_levels": round(255 * result.linf, 4),
        "ssim": round(result.ssim, 4),
    }


def row(name: str, make, seed: int, model, dataset, store, query_every: int, **fit) -> dict:
    """Learn one attack and measure it."""
    attack = make()
    began = time.perf_counter()
    attack.fit(model, dataset, steps=STEPS, seed=seed, **{**BATCH, **fit})
    seconds = (time.perf_counter() - began) / STEPS
    result = evaluate(model, dataset, attack, store=store, query_every=query_every)
    figures = {
        "attack": name,
        "seed": seed,
        "commit": commit(),
        "float": shares(result.attacked),
        "8bit": shares(result.attacked_8bit),
        "seconds_per_step": round(seconds, 3),
    }
    if hasattr(attack, "stage_sizes"):
        _, pixels = next(iterate_images(dataset.query[:64], (256, 128), 64))
        sizes = attack.stage_sizes(pixels.float() / 255)
        figures["mean_levels"] = {
            "color": round(255 * sizes[0], 2),
            "delta": round(255 * sizes[1], 2),
        }
    return figures


def run(name: str, attacks: dict, options) -> None:
    """Run every attack with every seed, saving after each."""
    torch.set_num_threads(options.threads)
    model, dataset = osnet(), market()
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    path = RESULTS / f"{name}.json"
    rows = [] if options.fresh or not path.exists() else json.loads(path.read_text("utf-8"))["rows"]
    known = {(r["attack"], r["seed"]) for r in rows}
    clean = evaluate(model, dataset, store=store, query_every=options.query_every).clean
    setting = {
        "setting": f"OSNet x0.25, Market-1501, {STEPS} steps of {BATCH}, Eq. 5",
        "query_every": options.query_every,
        "clean": {"mAP": round(100 * clean.mAP, 2), "rank1": round(100 * clean.rank_k(1), 2)},
    }
    print("clean", setting["clean"], flush=True)
    for label, (make, fit) in attacks.items():
        for seed in options.seeds:
            if (label, seed) not in known and (not options.only or label in options.only):
                arguments = (label, make, seed, model, dataset, store, options.query_every)
                rows.append(row(*arguments, **fit))
                print(rows[-1], flush=True)
                save(name, {**setting, "rows": rows, "summary": summary(rows)}, dataset)
    save(name, {**setting, "rows": rows, "summary": summary(rows)}, dataset)
    for line in table(rows):
        print(line)


def summary(rows) -> list[dict]:
    """Mean and sample standard deviation over seeds."""
    out = []
    for name in dict.fromkeys(r["attack"] for r in rows):
        mine = [r for r in rows if r["attack"] == name]
        figures = {"attack": name, "seeds": [r["seed"] for r in mine]}
        for kind in ("float", "8bit"):
            for key in ("mAP", "rank1"):
                values = [r[kind][key] for r in mine]
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                figures[f"{key}_{kind}"] = [round(statistics.mean(values), 2), round(spread, 2)]
            figures[f"linf_{kind}"] = max(r[kind]["linf_levels"] for r in mine)
        figures["seconds_per_step"] = round(
            statistics.median(r["seconds_per_step"] for r in mine), 3
        )
        out.append(figures)
    return out


def table(rows) -> list[str]:
    """The summary as Markdown."""
    lines = [
        "| attack | mAP | rank-1 | mAP 8-bit | rank-1 8-bit | L∞ | L∞ 8-bit | s/step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for s in summary(rows):
        cells = [
            f"{s[k][0]:.1f} ± {s[k][1]:.1f}"
            for k in ("mAP_float", "rank1_float", "mAP_8bit", "rank1_8bit")
        ]
        cells += [f"{s['linf_float']:.2f}", f"{s['linf_8bit']:.0f}", f"{s['seconds_per_step']:.2f}"]
        lines.append(f"| {s['attack']} | " + " | ".join(cells) + " |")
    return lines


def parser(description) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--query-every", type=int, default=1)
    made.add_argument("--only", nargs="+", help="attacks to run")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    return made


if __name__ == "__main__":
    run("attacks", {k: (make, {}) for k, make in ATTACKS.items()}, parser(__doc__).parse_args())
