"""Seconds that the library and its command line take to start, beside torch and timm.

Run: python benchmarks/imports.py [--turns 7]. Each call is a process of its own; the calls take
turns, and medians, least and largest are of all turns but the first, which warms the disk's cache.
"cold" is one turn after the system was asked to drop the files from its cache, where it may be
(posix_fadvise on the files of the environment; others may keep them in memory).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from common import save

CALLS = {
    "import torch, timm": ["-c", "import torch, timm"],
    "import torch": ["-c", "import torch"],
    "from reidguard import MetaAttack": ["-c", "from reidguard import MetaAttack"],
    "reidguard list": ["-m", "reidguard", "list"],
    "reidguard --help": ["-m", "reidguard", "--help"],
}


def timed(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - wall
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def drop_caches() -> None:
    """Ask the system to forget the files of the environment and of this library."""
    for folder in (sysconfig.get_path("purelib"), Path(__file__).parents[1] / "reidguard"):
        for path in Path(folder).rglob("*"):
            if path.is_file() and hasattr(os, "posix_fadvise"):
                with open(path, "rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    cold = {}
    for name, arguments in CALLS.items():
        drop_caches()
        cold[name] = timed(arguments)[0]
    warm: dict[str, list] = {name: [] for name in CALLS}
    for _ in range(options.turns):
        for name, arguments in CALLS.items():
            warm[name].append(timed(arguments))
    rows = []
    for name, times in warm.items():
        wall = [pair[0] for pair in times[1:]]
        rows.append(
            {
                "call": name,
                "seconds": round(statistics.median(wall), 2),
                "range": [round(min(wall), 2), round(max(wall), 2)],
                "cpu_seconds": round(statistics.median(pair[1] for pair in times[1:]), 2),
                "cold_seconds": round(cold[name], 2),
            }
        )
        print(rows[-1], flush=True)
    save("imports", {"turns": options.turns, "load": os.getloadavg(), "rows": rows})


if __name__ == "__main__":
    main()
