"""Damage files and read them: ``python -m fuzz.worker FOLDER COUNT SEED [PARSER ...]``.

Prints a JSON line for each parser: its inputs, how many were read, refused by one
:class:`ReIDGuardError`, or failed in any other way, and the peak memory of the process in MiB.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fuzz.mutations import mutated_file, mutated_safetensors
from fuzz.parsers import PARSERS, Parser, train
from fuzz.seeds import write_seeds
from reidguard.errors import ReIDGuardError

LIMIT_S = 10
MEMORY = 2 * 2**30  # beyond what the process has at its start


class Hang(BaseException):
    """An input that takes longer than the limit."""


def _alarm(*_: Any) -> None:
    raise Hang(f"longer than {LIMIT_S} s")


def peak_mib() -> float:
    """Return the largest resident set of this process."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line[:5] == "VmHWM") / 1024


def limit_memory() -> None:
    """Let requests of gigabytes fail as MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def outcome(parser: Parser, file: Path) -> str:
    """Read a damaged file; return "read", "refused", or the traceback of anything else."""
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True)  # native code ignores the alarm
    try:
        parser.read(file)
        return "read"
    except ReIDGuardError as error:
        if any("alloc" in str(cause) or isinstance(cause, MemoryError) for cause in causes(error)):
            return f"gigabytes were requested: {error!s:.200}"
        return "refused" if str(error).strip() else "an empty message"
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/reidguard/" in frame.filename] or frames
        return f"{type(error).__name__}: {error!s:.200} at {ours[-1].filename}:{ours[-1].lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def fuzz(parser: Parser, root: Path, count: int, seed: int) -> dict[str, Any]:
    """Damage the seeds of a parser ``count`` times."""
    draw = random.Random(f"{parser.name}/{seed}")
    folder, pattern = parser.seeds
    seeds = sorted(p for p in (root / "seeds" / folder).glob(pattern) if p.is_file())
    result: dict[str, Any] = {"parser": parser.name, "inputs": 0, "read": 0, "refused": 0}
    failures: dict[str, str] = {}
    began = time.perf_counter()
    work = root / "work" / folder
    numbers = range(-len(seeds), count if seeds else 0)  # first the seeds as they are
    for number in numbers:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        seed_file = seeds[number] if number < 0 else draw.choice(seeds)
        if parser.whole:
            shutil.copytree(root / "seeds" / folder, work, dirs_exist_ok=True)
        data = seed_file.read_bytes()
        if number >= 0:
            mutated = mutated_safetensors if data[8:9] == b"{" else mutated_file
            data = mutated(data, draw, draw.choice(seeds).read_bytes())
        file = work / seed_file.name
        file.write_bytes(data)
        print(f"{parser.name} {number}", file=sys.stderr, flush=True)  # the last line names a crash
        told = outcome(parser, file)
        if number < 0 and told != "read":
            failures[f"{told} of a valid file"] = seed_file.name
        elif number >= 0:
            result["inputs"] += 1
            if told in result:
                result[told] += 1
            elif told not in failures:
                failures[told] = f"input {number}: {seed_file.name}"
                kept = root / "failures" / f"{parser.name}-{number}-{seed_file.name}"
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(data)
    result["failures"] = failures
    result["seeds"] = len(seeds)
    result["seconds"] = round(time.perf_counter() - began, 1)
    result["peak_mib"] = round(peak_mib())
    return result


def main() -> None:
    """Fuzz the parsers that the command line names, or all."""
    root, (total, seed), names = Path(sys.argv[1]).resolve(), map(int, sys.argv[2:4]), sys.argv[4:]
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if not (root / "seeds").exists():
        write_seeds(root / "seeds")
        train(root / "seeds" / "checkpoint" / "checkpoint.safetensors")
    signal.signal(signal.SIGALRM, _alarm)
    limit_memory()
    weight = sum(1 / parser.cost for parser in PARSERS)
    for parser in PARSERS:
        if not names or parser.name in names:
            count = round(total / weight / parser.cost) + 1
            print(json.dumps(fuzz(parser, root, count, seed)), flush=True)


if __name__ == "__main__":
    main()
