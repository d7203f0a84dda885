"""Run folders: what was called, what came out, and how to go on after a kill."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from reidguard.cli.options import Options
from reidguard.cli.progress import note
from reidguard.distributed import world
from reidguard.errors import CheckpointError, InputError
from reidguard.storage import library_versions, write_json

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Interrupted", "RunFolder", "default_folder", "open_run"]

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
    brought: tuple[str, ...] = (),
) -> Iterator[RunFolder]:
    """Begin a run in a folder, or go on with the one that is there.

    Args:
        path: The folder; made where it is missing.
        options: Of the command; they go into the manifest.
        settings: What the result depends on, as JSON values; a folder of others is refused.
        products: Files without which a run is not finished.
        brought: Names in the folder that may be there before the run is.

    Raises:
        InputError: If the folder holds something else, or another process works in it.
        Interrupted: In place of KeyboardInterrupt.
    """
    together = world()
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
            manifest = _begin(path, options, settings, brought)
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


def _begin(
    path: Path, options: Options, settings: Mapping[str, Any], brought: tuple[str, ...]
) -> dict[str, Any]:
    own = (LOCK, *brought)
    foreign = sorted(
        p.name for p in path.iterdir() if p.name not in own and not p.name.endswith(".tmp")
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
