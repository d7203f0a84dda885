"""Rank lists of a few queries beside the search of faiss, which has to be filled first.

Run: python benchmarks/lists.py [--sizes 10000 100000 1000000] [--turns 3]. Needs faiss-cpu. The
100 nearest of 8 queries among random features of 512 components, none negative, as after a ReLU;
both take turns in one process. Seconds are processor time. faiss compares float32 distances as they
come out of its products; `top_k` compares exact ones, leaves images of the query's own camera out
and settles ties, so the lists may differ where two images are nearly as far.
"""

import argparse
import os
import statistics
import time

import faiss
import torch
from common import save

from reidguard.metrics import top_k

QUERIES, WIDTH, NEAREST = 8, 512, 100


def timed(function):
    """Processor seconds, and the result."""
    began = time.process_time()
    result = function()
    return time.process_time() - began, result


def measure(size: int, turns: int) -> dict:
    g = torch.Generator().manual_seed(0)
    gallery = torch.randn(size, WIDTH, generator=g).relu_()
    query = torch.randn(QUERIES, WIDTH, generator=g).relu_()
    labels = {
        "query_pids": [1] * QUERIES,
        "query_camids": [1] * QUERIES,
        "gallery_pids": torch.zeros(size, dtype=torch.int64),
        "gallery_camids": torch.full((size,), 2),
    }
    seconds: dict[str, list[float]] = {"top_k": [], "fill": [], "search": []}
    for _ in range(turns):
        spent, (_, own) = timed(lambda: top_k(query, gallery, NEAREST, **labels))
        seconds["top_k"].append(spent)
        index = faiss.IndexFlatL2(WIDTH)
        seconds["fill"].append(timed(lambda index=index: index.add(gallery.numpy()))[0])
        spent, (_, theirs) = timed(lambda index=index: index.search(query.numpy(), NEAREST))
        seconds["search"].append(spent)
        index.reset()
    same = sum(set(a) == set(b) for a, b in zip(own.tolist(), theirs.tolist(), strict=True))
    row = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    return {"gallery": size, **row, "same_lists": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    rows = []
    for size in options.sizes:
        rows.append(measure(size, options.turns))
        print(rows[-1], flush=True)
    save("lists", {"queries": QUERIES, "load": os.getloadavg(), "rows": rows})


if __name__ == "__main__":
    main()
