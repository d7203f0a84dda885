"""Helpers of all benchmarks: real data and weights, and results with their provenance."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from reidguard.data import load_dataset
from reidguard.models import create_model
from reidguard.storage import library_versions, write_json

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that scripts find benchmarks.paper

RESULTS = Path(__file__).with_name("results")
CHECKPOINT = "osnet_x0_25_market1501.pth"


def market():
    """Market-1501 below $REIDGUARD_DATA."""
    if "REIDGUARD_DATA" not in os.environ:
        sys.exit("set REIDGUARD_DATA to the folder that holds market1501/")
    return load_dataset("market1501", os.environ["REIDGUARD_DATA"])


def weights(name: str) -> Path:
    """A file below $REIDGUARD_WEIGHTS."""
    if "REIDGUARD_WEIGHTS" not in os.environ:
        sys.exit(f"set REIDGUARD_WEIGHTS to the folder that holds {name}")
    return Path(os.environ["REIDGUARD_WEIGHTS"]) / name


def osnet(num_classes: int | None = None):
    """The published OSNet x0.25 from $REIDGUARD_WEIGHTS, with a classifier of `num_classes`."""
    return create_model("osnet_x0_25", num_classes=num_classes, weights=weights(CHECKPOINT))


def mean_and_spread(values: list[float]) -> list[float] | None:
    """Mean and sample standard deviation (0 for one value); None for no values."""
    if not values:
        return None
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.mean(values), 2), round(spread, 2)]


def commit() -> str:
    """The current commit, marked as dirty if files other than the results differ from it."""

    def git(*words: str) -> str:
        call = ["git", "-C", str(RESULTS.parents[1]), *words]
        return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "HEAD") or "unknown") + ("-dirty" if changed else "")


def command() -> str:
    """The command line of this process, from the repository's root."""
    script = Path(sys.argv[0])
    program = "-m benchmarks.paper" if script.name == "__main__.py" else f"benchmarks/{script.name}"
    return f"python {program} {shlex.join(sys.argv[1:])}".strip()


def save(name: str, results: dict, dataset=None) -> None:
    """Write results with command, commit, data fingerprints and versions to results/NAME.json."""
    fingerprints = None
    if dataset is not None:
        splits = ("train", "query", "gallery")
        fingerprints = {split: dataset.fingerprint(split) for split in splits}
    RESULTS.mkdir(exist_ok=True)
    write_json(
        RESULTS / f"{name}.json",
        {
            "command": command(),
            "commit": commit(),
            "data": fingerprints,
            "threads": torch.get_num_threads(),
            "versions": library_versions(),
            **results,
        },
    )
