"""Loading weights of any origin: read without executing code, matched by name, and reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.errors import CheckpointError, a_few
from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import WRAPPERS, known_layout, without_wrappers
from reidguard.records import to_path
from reidguard.tensor_files import read_tensors

__all__ = ["LoadReport", "load_weights"]

# With a smaller fraction of matching numbers, a file belongs to another network.
MIN_MATCHING_FRACTION = 0.5


@dataclass(frozen=True)
class LoadReport:
    """Which tensors of a file were loaded, by name; ``str(report)`` is a summary.

    Args:
        path: The file.
        loaded: Copied into the model.
        missing: In the model but not copied from the file; left as they were.
        unexpected: In the file but unknown to the model.
        mismatched: In both, with shapes or types that differ, as readable lines.
        dropped_heads: Classifier tensors of the file that this model has no place for.
        layout: The code base whose names the file has and a note on it, where known.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    dropped_heads: tuple[str, ...] = ()
    layout: str | None = None

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing)
        lines = [f"{self.path.name}: {len(self.loaded)} of {total} tensors loaded"]
        if self.layout is not None:
            lines.append(f"  layout: {self.layout}")
        notes = {
            "missing": "not in the file or not fitting, left as initialised",
            "unexpected": "in the file, unknown to the model",
            "mismatched": "differ in shape or type",
            "dropped_heads": "classifier of the file, of another domain or size",
        }
        for field, note in notes.items():
            names: tuple[str, ...] = getattr(self, field)
            if names:
                title = field.replace("_", " ")
                lines.append(f"  {title} ({note}): {len(names)}: {a_few(names, 4)}")
        return "\n".join(lines)


@fixed_context()
def load_weights(model: ReIDModel, path: Path | str) -> LoadReport:
    """Copy the weights of a file into a model, in place.

    Reads this library's checkpoints, plain safetensors files, and torch files (tensors only:
    nothing in them is ever executed), also when nested under ``state_dict``, ``model`` or the like,
    and whatever ``module.``, ``model.`` or ``backbone.`` stands before the names. Models know the
    names of other code bases, see ``docs/models.rst``. A classifier for other identities is dropped
    and reported. The model stays untouched if this raises.

    Args:
        model: Receives the weights.
        path: The file.

    Returns:
        What was loaded and what was not; also ``model.load_report``.

    Raises:
        CheckpointError: If the file is missing, damaged, not made of tensors, has numbers that
            are not finite, or belongs to another network.
    """
    path = to_path(path)
    tensors = without_wrappers(read_tensors(path))
    target = model.state_dict()
    body = {n: t for n, t in target.items() if not n.startswith(model.head_prefixes)}

    def matching(state: Mapping[str, Tensor]) -> int:
        """Count the body's numbers that a file has."""
        names = (n for n, t in state.items() if n in body and _kind(t) == _kind(body[n]))
        return sum(body[n].numel() for n in names)

    # Of prefixes that only some names have, the one to strip is the one whose names match best.
    prefixes = (*WRAPPERS, "backbone.", "network.")
    candidates = [tensors, *(_stripped(tensors, prefix) for prefix in prefixes)]
    state = max((model.adapt_state(dict(names)) for names in candidates if names), key=matching)
    report = _compare(model, path, state, known_layout(tensors))
    count, total = matching(state), sum(t.numel() for t in body.values())
    if count < MIN_MATCHING_FRACTION * total or not count:
        raise CheckpointError(
            f"{path} holds the weights of another network than this {type(model).__name__}: "
            f"{count:,} of {total:,} numbers match. The file has, for instance, "
            f"{a_few(state, 4)}; the model needs {a_few(target, 4)}"
            + (f"; shapes differ: {a_few(report.mismatched, 2)}" if report.mismatched else "")
            + ". Create the model that the file was saved from"
        )
    matched = {name: state[name] for name in report.loaded}
    check_finite(path, matched)
    model.load_state_dict(matched, strict=False)
    model.load_report = report
    return report


def _compare(
    model: ReIDModel, path: Path, state: Mapping[str, Tensor], layout: Sequence[str | None] | None
) -> LoadReport:
    """Sort the tensors of a file, under the model's names, by whether they fit the model."""
    target = model.state_dict()
    names: dict[str, list[str]] = {
        field: [] for field in ("loaded", "unexpected", "mismatched", "dropped_heads")
    }
    for name, tensor in state.items():
        if name in target and _kind(tensor) == _kind(target[name]):
            names["loaded"].append(name)
        elif name.startswith(model.head_prefixes):
            names["dropped_heads"].append(name)
        elif name in target:
            line = f"{name} (file {_show(tensor)}, model {_show(target[name])})"
            names["mismatched"].append(line)
        else:
            names["unexpected"].append(name)
    loaded = set(names["loaded"])
    # Files from before torch 0.4.1 have no batch counters; nothing here depends on them.
    missing = (n for n in target if n not in loaded and not n.endswith("num_batches_tracked"))
    return LoadReport(
        path,
        missing=tuple(missing),
        layout=None if layout is None else "; ".join(filter(None, layout)),
        **{field: tuple(values) for field, values in names.items()},
    )


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
            f"{path} has NaN or infinite numbers in {len(bad)} tensors ({a_few(bad, 4)}): its "
            "training diverged or the file is damaged; use an earlier checkpoint"
        )
