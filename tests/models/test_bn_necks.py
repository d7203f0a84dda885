"""Networks of fast-reid and of the strong baseline: what they compute, from names to features."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from helpers.batches import rng
from helpers.published import FOLDER, read_table
from reidguard.attacks import DeltaAttack
from reidguard.contexts import on_meta
from reidguard.errors import CheckpointError, InputError
from reidguard.learners import LEARNERS
from reidguard.models import MODELS, create_model
from reidguard.models.architectures.agw import NonLocal
from reidguard.models.architectures.bn_neck import GeM
from reidguard.models.ibn import IBN
from reidguard.models.nearest import nearest_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.testing import MODEL_CHECKS
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (64, 32)
FAMILIES = {
    "fastreid_bot": {"backbone": "test_resnet_ibn_a"},
    "fastreid_agw": {"backbone": "test_resnet_ibn_a", "version": "0.1"},
    "fastreid_sbs": {"backbone": "test_resnet_ibn_a"},
    "fastreid_mgn": {"backbone": "test_resnet", "size": (96, 32)},
    "strong_baseline": {"backbone": "test_resnet", "neck": "before"},
}


def small(name, **options):
    torch.manual_seed(0)
    return create_model(name, **{"size": SIZE, **FAMILIES[name], **options})


def images(count=2, size=SIZE):
    return torch.rand(count, 3, *size, generator=rng(1))


def stir(model):
    """Give norms and biases values that a mistake would show in."""
    for seed, tensor in enumerate([*model.parameters(), *model.buffers()]):
        if tensor.dim() == 1 and len(tensor) > 1:
            tensor.data = torch.rand(tensor.shape, generator=rng(seed)) + 0.5
    return model.eval()


def normed(x, norm):
    shape = (1, -1, *[1] * (x.dim() - 2))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale.view(shape) + shift.view(shape)


# The others differ in the pooling alone.
CONTRACT = ("fastreid_sbs", "fastreid_mgn", "strong_baseline")


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    "name", [n if n in CONTRACT else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]
)
def test_they_keep_the_contract(name, check):
    check(lambda people: small(name, num_classes=people))


@pytest.mark.parametrize("name", FAMILIES)
def test_attacks_learn_on_them(name):
    """One plain step and one with second derivatives, which all of their layers need to have."""
    view = inference_view(small(name))
    pids = torch.tensor([0, 0, 1, 1])
    batch = ReIDBatch(images(4), pids, torch.zeros_like(pids), torch.arange(4))
    for learner, options in (("plain", {}), ("maml", {"inner_lr": 0.003})):
        attack = DeltaAttack(Budget(8 / 255), size=SIZE)  # resized
        nn.init.uniform_(attack.delta, -0.01, 0.01, generator=rng())
        objective = FeatureObjective(view, MisrankingTriplet())
        LEARNERS.create(learner, **options).step(attack, objective, batch, batch)
        assert torch.isfinite(attack.delta.grad).all(), learner
        assert attack.delta.grad.abs().max() > 0, learner


@pytest.mark.parametrize(
    ("name", "backbone", "size", "length"),
    [
        ("fastreid_bot", "resnet50_ibn_a", (256, 128), 2048),
        ("fastreid_agw", "resnet50", (256, 128), 2048),
        ("fastreid_sbs", "resnet50", (384, 128), 2048),
        ("fastreid_mgn", "resnet50_ibn_a", (384, 128), 2048),
        ("strong_baseline", "resnet50", (256, 128), 2048),
    ],
)
def test_input_and_feature_are_the_authors(name, backbone, size, length):
    with on_meta():
        model = create_model(name, backbone=backbone)
        features = model.eval().features(torch.rand(1, 3, *size))
    options = {} if name == "strong_baseline" else {"interpolation": "bicubic"}
    assert model.input_spec == InputSpec(size=size, **options)  # RGB, ImageNet's statistics
    assert model.metric == "cosine"
    assert features.shape == (1, length)


# --- layers -----------------------------------------------------------------------------------


def test_ibn_normalises_half_the_channels_of_each_image():
    layer = stir(IBN(6))
    x = torch.randn(3, 6, 5, 4, generator=rng())
    one = x[:, :3]
    variance, mean = torch.var_mean(one, (2, 3), correction=0, keepdim=True)
    one = (one - mean) / (variance + 1e-5).sqrt()
    one = one * layer.IN.weight.view(1, 3, 1, 1) + layer.IN.bias.view(1, 3, 1, 1)
    torch.testing.assert_close(layer(x), torch.cat([one, normed(x[:, 3:], layer.BN)], 1))


def test_ibn_is_in_the_first_three_stages():
    network = small("fastreid_bot", backbone="resnet18_ibn_a").backbone
    first = [name for name, layer in network.named_modules() if isinstance(layer, IBN)]
    assert first == [f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)]
    assert type(network.layer4[0].bn1) is nn.BatchNorm2d


@pytest.mark.parametrize("name", ["test_vit_ibn_a", "test_convnext_ibn_a", "resnet_ibn_a"])
def test_ibn_needs_a_resnet(name):
    with pytest.raises(InputError, match="ibn_a"):
        create_model("ide", backbone=name, size=SIZE)


def test_timm_has_no_weights_with_ibn():
    with pytest.raises(CheckpointError, match="leave pretrained out"):
        create_model("ide", backbone="resnet18_ibn_a", pretrained=True)


def test_weights_of_ibn_networks_load_into_ide(tmp_path):
    """They have torchvision's names and a classifier."""
    source = create_model("ide", backbone="resnet18_ibn_a", size=SIZE).backbone
    state = {**source.state_dict(), "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    torch.save(state, tmp_path / "w.pth")
    model = create_model("ide", backbone="resnet18_ibn_a", size=SIZE, weights=tmp_path / "w.pth")
    assert len(model.load_report.dropped_heads) == 2
    assert torch.equal(model.backbone.layer1[0].bn1.IN.weight, source.layer1[0].bn1.IN.weight)


# --- fast-reid --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "version", "blocks"),
    [
        ("resnet50", "1", (2, 3)),
        ("resnet101_ibn_a", "1", (2, 9)),
        ("resnet34", "1", (0, 0)),
        ("resnest50d", "1", (0, 0)),
        ("resnest50d", "0.1", (2, 3)),
    ],
)
def test_non_local_blocks_of_each_backbone(backbone, version, blocks):
    with on_meta():
        model = create_model("fastreid_agw", backbone=backbone, version=version)
        plain = create_model("fastreid_bot", backbone=backbone, version=version)

    def count(stage):
        return sum(isinstance(layer, NonLocal) for layer in stage.modules())

    network = model.backbone
    stages = (network.layer1, network.layer2, network.layer3, network.layer4)
    assert [count(stage) for stage in stages] == [0, *blocks, 0]
    assert count(plain) == 0


@pytest.mark.parametrize("version", ["1", "0.1"])
def test_the_last_stage_of_resnest(version):
    """Dilated by 2 since 1.0, but for its first block; never in the model zoo."""
    with on_meta():
        model = create_model("fastreid_bot", backbone="resnest50d", version=version).eval()
        halved = create_model("fastreid_bot", backbone="resnest50d", last_stride=2)
        maps = model.backbone.forward_features(torch.rand(1, 3, 128, 64))
    assert maps.shape == (1, 2048, 8, 4)
    dilated = (2, 2) if version == "1" else (1, 1)
    blocks = model.backbone.layer4
    assert [block.conv2.conv.dilation for block in blocks] == [(1, 1), dilated, dilated]
    assert [block.conv2.conv.padding for block in blocks] == [(1, 1), dilated, dilated]
    assert all(block.conv2.conv.dilation == (1, 1) for block in halved.backbone.layer4)


@pytest.mark.parametrize("version", ["1", "0.1"])
def test_bag_of_tricks_by_hand(version):
    model = stir(small("fastreid_bot", backbone="resnet18", version=version, num_classes=3))
    network, x = model.backbone, model.input_spec.apply(images())
    x = network.bn1(network.conv1(x)).relu()
    x = F.max_pool2d(x, 3, 2, **({"ceil_mode": True} if version == "1" else {"padding": 1}))
    for stage in (network.layer1, network.layer2, network.layer3):
        x = stage(x)
    assert network.layer4(x).shape[2:] == x.shape[2:]  # without the last stride
    pooled = network.layer4(x).mean((2, 3))
    output = model(images())
    after = normed(pooled, model.neck)
    torch.testing.assert_close(output.features, after)
    torch.testing.assert_close(output.embeddings, pooled)
    torch.testing.assert_close(output.logits, after @ model.classifier["default"].weight.T)


def test_logits_of_sbs_are_cosines():
    model = stir(small("fastreid_sbs", num_classes=3))
    output = model(images())
    weight = model.classifier["default"].weight
    for i in range(2):
        for j in range(3):
            cosine = F.cosine_similarity(output.features[i], weight[j], dim=0)
            torch.testing.assert_close(output.logits[i, j], 64 * cosine, rtol=1e-4, atol=1e-4)
    assert torch.equal(output.embeddings, output.features)


@pytest.mark.parametrize(
    ("name", "version", "learnt"),
    [("agw", "1", False), ("agw", "0.1", True), ("sbs", "1", True), ("sbs", "0.1", True)],
)
def test_gem_pooling(name, version, learnt):
    model = small(f"fastreid_{name}", version=version)
    assert ("pool.p" in dict(model.named_parameters())) == learnt
    maps = torch.rand(2, 3, 4, 5, generator=rng())
    expected = maps.pow(3).mean((2, 3)).pow(1 / 3)
    torch.testing.assert_close(model.pool(maps), expected)
    assert isinstance(model.pool, GeM)


@pytest.mark.parametrize("version", ["1", "0.1"])
def test_mgn_by_hand(version):
    model = stir(small("fastreid_mgn", version=version, num_classes=3, size=(80, 32)))
    x = images(2, (80, 32))
    shared = model.backbone(model.input_spec.apply(x))
    maps = [branch(shared) for branch in (model.b1, model.b2, model.b3)]
    assert maps[0].shape[2] == 5  # rows: three and two, then two, two and one
    cuts = [(0, 0, 5), (1, 0, 5), (2, 0, 5), (1, 0, 3), (1, 3, 5), (2, 0, 2), (2, 2, 4), (2, 4, 5)]
    expected = []
    for (branch, first, last), part in zip(cuts, model.parts.values(), strict=True):
        layers = list(part)
        p = layers[0][0].p
        pooled = maps[branch][:, :, first:last].clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)
        feature = pooled @ layers[1].weight[:, :, 0, 0].T
        if version == "0.1":
            feature = normed(feature, layers[2]).relu()
        expected.append(normed(feature, layers[-2]))
    output = model(x)
    torch.testing.assert_close(output.features, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)
    joined = [*expected[:3], torch.cat(expected[3:5], 1), torch.cat(expected[5:], 1)]
    for found, wanted in zip(output.embeddings, joined, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    weights = [layer.weight for layer in model.classifier["default"].values()]
    for logits, feature, weight in zip(output.logits, expected, weights, strict=True):
        cosines = F.cosine_similarity(feature[:, None], weight[None], dim=2)
        torch.testing.assert_close(logits, 64 * cosines, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [2, 4])
def test_mgn_needs_rows_for_three_parts(rows):
    with pytest.raises(InputError, match=f"{rows} rows.*larger images"):
        small("fastreid_mgn", size=(16 * rows, 32))


def test_versions_are_those_that_exist():
    for name in ("fastreid_bot", "fastreid_mgn"):
        with pytest.raises(InputError, match=r"version must be '1' or '0\.1'"):
            small(name, version="2")
        for number in (0.1, 1):  # as --model-set version=0.1 gives it
            names = small(name, version=number).state_dict().keys()
            assert names == small(name, version=str(number)).state_dict().keys()


def file_of(model, path, renames, **beside):
    """A file of a model's weights under other names."""
    state = {}
    for name, tensor in model.state_dict().items():
        for old, new in renames.items():
            if name.startswith(old):
                state[new + name.removeprefix(old)] = tensor
                break
        else:
            state[name] = tensor
    torch.save({"model": {**state, **beside}}, path)
    return path


NEW = {
    "neck.": "heads.bottleneck.0.",
    "classifier.default.": "heads.",
    "pool.": "heads.pool_layer.",
}
OLD = {**NEW, "neck.": "heads.bnneck.", "classifier.default.": "heads.classifier."}


@pytest.mark.parametrize(("version", "names"), [("1", NEW), ("0.1", OLD)])
def test_the_wrong_version_is_an_error_that_names_the_right_one(tmp_path, version, names):
    options = {"backbone": "resnet18_ibn_a", "num_classes": 3}
    source = stir(small("fastreid_sbs", version=version, **options))
    path = file_of(source, tmp_path / "w.pth", names)
    model = small("fastreid_sbs", version=version, weights=path, **options)
    assert model.load_report.missing == model.load_report.unexpected == ()
    assert torch.equal(model(images()).logits, source(images()).logits)
    # the model zoo's AGW is the same network for smaller images
    call = "create_model('fastreid_sbs', backbone='resnet18_ibn_a')"
    if version == "0.1":
        call = "create_model('fastreid_agw', backbone='resnet18_ibn_a', version='0.1')"
    other = "1" if version == "0.1" else "0.1"
    with pytest.raises(CheckpointError) as error:
        small("fastreid_sbs", version=other, weights=path, **options)
    assert f"It fits {call}" in str(error.value)
    for name in ("agw", "strong_baseline"):
        with pytest.raises(CheckpointError):
            create_model(name, backbone="resnet18_ibn_a", size=SIZE, weights=path)


def test_other_pixel_statistics_are_an_error(tmp_path):
    source = small("fastreid_bot", backbone="resnet18")
    mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    path = file_of(source, tmp_path / "w.pth", NEW, pixel_mean=mean)
    assert small("fastreid_bot", backbone="resnet18", weights=path).load_report.unexpected == ()
    file_of(source, path, NEW, pixel_mean=mean.flip(1))
    with pytest.warns(UserWarning, match="does not fit completely.*pixel_mean"):
        small("fastreid_bot", backbone="resnet18", weights=path, strict=False)


# --- the strong baseline ----------------------------------------------------------------------


@pytest.mark.parametrize("neck", ["before", "after"])
def test_the_strong_baseline_by_hand(tmp_path, neck):
    options = {"backbone": "resnet18", "neck": neck, "num_classes": 3}
    source = stir(small("strong_baseline", **options))
    renames = {"backbone.": "base.", "neck.": "bottleneck.", "classifier.default.": "classifier."}
    path = file_of(source, tmp_path / "w.pth", renames)
    model = small("strong_baseline", weights=path, **options)
    network = timm.create_model("resnet18", num_classes=0).eval()
    network.load_state_dict(source.backbone.state_dict())
    for layer in (network.layer4[0].conv1, network.layer4[0].downsample[0]):
        layer.stride = (1, 1)
    x = F.max_pool2d(network.bn1(network.conv1(model.input_spec.apply(images()))), 3, 2, 1)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    pooled = x.mean((2, 3))
    after = normed(pooled, source.neck)
    output = model(images())
    torch.testing.assert_close(output.features, pooled if neck == "before" else after)
    torch.testing.assert_close(output.embeddings, pooled)
    torch.testing.assert_close(output.logits, after @ source.classifier["default"].weight.T)


def test_before_the_neck_a_file_needs_none(tmp_path):
    """As of networks that were learnt without it."""
    source = small("strong_baseline", backbone="resnet18")
    state = {f"base.{name}": tensor for name, tensor in source.backbone.state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match="neck"):
        model = small("strong_baseline", backbone="resnet18", weights=tmp_path / "w.pth")
    torch.testing.assert_close(model.features(images()), source.eval().features(images()))
    with pytest.raises(CheckpointError, match="neck"):
        small("strong_baseline", backbone="resnet18", neck="after", weights=tmp_path / "w.pth")


def test_its_other_backbones_have_their_first_relu():
    for backbone in ("resnet18_ibn_a", "resnest14d"):
        network = small("strong_baseline", backbone=backbone).backbone
        assert isinstance(network.act1, nn.ReLU)
    assert isinstance(small("strong_baseline", backbone="resnet18").backbone.act1, nn.Identity)


def test_necks_are_those_that_exist():
    with pytest.raises(InputError, match="neck must be 'before' or 'after'"):
        small("strong_baseline", neck="both")


# --- which network a file is of ---------------------------------------------------------------

FAST = ("fastreid_bot", "fastreid_agw", "fastreid_mgn", "strong_baseline_resnet50", "layumi_pcb")
TABLES = [
    pytest.param(path, id=path.stem, marks=() if path.stem.startswith(FAST) else pytest.mark.slow)
    for family in ("fastreid", "strong_baseline", "layumi")
    for path in sorted(FOLDER.glob(f"{family}_*.json"))
]


@pytest.mark.parametrize("path", TABLES)
def test_errors_name_the_network_of_a_file(path):
    network = read_table(path)
    options = {k: v for k, v in network.arguments.items() if k != "num_classes"}
    if path.stem == "fastreid_0_1_sbs_r50_ibn":  # but for the size of images the same as AGW
        network = replace(network, model="fastreid_agw")
    sentence = nearest_model(create_model("osnet_x0_25"), network.state())
    assert sentence.startswith(f"It fits create_model({network.model!r}")
    for name, value in options.items():
        default = inspect.signature(MODELS.get(network.model)).parameters[name].default
        assert (f"{name}={value!r}" in sentence) == (value != default)
