"""AUC of detection scores of OSNet x0.25 on Market-1501, under attacks with and without adaptation.

Run: python benchmarks/detection.py [--query-every 64] [--steps 15] [--weight 0.02 0.05].
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder of clean features.
ε = 8/255. The patterns use neither model nor data; the adaptive attack knows all scores at once.
"""

import argparse
import os
import time

from common import market, osnet, save

from reidguard import SMA, AdaptiveSMA, FeatureStore, detection_scores, fixed_patterns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query-every", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--weight", type=float, nargs="+", default=[AdaptiveSMA().weight])
    args = parser.parse_args()
    data, model, store = market(), osnet(), FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    patterns = fixed_patterns()
    attacks = {name: patterns[name] for name in ("vertical stripes of 8", "gabor noise of 32")}
    attacks["SMA"] = SMA(steps=args.steps)
    for weight in args.weight:
        attacks[f"adaptive, weight {weight:g}"] = AdaptiveSMA(steps=args.steps, weight=weight)
    clock = time.process_time()
    result = detection_scores(model, data, attacks, store=store, query_every=args.query_every)
    content = result.to_dict()
    print(result.to_markdown(), flush=True)
    save(
        "detection",
        {
            "query_every": args.query_every,
            "queries": len(result.clean_scores),
            "steps": args.steps,
            "cpu_seconds": round(time.process_time() - clock, 1),
            **{name: content[name] for name in ("auc", "rankings", "attacks")},
        },
        data,
    )


if __name__ == "__main__":
    main()
