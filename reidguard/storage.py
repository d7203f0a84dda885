"""Files that are either whole or absent: atomic writes, and tensors with a JSON card.

A checkpoint is one safetensors file whose header carries the card: what the tensors are, how they
came about, and with which versions. One file can be replaced in one step, so a reader never
meets tensors of one save beside the card of another.
"""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from reidguard.errors import CheckpointError

__all__ = [
    "atomic_write",
    "library_versions",
    "load_tensors",
    "read_card",
    "remove_temporaries",
    "save_tensors",
    "write_json",
]

SCHEMA = 1


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block succeeds.

    The bytes reach the disk before the name changes, so kill -9 or a power cut leaves either the
    old file or the new one. On an error the temporary file is removed.

    Raises:
        CheckpointError: If the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp made it private
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder (what was there before is untouched)"
        ) from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(path: Path | str) -> None:
    """Remove what killed writers of ``path`` left behind."""
    path = Path(path)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        leftover.unlink(missing_ok=True)


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
        safetensors.torch.save_file(flat, temporary, metadata=header)


def _card_of(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        card = json.loads((header or {})["card"])
        schema = int(card["schema"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path} is a safetensors file but not one that reidguard wrote: its card is missing"
        ) from None
    if schema > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer reidguard (schema {schema}, this one reads up to "
            f"{SCHEMA}); upgrade with: pip install --upgrade reidguard"
        )
    return dict(card)


def read_card(path: Path | str) -> dict[str, Any]:
    """Return the card alone, without reading the tensors."""
    return _open(Path(path), tensors=False)[1]


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the card that :func:`save_tensors` wrote.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
    """
    return _open(Path(path), tensors=True)


def _open(path: Path, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as stream:
            card = _card_of(path, stream.metadata())
            keys = stream.keys() if tensors else []
            # clone: the file's tensors lie at odd addresses, where convolutions round differently,
            # and a loaded model must give the bits of the one that was saved.
            return {key: stream.get_tensor(key).clone() for key in keys}, card
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or not a safetensors file ({error}); copy it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
