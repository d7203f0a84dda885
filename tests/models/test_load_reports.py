"""Weights load where the features can be right; else an error names tensors and the model."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from reidguard.errors import CheckpointError
from reidguard.models import (
    MODELS,
    OSNet,
    ReIDModel,
    create_model,
    load_weights,
    register_model,
    wrap_model,
)
from reidguard.models.dependence import feature_dependence
from reidguard.types import InputSpec

SIZE = (64, 32)


def stored(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


# --- which weights features depend on ---------------------------------------------------------


class Odd(nn.Module):
    """Weights that are used, unused, used for nothing, changed in place, tied, sparse."""

    def __init__(self, needs_data: bool = False) -> None:
        super().__init__()
        self.needs_data = needs_data
        for name in ("used", "unused", "idle", "inplace", "shown"):
            setattr(self, name, nn.Parameter(torch.ones(3)))
        self.tied = self.used
        self.register_buffer("buffer", torch.ones(3))
        self.register_buffer("unsaved", torch.ones(3), persistent=False)
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        if self.needs_data and x.sum() > 1e9:
            return x
        self.idle * 2
        changed = torch.zeros(3, device=x.device)
        view = changed.view(3, 1)
        view.add_(self.inplace[:, None])
        return self.norm(x.mean((2, 3)) * self.used + self.buffer + changed)


@pytest.mark.parametrize("needs_data", [False, True])
def test_what_features_depend_on_is_found_by_a_pass(needs_data):
    model = wrap_model(Odd(needs_data), input_spec=InputSpec(size=(4, 2)))
    dependence = feature_dependence(model)
    norm = {f"network.norm.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    wanted = {"network.used", "network.buffer", "network.inplace", *norm}
    assert dependence.names - {"network.tied"} == wanted
    assert dependence.width == 3


def test_a_pass_that_is_not_possible_leaves_all_but_the_classifiers():
    model = wrap_model(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)))
    assert feature_dependence(model).names == {"network.1.weight", "network.1.bias"}


# --- files ------------------------------------------------------------------------------------


def ain_names(state):
    """OSNet-AIN: instance norm in the first layer and the streams' last, other names inside."""
    renamed = {}
    for name, tensor in state.items():
        for i, stream in enumerate(("conv2a.", "conv2b.", "conv2c.", "conv2d.")):
            name = name.replace(stream, f"conv2.{i}.layers." + ("0." if i == 0 else ""))
        if not name.startswith("conv1.bn.running"):
            renamed[name] = tensor
    return renamed


def test_osnet_ain_is_not_osnet(tmp_path):
    state = ain_names(create_model("osnet_x0_25", num_classes=4).state_dict())
    model = create_model("osnet_x0_25")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"conv1\.bn\.running_mean.*nearest"):
        load_weights(model, stored(tmp_path, state))
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    with pytest.warns(UserWarning, match="does not fit completely"):
        report = create_model("osnet_x0_25", weights=tmp_path / "w.pth", strict=False).load_report
    assert 0 < len(report.loaded) < len(before)


def resnet18(**more):
    return {**timm.create_model("resnet18", num_classes=0).state_dict(), **more}


FC = {"fc.0.weight": torch.ones(64, 512), "fc.0.bias": torch.ones(64)}
HEAD = {"classifier.weight": torch.ones(7, 64), "classifier.bias": torch.ones(7)}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (FC, r"backbone\.fc\.0\.weight"),  # a projection after the pooled feature
        (HEAD, r"features of length 64, those of this model have length 512"),
        ({**FC, **HEAD}, r"fc\.0\.weight.*features of length 64"),
        ({"embedding.weight": torch.ones(64, 512)}, r"embedding\.weight"),
    ],
)
def test_other_features_than_the_file_s_are_an_error(tmp_path, more, says):
    with pytest.raises(CheckpointError, match=says):
        create_model("ide", backbone="resnet18", size=SIZE,
                     weights=stored(tmp_path, resnet18(**more)))  # fmt: skip


def test_a_classifier_on_the_features_is_no_problem(tmp_path):
    head = {"classifier.weight": torch.ones(7, 512), "classifier.bias": torch.ones(7)}
    path = stored(tmp_path, resnet18(**head))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ide = create_model("ide", backbone="resnet18", size=SIZE, weights=path)
        report = load_weights(wrap_model(timm.create_model("resnet18", num_classes=0)), path)
    assert len(ide.load_report.dropped_heads) == len(report.dropped_heads) == 2


def test_the_registered_model_that_fits_is_named(tmp_path):
    path = stored(tmp_path, create_model("osnet_x0_5", num_classes=9).state_dict())
    with pytest.raises(CheckpointError, match=r"It fits create_model\('osnet_x0_5'\)"):
        create_model("osnet_x0_25", weights=path)
    path = stored(tmp_path, resnet18())
    with pytest.raises(CheckpointError, match=r"create_model\('ide', backbone='resnet18'\)"):
        create_model("osnet_x0_25", weights=path)


def test_models_of_plugins_are_named_too(tmp_path, monkeypatch):
    monkeypatch.setattr(MODELS, "_factories", dict(MODELS._factories))

    @register_model("mine")
    class Mine(ReIDModel):
        def __init__(self, num_classes=None):
            super().__init__(input_spec=InputSpec(), metric="cosine", num_classes=num_classes)
            self.layer = nn.Linear(3, 17)

        def embed(self, inputs):
            return self.layer(inputs.mean((2, 3)))

    @register_model("needs data")
    def broken(num_classes=None):
        raise RuntimeError(str(float(torch.ones(()))))

    path = stored(tmp_path, {"layer.weight": torch.ones(17, 3), "layer.bias": torch.ones(17)})
    with pytest.raises(CheckpointError, match=r"It fits create_model\('mine'\)"):
        create_model("osnet_x0_25", weights=path)


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e300, torch.float64), (-1e39, torch.float64), (7e4, torch.float32)]
)
def test_numbers_that_overflow_are_refused(tmp_path, value, dtype):
    state = create_model("osnet_x0_25").state_dict()
    state["conv5.bn.bias"] = state["conv5.bn.bias"].to(dtype)
    state["conv5.bn.bias"][1] = value
    model = create_model("osnet_x0_25")
    if dtype == torch.float32:
        model.half()
    with pytest.raises(CheckpointError, match=r"too large numbers in 1 tensors \(conv5\.bn\.bias"):
        load_weights(model, stored(tmp_path, state))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_of_another_type_are_refused(tmp_path, dtype):
    state = create_model("osnet_x0_25").state_dict()
    state["conv5.bn.bias"] = state["conv5.bn.bias"].to(dtype)
    with pytest.raises(CheckpointError, match=r"conv5\.bn\.bias \(file \(128,\) \w+, model"):
        load_weights(create_model("osnet_x0_25"), stored(tmp_path, state))


# --- names ------------------------------------------------------------------------------------

WRAPPED = (
    "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.",
    "module._orig_mod.", "_fsdp_wrapped_module._checkpoint_wrapped_module.",
)  # fmt: skip


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_anywhere_in_a_name(tmp_path, wrapper, where):
    state = create_model("osnet_x0_25").state_dict()
    names = {name: name.split(".") for name in state}
    wrapped = {
        ".".join(parts[:where]) + "." * (where > 0) + wrapper + ".".join(parts[where:])
        if len(parts) > where
        else name: state[name]
        for name, parts in names.items()
    }
    model = create_model("osnet_x0_25")
    assert load_weights(model, stored(tmp_path, wrapped)).missing == ()
    assert torch.equal(model.conv5.conv.weight, state["conv5.conv.weight"])


def test_wrappers_in_the_model(tmp_path):
    network = timm.create_model("test_resnet", num_classes=0)
    fresh = timm.create_model("test_resnet", num_classes=0)
    path = stored(tmp_path, network.state_dict())
    for model in (nn.DataParallel(fresh), torch.compile(fresh, backend="eager")):
        with torch.no_grad():
            fresh.conv1[0].weight.zero_()
        assert load_weights(wrap_model(model), path).missing == ()
        assert torch.equal(fresh.conv1[0].weight, network.conv1[0].weight)


@pytest.mark.parametrize(
    "nest",
    [
        lambda s: {"state_dict_ema": s, "epoch": 3},
        lambda s: {"model_ema": {"module": s, "decay": 0.9}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"model.state_dict": s},
        lambda s: {"ema": {"shadow": {}}, "net": {"weights": s}},
        lambda s: {"model": {"width": 0.25}, "state_dict": s},
        lambda s: {"model_ema": {n: t + 1 for n, t in s.items()}, "model": s},
        lambda s: {"optimizer": {"state": {0: torch.ones(2)}}, "model_state_dict": s},
    ],
)
def test_nested_weights(tmp_path, nest):
    state = create_model("osnet_x0_25").state_dict()
    model = create_model("osnet_x0_25", weights=stored(tmp_path, nest(state)))
    assert isinstance(model, OSNet)
    assert torch.equal(model.conv5.conv.weight, state["conv5.conv.weight"])
