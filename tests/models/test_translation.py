"""Networks of files as torch's: each operation against the runtime, gradients, attacks."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import rng
from reidguard.attacks import SMA, DeltaAttack
from reidguard.errors import InputError
from reidguard.models import load_onnx, load_openvino
from reidguard.nn import inference_view
from reidguard.testing import small_dataset
from reidguard.types import Budget, InputSpec

SIZE = (9, 6)
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SPEC = InputSpec(size=SIZE, **RAW)
X = torch.rand(3, 3, *SIZE, generator=rng(0))


def random(*shape: int) -> np.ndarray:
    return torch.randn(*shape, generator=rng(sum(shape))).numpy()


@pytest.fixture(autouse=True)
def any_features():
    """The nets here do next to nothing, so that their features are alike."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the features of")
        yield


# --- ONNX -------------------------------------------------------------------------------------

# Of maps (N, 3, 9, 6): nodes as (operation, inputs, attributes), and constants.
FLAT = ("Flatten", [], {})
MAPS: dict[str, tuple[list[tuple[str, list[str], dict[str, Any]]], dict[str, Any]]] = {
    "a strided convolution": (
        [("Conv", ["w"], {"strides": [2, 1], "pads": [1, 2, 1, 2], "dilations": [2, 1]}), FLAT],
        {"w": random(4, 3, 3, 3)},
    ),
    "groups, a bias and uneven pads": (
        [("Conv", ["w", "b"], {"group": 3, "pads": [0, 1, 2, 0]}), FLAT],
        {"w": random(6, 1, 3, 2), "b": random(6)},
    ),
    "maxima": (
        [("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}), FLAT],
        {},
    ),
    "padded maxima": (
        [("MaxPool", [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]}), FLAT],
        {},
    ),
    "means": ([("AveragePool", [], {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]}), FLAT], {}),
    "means with pads": (
        [
            (
                "AveragePool",
                [],
                {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1},
            ),
            FLAT,
        ],
        {},
    ),
    "means with uneven pads": (
        [("AveragePool", [], {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1]}), FLAT],
        {},
    ),
    "batch norm": (
        [("BatchNormalization", ["a", "b", "m", "v"], {"epsilon": 0.01}), FLAT],
        {"a": random(3), "b": random(3), "m": random(3), "v": np.abs(random(3)) + 0.1},
    ),
    "instance norm": (
        [("InstanceNormalization", ["a", "b"], {"epsilon": 0.01}), FLAT],
        {"a": random(3), "b": random(3)},
    ),
    "global mean and a product": (
        [("GlobalAveragePool", [], {}), FLAT, ("Gemm", ["w", "b"], {"transB": 1, "alpha": 0.5})],
        {"w": random(5, 3), "b": random(5)},
    ),
    "global maximum": ([("GlobalMaxPool", [], {}), FLAT], {}),
    "means over axes": ([("ReduceMean", ["axes"], {"keepdims": 0})], {"axes": np.array([2, 3])}),
    "the length over axes": ([("ReduceL2", ["axes"], {"keepdims": 0})], {"axes": np.array([2, 3])}),
    "arithmetic": (
        [("Mul", ["a"], {}), ("Sub", ["b"], {}), ("Div", ["c"], {}), ("Add", ["b"], {}), FLAT],
        {"a": random(1, 3, 1, 1), "b": np.array(0.3, np.float32), "c": np.array(2.0, np.float32)},
    ),
    "activations": (
        [
            ("Sub", ["half"], {}),
            ("LeakyRelu", [], {"alpha": 0.2}),
            ("Elu", [], {"alpha": 0.7}),
            ("HardSigmoid", [], {"alpha": 0.3, "beta": 0.4}),
            ("HardSwish", [], {}),
            ("Sigmoid", [], {}),
            ("Tanh", [], {}),
            ("PRelu", ["slope"], {}),
            ("Softmax", [], {"axis": 1}),
            FLAT,
        ],
        {"half": np.array(0.5, np.float32), "slope": random(3, 1, 1)},
    ),
    "bounds": (
        [("Clip", ["low", "high"], {}), FLAT],
        {"low": np.float32(0.2), "high": np.float32(0.6)},
    ),
    "a lower bound": ([("Clip", ["low"], {}), FLAT], {"low": np.float32(0.4)}),
    "a shape of one image": ([("Reshape", ["shape"], {})], {"shape": np.array([1, -1])}),
    "a shape with zeros": ([("Reshape", ["shape"], {})], {"shape": np.array([0, 162])}),
    "axes in another order": ([("Transpose", [], {"perm": [0, 2, 3, 1]}), FLAT], {}),
    "taken channels": ([("Gather", ["places"], {"axis": 1}), FLAT], {"places": np.array([2, 0])}),
    "axes removed and added": (
        [
            ("GlobalAveragePool", [], {}),
            ("Squeeze", ["last"], {}),
            ("Unsqueeze", ["last"], {}),
            ("Flatten", [], {"axis": 1}),
            ("LpNormalization", [], {"axis": 1}),
        ],
        {"last": np.array([3])},
    ),
}


def write_onnx(path: Path, nodes, constants, batch: int | str = "N", extra=()) -> Path:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import TensorProto, helper, numpy_helper

    made, source = list(extra), "x"
    for number, (kind, others, attributes) in enumerate(nodes):
        made.append(helper.make_node(kind, [source, *others], [f"v{number}"], **attributes))
        source = f"v{number}"
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, *SIZE])],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def check(load, path: Path) -> None:
    """The translation gives what the runtime gives, for any number of images, with gradients."""
    expected = load(path, input_spec=SPEC).features(X)
    model = load(path, input_spec=SPEC, differentiable=True)
    torch.testing.assert_close(model.features(X), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.features(X[1:2]), expected[1:2], atol=1e-5, rtol=1e-5)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.features(x).square().sum(), x)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())
    view = inference_view(model)
    torch.testing.assert_close(view.features(X), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("name", MAPS)
def test_onnx_operations(name: str, batch: int | str, tmp_path: Path) -> None:
    nodes, constants = MAPS[name]
    if name == "a shape of one image" and batch == "N":
        constants = {"shape": np.array([-1, 162])}
    check(load_onnx, write_onnx(tmp_path / "net.onnx", nodes, constants, batch))


def test_a_shape_that_the_image_gives(tmp_path: Path) -> None:
    """As torch exports ``x.view(x.size(0), -1)``."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import helper

    extra = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["count"], axis=0),
        helper.make_node("Unsqueeze", ["count", "first"], ["counts"]),
        helper.make_node("Concat", ["counts", "rest"], ["target"], axis=0),
    ]
    constants = {"zero": np.array(0), "first": np.array([0]), "rest": np.array([-1])}
    nodes = [("Reshape", ["target"], {})]
    check(load_onnx, write_onnx(tmp_path / "net.onnx", nodes, constants, extra=extra))


def test_parts_and_their_sum(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import helper

    extra = [
        helper.make_node("Split", ["x", "sizes"], ["one", "two"], axis=1),
        helper.make_node("Concat", ["two", "one"], ["joined"], axis=1),
        helper.make_node("Dropout", ["joined"], ["dropped"]),
    ]
    nodes = [("Add", ["dropped"], {}), FLAT]
    constants = {"sizes": np.array([1, 2])}
    check(load_onnx, write_onnx(tmp_path / "net.onnx", nodes, constants, extra=extra))


def test_an_operation_without_translation_says_what_works(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", [("Erf", [], {}), FLAT], {})
    assert load_onnx(path, input_spec=SPEC).features(X).shape == (3, 162)
    with pytest.raises(InputError, match=r"Erf .* no translation.*'square'"):
        load_onnx(path, input_spec=SPEC, differentiable=True)


def test_a_wrong_translation_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_onnx(tmp_path / "net.onnx", [("Relu", [], {}), FLAT], {})
    from reidguard.models import onnx_graph

    monkeypatch.setitem(onnx_graph.OPERATIONS, "Relu", onnx_graph.OPERATIONS["Tanh"])
    with pytest.raises(InputError, match="other features than onnxruntime"):
        load_onnx(path, input_spec=SPEC, differentiable=True)


def network(folder: Path):
    nodes, constants = MAPS["a strided convolution"]
    path = write_onnx(folder / "net.onnx", [nodes[0], ("Tanh", [], {}), FLAT], constants, batch=1)
    return load_onnx(path, input_spec=SPEC, differentiable=True)


def test_gradients_are_those_of_differences(tmp_path: Path) -> None:
    model = network(tmp_path).double()
    x = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=rng(1)).requires_grad_()
    assert torch.autograd.gradcheck(model.features, (x,))
    assert torch.autograd.gradgradcheck(model.features, (x,))


def test_a_file_is_a_white_box_target_and_a_surrogate(tmp_path: Path) -> None:
    model = network(tmp_path)
    clean = model.features(X)
    attacked = model.features(SMA(Budget(8 / 255), steps=5).bind(model)(X))
    assert bool(((attacked - clean).square().sum(1) > 0).all())
    options = {"steps": 3, "identities": 2, "images_per_identity": 2, "image_size": SIZE}
    with small_dataset() as people, small_dataset("other", 1) as others:
        for learner in ("plain", "maml"):
            attack = DeltaAttack(Budget(8 / 255), size=SIZE)
            attack.fit(model, people, others, learner=learner, **options)
            assert bool(attack.delta.any())


# --- OpenVINO -----------------------------------------------------------------------------------


def write_openvino(path: Path, build, batch: int = -1) -> Path:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset10 as ops

    images = ops.parameter([batch, 3, *SIZE], np.float32, name="x")
    model = openvino.Model([build(ops, images)], [images], "net")
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return path


def grouped(ops, x):
    weight = ops.constant(random(3, 2, 1, 3, 3))
    return ops.group_convolution(x, weight, [1, 1], [1, 0], [0, 1], [1, 1])


def split(ops, x):
    parts = ops.split(x, ops.constant(1), 3)
    joined = ops.concat([parts.output(2), parts.output(0), parts.output(1)], 1)
    first = ops.variadic_split(joined, ops.constant(1), ops.constant([1, 2]))
    return ops.add(joined, first.output(0))


OPERATIONS = {
    "convolution": lambda o, x: o.convolution(
        x, o.constant(random(4, 3, 3, 3)), [2, 1], [1, 2], [1, 2], [2, 1]
    ),
    "groups": grouped,
    "maxima": lambda o, x: o.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2], "ceil").output(0),
    "means": lambda o, x: o.avg_pool(x, [2, 2], [1, 0], [0, 1], [3, 2], True),
    "means with pads": lambda o, x: o.avg_pool(x, [2, 2], [1, 1], [1, 1], [3, 2], False),
    "normalisation": lambda o, x: o.mvn(x, o.constant([2, 3]), True, 1e-3, "inside_sqrt"),
    "normalisation, eps outside": lambda o, x: o.mvn(
        x, o.constant([2, 3]), True, 0.1, "outside_sqrt"
    ),
    "centring": lambda o, x: o.mvn(x, o.constant([1, 2, 3]), False, 1e-3, "inside_sqrt"),
    "parts": split,
    "activations": lambda o, x: o.prelu(
        o.elu(o.clamp(o.subtract(x, o.constant(np.float32(0.5))), -0.4, 0.3), 1.3),
        o.constant(random(3)),
    ),
    "arithmetic": lambda o, x: o.sigmoid(
        o.divide(o.power(o.multiply(x, x), o.constant(np.float32(0.5))), o.sqrt(o.exp(x)))
    ),
    "more activations": lambda o, x: o.tanh(o.hswish(o.swish(o.softmax(o.relu(x), 1)))),
    "swish with a factor": lambda o, x: o.swish(x, o.constant(np.float32(1.7))),
    "order": lambda o, x: o.transpose(x, o.constant([0, 3, 2, 1])),
}


@pytest.mark.parametrize("batch", [-1, 1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_openvino_operations(name: str, batch: int, tmp_path: Path) -> None:
    def build(ops, images):
        maps = OPERATIONS[name](ops, images)
        first = batch if batch == 1 else -1
        flat = ops.reshape(maps, ops.constant([first, -1 if first == 1 else size(maps)]), False)
        return flat

    def size(maps) -> int:
        shape = (maps if hasattr(maps, "get_partial_shape") else maps.output(0)).get_partial_shape()
        return math.prod(shape[i].get_length() for i in range(1, 4))

    check(load_openvino, write_openvino(tmp_path / "net.xml", build, batch))


@pytest.mark.parametrize("kind", ["reduce_mean", "reduce_max", "reduce_min", "reduce_sum"])
def test_openvino_reductions_and_a_product(kind: str, tmp_path: Path) -> None:
    def build(ops, images):
        reduced = getattr(ops, kind)(images, ops.constant([2, 3]), True)
        flat = ops.squeeze(ops.unsqueeze(reduced, ops.constant([1])), ops.constant([1, 3, 4]))
        return ops.matmul(flat, ops.constant(random(5, 3)), False, True)

    check(load_openvino, write_openvino(tmp_path / "net.xml", build))


def test_openvino_weights_in_half_precision(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset10 as ops

    images = ops.parameter([-1, 3, *SIZE], np.float32, name="x")
    maps = ops.convolution(images, ops.constant(random(4, 3, 3, 3)), [1, 1], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([ops.reduce_mean(maps, ops.constant([2, 3]), False)], [images], "net")
    openvino.save_model(model, str(tmp_path / "net.xml"), compress_to_fp16=True)
    check(load_openvino, tmp_path / "net.xml")


def test_openvino_operation_without_translation(tmp_path: Path) -> None:
    path = write_openvino(
        tmp_path / "net.xml", lambda o, x: o.reshape(o.erf(x), o.constant([-1, 162]), False)
    )
    with pytest.raises(InputError, match=r"Erf .* no translation"):
        load_openvino(path, input_spec=SPEC, differentiable=True)


# --- published networks ---------------------------------------------------------------------------

SIZES = {"0031": (96, 48), "0248": (256, 128)}


def published(name: str) -> Path:
    pytest.importorskip("openvino", reason="openvino is not installed")
    folder = Path(os.environ.get("REIDGUARD_WEIGHTS", "/nowhere")) / "omz"
    path = folder / f"person-reidentification-retail-{name}.xml"
    if not path.is_file():
        pytest.skip("REIDGUARD_WEIGHTS has no networks of the Open Model Zoo")
    return path


@pytest.mark.parametrize("name", SIZES)
def test_published_networks_are_what_openvino_computes(name: str) -> None:
    spec = InputSpec(size=SIZES[name], channels="bgr", value_range=255, **RAW)
    box = load_openvino(published(name), input_spec=spec)
    model = load_openvino(published(name), input_spec=spec, differentiable=True)
    x = torch.rand(3, 3, 128, 64, generator=rng(2))
    expected = box.features(x)
    with torch.no_grad():
        for count in (1, 3):
            torch.testing.assert_close(
                model.features(x[:count]), expected[:count], atol=1e-5, rtol=0
            )


def test_wrong_preprocessing_is_noticed() -> None:
    path, size = published("0031"), SIZES["0031"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_openvino(path, input_spec=InputSpec(size=size, channels="bgr", value_range=255, **RAW))
    for wrong in (None, InputSpec(size=size, **RAW)):
        with pytest.warns(UserWarning, match=r"hardly differ between images.*value_range"):
            load_openvino(path, input_spec=wrong)
