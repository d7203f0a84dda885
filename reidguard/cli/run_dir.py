"""Run folders: the command and its settings, its results, and how to resume it."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from reidguard.attacks import Attack
from reidguard.cli.options import Options
from reidguard.cli.progress import Display, note
from reidguard.distributed import is_first, shared_outcome
from reidguard.errors import CheckpointError, InputError, ReIDGuardError
from reidguard.files import (
    LOCK,
    atomic_write,
    folder_lock,
    is_temporary,
    remove_leftovers,
)
from reidguard.fingerprint import fingerprint
from reidguard.models import ReIDModel
from reidguard.records import read_file, read_record
from reidguard.report.records import Manifest
from reidguard.storage import changed_settings, library_versions, write_json
from reidguard.training import MetricsFile, MLflow, ProgressCallback, TensorBoard, WandB

__all__ = ["RunFolder", "default_folder", "open_run"]

Learnt = TypeVar("Learnt", ReIDModel, Attack)

MANIFEST = "manifest.json"


@dataclass
class RunFolder:
    """The files of one run. ``run / "name"`` is a path in the folder.

    Attributes:
        path: The folder.
        manifest: Content of its manifest.json.
        display: Shows progress.
        finished: Whether all its products exist already.
        writes: Whether this process writes into it and prints: of several that `torchrun` started
            only the first does.
    """

    path: Path
    manifest: dict[str, Any]
    display: Display
    finished: bool = False
    writes: bool = True

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def mark(self, status: str) -> None:
        """Write a status into the manifest: running, interrupted, failed or finished."""
        self.manifest["status"] = status
        self.manifest["finished"] = _now() if status == "finished" else None
        self.finished = status == "finished"
        write_json(self / MANIFEST, self.manifest)

    def learn(
        self,
        name: str,
        load: Callable[[Path], Learnt],
        fit: Callable[..., Learnt],
        *,
        prefix: str = "",
        trackers: Mapping[str, Any] | None = None,
    ) -> tuple[Learnt, float | None]:
        """Load what the run has learnt already, or learn and save it.

        Args:
            name: Of the file with the learnt model or attack.
            load: Reads the file.
            fit: Takes ``checkpoint`` and ``progress``.
            prefix: Of the names of metrics.jsonl and checkpoint.safetensors.
            trackers: Values of :class:`~reidguard.cli.sections.Learning`: where the metrics go,
                too.

        Returns:
            The model or attack, and the seconds of a step if any was taken now.

        Raises:
            CheckpointError: If the file is not the one that the run has learnt.
        """
        recorded = self._digests.get(name)
        if (self / name).exists() and (recorded is not None or self.finished):
            if recorded not in (None, _digest(self / name)):
                raise CheckpointError(
                    f"{self / name} is not the file that this run has learnt: put that back, or "
                    "delete this one, so that the run learns it again"
                )
            return load(self / name), None
        with ExitStack() as stack:
            progress: ProgressCallback = self.display
            if trackers and self.writes:
                progress = self._track(trackers, progress, stack)
            metrics = MetricsFile(self / f"{prefix}metrics.jsonl", progress)
            checkpoint = self / f"{prefix}checkpoint.safetensors"
            learnt = fit(checkpoint=checkpoint, progress=stack.enter_context(metrics))
        if self.writes:
            learnt.save(self / name)
            self.manifest["files"] = {**self.manifest["files"], name: _digest(self / name)}
            write_json(self / MANIFEST, self.manifest)
            learnt = load(self / name)  # as a resumed run does: its result has the same bytes
        return learnt, metrics.seconds_per_step

    def _track(
        self, trackers: Mapping[str, Any], progress: ProgressCallback, stack: ExitStack
    ) -> ProgressCallback:
        """Return a callback that logs to the trackers which the options name, too."""
        name = self.path.name
        if trackers["tensorboard"]:
            progress = stack.enter_context(TensorBoard(self / "tensorboard", progress))
        if (project := trackers["wandb"]) is not None:
            place = {"name": name, "dir": str(self.path), "config": self.manifest["settings"]}
            progress = stack.enter_context(WandB(project, progress, **place))
        if (experiment := trackers["mlflow"]) is not None:
            progress = stack.enter_context(MLflow(experiment, progress, run_name=name))
        return progress

    @property
    def _digests(self) -> dict[str, str]:
        """Digests of what was learnt; all processes of a run read those of the first one's file."""
        if self.writes:
            return dict(self.manifest["files"])
        if not (self / MANIFEST).exists():
            return {}
        return read_record(self / MANIFEST, Manifest).files

    def finish(self, content: Mapping[str, Any], text: str, name: str = "result") -> None:
        """Write the result as JSON and Markdown, and mark the run as finished."""
        if not self.writes:
            return
        write_json(self / f"{name}.json", content)
        with atomic_write(self / f"{name}.md") as temporary:
            temporary.write_text(f"{text}\n{self._command}", "utf-8")
        self.mark("finished")

    def content(self, name: str = "result") -> dict[str, Any]:
        """Read the result of a finished run as JSON values."""
        return read_record(self / f"{name}.json", dict[str, Any])

    def print(self, name: str = "result") -> None:
        """Print the result, without the command that the file ends with."""
        if self.writes:
            text = read_file(self / f"{name}.md").decode("utf-8", "replace")
            print(text.removesuffix(self._command))

    def say(self, line: str) -> None:
        """Print a line about the files of the run."""
        if self.writes:
            print(line)

    @property
    def _command(self) -> str:
        return f"`{shlex.join(self.manifest['command'])}`\n"


def default_folder(label: str, settings: Mapping[str, Any]) -> Path:
    """Return a folder below runs/ that is the same for equal settings."""
    return Path("runs") / f"{label.replace(':', '-')}-{fingerprint(settings)[:8]}"


@contextmanager
def open_run(
    options: Options,
    settings: Mapping[str, Any],
    products: tuple[str, ...] = ("result.json", "result.md"),
    label: str | None = None,
    *,
    path: Path | None = None,
    existing: tuple[str, ...] = (),
) -> Iterator[RunFolder]:
    """Begin a run in a folder, or resume the one that is there.

    Args:
        options: Of the command; they go into the manifest.
        settings: What the result depends on, as JSON values; a folder of others is refused.
        products: Files without which a run is not finished.
        label: Beginning of the folder's name below runs/ where ``--out`` is not given; the
            command's name by default.
        path: The folder; by default that of ``--out``, or one below runs/.
        existing: Names in the folder that may be there before the run.

    Raises:
        InputError: If the folder holds something else, or the settings are not the expected ones.
        CheckpointError: If another process works in the folder, or it cannot be written.
        KeyboardInterrupt: After Ctrl-C; the message says how to resume the run.
    """
    settings = json.loads(json.dumps(settings))
    _check_expected(options, settings)
    path = path or options.out or default_folder(label or options.command, settings)
    if not is_first():
        yield RunFolder(path, {}, Display(), finished=shared_outcome(None), writes=False)
        return
    with ExitStack() as stack:
        try:
            run = stack.enter_context(_first_process(options, settings, products, path, existing))
        except ReIDGuardError as error:
            shared_outcome(error)
            raise
        shared_outcome(run.finished)
        yield run


def _check_expected(options: Options, settings: Mapping[str, Any]) -> None:
    if options.expected is None:
        return
    expected = {**options.expected, "device": settings.get("device")}
    if changed := changed_settings(expected, settings):
        raise InputError(
            f"this is not what the card was measured with ({changed}): give the same model and "
            "data with --model and --data, and the reidguard of the card's version"
        )


@contextmanager
def _first_process(
    options: Options,
    settings: Mapping[str, Any],
    products: tuple[str, ...],
    path: Path,
    existing: tuple[str, ...],
) -> Iterator[RunFolder]:
    with folder_lock(path), Display() as display:
        if (path / MANIFEST).exists():
            cure = "choose another folder with --out"
            manifest = asdict(read_record(path / MANIFEST, Manifest, cure=cure))
            if changed := changed_settings(manifest["settings"], settings):
                raise InputError(
                    f"{path} holds a run with other settings ({changed}); repeat the settings to "
                    f"resume it, or {cure}"
                )
        else:
            manifest = _new_manifest(path, options, settings, existing)
        finished = manifest["status"] == "finished" and all((path / p).exists() for p in products)
        run = RunFolder(path, manifest, display, finished=finished)
        remove_leftovers(path, locked=True)
        if finished:
            note(f"{path} is already finished; skipping")
        else:
            if manifest["status"] != "new":
                manifest["resumed"].append(_now())
                note(f"resuming {path}")
            run.mark("running")
        try:
            yield run
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if not run.finished:
                with suppress(CheckpointError):  # the disk may be full: the first error is reported
                    run.mark("interrupted" if interrupted else "failed")
            if not interrupted:
                raise
            command = shlex.join(["reidguard", *options.argv])
            message = f"{path} has the finished part; to resume: {command}"
            raise KeyboardInterrupt(message) from None


def _new_manifest(
    path: Path, options: Options, settings: Mapping[str, Any], existing: tuple[str, ...]
) -> dict[str, Any]:
    names = {p.name for p in path.iterdir() if not is_temporary(Path(p.name))}
    if foreign := sorted(names - {LOCK, *existing}):
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
        "files": {},
        "given": sorted(options.explicit),
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the commit of the git checkout around the working folder, if there is one."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git.stdout.strip() if git.returncode == 0 else None
