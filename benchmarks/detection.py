"""AUC of detection scores of OSNet x0.25 on Market-1501, under attacks with and without adaptation.

Run: python benchmarks/detection.py [--query-every 32] [--steps 15] [--weight 0.01 0.05 0.2].
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder of clean features.
ε = 8/255. The patterns use neither model nor data. The adaptive attack knows all scores at once,
and then, with the default weight, one score at a time: a detector of that score alone.
"""

import argparse
import os
import time

from common import market, osnet, save

from reidguard import SMA, AdaptiveSMA, FeatureStore, detection_scores, fixed_patterns
from reidguard.detection import DETECTION_SCORES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query-every", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--weight", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    args = parser.parse_args()
    data, model, store = market(), osnet(), FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    patterns = fixed_patterns()
    attacks = {name: patterns[name] for name in ("vertical stripes of 8", "gabor noise of 32")}
    attacks["SMA"] = SMA(steps=args.steps)
    for weight in args.weight:
        attacks[f"adaptive, weight {weight:g}"] = AdaptiveSMA(steps=args.steps, weight=weight)

    def measure(attacks, scores=None):
        result = detection_scores(
            model, data, attacks, scores=scores, store=store, query_every=args.query_every
        )
        print(result.to_markdown(), flush=True)
        return result

    clock = time.process_time()
    result = measure(attacks)
    content = result.to_dict()
    own = AdaptiveSMA(steps=args.steps)
    alone = {}
    for name in result.names:
        single = measure({"adaptive": own}, {name: DETECTION_SCORES.create(name)}).to_dict()
        alone[name] = {"auc": single["auc"]["adaptive"][name], **single["rankings"]["adaptive"]}
    save(
        "detection",
        {
            "query_every": args.query_every,
            "queries": len(result.clean_scores),
            "steps": args.steps,
            "cpu_seconds": round(time.process_time() - clock, 1),
            **{name: content[name] for name in ("auc", "rankings", "attacks")},
            "alone": {"weight": own.weight, "scores": alone},
        },
        data,
    )


if __name__ == "__main__":
    main()
