"""Loading weights of any origin: read without executing code, matched by name, and reported."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.errors import CheckpointError, a_few
from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import PREFIXES, known_layout, without_wrappers
from reidguard.models.dependence import FeatureDependence, feature_dependence
from reidguard.records import to_path
from reidguard.tensor_files import read_tensors

__all__ = ["LoadReport", "check_finite", "load_weights", "match_tensors", "misfit"]


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

    Example:
        >>> report = LoadReport(Path("net.pth"), loaded=("conv.weight",), missing=("fc.bias",))
        >>> print(report)
        net.pth: 1 of 2 tensors loaded
          missing (not in the file or not fitting, left as initialised): 1: fc.bias
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
def load_weights(model: ReIDModel, path: Path | str, *, strict: bool = True) -> LoadReport:
    """Copy the weights of a file into a model, in place.

    Reads this library's checkpoints, plain safetensors files, and torch files (tensors only:
    nothing in them is ever executed), also when nested under ``state_dict``, ``model`` or the like,
    and whatever ``module.``, ``model.`` or ``backbone.`` stands in the names. Models know the
    names of other code bases, see ``docs/models.rst``.

    Everything that the features depend on must come from the file, and the file may hold nothing
    else that they could depend on. What the features depend on is found by following a pass of the
    model. Classifiers serve only training: those of other identities are dropped and reported. The
    model stays untouched if this raises.

    Args:
        model: Receives the weights.
        path: The file.
        strict: False loads what fits, such as a backbone from which training starts, and warns
            instead of raising.

    Returns:
        What was loaded and what was not; also ``model.load_report``.

    Raises:
        CheckpointError: If the file is missing, damaged, not made of tensors, has numbers that
            are not finite, or belongs to another network. The message names the tensors, and the
            registered model that would fit.

    Example:
        >>> import tempfile
        >>> from reidguard.models import create_model
        >>> file = Path(tempfile.mkdtemp()) / "net.pth"
        >>> torch.save(create_model("osnet_x0_25").state_dict(), file)
        >>> report = load_weights(create_model("osnet_x0_25"), file)
        >>> len(report.loaded), report.missing
        (565, ())
    """
    path = to_path(path)
    tensors = read_tensors(path)
    state, report = match_tensors(model, path, tensors)
    problem = misfit(model, state, report)
    if problem and (strict or not report.loaded):
        from reidguard.models.nearest import nearest_model  # which needs this module

        raise CheckpointError(
            f"{path} does not fit this {type(model).__name__}: {problem}. "
            + nearest_model(model, tensors)
            + (
                "; or load what fits with strict=False, which leaves the rest as initialised"
                if report.loaded
                else ""
            )
        )
    target = model.state_dict()
    matched = {name: state[name].to(target[name].dtype) for name in report.loaded}
    check_finite(path, matched)
    model.load_state_dict(matched, strict=False)
    model.load_report = report
    if problem:
        warnings.warn(f"{path} does not fit completely: {problem}\n{report}", stacklevel=3)
    return report


def match_tensors(
    model: ReIDModel, path: Path, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return the tensors of a file under the model's names, and what would be loaded of them.

    Args:
        model: It is only read; it may be on the meta device.
        path: For the report.
        tensors: As the file names them.
    """
    target = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    ours = without_wrappers({name: name for name in target})
    body = {n: t for n, t in target.items() if not n.startswith(model.head_prefixes)}

    def renamed(names: Mapping[str, Tensor]) -> dict[str, Tensor]:
        adapted = model.adapt_state(dict(names))
        return {ours.get(name, name): tensor for name, tensor in adapted.items()}

    def matching(state: Mapping[str, Tensor]) -> int:
        """Count the body's numbers that a file has."""
        names = (n for n, t in state.items() if n in body and _kind(t) == _kind(body[n]))
        return sum(body[n].numel() for n in names)

    # Of prefixes that may be stripped, the one whose names match best.
    state = max((renamed(names) for names in _candidates(tensors)), key=matching)
    layout = known_layout(without_wrappers(tensors))
    return state, _compare(model, path, state, layout)


def _candidates(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors under the file's names, and with what may stand before them stripped."""
    plain = without_wrappers(tensors)
    yield plain
    for prefix in PREFIXES:
        if stripped := _stripped(plain, prefix):
            yield stripped
    while True:  # components that all names share
        prefix = next(iter(plain)).partition(".")[0] + "."
        if not all(name.startswith(prefix) for name in plain):
            break
        plain = {name.removeprefix(prefix): tensor for name, tensor in plain.items()}
        yield plain


def misfit(model: ReIDModel, state: Mapping[str, Tensor], report: LoadReport) -> str:
    """Return why the features would not be those of the file's network; empty if they would be."""
    foreign = [n for n in report.dropped_heads if n.startswith(("backbone.", "network."))]
    if report.loaded and not (report.missing or report.unexpected or foreign):
        return ""
    depends = feature_dependence(model)
    missing = _missing_for_features(model, report, depends)
    unexpected = [n for n in report.unexpected if state[n].is_floating_point()]
    # A classifier on the features themselves shows how long those of the file's network are.
    widths = {depends.width, getattr(getattr(model, "backbone", None), "num_features", None)}
    others = [
        f"{n} takes features of length {state[n].shape[1]}"
        for n in foreign
        if state[n].dim() == 2 and depends.width and state[n].shape[1] not in widths
    ]
    parts = []
    if missing:
        total = len(depends.names)
        parts.append(
            f"{len(missing)} of the {total} tensors that its features depend on are not in the "
            f"file, or not as needed ({a_few(missing, 4)})"
        )
    if missing and report.mismatched:
        parts.append(f"shapes or types differ: {a_few(report.mismatched, 2)}")
    if unexpected:
        parts.append(
            f"{len(unexpected)} tensors of the file have no place in it ({a_few(unexpected, 4)})"
        )
    if others:
        parts.append(f"{a_few(others, 2)}, those of this model have length {depends.width}")
    if report.layout and parts:
        parts.append(f"the file has the names of {report.layout}")
    return "; ".join(parts)


def _missing_for_features(
    model: ReIDModel, report: LoadReport, depends: FeatureDependence
) -> list[str]:
    """Return what the features depend on and the file lacks; tied tensors need to be there once."""
    target = model.state_dict()
    loaded = {_memory(target[name]) for name in report.loaded} - {None}
    return [n for n in report.missing if n in depends.names and _memory(target[n]) not in loaded]


def _memory(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    if tensor.is_meta or tensor.layout != torch.strided:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _compare(
    model: ReIDModel,
    path: Path,
    state: Mapping[str, Tensor],
    layout: tuple[str, str] | None,
) -> LoadReport:
    """Sort the tensors of a file, under the model's names, by whether they fit the model."""
    target = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    names: dict[str, list[str]] = {
        field: [] for field in ("loaded", "unexpected", "mismatched", "dropped_heads")
    }
    for name, tensor in state.items():
        if name in target and _kind(tensor) == _kind(target[name]):
            names["loaded"].append(name)
        elif name.startswith(model.head_prefixes) and _is_head(name, tensor):
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


def _is_head(name: str, tensor: Tensor) -> bool:
    """Return whether it may be a classifier: beside a backbone, that is a single linear layer."""
    if not name.startswith(("backbone.", "network.")):
        return True
    return {"weight": 2, "bias": 1}.get(name.rpartition(".")[2]) == tensor.dim() and not any(
        part.isdigit() for part in name.split(".")
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
            f"{path} has NaN, infinite or too large numbers in {len(bad)} tensors "
            f"({a_few(bad, 4)}): its training diverged or the file is damaged; use an earlier "
            "checkpoint"
        )
