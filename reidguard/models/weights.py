"""Weights from files of any origin: read without executing anything, matched, and reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reidguard.errors import CheckpointError
from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import WRAPPERS, known_layout, without_wrappers
from reidguard.tensor_files import read_tensors

__all__ = ["LoadReport", "load_weights"]

# Below this share of matching numbers a file belongs to another network.
ENOUGH = 0.5


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
    read = without_wrappers(read_tensors(path))
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
