"""Re-ranking, mirror images and several images of a query: OSNet x0.25 on Market-1501.

Run: python benchmarks/protocols.py [--store DIR]. Every combination of the three, clean. Features
are extracted once for each of mirrored and not; with --store they are kept in DIR. Then the memory
of re-ranking random clusters, for galleries of 16,000 and 64,000 images: by how much the peak of
anonymous pages grows.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

from common import market, osnet, save
from galleries import Peak
from ranking import make

from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.metrics import Reranking, rank

GALLERIES, WIDTH = (16_000, 64_000), 512


def protocols(store: FeatureStore) -> tuple[list[dict[str, object]], object]:
    people, model, rows = market(), osnet(), []
    names = ("flip", "multi_query", "rerank")
    for values in itertools.product((False, True), repeat=3):
        chosen = dict(zip(names, values, strict=True))
        work = time.process_time()
        result = evaluate(model, people, None, Protocol(**chosen), store=store)
        rows.append(
            {
                **chosen,
                "mAP": round(100 * result.clean.mAP, 2),
                "rank1": round(100 * result.clean.rank_k(1), 2),
                "mINP": round(100 * result.clean.mINP, 2),
                "query_images": result.counts.get("query images", result.counts["query"]),
                "ranking_s": round(result.seconds["ranking"], 1),
                "cpu_s": round(time.process_time() - work, 1),
            }
        )
        print(rows[-1], flush=True)
    return rows, people


def memory(gallery: int) -> dict[str, float]:
    """Growth of the peak, and seconds, of re-ranking (run in a process of its own)."""
    query, features, labels = make("clustered", gallery, WIDTH)
    few = {name: values[-2000:] for name, values in labels.items()}  # the first are distractors
    rank(query[-2000:], features[-2000:], **few, metric=Reranking())
    work = time.process_time()
    with Peak() as peak:
        rank(query, features, **labels, metric=Reranking())
    return {
        "gallery": gallery,
        "mib": round(peak.peak - peak.before),
        "cpu_s": round(time.process_time() - work, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(memory(arguments.memory)))
        return
    sizes = []
    for gallery in GALLERIES:
        call = [sys.executable, __file__, "--memory", str(gallery)]
        output = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        sizes.append(json.loads(output))
        print(sizes[-1], flush=True)
    rows, people = protocols(FeatureStore(arguments.store))
    save("protocols", {"rows": rows, "memory": sizes}, people)


if __name__ == "__main__":
    main()
