"""What the files of networks in ONNX and OpenVINO's IR say, without running them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from reidguard.errors import CheckpointError, InputError
from reidguard.records import read_file

__all__ = ["GraphContents", "onnx_contents", "openvino_contents"]

MAX_IR = 2**28  # bytes of an .xml file, without its weights
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "value_range": 255}

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class GraphContents:
    """A network's input, output and constants.

    Args:
        name: That the file gives the network.
        inputs: Shape of the first input; None where any number will do.
        outputs: Shape of the first output.
        constants: Name and shape of each.
        preprocessing: Arguments of the InputSpec that the file speaks of.
        reason: Why these.
        instance_norm: Whether the network has such layers.
    """

    name: str
    inputs: Shape
    outputs: Shape
    constants: list[tuple[str, tuple[int, ...]]]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    instance_norm: bool = False


def onnx_contents(path: Path) -> GraphContents:
    """Read an ONNX file.

    Raises:
        InputError: If onnx is missing.
        CheckpointError: If the file is damaged.
    """
    try:
        import onnx
    except ImportError:
        raise InputError('ONNX files need onnx: pip install "reidguard[onnx]"') from None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
        constants = [(tensor.name, tuple(tensor.dims)) for tensor in graph.initializer]
        for node in graph.node:
            constants += [
                (node.output[0], tuple(attribute.t.dims))
                for attribute in node.attribute
                if node.op_type == "Constant" and attribute.name == "value"
            ]
        named = {name for name, _ in constants}
        images = next(value for value in graph.input if value.name not in named)
        instance_norm = any(node.op_type == "InstanceNormalization" for node in graph.node)
        inputs, outputs = _shape(images), _shape(graph.output[0])
        return GraphContents(graph.name, inputs, outputs, constants, instance_norm=instance_norm)
    except Exception as error:  # protobuf's errors, or a graph without inputs
        raise CheckpointError(
            f"{path} is no ONNX network ({type(error).__name__}); copy it again"
        ) from error


def _shape(value: Any) -> Shape:
    sides = value.type.tensor_type.shape.dim
    return tuple(side.dim_value if side.HasField("dim_value") else None for side in sides)


def openvino_contents(path: Path) -> GraphContents:
    """Read the .xml file of a network in OpenVINO's IR.

    Raises:
        CheckpointError: If it is missing, damaged or none.
    """
    data = read_file(path, limit=MAX_IR)
    try:
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError("it defines entities")
        root = ElementTree.fromstring(data)
        layers = {layer.get("type"): layer for layer in root.iterfind("layers/layer")}
        constants = [
            (layer.get("name", ""), tuple(side or 0 for side in _sides(layer)))
            for layer in root.iterfind("layers/layer[@type='Const']")
        ]
        result = layers["Result"].find("input/port")
        outputs = tuple(_dimensions(result)) if result is not None else ()
        name = root.get("name", "")
        values = {e.tag: e.get("value", "") for e in root.iterfind("meta_data/cli_parameters/*")}
        name = values.get("model_name") or name
        spec, reason = _preprocessing(name, values)
        inputs = tuple(_sides(layers["Parameter"]))
        return GraphContents(name, inputs, outputs, constants, spec, reason, "MVN" in layers)
    except (ElementTree.ParseError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no network in OpenVINO's IR ({error}); copy it again"
        ) from error


def _sides(layer: ElementTree.Element) -> Iterator[int | None]:
    data = layer.find("data")
    text = data.get("shape", "") if data is not None else ""
    for side in filter(None, text.replace(" ", "").split(",")):
        yield int(side) if side.isdigit() else None


def _dimensions(port: ElementTree.Element) -> Iterator[int | None]:
    for dimension in port.iterfind("dim"):
        side = int(dimension.text or "-1")
        yield side if side >= 0 else None


def _preprocessing(name: str, values: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Return what the options of the converter say on the images that the network takes."""
    if name.startswith("person-reidentification-retail-"):
        reason = "networks of the Open Model Zoo take BGR images with values up to 255"
        return {**RAW, "channels": "bgr"}, reason
    spec: dict[str, Any] = {}
    reasons = []
    if values.get("reverse_input_channels", "").lower() == "true":
        spec["channels"] = "bgr"
        reasons.append("the converter was given reverse_input_channels")
    if any(character.isdigit() for character in values.get("mean_values", "")):
        spec |= RAW
        reasons.append("the converter put mean_values into the network")
    return spec, ", and ".join(reasons)
