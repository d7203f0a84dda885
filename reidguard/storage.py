"""Tensors with a JSON card, and resumable stores.

A checkpoint is one safetensors file whose header carries the card: what the tensors are, their
provenance, and the library versions. One file is replaced in one step, so a reader never sees
the tensors of one save beside the card of another.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor
from typing_extensions import Self

from reidguard.errors import CheckpointError
from reidguard.files import (
    LOCK,
    atomic_write,
    deferred_interrupts,
    folder_lock,
    is_temporary,
    remove_leftovers,
)
from reidguard.fingerprint import fingerprint
from reidguard.records import convert, find_record, parse_json, to_path

__all__ = [
    "ResumableStore",
    "changed_settings",
    "lacks_card",
    "library_versions",
    "load_tensors",
    "read_card",
    "save_tensors",
    "write_json",
]

T = TypeVar("T")

SCHEMA = 1


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def library_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("reidguard", "torch", "torchvision", "timm", "higher", "numpy", "pillow")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write tensors and their card as one safetensors file, atomically.

    The same tensors and card give the same bytes.

    Args:
        path: Target file.
        tensors: Any devices and dtypes; stored as contiguous CPU tensors.
        card: JSON values. ``schema`` is added.

    Raises:
        CheckpointError: If the file cannot be written; an older file stays as it was.
    """
    header = {"card": json.dumps({"schema": SCHEMA, **card}, sort_keys=True)}
    # clone: safetensors refuses tensors that share memory
    flat = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            with deferred_interrupts():
                safetensors.torch.save_file(flat, temporary, metadata=header)
        except safetensors.SafetensorError as error:
            reason = re.sub(r".*I/O error: | \(os error \d+\)", "", str(error))
            raise CheckpointError(
                f"cannot write {path}: {reason}; free some space or choose another folder"
            ) from error


@dataclass(frozen=True)
class Card:
    """What every card has."""

    schema: int
    kind: str | None = None


def _card_of(path: Path, header: Mapping[str, str] | None, kind: str | None) -> dict[str, Any]:
    if header is None or "card" not in header:
        raise CheckpointError(
            f"{path} is a safetensors file but not one that reidguard wrote: its card is missing"
        )
    values = parse_json(header["card"], dict[str, Any], f"the card of {path}")
    card = convert(values, Card, f"the card of {path}")
    if card.schema > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer reidguard (schema {card.schema}, this one reads up to "
            f"{SCHEMA}); upgrade with: pip install --upgrade reidguard"
        )
    if kind not in (None, card.kind):
        raise CheckpointError(
            f"{path} holds a checkpoint of kind {card.kind!r}, where {kind!r} is needed; give "
            "another file"
        )
    return values


def read_card(path: Path | str, kind: str | None = None) -> dict[str, Any]:
    """Return the card alone, without reading the tensors; see :func:`load_tensors`."""
    return _open(path, kind, tensors=False)[1]


def lacks_card(path: Path) -> bool:
    """Return whether a file is safetensors of another program; false for a damaged file, too."""
    try:
        with deferred_interrupts(), safetensors.safe_open(path, framework="pt") as stream:
            return "card" not in (stream.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def load_tensors(
    path: Path | str, kind: str | None = None, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the card that :func:`save_tensors` wrote.

    Args:
        path: The file.
        kind: The card's ``kind``, such as "model"; None for any.
        mapped: Leave the tensors in the file, mapped into memory: they may be larger than it.

    Raises:
        CheckpointError: If the file is missing, damaged, of another kind, or not one of ours.
    """
    return _open(path, kind, tensors=True, mapped=mapped)


def _open(
    name: Path | str, kind: str | None, *, tensors: bool, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = to_path(name)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with (
            deferred_interrupts(),
            safetensors.safe_open(path, framework="pt", device="cpu") as stream,
        ):
            card = _card_of(path, stream.metadata(), kind)
            keys = stream.keys() if tensors else []
            # clone: the file's tensors lie at odd addresses, where convolutions round differently,
            # and a loaded model must give the bits of the one that was saved.
            stored = {key: stream.get_tensor(key) for key in keys}
            return (stored if mapped else {k: t.clone() for k, t in stored.items()}), card
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def changed_settings(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe the settings that differ, nested ones by their path; empty if none does.

    Example:
        >>> changed_settings({"seed": 0, "model": {"name": "ide"}}, {"seed": 1})
        'seed: 0 stored, 1 now; model name: "ide" stored, null now'
    """
    before, now = (_flat(json.loads(json.dumps(settings))) for settings in (stored, current))
    return "; ".join(
        f"{name}: {_brief(before.get(name))} stored, {_brief(now.get(name))} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name} {inner}": v for inner, v in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else f"{text[:20]}..."


class ResumableStore:
    """Entries of a computation that may be interrupted, in a folder that belongs to its settings.

    Use it in a ``with`` statement, which locks the folder. Each entry is a file that is written
    atomically. An entry that is missing, damaged or of other settings reads as None, so that the
    caller computes it again.

    Args:
        folder: Made where it is missing. None stores nothing: every entry reads as None.
        settings: JSON values that the entries depend on.
        card: Name of the file that holds the settings.
        files: Paths in the folder of the other files that it may hold; None for any.

    Raises:
        CheckpointError: On entering, if the folder was made with other settings (the message lists
            them), holds other files, is in use, or cannot be written, or one of ``files`` is
            outside it, by ".." or through a symbolic link.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with ResumableStore(folder, {"seed": 0}) as store:
        ...     store.put("part 1", [1, 2])
        >>> with ResumableStore(folder, {"seed": 0}) as store:
        ...     store.get("part 1", list[int]), store.get("part 2", list[int])
        ([1, 2], None)
        >>> with ResumableStore(folder, {"seed": 1}):
        ...     pass
        Traceback (most recent call last):
        ...
        reidguard.errors.CheckpointError: ...other settings (seed: 0 stored, 1 now)...
    """

    def __init__(
        self,
        folder: Path | str | None,
        settings: Mapping[str, Any],
        *,
        card: str = "settings.json",
        files: Collection[str] | None = None,
    ) -> None:
        self.folder = None if folder is None else to_path(folder)
        self.settings = dict(settings)
        self.fingerprint = fingerprint(self.settings)
        self._card, self._files = card, files
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.folder is not None:
            self._check(self.folder)  # first, to leave no lock file in a folder of other things
            with ExitStack() as stack:
                stack.enter_context(folder_lock(self.folder))
                if self._check(self.folder):
                    write_json(self.folder / self._card, self.settings)
                remove_leftovers(self.folder, locked=True)
                self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _check(self, folder: Path) -> bool:
        """Refuse a folder of other settings or with other files; return whether it is new."""
        root = os.path.realpath(folder)
        for parent in {os.path.dirname(name) for name in self._files or ()}:
            if not Path(os.path.realpath(os.path.join(root, parent))).is_relative_to(root):
                raise CheckpointError(
                    f"{folder / parent} is not inside {folder}: '..' or a symbolic link leads out "
                    "of it; remove the link, or choose a new or empty folder"
                )
        files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        present = {p.as_posix() for p in files if p.name != LOCK and not is_temporary(p)}
        present.discard(self._card)
        stored = find_record(folder / self._card, dict[str, Any])
        is_new = stored is None
        if stored is not None and (changed := changed_settings(stored, self.settings)):
            raise CheckpointError(
                f"{folder} belongs to other settings ({changed}); repeat those to resume, or "
                "choose a new or empty folder"
            )
        allowed = () if is_new else present if self._files is None else self._files
        if foreign := present - set(allowed):
            raise CheckpointError(
                f"{folder} holds other files, such as {min(foreign)}; move them away, or choose a "
                "new or empty folder"
            )
        return is_new

    def get(self, name: str, kind: type[T]) -> T | None:
        """Return a JSON entry of this type; None if it is missing or damaged."""
        return None if self.folder is None else find_record(self.folder / f"{name}.json", kind)

    def put(self, name: str, value: Any) -> None:
        """Write a JSON entry."""
        if self.folder is not None:
            write_json(self.folder / f"{name}.json", value)

    def get_tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and values of an entry; None if it is missing or damaged."""
        if self.folder is None:
            return None
        try:
            tensors, card = load_tensors(self.folder / f"{name}.safetensors", "entry")
        except CheckpointError:
            return None
        return (tensors, card) if card.get("settings") == self.fingerprint else None

    def put_tensors(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        """Write an entry of tensors and JSON values."""
        if self.folder is not None:
            card = {"kind": "entry", "settings": self.fingerprint, **values}
            save_tensors(self.folder / f"{name}.safetensors", tensors, card)
