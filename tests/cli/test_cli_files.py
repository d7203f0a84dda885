"""Networks of files as targets and surrogates on the command line, and their preprocessing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reidguard.cli import main
from reidguard.cli.model_option import model_from, preprocessing
from reidguard.errors import InputError
from reidguard.models import create_model

SHORT = ["--steps", "1", "--query-every", "16", "--identities", "2", "--images-per-identity", "2"]


@pytest.fixture
def net(tmp_path: Path) -> str:
    """Mean colours of rows and columns of 64×32 images, less a grey level."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["x", "grey"], ["centred"]),
            helper.make_node("ReduceMean", ["centred", "axes"], ["rows"], keepdims=0),
            helper.make_node("Flatten", ["rows"], ["y"]),
        ],
        "rows",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 64, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 192])],
        [
            numpy_helper.from_array(np.array(100.0, np.float32), "grey"),
            numpy_helper.from_array(np.array([3]), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    onnx.save(model, str(tmp_path / "net.onnx"))
    return str(tmp_path / "net.onnx")


def test_parts_of_the_preprocessing() -> None:
    assert preprocessing("bgr,255,96x48") == {
        "channels": "bgr",
        "value_range": 255,
        "size": (96, 48),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    assert preprocessing("255,bicubic,mean=104/117/123") == {
        "value_range": 255,
        "interpolation": "bicubic",
        "mean": (104.0, 117.0, 123.0),
        "std": (1.0, 1.0, 1.0),
    }
    assert preprocessing("1,rgb,std=0.5/0.5/0.5") == {
        "value_range": 1,
        "channels": "rgb",
        "std": (0.5, 0.5, 0.5),
    }
    for wrong in ("grb", "256", "", "mean", "96"):
        with pytest.raises(InputError, match=r"--input has no part"):
            preprocessing(wrong)
    with pytest.raises(InputError, match="three numbers"):
        model_from("osnet_x0_25", {}, num_classes=2, prepared="mean=1/2")


def test_the_preprocessing_of_a_file_and_of_a_model(net: str) -> None:
    spec = model_from(net, {}, prepared="bgr,255").input_spec
    assert (spec.size, spec.channels, spec.value_range) == ((64, 32), "bgr", 255)
    spec = model_from("osnet_x0_25", {}, num_classes=2, prepared="bgr,128x64").input_spec
    assert (spec.size, spec.channels, spec.value_range) == ((128, 64), "bgr", 1)
    assert spec.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_file_is_attacked_by_queries_and_by_gradients(
    net: str, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    call = ["attack", *data, "--model", net, "--input", "255", "--image-size", "64x32"]
    square = ["--attack", "square", "--set", "steps=20", "--query-every", "16"]
    assert main([*call, *square, "--out", str(tmp_path / "square")]) == 0
    assert main([*call, "--attack", "delta", *SHORT, "--out", str(tmp_path / "none")]) == 2
    assert "--model-set differentiable=true" in capsys.readouterr().err.splitlines()[-1]
    through = [*call, "--model-set", "differentiable=true"]
    for attack, options in (("sma", ["--query-every", "16"]), ("delta", SHORT)):
        out = tmp_path / attack
        assert main([*through, "--attack", attack, *options, "--out", str(out)]) == 0
        result = json.loads((out / "result.json").read_text("utf-8"))["evaluation"]
        assert 7.9 < result["attacked"]["linf_255"] < 8.1 or attack == "delta"


def test_a_file_is_a_surrogate(
    net: str, target: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    surrogate = ["--surrogate", net, "--surrogate-set", "differentiable=true"]
    surrogate += ["--surrogate-input", "255"]
    out = tmp_path / "run"
    call = ["attack", *target, "--attack", "delta", *SHORT]
    assert main([*call, *surrogate, "--out", str(out)]) == 0
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    spec = manifest["settings"]["surrogate"]["models"][0]["input_spec"]
    assert (spec["value_range"], spec["size"]) == (255, [64, 32])
    assert "give --surrogate, too" in refused(*call, "--surrogate-input", "255")
    assert "--model-set" in refused(
        *call[:1], *call[1:], "--surrogate", net, "--surrogate-set", "x=1"
    )


@pytest.mark.parametrize("kind", ["net.pt2", "net.pt"])
def test_a_file_of_torch_is_attacked(
    kind: str, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.ReLU()).eval()
    example = torch.rand(1, 3, 64, 32)
    if kind == "net.pt2":
        torch.export.save(torch.export.export(network, (example,)), tmp_path / kind)
    else:
        torch.jit.script(network).save(tmp_path / kind)
    call = ["attack", *data, "--model", str(tmp_path / kind), "--input", "bgr,64x32"]
    call += ["--attack", "sma", "--query-every", "16", "--image-size", "64x32"]
    assert main([*call, "--out", str(tmp_path / "run")]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text("utf-8"))
    (spec,) = {json.dumps(m["input_spec"]) for m in manifest["settings"]["model"]["models"]}
    assert json.loads(spec)["channels"] == "bgr"
    result = json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["evaluation"]
    assert 7.9 < result["attacked"]["linf_255"] < 8.1


# --- weights without a name ------------------------------------------------------------------


def test_a_file_of_weights_is_identified(
    data: list[str],
    capsys: pytest.CaptureFixture[str],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "unknown.pth"
    state = create_model("osnet_x0_25", num_classes=751).state_dict()
    torch.save(state, path)
    assert main(["identify", str(path)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert lines["architecture"] == "osnet_x0_25"
    assert lines["identities"] == "751, as many as Market-1501 has"
    call = ["evaluate", *data, "--image-size", "64x32", "--query-every", "16"]
    tables = []
    for model in (f"osnet_x0_25:{path}", str(path)):
        assert main([*call, "--model", model]) == 0
        output = capsys.readouterr()
        tables.append(output.out)
    assert tables[0] == tables[1]
    assert "unknown.pth was identified: architecture osnet_x0_25; identities 751" in output.err
    # with preprocessing of one's own, and as safetensors
    save_file(state, tmp_path / "unknown.safetensors")
    model = model_from(str(tmp_path / "unknown.safetensors"), {}, prepared="bgr,128x64")
    assert (model.input_spec.channels, model.input_spec.size) == ("bgr", (128, 64))
    del state["conv5.conv.weight"]
    torch.save(state, path)
    line = refused(*call, "--model", path)
    assert "say which network" in line
    assert "none exactly; the nearest is osnet_x0_25" in line
    assert "conv5.conv.weight" in line
    assert "there is no file" in refused("identify", tmp_path / "none.pth")
