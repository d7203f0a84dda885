"""Time and memory of ranking 3,368 queries in galleries of 10^4 to 10^6 mapped features.

Run: python benchmarks/galleries.py [--sizes 10000 100000 1000000] [--torchreid DIR] [--fastreid
DIR]. Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. Each case is a process of its own. It writes the
features as a store does, files of 65,536 rows (float32 or, with --half, float16), maps them, and
times the bare products ``query @ shard.T`` of all shards and `rank` in turn. Memory is the growth
of the process's peak of anonymous pages, among which mapped files do not count.

"osnet" are the features of Market-1501 by the published OSNet x0.25 and, beyond them, distractors:
features of training images, each with normal noise of --noise standard deviations per component.
"random" features have no structure: every match lies in the densest part of the distances, as after
a strong attack.

Beside them: the 100 nearest of each query by faiss, where it is installed, and the rankings of
torchreid and fast-reid, in Python, where a folder of their sources is given. These two hold
matrices of queries times gallery, so they are measured up to --matrices images, and searches by
faiss up to --others images. For the lists of a few queries, as in a report, see lists.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from importlib import import_module
from pathlib import Path

import torch
from common import CHECKPOINT, market, osnet, save

from reidguard.evaluation.features import SHARD, FeatureStore
from reidguard.metrics import rank
from reidguard.storage import load_tensors, save_tensors

QUERIES, WIDTH, IDENTITIES = 3368, 512, 750
MATCHABLE = 15_913  # images of the identities, as in Market-1501; the others are distractors
NEAREST = 100


def random_features(gallery: int):
    """Query, labels, and a function that returns some rows of the gallery."""
    g = torch.Generator().manual_seed(0)
    pids = torch.zeros(gallery, dtype=torch.int64)
    pids[:MATCHABLE] = torch.randint(1, IDENTITIES + 1, pids[:MATCHABLE].shape, generator=g)
    labels = {
        "query_pids": torch.randint(1, IDENTITIES + 1, (QUERIES,), generator=g),
        "query_camids": torch.zeros(QUERIES, dtype=torch.int64),
        "gallery_pids": pids,
        "gallery_camids": torch.ones(gallery, dtype=torch.int64),
    }
    query = torch.randn(QUERIES, WIDTH, generator=g)
    return query, labels, lambda start, stop: torch.randn(stop - start, WIDTH, generator=g)


def osnet_features(gallery: int, noise: float, folder: str):
    """The same of real features and distractors around features of training images."""
    dataset, model, store = market(), osnet(), FeatureStore(folder)
    query, real = (store.features(model, dataset, split) for split in ("query", "gallery"))
    pool = real if gallery <= len(real) else store.features(model, dataset, "train")
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(real), generator=g)  # a small gallery has all kinds of images
    spread = noise * pool.std(0)

    def rows(start: int, stop: int) -> torch.Tensor:
        drawn = pool[torch.randint(len(pool), (stop - start,), generator=g)]
        drawn = (drawn + spread * torch.randn(drawn.shape, generator=g)).relu()
        own = real[order[start:stop]]
        return torch.cat([own, drawn[len(own) :]])

    def labels_of(name: str) -> torch.Tensor:
        values = torch.tensor([getattr(sample, name) for sample in dataset.gallery])[order]
        return torch.cat([values, values.new_zeros(max(0, gallery - len(values)))])[:gallery]

    labels = {
        "query_pids": torch.tensor([sample.pid for sample in dataset.query]),
        "query_camids": torch.tensor([sample.camid for sample in dataset.query]),
        "gallery_pids": labels_of("pid"),
        "gallery_camids": labels_of("camid"),
    }
    return query, labels, rows


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


def timed(function) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(arguments) -> dict:
    with tempfile.TemporaryDirectory() as name:
        gallery, folder = arguments.one, Path(name)
        if arguments.kind == "random":
            query, labels, rows = random_features(gallery)
        else:
            query, labels, rows = osnet_features(gallery, arguments.noise, arguments.cache)
        dtype = torch.float16 if arguments.half else torch.float32
        shards = []
        for start in range(0, gallery, SHARD):
            tensors = {"features": rows(start, min(start + SHARD, gallery)).to(dtype)}
            save_tensors(folder / f"{start}.safetensors", tensors, {"kind": "features"})
            stored, _ = load_tensors(folder / f"{start}.safetensors", "features", mapped=True)
            shards.append(stored["features"])

        def product():
            for shard in shards:
                for start in range(0, len(shard), 4096):
                    query @ shard[start : start + 4096].float().T

        found = {}

        def ranking():
            found["result"] = rank(query, shards, **labels)

        turns, extra = [], 0.0
        for _ in range(arguments.turns):
            bare = timed(product)
            with Peak() as peak:
                own = timed(ranking)
            extra = max(extra, peak.peak - peak.before)
            turns.append((*bare, *own))
        ratios = sorted(turn[2] / turn[0] for turn in turns)
        seconds = map(statistics.median, zip(*turns, strict=True))
        product_s, product_cpu_s, rank_s, rank_cpu_s = seconds
        row = {
            "features": arguments.kind,
            "gallery": gallery,
            "dtype": str(dtype).removeprefix("torch."),
            "product_s": round(product_s, 3),
            "rank_s": round(rank_s, 3),
            "product_cpu_s": round(product_cpu_s, 3),
            "rank_cpu_s": round(rank_cpu_s, 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratios[0], 2), round(ratios[-1], 2)],
            "cpu_ratio": round(statistics.median(turn[3] / turn[1] for turn in turns), 2),
            "turns": len(turns),
            "extra_mib": round(extra),
            "load": [round(value, 1) for value in os.getloadavg()],
            "mAP": round(found["result"].mAP, 6),
        }
        if arguments.kind == "osnet" and arguments.others:
            row |= others(arguments, query, torch.cat(shards).float(), labels)
        return row


def others(arguments, query, features, labels) -> dict:
    """Seconds of other programs."""
    result = {}
    try:
        import faiss
    except ImportError:
        faiss = None
    if faiss is None or arguments.one > arguments.others:
        print(f"faiss is skipped at {arguments.one} images", file=sys.stderr)
    else:
        faiss.omp_set_num_threads(torch.get_num_threads())
        for name, index in (("l2", faiss.IndexFlatL2(WIDTH)), ("ip", faiss.IndexFlatIP(WIDTH))):
            result["faiss_add_s"] = round(timed(lambda i=index: i.add(features.numpy()))[0], 3)
            search = timed(lambda i=index: i.search(query.numpy(), NEAREST))
            result[f"faiss_{name}_s"] = round(search[0], 3)
            index.reset()
    names = ("query_pids", "gallery_pids", "query_camids", "gallery_camids")
    arrays = [labels[name].numpy() for name in names]
    for program, folder, modules in (
        ("torchreid", arguments.torchreid, ("metrics.distance", "metrics.rank")),
        ("fastreid", arguments.fastreid, ("utils.compute_dist", "evaluation.rank")),
    ):
        if folder is None or arguments.one > arguments.matrices:
            print(f"{program} is skipped at {arguments.one} images", file=sys.stderr)
            continue
        distance, ranks = (load(program, folder, module) for module in modules)
        if program == "torchreid":
            matrix = distance.compute_distance_matrix
        else:
            matrix = distance.compute_euclidean_distance

        def theirs(matrix=matrix, ranks=ranks):
            table = torch.as_tensor(matrix(query, features)).numpy()
            ranks.evaluate_rank(table, *arrays)

        result[f"{program}_s"] = round(timed(theirs)[0], 3)
    return result


def load(program: str, folder: str, name: str):
    """Import one module of a program without the rest of its package."""
    root = Path(folder) / program
    for package in (program, f"{program}.{name.split('.')[0]}"):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    return import_module(f"{program}.{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--cache", default="runs/features", help="folder of clean features")
    parser.add_argument("--torchreid", help="folder of a checkout of deep-person-reid")
    parser.add_argument("--fastreid", help="folder of a checkout of fast-reid")
    parser.add_argument("--matrices", type=int, default=100_000)
    parser.add_argument("--others", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--results", default="galleries", help="name of the file of results")
    parser.add_argument("--kinds", nargs="+", default=["osnet", "random"])
    parser.add_argument("--kind", choices=("osnet", "random"), help=argparse.SUPPRESS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments)))
        return
    call = [sys.executable, *sys.argv]
    # Checkouts of others are named by what they hold, not by where they are.
    for option in ("--torchreid", "--fastreid", "--cache"):
        if option in sys.argv:
            sys.argv[sys.argv.index(option) + 1] = "DIR"
    rows = []
    results = {"weights": CHECKPOINT, "noise": arguments.noise, "rows": rows}
    for kind in arguments.kinds:
        for size in arguments.sizes:
            case = [*call, "--kind", kind, "--one", str(size)]
            ended = subprocess.run(case, check=True, stdout=subprocess.PIPE)
            rows.append(json.loads(ended.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            save(arguments.results, results, market())


if __name__ == "__main__":
    main()
