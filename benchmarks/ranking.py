"""Time and memory of ranking 3,368 x 15,913 x 2048 beside the matrix product alone.

Run: python benchmarks/ranking.py. Each case is timed in the same process as the
product ``query @ gallery.T``, the two alternating, with the same threads. CPU seconds (all threads)
stand beside wall seconds, since only they mean something on a busy machine. Memory is the growth of
the process's peak over the features themselves, measured for one gallery and one four times larger.

"random" features are the worst case for the design (as after a strong attack): every match lies in
the densest part of the distances. "clustered" features resemble a working model.
"""

import argparse
import subprocess
import sys
import time

import torch
from common import save

from reidguard.metrics import rank

QUERIES, GALLERY, WIDTH, IDENTITIES, DISTRACTORS = 3368, 15913, 2048, 750, 2798


def make(kind: str, gallery: int, width: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    labels = {
        "query_pids": torch.randint(1, IDENTITIES + 1, (QUERIES,), generator=g),
        "query_camids": torch.randint(1, 7, (QUERIES,), generator=g),
        "gallery_pids": torch.randint(1, IDENTITIES + 1, (gallery,), generator=g),
        "gallery_camids": torch.randint(1, 7, (gallery,), generator=g),
    }
    query = torch.randn(QUERIES, width, generator=g)
    features = torch.randn(gallery, width, generator=g)
    if kind == "clustered":
        centres = torch.randn(IDENTITIES + 1, width, generator=g)
        query.mul_(3).add_(centres[labels["query_pids"]])
        features.mul_(3).add_(centres[labels["gallery_pids"]])
    labels["gallery_pids"][:DISTRACTORS] = 0
    return query, features, labels


def timed(function, repeats: int = 1):
    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        best = (
            min(best[0], time.perf_counter() - wall),
            min(best[1], time.process_time() - cpu),
        )
    return best


def speed(kind: str, metric: str, repeats: int):
    query, gallery, labels = make(kind, GALLERY, WIDTH)
    rows = []
    for _ in range(repeats):
        rows.append(
            timed(lambda: query @ gallery.T)
            + timed(lambda: rank(query, gallery, metric=metric, **labels))
        )
    product_wall, product_cpu, rank_wall, rank_cpu = (min(c) for c in zip(*rows, strict=True))
    return {
        "features": kind,
        "metric": metric,
        "product_s": round(product_wall, 3),
        "rank_s": round(rank_wall, 3),
        "ratio": round(rank_wall / product_wall, 2),
        "product_cpu_s": round(product_cpu, 3),
        "rank_cpu_s": round(rank_cpu, 3),
        "cpu_ratio": round(rank_cpu / product_cpu, 2),
    }


def peak_mib() -> float:
    # getrusage would also count the process that started this one
    with open("/proc/self/status", encoding="ascii") as stream:
        peak = next(line for line in stream if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def memory(gallery: int, width: int) -> float:
    """MiB that one call adds to the peak (run in a process of its own)."""
    query, features, labels = make("random", gallery, width)
    # Start the libraries, whose own buffers are no part of what a ranking needs.
    small = {
        name: values[:64] * 0 + 1 + (name == "gallery_camids") for name, values in labels.items()
    }
    rank(query[:64], features[:64], **small)
    before = peak_mib()
    rank(query, features, **labels)
    return peak_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory(*options.memory_of))
        return
    result = {
        "shape": [QUERIES, GALLERY, WIDTH],
        "speed": [],
        "memory_mib": {},
    }
    for kind in ("random", "clustered"):
        for metric in ("euclidean", "cosine"):
            row = speed(kind, metric, options.repeats)
            result["speed"].append(row)
            print(row, flush=True)
    for gallery in (GALLERY, 4 * GALLERY):
        command = [sys.executable, __file__, "--threads", str(options.threads)]
        command += ["--memory-of", str(gallery), str(WIDTH)]
        extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        result["memory_mib"][str(gallery)] = round(extra, 1)
        print(f"extra memory, gallery of {gallery}: {extra:.0f} MiB", flush=True)
    save("ranking", result)


if __name__ == "__main__":
    main()
