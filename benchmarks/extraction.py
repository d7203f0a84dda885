"""Extraction of features from cold JPEG files beside pure forward passes of the same images.

Run: python benchmarks/extraction.py [--images 256] [--turns 3] [--threads 2] [--models …]. Needs
REIDGUARD_DATA and REIDGUARD_WEIGHTS; rows of other models in results/extraction.json are kept. Each
row is a process of its own, with the system's pages of 4 KiB or with huge ones
(THP_MEM_ALLOC_ENABLE, which the command line sets). In it both take turns: forward passes of
decoded images in memory, and the extraction of the same images in the same batches, memory format
and threads. Before each turn of files the kernel is asked to drop them from its cache. Seconds are
processor time of all threads, since only that means something on a busy machine; the ratio of wall
seconds stands beside. What extraction does beyond the passes is timed alone, too: reading,
decoding, resizing, and conversion to floats.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import RESULTS, market, osnet, save

from reidguard.data import iterate_images
from reidguard.evaluation import extract_features
from reidguard.evaluation.features import to_float
from reidguard.models import create_model
from reidguard.nn import inference_view

BATCH = 64


def forget(samples) -> None:
    """Ask the kernel to drop the files' pages."""
    for sample in samples:
        handle = os.open(sample.path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def timed(function) -> dict:
    """Wall, processor and system seconds, page faults, and the result."""
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    result = function()
    wall, after = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    system = after.ru_stime - before.ru_stime
    return {
        "wall": wall,
        "cpu": after.ru_utime - before.ru_utime + system,
        "system": system,
        "faults": after.ru_minflt - before.ru_minflt,
        "result": result,
    }


def measure(model, samples, turns: int) -> dict:
    """Medians over the turns, the first of which warms up."""
    view = inference_view(model)
    batches = [to_float(pixels) for _, pixels in iterate_images(samples, batch_size=BATCH)]

    def forward():
        with torch.no_grad():
            return torch.cat([view.features(batch) for batch in batches])

    def decode():
        for _, pixels in iterate_images(samples, batch_size=BATCH):
            to_float(pixels)

    def extraction():
        return extract_features(model, samples, batch_size=BATCH)

    seen = []
    for _ in range(turns + 1):
        turn = {"forward": timed(forward)}
        for function in (decode, extraction):
            forget(samples)
            turn[function.__name__] = timed(function)
        assert torch.equal(turn["forward"]["result"], turn["extraction"]["result"])
        seen.append(turn)
    seen = seen[1:]

    def ratios(name: str, kind: str) -> list[float]:
        return sorted(turn[name][kind] / turn["forward"][kind] for turn in seen)

    def median(name: str, kind: str) -> float:
        return statistics.median(turn[name][kind] for turn in seen)

    walls, cpus = ratios("extraction", "wall"), ratios("extraction", "cpu")
    return {
        "forward_cpu_s": round(median("forward", "cpu"), 3),
        "forward_system_s": round(median("forward", "system"), 3),
        "forward_faults": round(median("forward", "faults")),
        "extraction_cpu_s": round(median("extraction", "cpu"), 3),
        "decode_ratio": round(statistics.median(ratios("decode", "cpu")), 3),
        "cpu_ratio": round(statistics.median(cpus), 3),
        "cpu_ratios": [round(cpus[0], 3), round(cpus[-1], 3)],
        "ratio": round(statistics.median(walls), 3),
        "ratios": [round(walls[0], 3), round(walls[-1], 3)],
    }


MODELS = {
    "osnet_x0_25": osnet,
    "osnet_x1_0": lambda: create_model("osnet_x1_0"),
    "ide resnet50": lambda: create_model("ide", backbone="resnet50"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = market()
    samples = data.gallery[:: len(data.gallery) // options.images][: options.images]
    if options.one:
        print(json.dumps(measure(MODELS[options.one]().eval(), samples, options.turns)))
        return
    rows = []
    for name in options.models:
        for huge in (False, True):
            call = [sys.executable, *sys.argv, "--one", name]
            environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": str(int(huge))}
            ended = subprocess.run(call, check=True, stdout=subprocess.PIPE, env=environment)
            found = json.loads(ended.stdout.splitlines()[-1])
            own = {"images": len(samples), "turns": options.turns, "threads": options.threads}
            rows.append({"model": name, "huge_pages": huge, **own, **found})
            print(rows[-1], flush=True)
    path = RESULTS / "extraction.json"
    earlier = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    kept = [row for row in earlier if row["model"] not in options.models]
    save("extraction", {"rows": kept + rows}, data)


if __name__ == "__main__":
    main()
