"""identify_weights: the architecture, training set and preprocessing of files of every kind."""

from __future__ import annotations

import inspect
import os
import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.published import FOLDER, read_table
from reidguard import Budget, DeltaAttack, create_model, identify_weights, load_attack, load_model
from reidguard.contexts import on_meta
from reidguard.data.readers import cuhk, dukemtmc, market1501, msmt17, personx, randperson
from reidguard.errors import CheckpointError
from reidguard.models import MODELS, Identification, load_module, load_onnx, load_openvino
from reidguard.models.candidates import weight_shapes
from reidguard.models.identify import IDENTITIES, identify_tensors
from reidguard.types import InputSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:the features of", "ignore::torch.jit.TracerWarning"
)
LOADERS = {
    "create_model": create_model, "load_model": load_model, "load_attack": load_attack,
    "load_onnx": load_onnx, "load_openvino": load_openvino, "load_module": load_module,
    "InputSpec": InputSpec,
}  # fmt: skip


def run(result: Identification) -> object:
    """Run the line that loads a file."""
    before = Path.cwd()
    os.chdir(result.path.parent)
    try:
        return eval(result.python, LOADERS)
    finally:
        os.chdir(before)


class Embed(nn.Module):
    """A network without this library's preprocessing."""

    def __init__(self, name: str = "osnet_x0_25", **options: object) -> None:
        super().__init__()
        self.net = create_model(name, size=(64, 32), **options).eval()
        for parameter in self.net.parameters():  # converters merge weights that are equal, as zeros
            nn.init.normal_(parameter, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net.embed(x)


# Networks with the names and shapes of others, which compute other features with them.
AMBIGUOUS = {"fastreid_0_1_agw_s50", "fastreid_0_1_sbs_r50_ibn", "fastreid_bot_s50"}

# --- published networks ----------------------------------------------------------------------


def some_quickly(paths: list[Path]) -> list[object]:
    """Every third, and all of them among the slow tests."""
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if nth % 3 else [])
        for nth, path in enumerate(paths)
    ]


@pytest.mark.parametrize("path", some_quickly(sorted(FOLDER.glob("*.json"))))
def test_every_published_network_is_named(path: Path) -> None:
    network = read_table(path)
    result = identify_tensors(path, network.state())
    defaults = inspect.signature(MODELS.get(network.model)).parameters
    options = {
        k: v
        for k, v in network.arguments.items()
        if k != "num_classes" and defaults[k].default != v
    }
    named = [(result.architecture, dict(result.options))]
    if not result.exact:  # several networks have these names and shapes: all are named
        (note,) = (note for note in result.notes if note.startswith("it fits as well: "))
        named += [(name, options) for name in re.findall(r"create_model\('(\w+)'", note)]
        assert all(f"'{value}'" in note for value in options.values() if isinstance(value, str))
    assert (network.model, options) in named, result
    assert result.exact or path.stem in AMBIGUOUS
    assert result.matched == 1
    assert result.identities == network.arguments.get("num_classes", result.identities)
    if result.exact:
        assert f"--model {network.model}:" in result.command
        with on_meta():
            assert result.input_spec == create_model(network.model, **network.arguments).input_spec


def test_it_takes_seconds() -> None:
    network = read_table(FOLDER / "torchreid_osnet_x0_25.json")
    began = time.process_time()
    identify_tensors(Path("w.pth"), network.state())
    assert time.process_time() - began < 10  # 1 to 3 where nothing else runs


# --- weights ---------------------------------------------------------------------------------


def weights(path: Path, identities: int | None = 1041) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = create_model("osnet_x0_25", num_classes=identities).state_dict()
    return {name.replace("classifier.default", "classifier"): t for name, t in state.items()}


WRITERS = {
    "w.pth": lambda path, state: torch.save({"state_dict": state, "epoch": 3}, path),
    "w.t7": lambda path, state: torch.save(
        {"net_dict": {f"module.{n}": t for n, t in state.items()}}, path
    ),
    "w.safetensors": lambda path, state: save_file(state, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_weights(tmp_path, name):
    state = weights(tmp_path / name)
    WRITERS[name](tmp_path / name, state)
    result = identify_weights(tmp_path / name)
    assert (result.architecture, result.exact, result.matched) == ("osnet_x0_25", True, 1.0)
    assert (result.identities, result.dataset, result.embedding) == (1041, "MSMT17", 512)
    assert result.input_spec == InputSpec(size=(256, 128))
    assert result.command == f"--model osnet_x0_25:{name}"
    model = run(result)
    assert torch.equal(model.conv5.conv.weight, state["conv5.conv.weight"])
    text = str(result)
    assert "1,041, as many as MSMT17 has" in text
    assert "RGB in [0, 1], 256×128" in text
    assert str(tmp_path) not in str(result.to_dict())


def test_weights_without_a_classifier_and_with_another_number(tmp_path):
    torch.save(weights(tmp_path, None), tmp_path / "w.pth")
    assert identify_weights(tmp_path / "w.pth").identities is None
    torch.save(weights(tmp_path, 333), tmp_path / "w.pth")
    result = identify_weights(tmp_path / "w.pth")
    assert (result.identities, result.dataset) == (333, None)
    assert "identities     333\n" in str(result)


def test_options_are_in_the_line_that_loads(tmp_path):
    model = create_model("ide", backbone="resnet18", num_classes=751)
    torch.save(model.backbone.state_dict(), tmp_path / "w.pth")
    result = identify_weights(tmp_path / "w.pth")
    assert (result.architecture, dict(result.options)) == ("ide", {"backbone": "resnet18"})
    assert result.command == "--model ide:w.pth --model-set backbone=resnet18"
    if result.exact:
        loaded = run(result)
        assert torch.equal(loaded.backbone.conv1.weight, model.backbone.conv1.weight)


def test_what_differs_is_said(tmp_path):
    state = weights(tmp_path)
    state["conv5.conv.weight"] = torch.zeros(7, 128, 1, 1)
    del state["fc.0.weight"]
    torch.save(state, tmp_path / "w.pth")
    result = identify_weights(tmp_path / "w.pth")
    assert (result.architecture, result.exact, result.python) == ("osnet_x0_25", False, "")
    assert 0.5 < result.matched < 1
    assert "fc.0.weight" in " ".join(result.notes)
    assert "conv5.conv.weight (file (7, 128, 1, 1)" in " ".join(result.notes)
    assert "none exactly; the nearest is osnet_x0_25" in str(result)


def test_a_network_under_other_names_is_seen_by_its_shapes(tmp_path):
    state = {f"t{i}": t for i, t in enumerate(weights(tmp_path, None).values())}
    torch.save(state, tmp_path / "w.pth")
    result = identify_weights(tmp_path / "w.pth")
    assert not result.exact
    (note,) = (note for note in result.notes if "under other names" in note)
    assert "osnet_x0_25" in note


def test_tensors_of_no_person_network(tmp_path):
    torch.save({"a.weight": torch.zeros(5, 4), "b.weight": torch.zeros(9)}, tmp_path / "w.pth")
    result = identify_weights(tmp_path / "w.pth")
    assert (result.architecture, result.python, result.matched) == (None, "", None)
    assert "none that is registered is near" in str(result)


# --- this library's files --------------------------------------------------------------------


def test_own_models_and_attacks(tmp_path):
    model = create_model("ide", backbone="resnet18", size=(64, 32), num_classes={"a": 751})
    model.save(tmp_path / "m.safetensors")
    result = identify_weights(tmp_path / "m.safetensors")
    assert (result.format, result.architecture, result.exact) == ("reidguard model", "ide", True)
    assert (result.identities, result.embedding) == (751, 512)
    assert result.input_spec.size == (64, 32)
    assert torch.equal(run(result).backbone.conv1.weight, model.backbone.conv1.weight)
    DeltaAttack(Budget(4 / 255)).save(tmp_path / "a.safetensors")
    result = identify_weights(tmp_path / "a.safetensors")
    assert (result.format, result.command) == ("reidguard attack", "attack --load a.safetensors")
    assert isinstance(run(result), DeltaAttack)


# --- whole networks --------------------------------------------------------------------------


def test_torchscript_and_exports(tmp_path):
    network, images = Embed("deep_sort").eval(), torch.rand(2, 3, 64, 32)
    torch.export.save(torch.export.export(network, (images,)), tmp_path / "n.pt2")
    traced = torch.jit.trace(network, images, check_trace=False).eval()
    traced.save(tmp_path / "n.pt")
    torch.jit.freeze(traced).save(tmp_path / "frozen.pt")
    for name in ("n.pt2", "n.pt", "frozen.pt"):
        result = identify_weights(tmp_path / name)
        assert (result.architecture, result.exact) == ("deep_sort", True), result
        assert (result.matched, result.embedding) == (1.0, 512)
        assert result.python == f"load_module('{name}')"
        assert result.command == f"--model {name}"
        assert run(result).features(images).shape == (2, 512)


def onnx_file(path: Path, network: nn.Module) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    torch.onnx.export(
        network.eval(), torch.rand(1, 3, 64, 32), str(path), dynamo=False, opset_version=13
    )


@pytest.mark.parametrize("name", ["osnet_x0_25", "deep_sort"])
def test_onnx_by_the_shapes_that_are_left(tmp_path, name):
    onnx_file(tmp_path / "n.onnx", Embed(name))
    result = identify_weights(tmp_path / "n.onnx")
    assert (result.format, result.architecture, result.exact) == ("ONNX", name, True)
    assert (result.matched, result.embedding) == (1.0, 512)
    assert result.input_spec == create_model(name, size=(64, 32)).input_spec
    assert run(result).features(torch.rand(1, 3, 64, 32)).shape == (1, 512)


def test_openvino_by_shapes_and_by_what_the_converter_was_told(tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    onnx_file(tmp_path / "n.onnx", Embed("deep_sort"))
    openvino.save_model(openvino.convert_model(str(tmp_path / "n.onnx")), str(tmp_path / "n.xml"))
    result = identify_weights(tmp_path / "n.xml")
    assert (result.architecture, result.exact, result.embedding) == ("deep_sort", True, 512)
    assert result.input_spec == InputSpec(size=(64, 32))
    text = (tmp_path / "n.xml").read_text()
    names = {
        "person-reidentification-retail-0999": ("bgr", 255),
        "other": ("rgb", 1),
    }
    for name, (channels, value_range) in names.items():
        start = text.index('name="') + 6
        changed = text[:start] + name + text[text.index('"', start) :]
        (tmp_path / "n.xml").write_text(changed)
        result = identify_weights(tmp_path / "n.xml")
        assert (result.input_spec.channels, result.input_spec.value_range) == (
            channels,
            value_range,
        )
    cli = '<meta_data><cli_parameters><reverse_input_channels value="True"/>'
    cli += '<mean_values value="data[123.675,116.28,103.53]"/></cli_parameters></meta_data></net>'
    (tmp_path / "n.xml").write_text(changed.replace("</net>", cli))
    result = identify_weights(tmp_path / "n.xml")
    assert result.command == "--model n.xml --input bgr,255"
    assert run(result).input_spec == result.input_spec
    assert "reverse_input_channels" in " ".join(result.notes)


def test_shapes_do_not_depend_on_the_layout():
    torch_shapes = [(8, 4, 3, 3), (6, 4, 1, 1), (5, 6), (9,), (1, 7, 1, 1), (8, 1, 3, 3)]
    others = [(8, 4, 3, 3), (4, 6), (6, 5), (8, 1, 1, 3, 3), (1, 1, 9)]
    assert weight_shapes(torch_shapes) == weight_shapes(others)


# --- what is refused -------------------------------------------------------------------------


def test_a_whole_module_is_refused_with_the_cure(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"never executed here.*state_dict\(\)"):
        identify_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.pth", b"<html>"), ("w.pth", b""), ("w.onnx", b"\x00\x01junk"), ("w.xml", b"<net>"),
        ("w.xml", b"<net/>"), ("w.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><net name="&b;"/>'),
        ("w.xml", b"\xff\xfe"), ("w.pt", b"PK\x03\x04junk"), ("w.safetensors", b"\x08" + b"\0" * 7),
    ],
)  # fmt: skip
def test_other_files_are_one_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\.{name.split('.')[1]}"):
        identify_weights(tmp_path / name)


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="there is no file"):
        identify_weights(tmp_path / "w.pth")


# --- the table of identities -----------------------------------------------------------------


def test_identities_are_those_of_the_readers():
    published = {
        "Market-1501": market1501.PUBLISHED, "DukeMTMC-reID": dukemtmc.PUBLISHED,
        "MSMT17": msmt17.PUBLISHED, "RandPerson": randperson.PUBLISHED,
        "CUHK03 (new protocol)": cuhk.LABELED, "CUHK01": cuhk.CUHK01,
        "PersonX": personx.PUBLISHED,
    }  # fmt: skip
    for name, dataset in published.items():
        assert IDENTITIES[dataset.train.identities] == name
    for name in ("Market-1501", "MSMT17"):
        parts = published[name]
        both = parts.train.identities + parts.gallery.identities
        assert IDENTITIES[both] == f"{name} with its test identities"
