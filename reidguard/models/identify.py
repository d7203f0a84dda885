"""What a file of weights or a network is, and how to load it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reidguard.contexts import fixed_context
from reidguard.errors import CheckpointError
from reidguard.input_spec import PREPROCESSING
from reidguard.models.candidates import Candidate, by_names, by_shapes, weight_shapes
from reidguard.models.checkpoint_formats import known_layout, without_wrappers
from reidguard.models.dependence import feature_dependence
from reidguard.models.exported import exported_tensors
from reidguard.models.graph_contents import GraphContents, onnx_contents, openvino_contents
from reidguard.models.module_files import module_kind, read_script
from reidguard.records import to_path
from reidguard.storage import lacks_card, read_card
from reidguard.tensor_files import read_tensors
from reidguard.types import InputSpec

__all__ = ["Identification", "identify_tensors", "identify_weights"]

# Training identities of published datasets: the rows of a classifier.
IDENTITIES = {
    316: "VIPeR", 395: "SYSU-MM01", 410: "PersonX", 450: "DeepChange", 485: "CUHK01",
    576: "VeRi-776", 625: "MARS", 702: "DukeMTMC-reID", 751: "Market-1501",
    767: "CUHK03 (new protocol)", 1000: "ImageNet, as classes",
    1041: "MSMT17", 1367: "CUHK03 (old protocol)", 1501: "Market-1501 with its test identities",
    1812: "DukeMTMC-reID with its test identities", 4101: "MSMT17 with its test identities",
    8000: "RandPerson", 13164: "VehicleID",
}  # fmt: skip
IMAGENET = 1000
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Identification:
    """What a file is; ``str()`` of it is a report.

    Args:
        path: The file.
        format: Of the file, such as "torch" or "ONNX".
        architecture: Name of the registered model, the nearest one if ``exact`` is false; None if
            no model is near.
        options: Of its constructor, besides the defaults.
        exact: Whether the file is that architecture and no other.
        matched: Fraction of the architecture's numbers that the file has, without classifiers.
        identities: Rows of the file's classifier; None if it has none.
        embedding: Length of the feature, if it is known.
        input_spec: Preprocessing that goes with it, if it is known.
        python: Line that loads it; empty if none does.
        command: The same on the command line.
        notes: What differs, and what else is known.

    Example:
        >>> found = Identification(Path("net.pth"), "torch", "osnet_x0_25", identities=751)
        >>> found.dataset
        'Market-1501'
    """

    path: Path
    format: str
    architecture: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    matched: float | None = None
    identities: int | None = None
    embedding: int | None = None
    input_spec: InputSpec | None = None
    python: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()

    @property
    def dataset(self) -> str | None:
        """The dataset that has as many training identities, if one is known."""
        return None if self.identities is None else IDENTITIES.get(self.identities)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with the file's name instead of its path."""
        spec = None if self.input_spec is None else self.input_spec.to_dict()
        values = {**vars(self), "path": self.path.name, "input_spec": spec}
        values |= {"options": dict(self.options), "notes": list(self.notes)}
        return {**values, "dataset": self.dataset}

    def in_words(self) -> dict[str, str]:
        """Return what is known of the network: architecture, identities, ..., each in words."""
        rows = {"architecture": self._architecture_in_words()}
        if self.identities is not None:
            owner = f", as many as {self.dataset} has" if self.dataset else ""
            rows["identities"] = f"{self.identities:,}{owner}"
        if self.embedding is not None:
            rows["embedding"] = str(self.embedding)
        if self.input_spec is not None:
            rows["preprocessing"] = _in_words(self.input_spec)
        if self.matched is not None:
            rows["matched"] = f"{math.floor(1000 * self.matched) / 10:g} % of its numbers"
        return rows

    def __str__(self) -> str:
        loading = {"Python": self.python, "command line": self.command}
        rows = {"format": self.format, **self.in_words(), **loading}
        lines = [f"{name:<14} {text}" for name, text in rows.items() if text]
        return "\n".join([self.path.name, *lines, *(f"note: {note}" for note in self.notes)])

    def _architecture_in_words(self) -> str:
        if self.architecture is None:
            return "none that is registered is near"
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        name = self.architecture + (f" with {arguments}" if arguments else "")
        return name if self.exact else f"none exactly; the nearest is {name}"


@fixed_context()
def identify_weights(path: Path | str) -> Identification:
    """Say what a file of weights or a network is: architecture, training set, preprocessing.

    Reads torch and safetensors files, this library's own models and attacks, and networks in ONNX,
    OpenVINO's IR, TorchScript and of ``torch.export``. All registered models are compared, by the
    names and shapes of the tensors; where a file has lost the names, by the shapes of convolutions
    and linear layers alone. No network is run, and nothing is unpickled but tensors. (TorchScript
    is loaded by torch, see :func:`load_module`.)

    Args:
        path: The file; of OpenVINO's IR the ``.xml`` file.

    Raises:
        InputError: If a file in ONNX cannot be read since onnx is missing.
        CheckpointError: If the file is missing, damaged, of an unknown kind, or a pickle of more
            than tensors, such as a whole module; the message says the cure.

    Example:
        >>> import tempfile, torch
        >>> from reidguard.models import create_model
        >>> file = Path(tempfile.mkdtemp()) / "weights.pth"
        >>> torch.save(create_model("osnet_x0_25", num_classes=751).state_dict(), file)
        >>> print(identify_weights(file))
        weights.pth
        format         torch
        architecture   osnet_x0_25
        identities     751, as many as Market-1501 has
        embedding      512
        preprocessing  RGB in [0, 1], 256×128, mean 0.485/0.456/0.406, std 0.229/0.224/0.225
        matched        100 % of its numbers
        Python         create_model('osnet_x0_25', weights='weights.pth')
        command line   --model osnet_x0_25:weights.pth
    """
    path = to_path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".onnx":
        contents = onnx_contents(path)
        return _of_graph(path, "ONNX", "load_onnx", contents)
    if path.suffix == ".xml":
        return _of_graph(path, "OpenVINO IR", "load_openvino", openvino_contents(path))
    kind = module_kind(path)
    if kind is not None:
        return _of_module(path, kind)
    with path.open("rb") as stream:
        is_safe = stream.read(9)[8:] == b"{"
    if is_safe and (own := _of_card(path)) is not None:
        return own
    return identify_tensors(path, read_tensors(path), "safetensors" if is_safe else "torch")


def identify_tensors(
    path: Path, tensors: Mapping[str, Tensor], file_format: str = "torch"
) -> Identification:
    """Return what the tensors of a weight file are; they may be without memory.

    Args:
        path: For the lines that load the file.
        tensors: As the file names them.
        file_format: For the report.
    """
    found = by_names(tensors)
    best, notes = _best(found)
    if best is None or best.problem:
        shapes = weight_shapes(t.shape for t in tensors.values())
        same = [c for c in by_shapes(shapes, tensors) if not c.problem]
        if same:
            names = ", ".join(candidate.name for candidate in same)
            notes.append(f"its weights have the shapes of {names}, under other names")
    if (layout := known_layout(without_wrappers(dict(tensors)))) is not None:
        notes.append(f"the file has the names of {layout[0]}")
    result = Identification(path, file_format, identities=_identities(best, tensors))
    if best is None:
        return replace(result, notes=tuple(notes))
    result = _described(result, best, exact=not best.problem and not _rivals(found))
    if not best.problem:
        arguments = "".join(f", {key}={value!r}" for key, value in best.options.items())
        settings = "".join(
            f" --model-set {k}={_on_command_line(v)}" for k, v in best.options.items()
        )
        result = replace(
            result,
            python=f"create_model({best.name!r}{arguments}, weights={path.name!r})",
            command=f"--model {best.name}:{path.name}{settings}",
        )
    return replace(result, notes=tuple(notes))


def _described(result: Identification, best: Candidate, *, exact: bool) -> Identification:
    return replace(
        result,
        architecture=best.name,
        options=best.options,
        exact=exact,
        matched=best.fraction,
        embedding=None if best.problem else feature_dependence(best.model).width,
        input_spec=None if best.problem else best.model.input_spec,
    )


def _rivals(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the other models that fit as well as the first."""
    return [c for c in found[1:] if not c.problem and c.fit == found[0].fit]


def _best(found: Sequence[Candidate]) -> tuple[Candidate | None, list[str]]:
    if not found:
        return None, []
    best = found[0]
    if best.problem:
        return best, [best.problem]
    rivals = _rivals(found)
    names = ", ".join(rival.call for rival in rivals)
    return best, [f"it fits as well: {names}"] if rivals else []


def _identities(best: Candidate | None, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rows of the classifiers in a file, if all have the same."""
    if best is not None and not best.problem:
        inner = {shape[1] for shape in best.heads}  # of a classifier of several layers
        rows = {shape[0] for shape in best.heads if shape[0] not in inner}
    else:
        rows = {
            int(t.shape[0])
            for n, t in tensors.items()
            if t.dim() == 2 and n.endswith("weight") and "classifier" in n
        }
    rows = rows - {IMAGENET} or rows
    return next(iter(rows)) if len(rows) == 1 else None


def _of_card(path: Path) -> Identification | None:
    """Return what a file of this library is; None if another program wrote it."""
    if lacks_card(path):
        return None
    card = read_card(path)
    name = str(card.get("name"))
    if card.get("kind") == "attack":
        result = Identification(path, "reidguard attack", notes=(f"the attack {name!r}",))
        return replace(
            result, python=f"load_attack({path.name!r})", command=f"attack --load {path.name}"
        )
    if card.get("kind") != "model":
        raise CheckpointError(
            f"{path} is a file of reidguard of kind {card.get('kind')!r}, neither a model nor an "
            "attack; give model.safetensors or attack.safetensors of the run"
        )
    from reidguard.models.factory import load_model  # which needs memory for the weights

    model = load_model(path)
    counts = set(model.num_classes.values())
    options = dict(model.build_spec[1]) if model.build_spec else {}
    return Identification(
        path,
        "reidguard model",
        name,
        {k: v for k, v in options.items() if k != "num_classes"},
        exact=True,
        matched=1.0,
        identities=counts.pop() if len(counts) == 1 else None,
        embedding=feature_dependence(model).width,
        input_spec=model.input_spec,
        python=f"load_model({path.name!r})",
        command=f"--model {path.name}",
    )


def _of_graph(path: Path, kind: str, loader: str, contents: GraphContents) -> Identification:
    """Return what a network of another program is."""
    names = [name for name, _ in contents.constants]
    shapes = weight_shapes(shape for _, shape in contents.constants)
    result = _of_shapes(Identification(path, kind), shapes, names, contents.instance_norm)
    size = contents.inputs[2:4]
    own = (size[0], size[1]) if len(size) == 2 and size[0] and size[1] else None
    spec, notes = result.input_spec, list(result.notes)
    if contents.preprocessing:
        spec = InputSpec(size=own, **contents.preprocessing)
        notes.append(contents.reason)
    elif spec is not None:
        spec = replace(spec, size=own or spec.size)
    else:
        notes.append("its preprocessing is not known: without input_spec it is ImageNet's")
    if contents.name.startswith("person-"):
        notes.append(f"the file names it {contents.name}")
    length = contents.outputs[1] if len(contents.outputs) > 1 else None
    result = replace(result, embedding=length, input_spec=spec, notes=tuple(notes))
    return _with_loader(result, loader)


def _of_module(path: Path, kind: str) -> Identification:
    """Return what a network of TorchScript or torch.export is."""
    if kind == "torch.export":
        return _with_loader(identify_tensors(path, exported_tensors(path), kind), "load_module")
    script = read_script(path)
    if tensors := dict(script.state_dict()):
        return _with_loader(identify_tensors(path, tensors, kind), "load_module")
    graph: Any = script.graph
    nodes = graph.findAllNodes("prim::Constant")  # of a frozen module
    values = [n.t("value") for n in nodes if n.hasAttribute("value") and n.kindOf("value") == "t"]
    instance_norm = bool(graph.findAllNodes("aten::instance_norm"))
    shapes = weight_shapes(value.shape for value in values)
    result = _of_shapes(Identification(path, kind), shapes, (), instance_norm)
    return _with_loader(result, "load_module")


def _of_shapes(
    result: Identification,
    shapes: Mapping[tuple[int, ...], int],
    names: Sequence[str],
    instance_norm: bool,
) -> Identification:
    """Add which model a network is that has lost its names, by the shapes of its weights."""
    found = by_shapes(shapes, names, instance_norm=instance_norm)
    if not found:
        return result
    best, rivals = found[0], _rivals(found)
    if best.problem:
        return replace(_described(result, best, exact=False), notes=(best.problem,))
    notes = ["by the shapes of its convolutions and linear layers"]
    if rivals:
        notes.append(f"it has the shapes of {', '.join(rival.name for rival in rivals)}, too")
    return replace(_described(result, best, exact=not rivals), notes=tuple(notes))


def _with_loader(result: Identification, loader: str) -> Identification:
    """Add the lines that load a network's file."""
    spec = result.input_spec
    changed = _changed(spec)
    python = f", input_spec=InputSpec({changed[0]})" if changed[0] else ""
    command = f" --input {changed[1]}" if changed[1] else ""
    return replace(
        result,
        python=f"{loader}({result.path.name!r}{python})",
        command=f"--model {result.path.name}{command}",
    )


def _changed(spec: InputSpec | None) -> tuple[str, str]:
    """Return how preprocessing other than the default is written in Python and in ``--input``."""
    if spec is None or replace(spec, size=None) == InputSpec(size=None):
        return "", ""
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.to_dict().items()}
    python = ", ".join(f"{key}={value!r}" for key, value in values.items())
    parts = [str(values[name]) for name in PREPROCESSING if name in values]
    usual = RAW if spec.value_range == 255 else {"mean": InputSpec.mean, "std": InputSpec.std}
    for name in ("mean", "std"):
        if values[name] != usual[name]:
            parts.append(f"{name}={'/'.join(f'{number:g}' for number in values[name])}")
    return python, ",".join(parts)


def _on_command_line(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def _in_words(spec: InputSpec) -> str:
    size = "any size" if spec.size is None else f"{spec.size[0]}×{spec.size[1]}"
    how = "" if spec.interpolation == "bilinear" else f" {spec.interpolation}"
    text = f"{spec.channels.upper()} in [0, {spec.value_range}], {size}{how}"
    if spec.mean == RAW["mean"] and spec.std == RAW["std"]:
        return f"{text}, not normalised"
    mean, std = ("/".join(f"{number:g}" for number in numbers) for numbers in (spec.mean, spec.std))
    return f"{text}, mean {mean}, std {std}"
