from __future__ import annotations

import os
import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file

from reidguard.errors import CheckpointError
from reidguard.models import create_model, load_weights
from reidguard.storage import save_tensors


@pytest.fixture
def model():
    return create_model("osnet_x0_25", num_classes=5)


def published_layout(seed=1):
    """A state dict as the published OSNet files have it."""
    torch.manual_seed(seed)
    state = create_model("osnet_x0_25", num_classes=5).state_dict()
    return {name.replace("classifier.default.", "classifier."): t for name, t in state.items()}


def assert_same(model, state):
    ours = model.state_dict()
    for name, tensor in state.items():
        ours_name = name.replace("classifier.", "classifier.default.")
        assert torch.equal(ours[ours_name], tensor), name


@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "rank1": 91.5},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {**state, "note": "not a tensor"},
    ],
    ids=["plain", "state_dict", "model", "DataParallel", "with a note"],
)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torch_files(tmp_path, model, nest, legacy):
    state = published_layout()
    torch.save(nest(state), tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    report = load_weights(model, tmp_path / "w.pth")
    assert len(report.loaded) == len(state) == 567
    assert report.missing == report.unexpected == report.mismatched == report.dropped_heads == ()
    assert model.load_report is report
    assert_same(model, state)


def test_plain_safetensors(tmp_path, model):
    state = published_layout()
    # a header whose length begins with the bytes of a zip file or a pickle is read all the same
    for extra in range(0, 400, 8):
        save_file(state, tmp_path / "w.safetensors", metadata={"note": "x" * extra})
        start = (tmp_path / "w.safetensors").read_bytes()[:1]
        if start == b"\x80":
            break
    assert start == b"\x80"
    assert len(load_weights(model, tmp_path / "w.safetensors").loaded) == 567
    assert_same(model, state)


def test_own_checkpoint(tmp_path, model):
    model.save(tmp_path / "m.safetensors")
    other = create_model("osnet_x0_25", num_classes=5, weights=tmp_path / "m.safetensors")
    assert_same(other, {k.replace(".default", ""): v for k, v in model.state_dict().items()})


def test_half_precision_file_into_float_model(tmp_path, model):
    state = {k: v.half() if v.is_floating_point() else v for k, v in published_layout().items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth")
    assert model.conv1.conv.weight.dtype == torch.float32
    torch.testing.assert_close(model.conv1.conv.weight, state["conv1.conv.weight"].float())


def test_head_of_other_identities_is_dropped_and_said(tmp_path):
    torch.save(published_layout(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"classifier.default.weight"):
        model = create_model("osnet_x0_25", num_classes=7, weights=tmp_path / "w.pth")
    report = model.load_report
    assert report.dropped_heads == ("classifier.default.weight", "classifier.default.bias")
    assert report.missing == ("classifier.default.weight", "classifier.default.bias")
    assert model.classifier["default"].weight.shape == (7, 512)
    assert "dropped heads" in str(report)


def test_no_warning_where_nothing_is_missing(tmp_path):
    torch.save(published_layout(), tmp_path / "w.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = create_model("osnet_x0_25", weights=tmp_path / "w.pth")
    assert model.load_report.dropped_heads == ("classifier.weight", "classifier.bias")


def test_with_several_domains_a_nameless_head_is_dropped(tmp_path):
    torch.save(published_layout(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="missing"):
        model = create_model(
            "osnet_x0_25", num_classes={"a": 5, "b": 5}, weights=tmp_path / "w.pth"
        )
    assert model.load_report.dropped_heads == ("classifier.weight", "classifier.bias")


def test_report_names_what_differs(tmp_path, model):
    state = published_layout()
    kept = model.conv5.conv.weight.clone()
    del state["conv5.conv.weight"]
    state["fc.0.bias"] = torch.zeros(3)
    state["fc.1.bias"] = torch.zeros(512, dtype=torch.int64)
    state["stranger"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"(?s)3 of the 485 .*conv5\.conv\.weight.*stranger"):
        report = load_weights(model, tmp_path / "w.pth", strict=False)
    assert report.missing == ("conv5.conv.weight", "fc.0.bias", "fc.1.bias")
    assert report.unexpected == ("stranger",)
    assert [line.split()[0] for line in report.mismatched] == ["fc.0.bias", "fc.1.bias"]
    assert "(3,)" in report.mismatched[0]
    assert "int64" in report.mismatched[1]
    assert torch.equal(model.conv5.conv.weight, kept)
    for word in ("conv5.conv.weight", "stranger", "564 of 567"):
        assert word in str(report)


def test_old_files_without_batch_counters_are_complete(tmp_path, model):
    state = {k: v for k, v in published_layout().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pth")
    assert load_weights(model, tmp_path / "w.pth").missing == ()


def unchanged(model, before):
    return all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def refuse(model, path, match):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load_weights(model, path)
    assert unchanged(model, before)


def test_weights_of_another_network_are_refused_with_examples(tmp_path, model):
    torch.save({f"layer{i}.weight": torch.zeros(4) for i in range(9)}, tmp_path / "w.pth")
    refuse(model, tmp_path / "w.pth", r"conv1\.conv\.weight.*layer0\.weight.*No registered")


def test_a_small_part_is_not_enough(tmp_path, model):
    state = {k: v for k, v in published_layout().items() if k.startswith(("conv1.", "classifier"))}
    torch.save(state, tmp_path / "w.pth")
    refuse(model, tmp_path / "w.pth", r"480 of the 485 tensors.*conv2\.0\.conv1\.conv\.weight")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(tmp_path, model, value):
    state = published_layout()
    state["conv5.bn.running_var"][3] = value
    torch.save(state, tmp_path / "w.pth")
    refuse(model, tmp_path / "w.pth", r"NaN, infinite or too large.*conv5\.bn\.running_var")


class Hostile:
    """Unpickling this runs a command, if anyone lets it."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["pickle", "pickle2", "zip", "legacy"])
def test_a_hostile_pickle_is_not_executed(tmp_path, model, form):
    path, target = tmp_path / "w.pth", tmp_path / "executed"
    content = {"state_dict": published_layout(), "extra": Hostile(target)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(target)))
    elif form == "pickle2":
        path.write_bytes(pickle.dumps(Hostile(target), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refuse(model, path, "never executed")
    assert not target.exists()
    # the same file does harm where it is trusted: the test can fail
    if form == "zip":
        torch.load(path, weights_only=False)
        assert target.exists()


@pytest.mark.parametrize("keep", [0, 1, 4, 100, 10_000, -200])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_torch_files(tmp_path, model, keep, legacy):
    path = tmp_path / "w.pth"
    torch.save(published_layout(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:keep])
    refuse(model, path, r"w\.pth")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"PK\x03\x04 but no zip", "damaged"),
        (b"\x80\x02 but no pickle", "damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{", "damaged"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{not js}", "damaged"),
    ],
)
def test_foreign_bytes(tmp_path, model, content, says):
    (tmp_path / "w.pth").write_bytes(content)
    refuse(model, tmp_path / "w.pth", says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds a list"),
        ({}, "names no tensors"),
        ({"optimizer": {"lr": 1}}, "optimizer"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "sparse"),
        (torch.zeros(3), "holds a Tensor"),
    ],
)
def test_torch_files_without_weights(tmp_path, model, content, says):
    torch.save(content, tmp_path / "w.pth")
    refuse(model, tmp_path / "w.pth", says)


def test_files_that_are_not_there(tmp_path, model):
    refuse(model, tmp_path / "none.pth", "there is no file")
    refuse(model, tmp_path, "there is no file")


def test_a_checkpoint_of_another_kind(tmp_path, model):
    save_tensors(tmp_path / "a.safetensors", {"delta": torch.zeros(3)}, {"kind": "attack"})
    refuse(model, tmp_path / "a.safetensors", "'attack'")
