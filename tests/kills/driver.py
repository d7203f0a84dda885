"""Ends commands at many instants, resumes them, and compares what they wrote.

A program, run by test_kills.py: ``driver.py WORK SIGKILL|SIGINT INSTANTS SEED SCENARIO...``. Every
run is a child forked from this process, which has imported everything and started no thread, so
that a run takes a moment. A child gets the signal at an instant of two kinds:

- at its n-th event: before it opens, renames or removes a file or folder, or, for SIGKILL, in the
  middle of a write of which half is on the disk;
- after a random time.

The same command must then end with the files of a run that was not interrupted, and nothing else.
After SIGINT no temporary file may be left, and the exit code must be 130.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from kills.scenarios import SCENARIOS, Tiny, make_inputs

from reidguard.cli.app import main as command_line  # noqa: F401 (imports what commands need)
from reidguard.models import MODELS
from reidguard.training import MetricsFile

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
TIMES = {"started", "finished", "resumed", "seconds", "seconds_per_step", "time", "commit"}


class Events:
    """Counts what this process does to the files below the working folder; a signal comes at one.

    Args:
        number: Of the event before which the signal comes; None for none.
        signal: The signal.
    """

    def __init__(self, number: int | None, signal: signal.Signals) -> None:
        self.number, self.signal = number, signal
        self.names: list[str] = []
        self.root = os.getcwd()
        self._numbers = itertools.count()

    def install(self) -> None:
        sys.addaudithook(self._audit)
        save_file, fsync, log = safetensors.torch.save_file, os.fsync, MetricsFile._log

        def save(tensors: Any, path: Any, metadata: Any) -> None:
            part = Path(path).parent / ".tmpAbCdEf"  # safetensors writes to such a name first

            def write_half() -> None:
                save_file(tensors, part, metadata=metadata)
                os.truncate(part, os.path.getsize(part) // 2)

            self.count("save", write_half)
            save_file(tensors, path, metadata=metadata)

        def sync(descriptor: int) -> None:
            half = os.fstat(descriptor).st_size // 2
            self.count("sync", lambda: os.truncate(descriptor, half))
            fsync(descriptor)

        def log_line(file: MetricsFile, progress: Any) -> None:
            log(file, progress)
            size = os.path.getsize(file.path)
            self.count("log", lambda: os.truncate(file.path, size - 9))

        safetensors.torch.save_file, os.fsync, MetricsFile._log = save, sync, log_line

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & WRITING:
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(path))
            if path.startswith(self.root + os.sep):
                self.count(event)

    def count(self, name: str, write_half: Callable[[], object] | None = None) -> None:
        """Count an event, or two where a write may stop half-way."""
        half = (write_half,) if write_half is not None and self.signal == signal.SIGKILL else ()
        for before in (None, *half):
            self.names.append(name if before is None else f"half {name}")
            if next(self._numbers) == self.number:
                self.number = None
                if before is not None:
                    before()
                os.kill(os.getpid(), self.signal)


def fork(scenario: str, folder: Path, ending: signal.Signals, number: int | None = None) -> int:
    """Run a scenario in a folder, in a child process; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        os.environ.update(XDG_CACHE_HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"))
        tempfile.tempdir = str(folder / "tmp")  # else it is probed with a file
        log = folder.with_suffix(".log").open("w")
        sys.stdout = sys.stderr = log
        # A shell starts background jobs, such as this one perhaps, with Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        events = Events(number, ending)
        events.install()
        code = SCENARIOS[scenario]()
        record = {"events": list(events.names), "modules": list(sys.modules)}
        folder.with_suffix(".json").write_text(json.dumps(record))
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    for thread in threading.enumerate():  # as the interpreter does when it ends
        if thread is not threading.current_thread() and not thread.daemon:
            with contextlib.suppress(RuntimeError):  # an interrupt came before it started
                thread.join()
    sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process and return its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder: Path) -> dict[str, bytes]:
    """Return all files and empty folders, without the times that they tell of."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            files[name] = _without_times(path)
        elif not any(path.iterdir()):
            files[f"{name}/"] = b""
    return files


def _without_times(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        return json.dumps([_stripped(json.loads(line)) for line in lines]).encode()
    if path.suffix in (".md", ".html"):
        return re.sub(rb", [\d.e+-]+ s each|\d{4}-\d\d-\d\d[T ][\d:+]+( UTC)?", b"", data)
    return data


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(v) for key, v in value.items() if key not in TIMES}
    return [_stripped(v) for v in value] if isinstance(value, list) else value


def instants(draw: random.Random, events: int, count: int, seconds: float) -> Iterator[int | float]:
    """Yield numbers of events, three for each time in seconds as long as there are some."""
    numbers = draw.sample(range(events), min(events, count * 3 // 4))
    for place in range(3 * count):
        yield numbers.pop() if numbers and place % 4 else draw.uniform(0, seconds)


def main() -> None:
    work, ending = Path(sys.argv[1]), signal.Signals[sys.argv[2]]
    torch.set_num_threads(1)
    MODELS.register("tiny")(Tiny)
    if (pid := os.fork()) == 0:
        sys.stdout = sys.stderr
        make_inputs(work / "input")
        os._exit(0)
    assert ended(pid) == 0
    for scenario in sys.argv[5:]:
        trial = Trial(scenario, work / scenario, ending)
        trial.run(int(sys.argv[3]), random.Random(sys.argv[4]))
        result = {"scenario": scenario, **trial.counts, "faults": trial.faults}
        print(json.dumps(result), flush=True)


class Trial:
    """A scenario that is interrupted again and again.

    Args:
        scenario: Its name.
        runs: A folder that gets one for each run.
        ending: The signal that interrupts it.
    """

    def __init__(self, scenario: str, runs: Path, ending: signal.Signals) -> None:
        self.scenario, self.runs, self.ending = scenario, runs, ending
        self.faults: list[str] = []
        alone = runs / "alone"
        if code := ended(fork(scenario, alone, ending)):
            sys.exit(f"{scenario} alone ended with {code}:\n{_log(alone)}")
        record = json.loads(alone.with_suffix(".json").read_text())
        for name in record["modules"]:
            if name not in sys.modules:
                with contextlib.suppress(ImportError):  # made by its package
                    importlib.import_module(name)
        began = time.monotonic()
        assert ended(fork(scenario, runs / "again", ending)) == 0
        self.seconds = time.monotonic() - began
        self.events = record["events"]
        self.expected = content(alone)
        self._compare(runs / "again", "not interrupted")
        self.counts = {
            "events": len(self.events),
            "instants": 0,
            "at an event": 0,
            "resumed": 0,
            "same": 0,
        }

    def run(self, count: int, draw: random.Random) -> None:
        """Interrupt so many runs, and resume each; some end before the signal comes."""
        for number, instant in enumerate(instants(draw, len(self.events), count, self.seconds)):
            if self.counts["instants"] == count:
                return
            folder = self.runs / f"{number}"
            what = self._interrupt(folder, instant)
            if number % 4 == 0:  # once more while it resumes
                second = draw.randrange(len(self.events))
                what += f", then at {second}"
                ended(fork(self.scenario, folder, self.ending, second))
            before = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
            self.counts["resumed"] += 1
            if code := ended(fork(self.scenario, folder, self.ending)):
                self.faults.append(f"{what}: ended with {code}: {_log(folder)}; before: {before}")
            elif self._compare(folder, what):
                self.counts["same"] += 1
                shutil.rmtree(folder)

    def _interrupt(self, folder: Path, instant: int | float) -> str:
        at_event = isinstance(instant, int)
        pid = fork(self.scenario, folder, self.ending, instant if at_event else None)
        if not at_event:
            time.sleep(instant)
            os.kill(pid, self.ending)
        code = ended(pid)
        what = f"{self.ending.name} at {instant}"
        if at_event:
            what += f" ({self.events[instant]})"
        if self.ending == signal.SIGKILL:
            interrupted = code == -signal.SIGKILL
        else:
            interrupted = code == 130
            temporary = [str(path) for path in folder.rglob("*.tmp")]
            if code not in (0, 130) or temporary:
                self.faults.append(f"{what}: code {code}, left {temporary}: {_log(folder)}")
        self.counts["instants"] += interrupted
        self.counts["at an event"] += interrupted and at_event
        return what

    def _compare(self, folder: Path, what: str) -> bool:
        found = content(folder)
        names = sorted(self.expected.keys() | found.keys())
        faults = {
            name: "left over"
            if name not in self.expected
            else "missing"
            if name not in found
            else "changed"
            for name in names
            if self.expected.get(name) != found.get(name)
        }
        if faults:
            self.faults.append(f"{what}: {faults}")
        return not faults


def _log(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


if __name__ == "__main__":
    main()
