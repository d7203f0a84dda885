"""Tensors from the weight files of any program, read without executing anything in them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from reidguard.errors import CheckpointError, a_few
from reidguard.files import deferred_interrupts
from reidguard.records import to_path
from reidguard.storage import read_card

__all__ = ["check_archive", "read_tensors"]

# Under which keys training scripts keep the weights, beside optimisers and counters. Averages of
# the weights (EMA) are taken only where there are no others.
NESTS = (
    *("state_dict", "model_state_dict", "model.state_dict", "model_state", "model", "net"),
    *("net_dict", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
)
MAX_NESTING = 4
# A file of tensors is about as large as they are; a much larger claim is a damaged or hostile one.
MAX_EXPANSION = 10


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Return the named tensors of a safetensors or torch file; nothing in it is executed.

    Raises:
        CheckpointError: If it is missing, damaged, or holds more than tensors.
    """
    path = to_path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if start[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        return _read_safetensors(path)
    if start[:2] == b"PK":
        check_archive(path)
        return _read_torch(path)
    if start[:1] == b"\x80":  # torch's older files are plain pickles
        return _read_torch(path)
    raise CheckpointError(
        f"{path} is neither a safetensors nor a torch file (it starts with {start!r}); "
        "a download that failed leaves a web page or an empty file: fetch it again"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with deferred_interrupts():
            state: dict[str, Tensor] = safetensors.torch.load_file(path)
            with safetensors.safe_open(path, framework="pt") as stream:
                ours = "card" in (stream.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    if ours:
        read_card(path, "model")
    return state


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on weights_only is for the author
            with _numpy_numbers(), deferred_interrupts():
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: the unpickler may fail in any way
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, which are never executed here "
            f"({reason[0][:200]}); copy it again, or save only the state_dict() of the model, "
            "where you trust its source"
        ) from error
    content = _unnested(content)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dict of named tensors; "
            "save the state_dict() of the model"
        )
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    names = [key for key in content if isinstance(key, str)]
    odd = [n for n, t in state.items() if t.layout != torch.strided or t.is_quantized or t.is_meta]
    if odd:
        raise CheckpointError(
            f"{path} has sparse, quantized or empty tensors ({a_few(odd, 3)}); "
            "save them as ordinary dense ones"
        )
    if not state:
        raise CheckpointError(
            f"{path} names no tensors (it has {a_few(names, 3) or 'nothing'}); "
            "the weights should be at the top, under 'state_dict' or under 'model'"
        )
    # A few numbers may be repeated by a view, or under any number of names.
    _check_size(path, sum(tensor.nbytes for tensor in state.values()))
    return state


def _unnested(content: Any) -> Any:
    """Return the mapping that holds the weights, which may be under a usual key."""
    for _ in range(MAX_NESTING):
        if not isinstance(content, Mapping):
            break
        nests = [nest for nest in NESTS if isinstance(content.get(nest), Mapping)]
        with_tensors = [nest for nest in nests if _has_tensors(content[nest])]
        if not with_tensors:
            break
        content = content[with_tensors[0]]
    return content


def _has_tensors(content: Mapping[Any, Any], depth: int = MAX_NESTING) -> bool:
    return any(
        isinstance(value, Tensor)
        or (depth > 0 and isinstance(value, Mapping) and _has_tensors(value, depth - 1))
        for value in content.values()
    )


def _unpacked_size(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error


def check_archive(path: Path) -> None:
    """Raise a CheckpointError if a zip file is damaged, or unpacks to much more than itself."""
    _check_size(path, _unpacked_size(path))


def _check_size(path: Path, size: int) -> None:
    """Refuse a file whose content takes much more bytes than itself."""
    if size > MAX_EXPANSION * path.stat().st_size:
        raise CheckpointError(
            f"{path} would unpack to {size / 1e6:,.0f} MB, from {path.stat().st_size / 1e6:,.1f}: "
            "weights do not compress so well, so it is damaged or hostile; copy it again"
        )


def _numpy_numbers() -> AbstractContextManager[None]:
    """Let numpy's numbers be read, such as an accuracy in torchreid's files: they are data only."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [np.dtype, *kinds, *((scalar, name) for name in names)]
    return torch.serialization.safe_globals(allowed)
