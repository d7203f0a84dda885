"""Run folders: what was called, what came out, and how to go on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from reidguard.cli.options import Options
from reidguard.cli.show import note
from reidguard.distributed import processes
from reidguard.errors import CheckpointError, InputError
from reidguard.storage import atomic_write, library_versions, write_json
from reidguard.training import Progress, ProgressCallback

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Interrupted", "Metrics", "RunFolder", "default_folder", "open_run"]

MANIFEST, LOCK = "manifest.json", ".lock"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says how to go on."""


class RunFolder:
    """One run's files. ``run / "name"`` is a path in it.

    Args:
        path: The folder.
        manifest: Content of its manifest.json.
        finished: Whether all its products are there already.
        writes: Whether this process is the one that writes into it; of several that `torchrun`
            started only the first does, and the others' work ends with the learning.
    """

    def __init__(
        self, path: Path, manifest: dict[str, Any], finished: bool, writes: bool = True
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.finished = finished
        self.writes = writes

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def finish(self) -> None:
        """Write down that all products are there."""
        self.mark("finished")
        self.finished = True

    def mark(self, status: str) -> None:
        """Write a status into the manifest: running, interrupted, failed or finished."""
        self.manifest["status"] = status
        self.manifest["finished"] = _now() if status == "finished" else None
        write_json(self / MANIFEST, self.manifest)


def default_folder(command: str, label: str, settings: Mapping[str, Any]) -> Path:
    """Return a folder below runs/ that is the same whenever the same thing is asked for."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"{command}-{label.replace(':', '-')}-{digest[:8]}"


@contextmanager
def open_run(
    path: Path,
    options: Options,
    *,
    settings: Mapping[str, Any],
    products: tuple[str, ...],
) -> Iterator[RunFolder]:
    """Begin a run in a folder, or go on with the one that is there.

    Args:
        path: The folder; made where it is missing.
        options: Of the command; they go into the manifest.
        settings: What the result depends on, as JSON values; a folder of others is refused.
        products: Files without which a run is not finished.

    Raises:
        InputError: If the folder holds something else, or another process works in it.
        Interrupted: In place of KeyboardInterrupt.
    """
    together = processes()
    if together is not None and together.rank > 0:
        yield RunFolder(path, {}, finished=False, writes=False)
        return
    settings = json.loads(json.dumps(settings))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the run folder {path}: {error.strerror}; choose another one with --out"
        ) from error
    with _locked(path):
        manifest = _read_manifest(path)
        if manifest is None:
            manifest = _begin(path, options, settings)
        else:
            _compare(path, manifest["settings"], settings)
        finished = manifest["status"] == "finished" and all((path / p).exists() for p in products)
        run = RunFolder(path, manifest, finished)
        if not finished:
            for leftover in path.glob(".*.tmp"):  # of killed writers
                leftover.unlink(missing_ok=True)
            if manifest["status"] != "new":
                manifest["resumed"].append(_now())
                note(f"going on with {path}")
            run.mark("running")
        try:
            yield run
        except KeyboardInterrupt:
            _give_up(run, "interrupted")
            again = shlex.join(["reidguard", *options.argv])
            raise Interrupted(f"{path} keeps what is done; to go on: {again}") from None
        except BaseException:
            _give_up(run, "failed")
            raise


def _give_up(run: RunFolder, status: str) -> None:
    if not run.finished:
        with suppress(CheckpointError):  # the disk may be full: the first error matters more
            run.mark(status)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        stream = (path / LOCK).open("w")
    except OSError as error:
        raise InputError(
            f"cannot write into {path}: {error.strerror}; choose another folder with --out"
        ) from error
    with stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
            except BlockingIOError:
                raise InputError(
                    f"another process is working in {path}; wait for it, or choose another "
                    "folder with --out"
                ) from None
            except OSError:
                pass  # some network disks have no locks
        yield


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        text = (path / MANIFEST).read_text("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read {path / MANIFEST}: {error.strerror}") from error
    try:
        manifest = dict(json.loads(text))
        if {"settings", "status", "resumed"} - manifest.keys():
            raise ValueError
    except (ValueError, TypeError):
        raise CheckpointError(
            f"{path / MANIFEST} is damaged or of another program; choose another folder with --out"
        ) from None
    return manifest


def _compare(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    there, here = _flat(before), _flat(now)
    changed = [k for k in {**there, **here} if there.get(k) != here.get(k)]
    if changed:
        details = "; ".join(
            f"{k}: {_brief(there.get(k))} there, {_brief(here.get(k))} now" for k in changed
        )
        raise InputError(
            f"{path} holds a run with other settings ({details}); repeat the settings to go on "
            "with it, or choose another folder with --out"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{key} {inner}": v for inner, v in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _begin(path: Path, options: Options, settings: Mapping[str, Any]) -> dict[str, Any]:
    foreign = sorted(
        p.name for p in path.iterdir() if p.name != LOCK and not p.name.endswith(".tmp")
    )
    if foreign:
        raise InputError(
            f"{path} holds other files, such as {foreign[0]}, and no run; choose a new or empty "
            "folder with --out"
        )
    return {
        "command": ["reidguard", *options.argv],
        "status": "new",
        "started": _now(),
        "resumed": [],
        "finished": None,
        "commit": _commit(),
        "versions": {**library_versions(), "python": platform.python_version()},
        "settings": dict(settings),
        "options": options.values(),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the commit of the git checkout around the working folder, if there is one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


class Metrics:
    """metrics.jsonl: a line for each step, each step once, in order.

    A resumed run repeats the steps since its last checkpoint; their old lines are dropped.

    Args:
        path: The file.
        then: Called with every progress afterwards.
    """

    def __init__(self, path: Path, then: ProgressCallback) -> None:
        self.path = path
        self.then = then
        self.seconds_per_step: float | None = None
        self._stream: TextIO | None = None
        self._began = (0.0, 0)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def __call__(self, told: Progress) -> None:
        """Take note of a step."""
        if told.phase == "learning":
            if self._stream is None:
                self._open(told.done)
            if told.metrics:
                self._write(told)
        self.then(told)

    def _open(self, step: int) -> None:
        kept = []
        with suppress(OSError, ValueError, KeyError, TypeError):  # no file, or a line cut short
            for line in self.path.read_text("utf-8").splitlines():
                if json.loads(line)["step"] > step:
                    break
                kept.append(line)
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        self._stream = self.path.open("a", encoding="utf-8")
        self._began = (time.perf_counter(), step)

    def _write(self, told: Progress) -> None:
        assert self._stream is not None
        record = {"step": told.done, **told.metrics, "time": round(time.time(), 3)}
        try:
            print(json.dumps(record), file=self._stream, flush=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror or os.strerror(error.errno or 0)}; "
                "free some space and repeat the command"
            ) from error
        began, first = self._began
        self.seconds_per_step = (time.perf_counter() - began) / (told.done - first)
