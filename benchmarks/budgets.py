"""How much a larger budget harms: three attacks at ε = 1, 2, 4, 8, 12 and 16 grey levels.

Run: python benchmarks/budgets.py [--eps 1 2 4 8 12 16] [--seed 0] [--query-every 8]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder in which clean features
are kept for the next run. OSNet x0.25 on Market-1501. Delta and Color are learnt afresh for each ε,
100 steps of 8 people × 4 images; SMA, with adaptive
steps, works out every query on the model itself. Rows that
results/budgets.json has already are not run again.
"""

import argparse
import json
import os

import torch
from attacks import BATCH, STEPS, shares
from common import RESULTS, commit, market, osnet, save

from reidguard.attacks import SMA, ColorAttack, DeltaAttack
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.types import Budget

LEARNT = {"delta": DeltaAttack, "color": ColorAttack}
NAMES = (*LEARNT, "sma")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--eps", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "budgets.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    model, dataset = osnet(), market()
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    clean = evaluate(model, dataset, store=store, query_every=options.query_every).clean
    setting = {
        "setting": f"OSNet x0.25, Market-1501; delta and color: {STEPS} steps of {BATCH}, Eq. 5; "
        "sma: 15 adaptive steps on the model itself",
        "query_every": options.query_every,
        "clean": {"mAP": round(100 * clean.mAP, 2), "rank1": round(100 * clean.rank_k(1), 2)},
    }
    print("clean", setting["clean"], flush=True)
    for name in options.only:
        for eps in options.eps:
            key = {"attack": name, "eps": eps, "seed": options.seed}
            if any(key.items() <= row.items() for row in rows):
                continue
            budget = Budget(eps / 255)
            if name in LEARNT:
                attack = LEARNT[name](budget)
                attack.fit(model, dataset, steps=STEPS, seed=options.seed, **BATCH)
            else:
                attack = SMA(budget, step_size=None, seed=options.seed).bind(model)
            result = evaluate(model, dataset, attack, store=store, query_every=options.query_every)
            rows.append(
                {
                    **key,
                    "commit": commit(),
                    "float": shares(result.attacked),
                    "8bit": shares(result.attacked_8bit),
                }
            )
            print(rows[-1], flush=True)
            save("budgets", {**setting, "rows": rows}, dataset)
    for name in NAMES:
        mine = sorted((row for row in rows if row["attack"] == name), key=lambda row: row["eps"])
        texts = (f"{row['eps']}: {row['float']['mAP']}/{row['float']['rank1']}" for row in mine)
        print(name, ", ".join(texts))


if __name__ == "__main__":
    main()
