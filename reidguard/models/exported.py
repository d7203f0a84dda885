"""Networks of ``torch.export.save``, read without pickle: their graph is JSON, their weights bytes.

``torch.export.load`` unpickles parts of a file and looks up functions by the names in it, so it may
run code. Here only operators of torch on tensors are called, and no pickle is read.
"""

from __future__ import annotations

import json
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reidguard.errors import CheckpointError, InputError, ReIDGuardError
from reidguard.models.graphs import GraphNetwork, Step
from reidguard.tensor_files import check_archive

__all__ = ["ExportedNetwork", "exported_tensors", "read_exported"]

# Numbers in the files, from torch/_export/serde/schema.py.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
POSITIONAL = 1
# Functions of whole numbers that shapes are computed with.
ARITHMETIC = ("add", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod", "mul", "ne", "neg",
              "pow", "sub", "truediv")  # fmt: skip
# Operators that make a tensor of none.
MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros")
# Kinds of arguments that are as they stand in the file.
PLAIN = ("as_int", "as_ints", "as_floats", "as_bool", "as_bools", "as_string")
MAX_WEIGHTS = 100_000
CURE = "export the network again, with torch.export.save of torch 2.9 or later"


class ExportedNetwork(GraphNetwork):
    """The network of a file, with its weights under the names that it was exported with.

    Args:
        image: Name of the input in the graph.
        features: Name of the output.
        steps: Operations.
        weights: Graph name, name in the exported module, and tensor of each weight.
        shape: Of the input; None where any number will do.
    """

    def __init__(
        self,
        image: str,
        features: str,
        steps: Sequence[Step],
        weights: Sequence[tuple[str, str, Tensor]],
        shape: Sequence[int | None],
    ) -> None:
        super().__init__(image, features, steps, {}, {})
        self.shape = tuple(shape)
        self.network = nn.Module()
        self.weight_names = {graph_name: name for graph_name, name, _ in weights}
        for _, name, tensor in weights:
            _insert(self.network, name, tensor)

    def constants(self) -> dict[str, Any]:
        """Return the weights by their names in the graph."""
        own: dict[str, Tensor] = dict(self.network.named_parameters(remove_duplicate=False))
        own |= dict(self.network.named_buffers(remove_duplicate=False))
        return {graph_name: own[name] for graph_name, name in self.weight_names.items()}


def read_exported(path: Path) -> ExportedNetwork:
    """Return the network of a .pt2 file. No pickle in it is read.

    Raises:
        CheckpointError: If the file is damaged, or of a torch before 2.9, whose layout is another.
        InputError: If it is a network in training mode, has an operation that is not one of torch's
            on tensors, or has several inputs or outputs.
    """
    with _open(path) as archive, _damage_is_an_error(path):
        program = archive.json("models/model.json")["graph_module"]
        graph, signature = program["graph"], program["signature"]
        image, names = _inputs(path, signature["input_specs"])
        features = _output(path, signature["output_specs"])
        tensors = _weights(archive)
        weights = [(graph_name, name, tensors[name]) for graph_name, name in names.items()]
        reader = _Reader(path, image)
        steps = [reader.step(node) for node in graph["nodes"] if not _is_assertion(node)]
        shape = [size.get("as_int") for size in graph["tensor_values"][image]["sizes"]]
        return ExportedNetwork(image, features, steps, weights, shape).eval()


def exported_tensors(path: Path) -> dict[str, Tensor]:
    """Return the names and shapes of a .pt2 file's weights, as tensors without memory."""
    with _open(path) as archive, _damage_is_an_error(path):
        entries = archive.json("data/weights/model_weights_config.json")["config"]
        metas = {name: entry["tensor_meta"] for name, entry in entries.items()}
        return {
            name: torch.empty(_whole(meta["sizes"]), dtype=DTYPES[meta["dtype"]], device="meta")
            for name, meta in metas.items()
        }


@contextmanager
def _damage_is_an_error(path: Path) -> Iterator[None]:
    """Turn what unexpected content raises into a CheckpointError."""
    try:
        yield
    except ReIDGuardError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(
            f"{path} is damaged or of another version of torch ({reason}); {CURE}"
        ) from error


class _Archive:
    """The zip file of an export, whose entries lie below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = zipfile.ZipFile(path)
        self.root = next(n for n in self.zip.namelist() if n.endswith("/models/model.json"))
        self.root = self.root.removesuffix("models/model.json")

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *exception: object) -> None:
        self.zip.close()

    def bytes(self, name: str) -> bytes:
        try:
            return self.zip.read(self.root + name)
        except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} lacks {name}, or it is damaged; {CURE}") from error

    def json(self, name: str) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(self.bytes(name))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name} of {self.path} is damaged; {CURE}") from error
        return values


def _open(path: Path) -> _Archive:
    check_archive(path)
    try:
        return _Archive(path)
    except StopIteration:
        raise CheckpointError(f"{path} holds no network of torch.export.save; {CURE}") from None


def _inputs(path: Path, specs: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Return the graph's name of the image, and the names of the weights by those of the graph."""
    images, names = [], {}
    kinds = {
        "parameter": "parameter_name", "buffer": "buffer_name",
        "tensor_constant": "tensor_constant_name",
    }  # fmt: skip
    for spec in specs:
        ((kind, value),) = spec.items()
        if kind == "user_input":
            images.append(value["arg"]["as_tensor"]["name"])
        elif kind in kinds:
            names[value["arg"]["name"]] = value[kinds[kind]]
        else:
            raise InputError(f"{path} has an input of kind {kind!r}: export a network of one image")
    if len(images) != 1:
        raise InputError(
            f"{path} has {len(images)} inputs: export the network with the images as its only one"
        )
    return images[0], names


def _output(path: Path, specs: Sequence[Mapping[str, Any]]) -> str:
    outputs = []
    for spec in specs:
        ((kind, value),) = spec.items()
        if kind == "buffer_mutation":
            raise _training_mode(path)
        if kind == "user_output":
            outputs.append(value["arg"].get("as_tensor", {}).get("name"))
    if len(outputs) != 1 or outputs[0] is None:
        raise InputError(
            f"{path} has {len(outputs)} outputs: export a network that gives the features alone"
        )
    name: str = outputs[0]
    return name


def _training_mode(path: Path) -> InputError:
    return InputError(
        f"{path} was exported in training mode, where features depend on the other images: call "
        "eval() on the network before torch.export.export"
    )


def _weights(archive: _Archive) -> dict[str, Tensor]:
    """Return parameters, buffers and constants by their names in the exported module."""
    tensors: dict[str, Tensor] = {}
    for folder, config in (("weights", "weights"), ("constants", "constants")):
        entries = archive.json(f"data/{folder}/model_{config}_config.json")["config"]
        if len(entries) > MAX_WEIGHTS:
            raise CheckpointError(f"{archive.path} has more than {MAX_WEIGHTS:,} weights")
        for name, entry in entries.items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or meta is None or file.startswith(("custom_obj", "opaque_obj")):
                raise CheckpointError(
                    f"{archive.path} holds {name} as a pickle, which is never read here; export a "
                    "network of plain tensors"
                )
            data = torch.frombuffer(
                bytearray(archive.bytes(f"data/{folder}/{file}")), dtype=DTYPES[meta["dtype"]]
            )
            sizes, strides = _whole(meta["sizes"]), _whole(meta["strides"])
            tensor = torch.as_strided(
                data, sizes, strides, meta["storage_offset"]["as_int"]
            ).clone()
            is_weight = entry["is_param"] and tensor.is_floating_point()
            tensors[name] = nn.Parameter(tensor) if is_weight else tensor
    return tensors


def _whole(numbers: Sequence[Mapping[str, int]]) -> list[int]:
    return [number["as_int"] for number in numbers]


def _insert(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Add a weight to a tree of modules, which its dotted name describes."""
    *parents, leaf = name.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor)


# --- operations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A place in the arguments of an operation for one of its inputs, or for the input's device."""

    index: int
    device: bool = False


def _is_assertion(node: Mapping[str, Any]) -> bool:
    name = node["target"].removeprefix("torch.ops.aten.")
    return name.startswith(("_assert", "sym_constrain_range")) and not node["outputs"]


@dataclass(frozen=True)
class _Reader:
    """Turns the nodes of a graph into steps.

    Args:
        path: For messages.
        image: Name of the graph's input, on whose device new tensors are.
    """

    path: Path
    image: str

    def step(self, node: Mapping[str, Any]) -> Step:
        run = _function(self.path, node["target"])
        inputs: dict[str, int] = {}
        args, kwargs = [], {}
        for entry in node["inputs"]:
            if entry["name"] in ("train", "training") and entry["arg"].get("as_bool"):
                raise _training_mode(self.path)
            argument = self._argument(entry["arg"], inputs)
            if entry["kind"] == POSITIONAL:
                args.append(argument)
            else:
                kwargs[entry["name"]] = argument
        outputs = tuple(name for output in node["outputs"] for name in _names(output))
        call: Callable[..., Any] = partial(_call, run=run, args=args, kwargs=kwargs)
        if len(outputs) == 1 and "as_tensors" in node["outputs"][0]:  # a list of one
            call = partial(_only, call)
        return Step(call, tuple(inputs), outputs)

    def _argument(self, union: Mapping[str, Any], inputs: dict[str, int]) -> Any:
        """Return an argument with places for what is computed, whose names ``inputs`` gets."""
        ((kind, value),) = union.items()

        def place(name: str, *, device: bool = False) -> Value:
            return Value(inputs.setdefault(name, len(inputs)), device)

        if kind in ("as_none", "as_layout"):
            return None
        if kind in PLAIN:
            return value
        if kind == "as_float":  # JSON has no infinity
            return float(value)
        if kind == "as_tensor":
            return place(value["name"])
        if kind == "as_name":
            return place(value)
        if kind == "as_tensors":
            return [place(item["name"]) for item in value]
        if kind in ("as_optional_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._argument(value, inputs)
        if kind in ("as_optional_tensors", "as_sym_ints"):
            return [self._argument(item, inputs) for item in value]
        if kind == "as_device":
            return place(self.image, device=True)
        if kind == "as_scalar_type":
            return DTYPES[value]
        if kind == "as_memory_format":
            return MEMORY_FORMATS[value]
        raise InputError(f"{self.path} has an argument of kind {kind!r}: export a plainer network")


def _call(*values: Any, run: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    filled = {name: _filled(argument, values) for name, argument in kwargs.items()}
    return run(*_filled(args, values), **filled)


def _only(call: Callable[..., Any], *values: Any) -> Any:
    (result,) = call(*values)
    return result


def _filled(argument: Any, values: Sequence[Any]) -> Any:
    if isinstance(argument, Value):
        value = values[argument.index]
        return value.device if argument.device else value
    return [_filled(item, values) for item in argument] if isinstance(argument, list) else argument


def _function(path: Path, target: str) -> Callable[..., Any]:
    """Return the operator of torch, or the function of whole numbers, that a file names.

    Raises:
        InputError: If it is another function, or one that is not of tensors.
    """
    family, _, name = target.rpartition(".")
    if family == "_operator" and name in ARITHMETIC:
        function: Callable[..., Any] = getattr(operator, name)
        return function
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        found = getattr(getattr(torch.ops.aten, parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload) and _only_computes(found):
            return found
    raise InputError(
        f"{path} has the operation {target[:100]!r}, which is not an operator of torch on tensors: "
        "export the network without it"
    )


def _only_computes(function: torch._ops.OpOverload[Any, Any]) -> bool:
    """Return whether an operator computes a result from tensors, or makes one, and no file."""
    schema = function._schema
    kinds = [str(argument.type) for argument in schema.arguments]
    return (
        bool(schema.returns)
        and not any("file" in argument.name for argument in schema.arguments)
        and (any("Tensor" in kind for kind in kinds) or schema.name.split("::")[1] in MAKERS)
    )


def _names(output: Mapping[str, Any]) -> list[str]:
    ((kind, value),) = output.items()
    if kind == "as_tensors":
        return [item["name"] for item in value]
    name: str = value["as_name"] if kind.startswith("as_sym") else value["name"]
    return [name]
