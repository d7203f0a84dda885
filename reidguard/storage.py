"""Files that are either whole or absent: atomic writes, and tensors with a JSON card.

A checkpoint is one safetensors file whose header carries the card: what the tensors are, how they
came about, and with which versions. One file can be replaced in one step, so a reader never
meets tensors of one save beside the card of another.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from reidguard.errors import CheckpointError

__all__ = [
    "atomic_write",
    "library_versions",
    "load_tensors",
    "read_card",
    "read_tensors",
    "remove_temporaries",
    "save_tensors",
    "weights_fingerprint",
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


# Under which keys training scripts keep the weights, beside optimisers and counters.
NESTS = ("model", "net", "network", "model_state_dict", "state_dict", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors or torch file; nothing in it is executed.

    Raises:
        CheckpointError: If it is missing, damaged, or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":  # torch's zip files, and its older plain pickles
        return _read_torch(path)
    raise CheckpointError(
        f"{path} is neither a safetensors nor a torch file (it starts with {start!r}); "
        "a download that failed leaves a web page or an empty file: fetch it again"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, framework="pt") as stream:
            ours = "card" in (stream.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    if ours and (kind := read_card(path).get("kind")) != "model":
        raise CheckpointError(f"{path} is a checkpoint of kind {kind!r}, not of a model")
    return state


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on weights_only is for the author
            with _numpy_numbers():
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: the unpickler may fail in any way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, which are never executed here "
            f"({reason[0][:200]}); copy it again, or save only the state_dict() of the model, "
            "where you trust its source"
        ) from error
    for nest in NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dict of named tensors; "
            "save the state_dict() of the model"
        )
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    odd = [n for n, t in state.items() if t.layout != torch.strided or t.is_quantized or t.is_meta]
    if odd:
        raise CheckpointError(
            f"{path} has sparse, quantized or empty tensors ({_a_few(tuple(odd))}); "
            "save them as ordinary dense ones"
        )
    if not state:
        raise CheckpointError(
            f"{path} names no tensors (it has {_a_few(tuple(map(str, content))) or 'nothing'}); "
            "the weights should be at the top, under 'state_dict' or under 'model'"
        )
    return state


def _numpy_numbers() -> AbstractContextManager[None]:
    """Let numpy's numbers be read, such as an accuracy in torchreid's files: they are data only."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [np.dtype, *kinds, *((scalar, name) for name in names)]
    return torch.serialization.safe_globals(allowed)


def _a_few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def weights_fingerprint(model: nn.Module) -> str:
    """Return a sha256 over the architecture as printed and all names, types and bytes of weights.

    Models with the same fingerprint give the same features for the same inputs (apart from
    resizing and normalisation, which an :class:`~reidguard.types.InputSpec` tells), so it can
    key a cache. The printed architecture is part of it because equal weights can be run with other
    strides.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = weights_fingerprint(net)
        >>> with torch.no_grad():
        ...     _ = net.weight.add_(1e-3)
        >>> weights_fingerprint(net) == before
        False
    """
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()
