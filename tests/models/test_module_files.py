"""Networks of torch.jit.save and torch.export.save: equal features, gradients, and no code run."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reidguard import SMA, Protocol, evaluate
from reidguard.errors import CheckpointError, InputError
from reidguard.models import create_model, load_module, wrap_model
from reidguard.models.fingerprint import model_key
from reidguard.testing import small_dataset
from reidguard.types import InputSpec

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:the features of", "ignore::torch.jit.TracerWarning"
)
SPEC = InputSpec(size=(32, 16))


class Net(nn.Module):
    """Layers of most kinds, a constant, and shapes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(True))
        self.tied = self.features[0]
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("shift", torch.linspace(0, 1, 8), persistent=False)
        self.fc = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x) + self.shift.view(1, 8, 1, 1) + torch.ones(1, device=x.device)
        tokens = maps.view(x.shape[0], 8, -1).transpose(1, 2)
        first, second = torch.split(self.attention(tokens, tokens, tokens)[0], 4, dim=2)
        pooled = torch.cat([first.mean(1), second.amax(1), tokens.mean(1)], 1)
        return self.fc(pooled)


def net() -> Net:
    torch.manual_seed(0)
    network = Net().eval()
    nn.init.normal_(network.features[1].running_mean)
    return network


def export(batch: int | None) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        shapes = None if batch else {"x": {0: torch.export.Dim.AUTO}}
        example = torch.rand(batch or 2, 3, 32, 16)
        torch.export.save(torch.export.export(net(), (example,), dynamic_shapes=shapes), path)

    return write


def trace(batch: int, network: Callable[[], nn.Module] = net) -> Callable[[Path], None]:
    return lambda path: traced(batch, network).save(path)


def traced(batch: int, network: Callable[[], nn.Module] = net) -> torch.jit.ScriptModule:
    return torch.jit.trace(network(), torch.rand(batch, 3, 32, 16), check_trace=False).eval()


class OneOnly(Net):
    """A pass that is traced with the batch as a number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(1, 3, 32, 16))


def one_only() -> nn.Module:
    network = OneOnly().eval()
    network.load_state_dict(net().state_dict())
    return network


FILES: dict[str, Callable[[Path], None]] = {
    "export.pt2": export(None),
    "export-3.pt2": export(3),
    "export-1.pt2": export(1),
    "trace.pt": trace(2),
    "trace-1.pt": trace(1, one_only),
    "frozen.pt": lambda path: torch.jit.freeze(traced(2)).save(path),
}


@pytest.fixture(scope="module", params=FILES)
def file(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("modules") / request.param
    FILES[request.param](path)
    return path


def test_features_and_gradients_are_those_of_the_network(file):
    model, wanted = load_module(file, input_spec=SPEC), wrap_model(net(), input_spec=SPEC)
    x = torch.rand(5, 3, 40, 20, generator=torch.Generator().manual_seed(1))
    grads = []
    for each in (model, wanted):
        images = x.clone().requires_grad_()
        features = each.features(images)
        (grad,) = torch.autograd.grad(features.square().sum(), images)
        grads += [features.detach(), grad]
    torch.testing.assert_close(grads[0], grads[2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads[1], grads[3], rtol=1e-4, atol=1e-7)
    assert grads[1].abs().max() > 0


def test_it_is_attacked_and_its_features_have_a_key(file):
    model = load_module(file, input_spec=SPEC)
    assert model_key(model) == model_key(load_module(file, input_spec=SPEC))
    other = wrap_model(net(), input_spec=SPEC)
    with torch.no_grad():
        other.network.fc.weight[0, 0] += 0.01
    assert model_key(model)["features"] != model_key(other)["features"]
    with small_dataset() as people:
        result = evaluate(model, people, SMA(steps=2).bind(model), Protocol(image_size=(32, 16)))
    assert 0 < result.attacked.linf <= 8 / 255 + 1e-6


def test_the_size_of_an_export_is_the_default(tmp_path):
    export(2)(tmp_path / "n.pt2")
    assert load_module(tmp_path / "n.pt2").input_spec.size == (32, 16)
    spec = InputSpec(size=None, channels="bgr")
    assert load_module(tmp_path / "n.pt2", input_spec=spec).input_spec == InputSpec(
        size=(32, 16), channels="bgr"
    )


def test_an_exported_network_has_its_weights_under_their_names(tmp_path):
    export(2)(tmp_path / "n.pt2")
    model = load_module(tmp_path / "n.pt2")
    names = {name.split("network.", 3)[-1] for name, _ in model.named_parameters()}
    assert {"features.0.weight", "attention.in_proj_weight", "fc.bias"} <= names


def test_osnet_is_the_same_after_an_export(tmp_path):
    torch.manual_seed(0)
    model = create_model("osnet_x0_25", size=(64, 32)).eval()

    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model.embed(x)

    path = tmp_path / "osnet.pt2"
    torch.export.save(torch.export.export(Embed(), (torch.rand(1, 3, 64, 32),)), path)
    x = torch.rand(3, 3, 64, 32)
    torch.testing.assert_close(
        load_module(path).features(x), model.features(x), rtol=1e-5, atol=1e-6
    )


# --- what is refused -------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Write a zip file again with its entries changed."""
    other = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return other


def with_graph(path: Path, change: Callable[[dict], None]) -> Path:
    """Write an export whose graph is changed."""

    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        program = json.loads(data)
        change(program["graph_module"])
        return json.dumps(program).encode()

    return rewritten(path, changed)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load", "torch.load", "_operator.attrgetter", "math.sqrt", "#__import__.os",
        "torch.ops.aten.from_file.default", "torch.ops.aten.save.default",
        "torch.ops.aten.warn.default", "torch.ops.c10d.send.default", "torch.ops.aten.__class__.x",
    ],
)  # fmt: skip
def test_an_export_calls_only_operators_on_tensors(tmp_path, target):
    export(2)(tmp_path / "n.pt2")

    def change(module: dict) -> None:
        module["graph"]["nodes"][0]["target"] = target

    with pytest.raises(InputError, match="not an operator of torch on tensors"):
        load_module(with_graph(tmp_path / "n.pt2", change))


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def test_no_pickle_of_an_export_is_read(tmp_path):
    export(2)(tmp_path / "n.pt2")
    buffer, target = io.BytesIO(), tmp_path / "executed"
    torch.save(Hostile(target), buffer)
    # the sample inputs, which torch.export.load unpickles
    path = rewritten(
        tmp_path / "n.pt2", lambda n, data: buffer.getvalue() if "sample_inputs" in n else data
    )
    load_module(path)
    # a weight

    def pickled(name: str, data: bytes) -> bytes:
        if name.endswith("weight_0"):
            return buffer.getvalue()
        if name.endswith("weights_config.json"):
            config = json.loads(data)
            next(iter(config["config"].values()))["use_pickle"] = True
            return json.dumps(config).encode()
        return data

    with pytest.raises(CheckpointError, match="as a pickle, which is never read"):
        load_module(rewritten(tmp_path / "n.pt2", pickled))
    assert not target.exists()


DAMAGE: dict[str, Callable[[dict], None]] = {
    "no nodes": lambda m: m["graph"].pop("nodes"),
    "unknown value": lambda m: m["graph"]["nodes"][0]["inputs"][0]["arg"].update(
        as_tensor={"name": "nowhere"}
    ),
    "missing argument": lambda m: m["graph"]["nodes"][0]["inputs"].clear(),
    "odd argument": lambda m: m["graph"]["nodes"][0]["inputs"][0].update(arg={"as_graph": {}}),
    "no output": lambda m: m["signature"]["output_specs"].clear(),
    "no image": lambda m: m["signature"]["input_specs"].pop(),
    "weight of another name": lambda m: m["signature"]["input_specs"][0]["parameter"].update(
        parameter_name="nowhere"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_one_error(tmp_path, damage):
    export(2)(tmp_path / "n.pt2")
    path = with_graph(tmp_path / "n.pt2", DAMAGE[damage])
    with pytest.raises((CheckpointError, InputError), match=r"changed-n\.pt2") as caught:
        load_module(path)
    assert len(str(caught.value)) < 600


def test_a_cut_or_shortened_export_is_one_error(tmp_path):
    export(2)(tmp_path / "n.pt2")
    short = rewritten(tmp_path / "n.pt2", lambda n, d: d[:8] if n.endswith("weight_0") else d)
    with pytest.raises(CheckpointError, match="damaged"):
        load_module(short)
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "n.pt2").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut\.pt2"):
        load_module(tmp_path / "cut.pt2")


def test_a_network_exported_in_training_mode_is_refused(tmp_path):
    network = net().train()
    program = torch.export.export(network, (torch.rand(2, 3, 32, 16),))
    torch.export.save(program, tmp_path / "n.pt2")
    with pytest.raises(InputError, match=r"training mode.*eval\(\)"):
        load_module(tmp_path / "n.pt2")


class Saves(nn.Module):
    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.target)
        return x.mean((2, 3))


class ReadsAFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.from_file("numbers", True, 3)


@pytest.mark.parametrize("make", [lambda p: Saves(str(p)), lambda p: ReadsAFile()])
def test_torchscript_that_uses_files_is_refused(tmp_path, make):
    target = tmp_path / "written"
    torch.jit.script(make(target)).save(tmp_path / "n.pt")
    with pytest.raises(InputError, match="operators that may use files"):
        load_module(tmp_path / "n.pt")
    assert not target.exists()


def test_other_files_and_sizes_are_one_error(tmp_path):
    trace(2)(tmp_path / "n.pt")
    with pytest.raises(CheckpointError, match="there is no file"):
        load_module(tmp_path / "none.pt")
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"no network of torch\.jit\.save.*identify"):
        load_module(tmp_path / "weights.pt")
    trace(2, one_only_of_two)(tmp_path / "size.pt")
    with pytest.raises(InputError, match=r"cannot be run on images of 256×128.*input_spec"):
        load_module(tmp_path / "size.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "n.pt").read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load_module(tmp_path / "cut.pt")
    torch.jit.script(nn.Linear(3, 2)).save(tmp_path / "linear.pt")
    with pytest.raises(InputError, match=r"linear\.pt cannot be run on images"):
        load_module(tmp_path / "linear.pt")


def one_only_of_two() -> nn.Module:
    network = one_only()
    network.forward = lambda x: Net.forward(network, x.reshape(2, 3, 32, 16))
    return network
