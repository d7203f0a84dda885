"""Tensors from the weight files of any program, read without executing anything in them."""

from __future__ import annotations

import warnings
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

__all__ = ["read_tensors"]

# Under which keys training scripts keep the weights, beside optimisers and counters.
NESTS = ("model", "net", "network", "model_state_dict", "state_dict", "model")


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
    if start[:2] == b"PK" or start[:1] == b"\x80":  # torch's zip files, and its older plain pickles
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
            f"{path} has sparse, quantized or empty tensors ({a_few(odd, 3)}); "
            "save them as ordinary dense ones"
        )
    if not state:
        raise CheckpointError(
            f"{path} names no tensors (it has {a_few(map(str, content), 3) or 'nothing'}); "
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
