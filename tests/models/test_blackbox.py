"""Networks that are not torch: evaluated, attacked by queries; no gradient passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reidguard.attacks import SMA, DeltaAttack, SquareAttack
from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import Protocol, evaluate
from reidguard.fingerprint import weights_fingerprint
from reidguard.models import BlackBoxModel, load_onnx, load_openvino
from reidguard.testing import small_dataset
from reidguard.types import Budget, InputSpec

SIZE = (8, 4)
SPEC = InputSpec(size=SIZE)


def halves(x: np.ndarray) -> np.ndarray:
    """Mean colours of the upper and the lower half."""
    return np.concatenate([x[:, :, :4].mean((2, 3)), x[:, :, 4:].mean((2, 3))], 1)


def box(function=halves, identity="halves") -> BlackBoxModel:
    return BlackBoxModel(function, identity=identity, input_spec=SPEC)


def test_features_are_those_of_the_function():
    x = torch.rand(3, 3, 20, 10)
    wanted = torch.from_numpy(halves(SPEC.apply(x).numpy()))
    assert torch.equal(box().features(x), wanted)
    assert box().features(x.double()).dtype == torch.float64
    assert box()(x).logits is None
    maps = box(lambda x: x[:, :, :2])
    torch.testing.assert_close(maps.features(x), SPEC.apply(x)[:, :, :2].mean((2, 3)))


def test_it_is_evaluated_and_attacked_by_queries():
    with small_dataset() as people:
        protocol = Protocol(image_size=(32, 16))
        attack = SquareAttack(Budget(0.5), steps=100).bind(box())
        result = evaluate(box(), people, attack, protocol)
    assert result.clean.mAP > 0.9  # colours of clothes tell these people apart
    assert result.attacked.ranking.mAP < result.clean.mAP
    assert result.attacked.linf <= 0.5 + 1e-6


def test_gradients_are_refused_with_what_works():
    x = torch.rand(2, 3, *SIZE)
    with pytest.raises(InputError, match=r"'square'.*torch model"):
        box().features(x.requires_grad_())
    with pytest.raises(InputError, match="square"):
        SMA().bind(box())(x.detach())
    with small_dataset() as people, pytest.raises(InputError, match="square"):
        DeltaAttack(size=SIZE).fit(
            box(), people, steps=1, identities=2, images_per_identity=2, image_size=SIZE
        )


def test_kept_features_are_not_confused():
    assert weights_fingerprint(box()) == weights_fingerprint(box())
    assert weights_fingerprint(box()) != weights_fingerprint(box(identity="others"))


@pytest.mark.parametrize(
    "wrong", [lambda x: x[0], lambda x: x.mean(), lambda x: x[:1].mean((2, 3))]
)
def test_other_shapes_are_refused(wrong):
    with pytest.raises(InputError, match="shape"):
        box(wrong).features(torch.rand(2, 3, 9, 9))


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="callable"):
        box(function=3)
    with pytest.raises(InputError, match="identity"):
        box(identity="")
    with pytest.raises(InputError, match="cannot be rebuilt"):
        box().save(tmp_path / "m.safetensors")


# --- ONNX -------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """A small network as an ONNX file, node by node, and the same in torch."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper, numpy_helper

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 3, 3, generator=generator)
    bias = torch.randn(5, generator=generator)

    def write(
        batch="N", size=SIZE, channels=3, maps=False, kind=TensorProto.FLOAT, others=(), **save
    ):
        first = "images" if kind == TensorProto.FLOAT else "floats"
        cast = [helper.make_node("Cast", ["images"], [first], to=TensorProto.FLOAT)]
        nodes = [
            *(cast if first == "floats" else []),
            helper.make_node("Conv", [first, "weight", "bias"], ["convolved"]),
            helper.make_node("Relu", ["convolved"], ["maps"]),
            helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["features"]),
        ]
        out, shape = ("maps", [batch, 5, None, None]) if maps else ("features", [batch, 5])
        graph = helper.make_graph(
            nodes,
            "small",
            [
                helper.make_tensor_value_info("images", kind, [batch, channels, *size]),
                *(helper.make_tensor_value_info(o, TensorProto.FLOAT, [1]) for o in others),
            ],
            [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape)],
            [
                numpy_helper.from_array(weight[:, :channels].contiguous().numpy(), "weight"),
                numpy_helper.from_array(bias.numpy(), "bias"),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        onnx.save(model, str(tmp_path / "net.onnx"), **save)
        return tmp_path / "net.onnx"

    def network(inputs):
        return F.conv2d(inputs, weight, bias).relu().mean((2, 3))

    return write, network


@pytest.mark.parametrize(
    "options", [{}, {"batch": 2}, {"size": ("H", "W")}, {"maps": True}], ids=str
)
def test_an_onnx_file_gives_what_torch_gives(written, options):
    write, network = written
    model = load_onnx(write(**options))
    assert model.input_spec.size == ((256, 128) if "size" in options else SIZE)
    x = torch.rand(5, 3, 20, 10)
    wanted = network(model.input_spec.apply(x))
    torch.testing.assert_close(model.features(x), wanted, rtol=1e-4, atol=1e-5)
    assert len(model.identity) == 64


def test_onnx_mistakes(written, tmp_path):
    write, _ = written
    with pytest.raises(InputError, match="channels first"):
        load_onnx(write(channels=1))
    (tmp_path / "damaged.onnx").write_bytes(write().read_bytes()[:99])
    with pytest.raises(CheckpointError, match="no ONNX network"):
        load_onnx(tmp_path / "damaged.onnx")
    with pytest.raises(CheckpointError, match="there is no file"):
        load_onnx(tmp_path / "none.onnx")


def test_onnx_networks_that_take_no_images_are_refused(written):
    write, _ = written
    from onnx import TensorProto

    with pytest.raises(InputError, match=r"type tensor\(int64\)"):
        load_onnx(write(kind=TensorProto.INT64))
    with pytest.raises(InputError, match=r"2 inputs \(images, view\)"):
        load_onnx(write(others=("view",)))
    with pytest.raises(InputError, match="100000"):
        load_onnx(write(batch=100_000))
    with pytest.raises(InputError, match="70000"):
        load_onnx(write(size=(70_000, 70_000)))


def test_weights_beside_an_onnx_file_belong_to_it(written, tmp_path):
    write, network = written
    file = write(
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
        convert_attribute=True,
    )
    (tmp_path / "unrelated.bin").write_bytes(b"other")
    model = load_onnx(file)
    x = torch.rand(2, 3, 20, 10)
    expected = network(model.input_spec.apply(x))
    torch.testing.assert_close(model.features(x), expected, rtol=1e-4, atol=1e-5)
    weights = tmp_path / "net.onnx.data"
    content = bytearray(weights.read_bytes())
    content[2] ^= 1  # the last bits of a weight: no feature changes by as much as is rounded away
    weights.write_bytes(content)
    changed = load_onnx(file)
    assert changed.identity != model.identity
    assert weights_fingerprint(changed) != weights_fingerprint(model)
    (tmp_path / "unrelated.bin").write_bytes(b"another")
    assert load_onnx(file).identity == changed.identity
    weights.unlink()
    with pytest.raises(CheckpointError, match="no ONNX network"):
        load_onnx(file)


def test_a_missing_onnxruntime_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"reidguard\[onnx\]"):
        load_onnx(tmp_path / "net.onnx")


# --- OpenVINO ---------------------------------------------------------------------------------


@pytest.fixture
def converted(tmp_path):
    """A small torch network, and the same in OpenVINO's IR."""
    ov = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset13 as ops

    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.normal_(generator=torch.Generator().manual_seed(0))

    def write(batch=-1, size=SIZE, channels=3, give="features"):
        images = ops.parameter([batch, channels, *size], np.float32, "images")
        weight = network[0].weight.detach()[:, :channels].contiguous().numpy()
        bias = network[0].bias.detach().numpy().reshape(1, 5, 1, 1)
        convolved = ops.convolution(images, weight, [1, 1], [0, 0], [0, 0], [1, 1])
        maps = ops.relu(ops.add(convolved, bias))
        axes = {"maps": None, "features": [2, 3], "a number each": [1, 2, 3]}[give]
        result = maps if axes is None else ops.reduce_mean(maps, np.array(axes), False)
        path = tmp_path / "net.xml"
        ov.save_model(ov.Model([result], [images], "small"), str(path), compress_to_fp16=False)
        return path

    return write, network


@pytest.mark.parametrize(
    "options", [{}, {"batch": 2}, {"size": (-1, -1)}, {"give": "maps"}], ids=str
)
def test_an_openvino_file_gives_what_torch_gives(converted, options):
    write, network = converted
    model = load_openvino(write(**options))
    assert model.input_spec.size == ((256, 128) if "size" in options else SIZE)
    x = torch.rand(5, 3, 20, 10)
    with torch.no_grad():
        wanted = network(model.input_spec.apply(x)).mean((2, 3))
    torch.testing.assert_close(model.features(x), wanted, rtol=1e-4, atol=1e-5)


def test_openvino_files_are_told_apart_by_their_weights(converted):
    write, network = converted
    path = write()
    before = load_openvino(path).identity
    assert load_openvino(path).identity == before
    description = path.read_text("utf-8")
    with torch.no_grad():
        network[0].weight.mul_(2)
    write().write_text(description, "utf-8")
    assert load_openvino(path).identity != before


def test_openvino_mistakes(converted, tmp_path):
    write, _ = converted
    with pytest.raises(InputError, match="channels first"):
        load_openvino(write(channels=1))
    with pytest.raises(InputError, match=r"gives shape \(8,\) for 8 images"):
        load_openvino(write(give="a number each"))
    with pytest.raises(CheckpointError, match=r"there is no file .*none\.xml"):
        load_openvino(tmp_path / "none.xml")
    with pytest.raises(InputError, match="load_onnx"):
        load_openvino(tmp_path / "net.onnx")
    path = write()
    whole, weights = path.read_text("utf-8"), path.with_suffix(".bin").read_bytes()
    for damaged in (whole[:300], "<html>", ""):
        path.write_text(damaged, "utf-8")
        with pytest.raises(CheckpointError, match=r"net\.xml is no network in OpenVINO's IR"):
            load_openvino(path)
    path.write_text(whole, "utf-8")
    path.with_suffix(".bin").write_bytes(weights[:40])
    with pytest.raises(CheckpointError, match="weights in bin file"):
        load_openvino(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(CheckpointError, match=r"there is no file .*net\.bin"):
        load_openvino(path)


def test_a_missing_openvino_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(InputError, match=r"reidguard\[openvino\]"):
        load_openvino(tmp_path / "net.xml")
