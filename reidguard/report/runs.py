"""Run folders as the command line and :func:`reidguard.evaluate_grid` write them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reidguard.errors import InputError
from reidguard.records import convert, read_file, read_record, to_path
from reidguard.report.records import (
    AuditRecord,
    CertificateRecord,
    Manifest,
    ResultRecord,
    SuiteRecord,
)
from reidguard.training.metrics import read_metrics

__all__ = ["Run", "check_records", "read_run"]

CURE = "repeat the run"
# Types of a result, by a field that only results of that type have; all have the first one.
RECORDS: dict[str | None, type] = {
    None: ResultRecord,
    "findings": AuditRecord,
    "certified": CertificateRecord,
    "robust": SuiteRecord,
}


@dataclass(frozen=True, eq=False)
class Run:
    """Content of a run folder.

    Attributes:
        path: The folder.
        name: Its name in a report.
        manifest: Content of manifest.json; empty for the folder of a grid.
        result: Content of its result, and of grid.json if there is one; None while it has none.
            Its ``tables`` (``header``, ``rows``, ``caption``, ``text_columns``) are shown as they
            are.
        metrics: Lines of metrics.jsonl.
        text: Its result as the command printed it; empty where it has none.

    Example:
        >>> from pathlib import Path
        >>> Run(Path("runs/a"), "a", {"status": "running"}, None, ()).result is None
        True
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    metrics: tuple[dict[str, float], ...]
    text: str = ""

    @property
    def command(self) -> str:
        """Command that wrote the folder, such as "attack"; "grid" for a grid's folder."""
        if not self.manifest:
            return "grid"
        return str(self.manifest["settings"].get("command", "run")).partition(" ")[0]

    @property
    def shell_command(self) -> str:
        """The whole command line."""
        return shlex.join(self.manifest.get("command") or []) or "evaluate_grid(...)"

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Each evaluation, as ``label``, ``setting`` and ``evaluation``."""
        result = self.result or {}
        cells = []
        for cell in result.get("cells", ()):
            target = f"{cell['model']}, {cell['dataset']}"
            label = " on ".join(filter(None, [cell.get("attack"), target]))
            cells.append({"label": label, **cell})
        if result.get("evaluation") is not None:
            cells.append({"label": "", "setting": "", "evaluation": result["evaluation"]})
        return cells

    @property
    def provenance(self) -> dict[str, str]:
        """Commit, times, versions and facts about the training, in words."""
        facts: dict[str, Any] = {}
        if self.manifest:
            known = (key for key in ("commit", "started", "finished") if self.manifest.get(key))
            facts = {key: str(self.manifest[key]) for key in known}
            versions = self.manifest.get("versions", {})
            facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
        result = self.result or {}
        if isinstance(training := result.get("training"), Mapping):
            facts |= {name.replace("_", " "): value for name, value in training.items()}
        if (seconds := result.get("seconds_per_step")) is not None:
            facts["seconds per step"] = seconds
        return {name: _plain(value) for name, value in facts.items()}


def read_run(path: Path | str) -> Run:
    """Read a run folder of the command line, or the folder of :func:`reidguard.evaluate_grid`.

    Raises:
        InputError: If it is not a run folder.
        CheckpointError: If its files are damaged.

    Example:
        >>> run = read_run("runs/delta")  # doctest: +SKIP
        >>> run.result["evaluation"]["clean"]["mAP"]  # doctest: +SKIP
    """
    path = to_path(path)
    manifest = _read(path / "manifest.json")
    names = ("grid.json",) if manifest is None else ("result.json", "audit.json", "grid.json")
    result = next((r for name in names if (r := _read(path / name)) is not None), None)
    if result is not None:  # its cells may lie beside it
        result = {**(_read(path / "grid.json") or {}), **result}
    if manifest is None and result is None:
        raise InputError(
            f"{path} is not a run folder: it holds neither manifest.json nor grid.json; give the "
            "folder that a command wrote with --out"
        )
    check_records(path / "manifest.json", manifest, f"the result in {path}", result)
    text = b""
    if (path / "result.md").exists():
        text = read_file(path / "result.md")
    return Run(
        path,
        path.resolve().name,
        manifest or {},
        result,
        tuple(read_metrics(path / "metrics.jsonl")),
        text.decode("utf-8", "replace"),
    )


def check_records(
    manifest_name: object,
    manifest: Mapping[str, Any] | None,
    result_name: object,
    result: Mapping[str, Any] | None,
) -> None:
    """Check a manifest and a result, as far as they are read again.

    Args:
        manifest_name: Names it in an error.
        manifest: The manifest of a run.
        result_name: Names it in an error.
        result: The run's result.

    Raises:
        CheckpointError: Naming the field and what was expected.
    """
    if manifest is not None:
        convert(manifest, Manifest, manifest_name, cure=CURE)
    for name, kind in RECORDS.items():
        if result is not None and (name is None or name in result):
            convert(result, kind, result_name, cure=CURE)


def _read(path: Path) -> dict[str, Any] | None:
    return read_record(path, dict[str, Any], cure=CURE) if path.exists() else None


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
