"""Checkpoints as other code bases write them, built here name by name from what their code says.

Each is a network of the same architecture whose tensors are known, filed under the other names;
what is loaded must compute what that network computes.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from reidguard.errors import CheckpointError
from reidguard.hub import from_pretrained, save_pretrained
from reidguard.models import create_model, load_model, load_weights, wrap_model

SIZE = (96, 32)
PEOPLE = 4
TINY = "test_resnet"


def filled(network: nn.Module, seed: int = 1) -> nn.Module:
    """Random weights and statistics, so that no layer is neutral."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            scale = 1.0 if name.endswith(("running_var", "bn.weight")) else 0.1
            tensor.copy_(scale * noise + (0.5 if tensor.dim() == 1 else -0.05))
    return network.eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def resnet() -> nn.Module:
    return filled(timm.create_model("resnet18", num_classes=1000))


def layer(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def norm(seed: int, width: int, prefix: str) -> dict[str, torch.Tensor]:
    values = [layer(seed + i, width).abs() + 0.5 for i in range(4)]
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}{name}": v for name, v in zip(names, values, strict=True)}


def normed(x: torch.Tensor, state: dict[str, torch.Tensor], prefix: str) -> torch.Tensor:
    mean, var, weight, bias = (
        state[f"{prefix}{n}"] for n in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def under(prefix: str, network: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def stored(tmp_path, state, **beside):
    torch.save({"state_dict": state, **beside} if beside else state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def maps_of(network: nn.Module, model, stride: int) -> torch.Tensor:
    for block in (network.layer4[0].conv1, network.layer4[0].downsample[0]):
        block.stride = (stride, stride)
    return network.forward_features(model.input_spec.apply(images()))


# --- the paper's released models --------------------------------------------------------------


@pytest.mark.parametrize("head", ["classifier", "classifier_x2"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("parallel", [True, False])
def test_released_ide(tmp_path, head, bias, parallel):
    network = resnet()
    state = under("base.", network)
    state["feat.weight"] = layer(1, 2048, 512)
    if bias:
        state["feat.bias"] = layer(2, 2048)
    state |= norm(3, 2048, "feat_bn.")
    state[f"{head}.weight"], state[f"{head}.bias"] = layer(8, PEOPLE, 2048), layer(9, PEOPLE)
    named = {f"module.{name}": tensor for name, tensor in state.items()} if parallel else state
    path = stored(tmp_path, named, epoch=85, best_top1=0.9)
    model = create_model("ide", backbone="resnet18", size=SIZE, num_classes=PEOPLE, weights=path)
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == ()
    assert report.dropped_heads == ("backbone.fc.weight", "backbone.fc.bias")
    assert "released IDE" in str(report)
    pooled = maps_of(network, model, 2).mean((2, 3))
    hidden = pooled @ state["feat.weight"].T + (state["feat.bias"] if bias else 0)
    hidden = normed(hidden, state, "feat_bn.").relu()
    output = model(images())
    torch.testing.assert_close(output.features, pooled)
    wanted = hidden @ state[f"{head}.weight"].T + state[f"{head}.bias"]
    torch.testing.assert_close(output.logits, wanted)


def test_released_pcb(tmp_path):
    network = resnet()
    children = dict(
        zip(
            ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
            (0, 1, 4, 5, 6, 7),
            strict=True,
        )
    )
    state = {}
    for name, tensor in network.state_dict().items():
        part, _, rest = name.partition(".")
        if part in children:  # list(resnet.children())[:-2] in a Sequential
            state[f"backbone.{children[part]}.{rest}"] = tensor
    for i in range(6):
        state[f"classifiers.{i}.add_block.0.weight"] = layer(i, 256, 512, 1, 1)
        state |= norm(20 + i, 256, f"classifiers.{i}.add_block.1.")
        state[f"classifiers.{i}.classifier.0.weight"] = layer(40 + i, PEOPLE, 256)
        state[f"classifiers.{i}.classifier.0.bias"] = layer(60 + i, PEOPLE)
    path = stored(tmp_path, state)
    model = create_model("pcb", backbone="resnet18", size=SIZE, num_classes=PEOPLE, weights=path)
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == report.dropped_heads == ()
    assert "released PCB" in str(report)
    pooled = F.adaptive_avg_pool2d(maps_of(network, model, 1), (6, 1))[..., 0]
    output = model(images())
    parts = []
    for i in range(6):
        block = f"classifiers.{i}.add_block."
        hidden = pooled[:, :, i] @ state[f"{block}0.weight"][:, :, 0, 0].T
        parts.append(normed(hidden, state, f"{block}1.").relu())
        head = f"classifiers.{i}.classifier.0."
        wanted = parts[-1] @ state[f"{head}weight"].T + state[f"{head}bias"]
        torch.testing.assert_close(output.logits[i], wanted)
    torch.testing.assert_close(output.features, torch.cat(parts, 1))


# --- PCBs of torchreid and of its authors, whose stripes share a convolution --------------------


@pytest.mark.parametrize("origin", ["torchreid", "original"])
def test_pcb_with_a_shared_convolution(tmp_path, origin):
    network = resnet()
    ours = origin == "torchreid"
    state = under("" if ours else "base.", network)
    if ours:
        state = {name: t for name, t in state.items() if not name.startswith("fc.")}
    state[f"{'conv5.layers.0' if ours else 'local_conv'}.weight"] = shared = layer(
        1, 256, 512, 1, 1
    )
    state |= (bn := norm(2, 256, "conv5.layers.1." if ours else "feat_bn2d."))
    heads = [layer(9 + i, PEOPLE, 256) for i in range(6)]
    for i, weight in enumerate(heads):
        state[f"classifier.{i}.weight" if ours else f"instance{i}.weight"] = weight
        state[f"classifier.{i}.bias" if ours else f"instance{i}.bias"] = layer(80 + i, PEOPLE)
    model = create_model(
        "pcb",
        backbone="resnet18",
        size=SIZE,
        feature="pooled",
        num_classes=PEOPLE,
        weights=stored(tmp_path, state),
    )
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == ()
    assert report.dropped_heads == (() if ours else ("backbone.fc.weight", "backbone.fc.bias"))
    assert "feature='pooled'" in str(report)
    pooled = F.adaptive_avg_pool2d(maps_of(network, model, 1), (6, 1))[..., 0]
    wanted = F.normalize(pooled, dim=1).transpose(1, 2).flatten(1)
    torch.testing.assert_close(model.features(images()), wanted)
    for i, part in enumerate(model(images()).embeddings):
        hidden = normed(pooled[:, :, i] @ shared[:, :, 0, 0].T, bn, next(iter(bn))[:-6])
        torch.testing.assert_close(part, hidden.relu())
        assert torch.equal(model.classifier["default"][i].weight, heads[i])


# --- fast-reid and the AGW survey -------------------------------------------------------------


def attention(state, prefix, x):
    """The published non-local block, written out."""
    flat = {n: F.conv2d(x, state[f"{prefix}{n}.weight"], state[f"{prefix}{n}.bias"]).flatten(2)
            for n in ("theta", "phi", "g")}  # fmt: skip
    weights = flat["theta"].transpose(1, 2) @ flat["phi"] / flat["phi"].shape[2]
    y = (weights @ flat["g"].transpose(1, 2)).transpose(1, 2).reshape(len(x), 1, *x.shape[2:])
    y = F.conv2d(y, state[f"{prefix}W.0.weight"], state[f"{prefix}W.0.bias"])
    return x + normed(y.permute(0, 2, 3, 1), state, f"{prefix}W.1.").permute(0, 3, 1, 2)


@pytest.mark.parametrize("origin", ["fast-reid", "fast-reid 0", "survey"])
def test_agw_of_others(tmp_path, origin):
    network = resnet()
    base = "base." if origin == "survey" else "backbone."
    state = {n: t for n, t in under(base, network).items() if ".fc." not in n}
    for stage, channels in ((2, 128), (3, 256)):
        for i in range(2):
            prefix = f"{base}NL_{stage}.{i}."
            for k, name in enumerate(("theta", "phi", "g")):
                state[f"{prefix}{name}.weight"] = layer(10 * stage + i + k, 1, channels, 1, 1)
                state[f"{prefix}{name}.bias"] = layer(k, 1)
            state[f"{prefix}W.0.weight"] = layer(50 + i, channels, 1, 1, 1)
            state[f"{prefix}W.0.bias"] = layer(51 + i, channels)
            state |= norm(60 + i, channels, f"{prefix}W.1.")
    neck = {"survey": "bottleneck.", "fast-reid": "heads.bottleneck.0."}.get(
        origin, "heads.bnneck."
    )
    state |= (bn := norm(7, 512, neck))
    head = {"survey": "classifier.weight", "fast-reid": "heads.weight"}.get(
        origin, "heads.classifier.weight"
    )
    state[head] = layer(5, PEOPLE, 512)
    pool = "global_pool.p" if origin == "survey" else "heads.pool_layer.p"
    state[pool] = torch.tensor([2.5])
    stem = {"survey": "no-relu", "fast-reid": "fast-reid"}.get(origin, "resnet")
    path = tmp_path / "w.pth"
    torch.save({"model": state, "iteration": 3}, path)
    model = create_model(
        "agw",
        backbone="resnet18",
        size=SIZE,
        stem=stem,
        non_local=(0, 2, 2, 0),
        num_classes=PEOPLE,
        weights=path,
    )
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == report.dropped_heads == ()
    advice = {"survey": "stem='no-relu'", "fast-reid": "'fastreid_agw'"}
    assert advice.get(origin, "version='0.1'") in str(report)

    x = network.bn1(network.conv1(model.input_spec.apply(images())))
    x = x if stem == "no-relu" else x.relu()
    padding = {"ceil_mode": True} if stem == "fast-reid" else {"padding": 1}
    x = F.max_pool2d(x, 3, 2, **padding)
    maps_of(network, model, 1)  # sets the last stride
    for stage in (1, 2, 3, 4):
        for i, block in enumerate(getattr(network, f"layer{stage}")):
            x = block(x)
            if stage in (2, 3):
                x = attention(state, f"{base}NL_{stage}.{i}.", x)
    pooled = x.clamp(min=1e-6).pow(2.5).mean((2, 3)).pow(1 / 2.5)
    output = model(images())
    torch.testing.assert_close(output.features, normed(pooled, bn, neck), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, output.features @ state[head].T)


def test_agw_without_a_learnt_p_keeps_three(tmp_path):
    """fast-reid's AGW pools with p = 3 that is not learnt, and so not in the file."""
    state = {n: t for n, t in under("backbone.", resnet()).items() if ".fc." not in n}
    state |= norm(7, 512, "heads.bottleneck.0.")
    state["heads.weight"] = layer(5, 9, 512)
    state["pixel_mean"] = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    state["pixel_std"] = 255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    options = {"backbone": "resnet18", "size": SIZE, "non_local": (0, 0, 0, 0)}
    options["stem"] = "fast-reid"
    # without attention it is fast-reid's baseline, which pools by the mean
    with pytest.raises(CheckpointError, match=r"\(pool\.p\).*It fits.*'fastreid_"):
        create_model("agw", weights=stored(tmp_path, state), **options)
    model = create_model("agw", weights=stored(tmp_path, state), p=1, **options)
    assert float(model.pool.p.detach()) == 1
    for k in "theta", "phi", "g":
        state[f"backbone.NL_2.0.{k}.weight"] = layer(2, 1, 128, 1, 1)
        state[f"backbone.NL_2.0.{k}.bias"] = layer(3, 1)
    state["backbone.NL_2.0.W.0.weight"] = layer(4, 128, 1, 1, 1)
    state["backbone.NL_2.0.W.0.bias"] = layer(5, 128)
    state |= norm(6, 128, "backbone.NL_2.0.W.1.")
    options["non_local"] = (0, 1, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = create_model("agw", weights=stored(tmp_path, state), **options)
    assert model.load_report.missing == model.load_report.unexpected == ()
    assert float(model.pool.p.detach()) == 3
    assert len(model.load_report.dropped_heads) == 1
    state["pixel_mean"] *= 2  # normalised otherwise than the model does
    with pytest.raises(CheckpointError, match="pixel_mean"):
        load_weights(model, stored(tmp_path, state))


# --- plain backbones, and prefixes ------------------------------------------------------------


@pytest.mark.parametrize("name", ["ide", "pcb", "agw"])
def test_plain_timm(tmp_path, name):
    network = resnet()
    options = {"ide": {}, "pcb": {"parts": 2}, "agw": {"non_local": (0, 0, 0, 0)}}[name]
    model = create_model(name, backbone="resnet18", size=SIZE, **options)
    path = stored(tmp_path, network.state_dict())
    if name == "ide":
        report = load_weights(model, path)
    else:  # features depend on more than the backbone
        with pytest.raises(CheckpointError, match=r"It fits create_model\('ide', backbone="):
            load_weights(model, path)
        with pytest.warns(UserWarning, match="does not fit completely"):
            report = load_weights(model, path, strict=False)
    assert report.dropped_heads == ("backbone.fc.weight", "backbone.fc.bias")
    assert report.unexpected == report.mismatched == ()
    assert not any(name.startswith("backbone.") for name in report.missing)
    assert torch.equal(model.backbone.layer3[1].conv2.weight, network.layer3[1].conv2.weight)


@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "module.model.", "backbone.", "_orig_mod.", "net.encoder."]
)
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_prefixes(tmp_path, prefix, beside, wrapped):
    if beside and prefix in ("module.model.", "net.encoder."):
        pytest.skip("two prefixes before some of the names only")
    network = timm.create_model(TINY)
    state = {f"{prefix}{n}": t for n, t in network.state_dict().items() if not n.startswith("fc.")}
    if beside:
        state["loss.centres"] = torch.zeros(3, 2)
    fresh = timm.create_model(TINY, num_classes=0)
    model = wrap_model(fresh) if wrapped else create_model("ide", backbone=TINY, size=SIZE)
    if beside:  # whether such a tensor takes part in the features is not to be seen
        with pytest.raises(CheckpointError, match=r"1 tensors.*loss\.centres"):
            load_weights(model, stored(tmp_path, state))
        with pytest.warns(UserWarning, match=r"loss\.centres"):
            load_weights(model, stored(tmp_path, state), strict=False)
    else:
        load_weights(model, stored(tmp_path, state))
    report = model.load_report
    assert report.missing == ()
    assert len(report.unexpected) == beside
    found = fresh if wrapped else model.backbone
    assert torch.equal(found.layer3[0].conv2.weight, network.layer3[0].conv2.weight)


def test_a_torchreid_resnet_gives_its_backbone_only(tmp_path):
    """Its classifier stands on the feature itself and would be wrong behind our neck."""
    network = timm.create_model("resnet18", num_classes=0)
    state = {**network.state_dict(), "classifier.weight": layer(1, PEOPLE, 512)}
    state["classifier.bias"] = layer(2, PEOPLE)
    with pytest.warns(UserWarning, match="classifier"):
        model = create_model(
            "ide",
            backbone="resnet18",
            size=SIZE,
            num_classes=PEOPLE,
            weights=stored(tmp_path, state),
        )
    dropped = ("backbone.classifier.weight", "backbone.classifier.bias")
    assert model.load_report.dropped_heads == dropped
    assert all(n.startswith(("neck.", "classifier.")) for n in model.load_report.missing)


@pytest.mark.parametrize("other_numpy", [False, True])
@pytest.mark.parametrize("value", [np.float64(0.91), np.float32(0.91), np.int64(3)])
def test_numpy_numbers_beside_the_weights(tmp_path, value, other_numpy):
    """torchreid keeps the best accuracy so."""
    path = stored(tmp_path, timm.create_model(TINY).state_dict(), rank1=value)
    if other_numpy:
        torch.save({"state_dict": timm.create_model(TINY).state_dict(), "rank1": value}, path,
                   _use_new_zipfile_serialization=False)  # fmt: skip
        content = path.read_bytes()
        names = [b"numpy.core.multiarray", b"numpy._core.multiarray"]  # of numpy 1 and 2
        here, there = sorted(names, key=content.count, reverse=True)
        assert here in content
        path.write_bytes(content.replace(here, there))
    model = create_model("ide", backbone=TINY, size=SIZE)
    assert load_weights(model, path).missing == ()


class Array:
    """A numpy array of objects, which could hold anything."""

    def __reduce__(self):
        return np.array, ([1, 2],)


@pytest.mark.parametrize("content", [Array(), np.zeros(3), re.compile("x")])
def test_other_objects_are_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": timm.create_model(TINY).state_dict(), "extra": content}, path)
    model = create_model("ide", backbone=TINY, size=SIZE)
    with pytest.raises(CheckpointError, match="never executed"):
        load_weights(model, path)


def test_a_file_that_contains_itself_ends(tmp_path):
    content: dict = {}
    content["model"] = content
    path = tmp_path / "w.pth"
    path.write_bytes(b"\x80" + pickle.dumps(content, protocol=2)[1:])
    with pytest.raises(CheckpointError):
        load_weights(create_model("osnet_x0_25"), path)
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="names no tensors"):
        load_weights(create_model("osnet_x0_25"), path)


# --- the published OSNet through every way in -------------------------------------------------


class OSNetOfOthers(nn.Module):
    """A module that this library does not know, with the published names."""

    def __init__(self, state) -> None:
        super().__init__()
        body = create_model("osnet_x0_25")
        for name, child in body.named_children():
            if name != "classifier":
                self.add_module(name, child)
        self.load_state_dict({n: t for n, t in state.items() if not n.startswith("classifier")})

    def forward(self, x):
        for part in (self.conv1, self.maxpool, self.conv2, self.conv3, self.conv4, self.conv5):
            x = part(x)
        return self.fc(x.mean((2, 3)))


def test_the_published_osnet_is_the_same_through_every_adapter(tmp_path):
    folder = os.environ.get("REIDGUARD_WEIGHTS")
    if not folder or not (Path(folder) / "osnet_x0_25_market1501.pth").is_file():
        pytest.skip("REIDGUARD_WEIGHTS is not set, or has no osnet_x0_25_market1501.pth")
    path = Path(folder) / "osnet_x0_25_market1501.pth"
    raw = torch.load(path, weights_only=True, map_location="cpu")
    straight = create_model("osnet_x0_25", weights=path)
    x = pictures()
    wanted = straight.features(x)

    prefixed = {f"module.{name}": tensor for name, tensor in raw.items()}
    torch.save({"state_dict": prefixed, "rank1": np.float64(0.9)}, tmp_path / "train.pth.tar")
    save_file(dict(raw), tmp_path / "plain.safetensors")
    straight.save(tmp_path / "ours.safetensors")
    ways = {
        "a training checkpoint": create_model("osnet_x0_25", weights=tmp_path / "train.pth.tar"),
        "plain safetensors": create_model("osnet_x0_25", weights=tmp_path / "plain.safetensors"),
        "our own file": load_model(tmp_path / "ours.safetensors"),
        "a shared folder": from_pretrained(save_pretrained(straight, tmp_path / "shared")),
    }
    for way, model in ways.items():
        assert torch.equal(model.features(x), wanted), way
    wrapped = wrap_model(OSNetOfOthers(raw).eval(), input_spec=straight.input_spec)
    torch.testing.assert_close(wrapped.features(x), wanted)
    again = wrap_model(OSNetOfOthers(create_model("osnet_x0_25").state_dict()).eval())
    assert load_weights(again, path).missing == ()
    torch.testing.assert_close(again.eval().features(x), wanted)


def pictures() -> torch.Tensor:
    """Real people where Market-1501 is there, else noise."""
    folder = Path(os.environ.get("REIDGUARD_DATA", "nowhere")) / "market1501" / "query"
    found = sorted(folder.glob("*.jpg"))[::400][:8]
    if not found:
        return torch.rand(4, 3, 256, 128, generator=torch.Generator().manual_seed(0))
    opened = [
        np.asarray(Image.open(p).resize((128, 256), Image.Resampling.BILINEAR)) for p in found
    ]
    return torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2).float() / 255
