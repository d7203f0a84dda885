"""Time and memory of ranking 3,368 queries in galleries of 10^4 to 10^6 mapped features.

Run: python benchmarks/galleries.py [--sizes 10000 100000 1000000]. Each size is a process of its
own. It writes the features as a store does, files of 65,536 rows (float32 or, with --half,
float16), maps them, and times the bare products ``query @ shard.T`` of all shards and `rank` in
turn. Memory is the growth of the process's peak of anonymous pages, among which mapped files do
not count.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from common import save

from reidguard.evaluation.features import SHARD
from reidguard.metrics import rank
from reidguard.storage import load_tensors, save_tensors

QUERIES, WIDTH, IDENTITIES = 3368, 512, 750
MATCHABLE = 15_913  # images of the identities, as in Market-1501; the others are distractors


def write(folder: Path, gallery: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(IDENTITIES + 1, WIDTH, generator=g)
    for number, start in enumerate(range(0, gallery, SHARD)):
        rows = min(SHARD, gallery - start)
        pids = torch.randint(1, IDENTITIES + 1, (rows,), generator=g)
        pids[max(0, MATCHABLE - start) :] = 0  # distractors
        features = centres[pids] + 3 * torch.randn(rows, WIDTH, generator=g)
        tensors = {"features": features.to(dtype), "pids": pids}
        save_tensors(folder / f"{number:05d}.safetensors", tensors, {"kind": "features"})


def anonymous_mib() -> float:
    with open("/proc/self/status", encoding="ascii") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("RssAnon")) / 1024


class Peak:
    """The highest anonymous memory while it runs, looked at ten times a second."""

    def __enter__(self):
        self.before = self.peak = anonymous_mib()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.wait(0.1):
            self.peak = max(self.peak, anonymous_mib())

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def measure(gallery: int, dtype: torch.dtype) -> dict[str, float | int | str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, gallery, dtype)
        files = [load_tensors(f, "features", mapped=True)[0] for f in sorted(folder.iterdir())]
        shards = [file["features"] for file in files]
        pids = torch.cat([file["pids"] for file in files])
        g = torch.Generator().manual_seed(1)
        query_pids = torch.randint(1, IDENTITIES + 1, (QUERIES,), generator=g)
        centres = torch.randn(IDENTITIES + 1, WIDTH, generator=torch.Generator().manual_seed(0))
        query = centres[query_pids] + 3 * torch.randn(QUERIES, WIDTH, generator=g)
        labels = {
            "query_pids": query_pids,
            "query_camids": torch.zeros(QUERIES, dtype=torch.int64),
            "gallery_pids": pids,
            "gallery_camids": torch.ones(gallery, dtype=torch.int64),
        }
        wall, cpu = time.perf_counter(), time.process_time()
        for shard in shards:
            for start in range(0, len(shard), 4096):
                query @ shard[start : start + 4096].float().T
        product = time.perf_counter() - wall, time.process_time() - cpu
        with Peak() as peak:
            wall, cpu = time.perf_counter(), time.process_time()
            result = rank(query, shards, **labels)
            ranking = time.perf_counter() - wall, time.process_time() - cpu
        return {
            "gallery": gallery,
            "dtype": str(dtype).removeprefix("torch."),
            "product_s": round(product[0], 2),
            "rank_s": round(ranking[0], 2),
            "ratio": round(ranking[0] / product[0], 2),
            "cpu_ratio": round(ranking[1] / product[1], 2),
            "extra_mib": round(peak.peak - peak.before),
            "mAP": round(result.mAP, 6),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtype = torch.float16 if arguments.half else torch.float32
    if arguments.one:
        print(json.dumps(measure(arguments.one, dtype)))
        return
    rows = []
    for size in arguments.sizes:
        call = [sys.executable, __file__, "--one", str(size), *(["--half"] * arguments.half)]
        rows.append(json.loads(subprocess.run(call, check=True, stdout=-1).stdout))
        print(rows[-1], flush=True)
    save("galleries", {"rows": rows})


if __name__ == "__main__":
    main()
