"""Weights from files of any origin: read without executing anything, matched, and reported."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reidguard.errors import CheckpointError
from reidguard.models.base import ReIDModel
from reidguard.models.layouts import WRAPPERS, known_layout, without_wrappers
from reidguard.storage import read_card

__all__ = ["LoadReport", "load_weights", "read_tensors", "weights_fingerprint"]

# Below this share of matching numbers a file belongs to another network.
ENOUGH = 0.5

# Under which keys training scripts keep the weights, beside optimisers and counters.
NESTS = ("model", "net", "network", "model_state_dict", "state_dict", "model")


@dataclass(frozen=True)
class LoadReport:
    """What became of each tensor, by name. ``str(report)`` reads well.

    Args:
        path: The file.
        loaded: Taken over.
        missing: Wanted by the model but not taken from the file; left as they were.
        unexpected: In the file but unknown to the model.
        mismatched: In both, with shapes or types that differ, as readable lines.
        dropped_heads: Classifier tensors of the file that this model has no place for.
        layout: Whose names the file has and what to mind, where that is known.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    dropped_heads: tuple[str, ...] = ()
    layout: str | None = None

    def __str__(self) -> str:
        wanted = len(self.loaded) + len(self.missing)
        lines = [f"{self.path.name}: {len(self.loaded)} of {wanted} tensors loaded"]
        if self.layout is not None:
            lines.append(f"  layout: {self.layout}")
        notes = {
            "missing": "not in the file or not fitting, left as initialised",
            "unexpected": "in the file, unknown to the model",
            "mismatched": "differ in shape or type",
            "dropped_heads": "classifier of the file, not asked for or of another size",
        }
        for field, note in notes.items():
            names: tuple[str, ...] = getattr(self, field)
            if names:
                title = field.replace("_", " ")
                lines.append(f"  {title} ({note}): {len(names)}: {_examples(names)}")
        return "\n".join(lines)


def _examples(names: tuple[str, ...], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def load_weights(model: ReIDModel, path: Path | str) -> LoadReport:
    """Copy the weights of a file into a model, in place.

    Reads this library's checkpoints, plain safetensors files, and torch files (tensors only:
    nothing in them is ever executed), also when nested under ``state_dict``, ``model`` or the like,
    and whatever ``module.``, ``model.`` or ``backbone.`` stands before the names. Models know the
    names of other code bases, see ``docs/models.rst``. A classifier for other identities is dropped
    and reported. The model stays untouched if this raises.

    Args:
        model: What to fill.
        path: The file.

    Returns:
        What was loaded and what was not, also kept as ``model.load_report``.

    Raises:
        CheckpointError: If the file is missing, damaged, not made of tensors, has numbers that
            are not finite, or belongs to another network.
    """
    path = Path(path)
    read = read_tensors(path)
    wanted = model.state_dict()
    body = {n: t for n, t in wanted.items() if not n.startswith(model.head_prefixes)}

    def numbers(state: Mapping[str, Tensor]) -> int:
        """How many of the body's numbers a file has."""
        fits = (n for n, t in state.items() if n in body and _kind(t) == _kind(body[n]))
        return sum(body[n].numel() for n in fits)

    # Where a prefix stands before some of the names only, what fits best tells if it belongs.
    ways = [read, *(_stripped(read, prefix) for prefix in (*WRAPPERS, "backbone.", "network."))]
    state = max((model.adapt_state(dict(way)) for way in ways if way), key=numbers)
    known = known_layout(read)

    loaded: list[str] = []
    unexpected: list[str] = []
    mismatched: list[str] = []
    dropped: list[str] = []
    for name, tensor in state.items():
        head = name.startswith(model.head_prefixes)
        target = wanted.get(name)
        if target is None:
            (dropped if head else unexpected).append(name)
        elif _kind(tensor) == _kind(target):
            loaded.append(name)
        elif head:
            dropped.append(name)
        else:
            mismatched.append(f"{name} (file {_show(tensor)}, model {_show(target)})")
    # Files from before torch 0.4.1 have no batch counters; nothing here depends on them.
    missing = [n for n in wanted if n not in loaded and not n.endswith("num_batches_tracked")]
    report = LoadReport(
        path,
        tuple(loaded),
        tuple(missing),
        tuple(unexpected),
        tuple(mismatched),
        tuple(dropped),
        None if known is None else "; ".join(filter(None, known)),
    )

    found, total = numbers(state), sum(t.numel() for t in body.values())
    if found < ENOUGH * total or not found:
        raise CheckpointError(
            f"{path} holds the weights of another network than this {type(model).__name__}: "
            f"{found:,} of {total:,} numbers match. The file has, for instance, "
            f"{_examples(tuple(state))}; the model wants {_examples(tuple(wanted))}"
            + (f"; shapes differ: {_examples(tuple(mismatched), 2)}" if mismatched else "")
            + ". Create the model that the file was saved from"
        )
    chosen = {name: state[name] for name in loaded}
    check_finite(path, chosen)
    model.load_state_dict(chosen, strict=False)
    model.load_report = report
    return report


def _stripped(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Strip a prefix from the names that have it; nothing if none has, or two would be one."""
    names = {name.removeprefix(prefix) for name in state}
    if len(names) < len(state) or names == set(state):
        return {}
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], bool]:
    return tuple(tensor.shape), tensor.is_floating_point()


def _show(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError that names the tensors with NaN or infinity."""
    bad = tuple(n for n, t in state.items() if not bool(torch.isfinite(t).all()))
    if bad:
        raise CheckpointError(
            f"{path} has NaN or infinite numbers in {len(bad)} tensors ({_examples(bad)}): its "
            "training diverged or the file is damaged; use an earlier checkpoint"
        )


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
        state: dict[str, Tensor] = load_file(path)
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
            f"{path} has sparse, quantized or empty tensors ({_examples(tuple(odd))}); "
            "save them as ordinary dense ones"
        )
    if not state:
        raise CheckpointError(
            f"{path} names no tensors (it has {_examples(tuple(map(str, content))) or 'nothing'}); "
            "the weights should be at the top, under 'state_dict' or under 'model'"
        )
    return without_wrappers(state)


def _numpy_numbers() -> AbstractContextManager[None]:
    """Let numpy's numbers be read, such as an accuracy in torchreid's files: they are data only."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    allowed: list[Any] = [np.dtype, *kinds, *((scalar, name) for name in names)]
    return torch.serialization.safe_globals(allowed)


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
