"""layumi's networks: what they compute, beside torchvision's own."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from helpers.batches import rng
from reidguard.attacks import DeltaAttack
from reidguard.contexts import on_meta
from reidguard.learners import LEARNERS
from reidguard.models import create_model
from reidguard.models.dependence import feature_dependence
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.testing import MODEL_CHECKS
from reidguard.types import Budget, InputSpec, ReIDBatch

SMALL = {
    "layumi_ft_net": {"backbone": "test_resnet", "size": (64, 32), "embedding": 8},
    "layumi_pcb": {"backbone": "test_resnet", "size": (96, 32)},
}


def small(name, **options):
    torch.manual_seed(0)
    return create_model(name, **{**SMALL[name], **options})


def images(count=2, size=(64, 32)):
    return torch.rand(count, 3, *size, generator=rng(1))


def filled(module):
    for seed, (name, tensor) in enumerate(module.state_dict().items()):
        if tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=rng(seed)) + 0.5)
        elif "weight" in name and tensor.dim() == 2:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=rng(seed)))
    return module.eval()


def class_block(width, embedding, identities):
    """Linear, norm and dropout, then the classifier, under its names."""
    layers = [nn.Linear(width, embedding)] if embedding else []
    block = nn.Module()
    block.add_block = nn.Sequential(*layers, nn.BatchNorm1d(embedding or width), nn.Dropout(0.5))
    block.classifier = nn.Sequential(nn.Linear(embedding or width, identities))
    return block


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SMALL)
def test_they_keep_the_contract(name, check):
    check(lambda people: small(name, num_classes=people))


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("layumi_ft_net", "test_resnet"),
        ("layumi_pcb", "test_resnet"),
        ("layumi_ft_net", "test_vit"),
        pytest.param("layumi_ft_net", "densenet121", marks=pytest.mark.slow),
        pytest.param("layumi_ft_net", "swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_attacks_learn_on_them(name, backbone):
    model = small(name, backbone=backbone)
    size, pids = model.input_spec.size, torch.tensor([0, 0, 1, 1])
    batch = ReIDBatch(images(4, size), pids, torch.zeros_like(pids), torch.arange(4))
    for learner, options in (("plain", {}), ("maml", {"inner_lr": 0.003})):
        attack = DeltaAttack(Budget(8 / 255), size=size)
        nn.init.uniform_(attack.delta, -0.01, 0.01, generator=rng())
        objective = FeatureObjective(inference_view(model), MisrankingTriplet())
        LEARNERS.create(learner, **options).step(attack, objective, batch, batch)
        assert torch.isfinite(attack.delta.grad).all(), learner
        assert attack.delta.grad.abs().max() > 0, learner


@pytest.mark.parametrize(
    ("name", "backbone", "size", "length"),
    [
        ("layumi_ft_net", "resnet50", (256, 128), 512),
        ("layumi_ft_net", "densenet121", (256, 128), 512),
        pytest.param(
            *("layumi_ft_net", "swin_base_patch4_window7_224", (224, 224), 512),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("layumi_ft_net", "swinv2_base_window8_256", (256, 128), 512), marks=pytest.mark.slow
        ),
        ("layumi_pcb", "resnet50", (384, 192), 6 * 2048),
    ],
)
def test_input_and_feature_are_the_authors(name, backbone, size, length):
    with on_meta():
        model = create_model(name, backbone=backbone)
    assert model.input_spec == InputSpec(size=size, interpolation="bicubic")
    assert model.metric == "cosine"
    assert feature_dependence(model).width == length


@pytest.mark.parametrize(
    ("backbone", "embedding", "last_stride"),
    [
        ("resnet18", 16, 1),
        ("resnet18", 16, 2),
        ("resnet18", 0, 2),
        ("densenet121", 16, 1),
        pytest.param("densenet121", 16, 2, marks=pytest.mark.slow),
    ],
)
def test_ft_net_is_torchvisions_network_and_a_block(tmp_path, backbone, embedding, last_stride):
    network = filled(getattr(torchvision.models, backbone)(weights=None))
    width = 512 if backbone == "resnet18" else 1024
    block = filled(class_block(width, embedding, 3))
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {f"classifier.{name}": tensor for name, tensor in block.state_dict().items()}
    torch.save(state, tmp_path / "net_last.pth")
    model = create_model(
        "layumi_ft_net",
        backbone=backbone,
        last_stride=last_stride,
        embedding=embedding,
        size=(64, 32),
        num_classes=3,
        weights=tmp_path / "net_last.pth",
    )
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == ()
    assert len(report.dropped_heads) == 2  # of ImageNet
    assert "layumi" in str(report)
    x = model.input_spec.apply(images())
    if backbone == "densenet121":
        network.features.transition3.pool.stride = last_stride
        pooled = network.features(x).mean((2, 3))  # without the last ReLU
    else:
        for layer in (network.layer4[0].conv1, network.layer4[0].downsample[0]):
            layer.stride = (last_stride, last_stride)
        network.fc = nn.Identity()
        pooled = network(x)
    expected = block.add_block(pooled)
    output = model(images())
    torch.testing.assert_close(output.features, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.logits, block.classifier(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_ft_net_takes_the_mean_of_tokens_and_maps(backbone):
    """Of the maps themselves: a head that normalises them is left out."""
    model = small("layumi_ft_net", backbone=backbone, size=(64, 64), embedding=0).eval()
    network = timm.create_model(backbone, **({"img_size": (64, 64)} if "vit" in backbone else {}))
    missing = network.load_state_dict(model.backbone.state_dict(), strict=False).missing_keys
    assert all(name.startswith("head.") for name in missing)
    maps = network.eval().forward_features(model.input_spec.apply(images(2, (64, 64))))
    mean = maps.mean(1) if backbone == "test_vit" else maps.mean((2, 3))
    torch.testing.assert_close(model.features(images(2, (64, 64))), mean / (1 + 1e-5) ** 0.5)


def test_swins_of_older_timm_load(tmp_path):
    """Before version 0.9 a stage ended with the downsampling, and constants were saved."""
    options = {"backbone": "swin_tiny_patch4_window7_224", "size": (56, 56), "num_classes": 3}
    source = create_model("layumi_ft_net", **options)
    state = {}
    for name, tensor in source.state_dict().items():
        for number in (1, 2, 3):
            name = name.replace(f"layers.{number}.downsample.", f"layers.{number - 1}.downsample.")
        name = name.replace("backbone.", "model.").replace("neck.", "classifier.add_block.")
        state[name.replace("classifier.default.", "classifier.classifier.0.")] = tensor
    state["model.layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    state["model.layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49).long()
    torch.save(state, tmp_path / "w.pth")
    model = create_model("layumi_ft_net", weights=tmp_path / "w.pth", **options)
    assert model.load_report.missing == model.load_report.unexpected == ()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_pcb_is_torchvisions_network_and_six_blocks(tmp_path):
    network = filled(torchvision.models.resnet18(weights=None))
    blocks = [filled(class_block(512, 256, 3)) for _ in range(6)]
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    for i, block in enumerate(blocks):
        state |= {f"classifier{i}.{name}": t for name, t in block.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    options = {"backbone": "resnet18", "size": (96, 32), "weights": tmp_path / "w.pth"}
    model = create_model("layumi_pcb", num_classes=3, **options)
    report = model.load_report
    assert report.missing == report.unexpected == report.mismatched == ()
    for layer in (network.layer4[0].conv1, network.layer4[0].downsample[0]):
        layer.stride = (1, 1)
    x = model.input_spec.apply(images(2, (96, 32)))
    maps = nn.Sequential(*list(network.children())[:-2])(x)
    stripes = [maps[:, :, i].mean(2) for i in range(6)]  # one row each
    output = model(images(2, (96, 32)))
    expected = torch.cat([F.normalize(stripe) for stripe in stripes], 1)
    torch.testing.assert_close(output.features, expected)
    torch.testing.assert_close(model.features(images(2, (96, 32))), expected)
    for i, block in enumerate(blocks):
        reduced = block.add_block(stripes[i])
        torch.testing.assert_close(output.embeddings[i], reduced, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            output.logits[i], block.classifier(reduced), rtol=1e-4, atol=1e-4
        )
    without = create_model("layumi_pcb", **options)
    assert len(without.load_report.dropped_heads) == 2 + 12
