"""Check and measure everything on one GPU, in 8 minutes at most.

Run: python benchmarks/gpu.py. Images are drawn and networks have random weights (REIDGUARD_WEIGHTS,
where it is set, gives OSNet x0.25), so nothing has to be fetched. The result is
benchmarks/results/gpu.json, written anew after each section; a row that fails is recorded, and the
run goes on. --only runs some of the sections. The exit status is 1 if a row failed.

Sections: correctness (against the CPU from the same seeds), waits (hot loops never wait for the
GPU), extraction (images/s beside the bare network), steps (steps/s of the learners), epoch (seconds
of an epoch beside the paper's Table 19), processes (NCCL, where there are two GPUs).

--device cpu --small runs the same code in less than a minute with tiny networks; the hot loops then
run on the device "meta". Its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products of matrices

import torch
from common import RESULTS, command, commit
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_correctness, gpu_speed
from benchmarks.gpu_setup import Row, Setup
from reidguard.storage import library_versions, write_json


@dataclass(frozen=True)
class Section:
    """Rows of one kind: names, and functions that measure them, and seconds that it may take."""

    rows: Callable[[Setup], Iterator[tuple[str, Callable[[], Row]]]]
    seconds: float


SECTIONS = {
    "correctness": Section(gpu_correctness.correctness, 100),
    "waits": Section(gpu_correctness.waits, 60),
    "extraction": Section(gpu_speed.extraction, 40),
    "steps": Section(gpu_speed.steps, 150),
    "epoch": Section(gpu_speed.epoch, 50),
    "processes": Section(gpu_speed.processes, 60),
}


class OutOfTime(Exception):  # noqa: N818
    """A section's seconds are over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside when the seconds are over (on systems that have SIGALRM)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(function: Callable[[], Row]) -> Row:
    """Return a row, or what went wrong in its place."""
    try:
        return function()
    except OutOfTime:
        raise
    except Exception as error:
        where = [f"{f.filename}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
        text = str(error).strip().splitlines() or [""]
        return {"ok": False, "error": f"{type(error).__name__}: {text[0]}", "at": where[-4:]}


def run_section(section: Section, setup: Setup) -> dict[str, Any]:
    """Measure a section's rows until its time is over."""
    began = time.perf_counter()
    seconds = section.seconds * (5 if setup.small else 1)  # a busy machine is no failure
    result: dict[str, Any] = {"budget_s": seconds, "complete": False, "rows": {}}
    try:
        with at_most(seconds):
            for name, function in section.rows(setup):
                start = time.perf_counter()
                row = measured(function)
                result["rows"][name] = {**row, "seconds": round(time.perf_counter() - start, 2)}
            result["complete"] = True
    except OutOfTime:
        result["stopped"] = f"after {seconds} s; the row in progress is lost"
    except Exception as error:  # of what all rows share
        result["error"] = f"{type(error).__name__}: {error}"
    result["seconds"] = round(time.perf_counter() - began, 1)
    return result


def short(value: Any) -> str:
    """Return a value for the table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {short(v)}" for k, v in value.items())
    return "; ".join(map(short, value)) if isinstance(value, list) else str(value)


def show(name: str, result: dict[str, Any], console: Console) -> None:
    """Print a section."""
    status = "" if result["complete"] else f", {result.get('stopped') or result.get('error')}"
    table = Table(title=f"{name} ({result['seconds']} s{status})", title_justify="left")
    for heading in ("row", "ok", "result"):
        table.add_column(heading, overflow="fold")
    for row, values in result["rows"].items():
        mark = {True: "yes", False: "[bold red]NO[/]", None: ""}[values.get("ok")]
        rest = {k: v for k, v in values.items() if k not in ("ok", "seconds", "at")}
        table.add_row(row, mark, "\n".join(f"{k}: {short(v)}" for k, v in rest.items()))
    console.print(table)


def describe(device: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    facts: dict[str, Any] = {"device": device, "processor": platform.machine()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def failed(result: dict[str, Any]) -> bool:
    """Return whether a section has an error or a row that is wrong."""
    return not result["complete"] or any(row.get("ok") is False for row in result["rows"].values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks, few repeats")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the file of results")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --device cpu --small runs the code without one")
    path = options.out
    if path is None:
        path = RESULTS / "gpu.json" if options.device == "cuda" else Path("runs/gpu_on_cpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    setup = Setup(options.device, options.small, options.seed)
    console = Console(width=None if sys.stdout.isatty() else 120)
    report: dict[str, Any] = {
        "command": command(),
        "commit": commit(),
        **describe(options.device),
        "versions": library_versions(),
        "complete": False,
        "sections": {},
    }
    for name in options.only:
        result = run_section(SECTIONS[name], setup)
        report["sections"][name] = result
        report["complete"] = name == options.only[-1]
        write_json(path, report)
        show(name, result, console)
    wrong = [name for name, result in report["sections"].items() if failed(result)]
    total = sum(result["seconds"] for result in report["sections"].values())
    console.print(f"{total:.0f} s, {path}; failed: {', '.join(wrong) or 'nothing'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
