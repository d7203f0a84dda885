"""Certified rank-k of OSNet x0.25 on Market-1501 by randomised smoothing, for several σ.

Run: python benchmarks/certificates.py [--query-every 64] [--draws 200]. Needs REIDGUARD_DATA and
REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder in which clean features are kept. The published
weights have never seen noise, so this is the certificate of a plain model.
"""

import argparse
import os
import time

from common import market, osnet, save

from reidguard import FeatureStore, certify

SIGMAS = (0.05, 0.1, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query-every", type=int, default=64)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--alpha", type=float, default=0.001)
    args = parser.parse_args()
    data, model, store = market(), osnet(), FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    rows = []
    for sigma in SIGMAS:
        clock = time.process_time()
        result = certify(
            model,
            data,
            store=store,
            sigma=sigma,
            radius=sigma,
            draws=args.draws,
            alpha=args.alpha,
            query_every=args.query_every,
        )
        content = result.to_dict()
        rows.append(
            {
                **{key: content[key] for key in ("certified", "smoothed", "abstained", "curve")},
                "clean": {f"rank_{k}": result.clean.rank_k(k) for k in result.ranks},
                "median_radius": float(result.radii[:, 0].median()),
                "cpu_seconds": round(time.process_time() - clock, 1),
            }
        )
        print(result.to_markdown(), flush=True)
    settings = {"query_every": args.query_every, "draws": args.draws, "alpha": args.alpha}
    save("certificates", {**settings, "queries": len(result.names), "rows": rows}, data)


if __name__ == "__main__":
    main()
