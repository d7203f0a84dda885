"""Networks of torchreid, LightMBN and deep_sort: contract, learners, and what each block computes.

That their parameters have the published names is in ``test_published_networks.py``.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.batches import rng
from helpers.published import FOLDER, read_table
from reidguard.attacks import DeltaAttack
from reidguard.contexts import on_meta
from reidguard.learners import LEARNERS
from reidguard.models import create_model
from reidguard.models.architectures.hacnn import HACNN
from reidguard.models.architectures.lmbn import _DropBlock
from reidguard.models.architectures.mlfn import _Block as MLFNBlock
from reidguard.models.architectures.shufflenet import _Bottleneck as ShuffleBlock
from reidguard.models.dependence import feature_dependence
from reidguard.models.weights import match_tensors, misfit
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.testing import MODEL_CHECKS
from reidguard.types import Budget, ReIDBatch

SMALL = {"osnet_ain_x0_25": (32, 16), "mobilenetv2_x1_0": (32, 16), "shufflenet": (32, 16)}
LARGE = {  # their contract takes seconds
    "hacnn": (64, 32),
    "osnet_ibn_x1_0": (32, 16),
    "deep_sort": (32, 16),
    "lmbn_n": (64, 32),
    "mlfn": (32, 16),
    "resnet50_fc512": (32, 16),
    "resnet50mid": (32, 16),
}
# Millions of parameters in torchreid's documentation. (Its number for HACNN counts the layers that
# look at four regions four times.)
MODEL_ZOO = {
    **{"osnet_ibn_x1_0": 2.2, "osnet_ain_x1_0": 2.2, "resnet50_fc512": 24.6, "mlfn": 32.5},
    **{"mobilenetv2_x1_0": 2.2, "mobilenetv2_x1_4": 4.3},
}
ALL = {**SMALL, **LARGE}
FAMILIES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]


@pytest.mark.parametrize("check", MODEL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FAMILIES)
def test_they_keep_the_contract(name, check):
    check(lambda people: create_model(name, num_classes=people, size=ALL[name]))


def batch(size, seed):
    images = torch.rand(4, 3, *size, generator=rng(seed))
    pids = torch.tensor([0, 0, 1, 1])
    return ReIDBatch(images, pids, torch.zeros_like(pids), torch.arange(4))


@pytest.mark.parametrize(
    "name",
    [name for name in ALL if name != "resnet50_fc512"],  # as resnet50mid
)
def test_attacks_learn_on_them(name):
    """One plain step and one with second derivatives, which all of their layers need to have."""
    size = ALL[name]
    torch.manual_seed(0)
    view = inference_view(create_model(name, size=size))
    for learner, options in (("plain", {}), ("maml", {"inner_lr": 0.003})):
        attack = DeltaAttack(Budget(8 / 255), size=size)
        nn.init.uniform_(attack.delta, -0.01, 0.01, generator=rng())
        objective = FeatureObjective(view, MisrankingTriplet())
        LEARNERS.create(learner, **options).step(attack, objective, batch(size, 0), batch(size, 1))
        assert torch.isfinite(attack.delta.grad).all(), learner
        assert attack.delta.grad.abs().max() > 0, learner


TABLES = [path for path in sorted(FOLDER.glob("*.json")) if read_table(path).model in ALL]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_without_classifiers_those_of_a_file_are_dropped(path):
    network = read_table(path)
    with on_meta():
        model = create_model(network.model)
    state, report = match_tensors(model, path, network.state())
    assert not misfit(model, state, report)
    assert report.missing == report.unexpected == report.mismatched == ()
    assert report.dropped_heads
    assert all("classifier" in name or "neck" in name for name in report.dropped_heads)


@pytest.mark.parametrize(
    ("name", "length", "size", "metric"),
    [
        ("osnet_ibn_x1_0", 512, (256, 128), "euclidean"),
        ("osnet_ain_x1_0", 512, (256, 128), "cosine"),
        ("resnet50_fc512", 512, (256, 128), "euclidean"),
        ("resnet50mid", 3072, (256, 128), "euclidean"),
        ("mlfn", 1024, (256, 128), "euclidean"),
        ("hacnn", 1024, (160, 64), "euclidean"),
        ("mobilenetv2_x1_0", 1280, (256, 128), "euclidean"),
        ("mobilenetv2_x1_4", 1792, (256, 128), "euclidean"),
        ("shufflenet", 960, (256, 128), "euclidean"),
        ("lmbn_n", 3584, (384, 128), "cosine"),
        ("deep_sort", 512, (128, 64), "cosine"),
    ],
)
def test_input_and_feature_are_the_authors(name, length, size, metric):
    with on_meta():
        model = create_model(name)
    assert (model.input_spec.size, model.metric) == (size, metric)
    assert feature_dependence(model).width == length
    millions = MODEL_ZOO.get(name)
    if millions is not None:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("align_corners", [False, True])
def test_hacnn_cuts_a_quarter_of_the_height(align_corners):
    """On maps that are linear in height: rows of the region at the sampling points' formula."""
    model = HACNN(size=(64, 32), align_corners=align_corners)
    height, centre = 20, 0.3
    rows = torch.arange(float(height))
    maps = rows[:, None].expand(1, 1, height, 8).contiguous()
    region = model._cut(maps, torch.tensor([[0.0, centre]]), (24, 28))
    if align_corners:
        places = [(centre + 0.25 * u + 1) / 2 * (height - 1) for u in (-1, 1)]
    else:
        places = [
            ((centre + 0.25 * u) + 1) * height / 2 - 0.5 for u in (1 / height - 1, 1 - 1 / height)
        ]
    expected = torch.linspace(*places, 24)[:, None].expand(1, 1, 24, 28)
    torch.testing.assert_close(region, expected)


def test_hacnn_files_are_loaded_with_a_note_on_their_age():
    network = read_table(FOLDER / "torchreid_hacnn.json")
    with on_meta():
        model = create_model("hacnn")
    report = match_tensors(model, FOLDER, network.state())[1]
    assert "need align_corners=True" in str(report)


def test_hacnn_regions_start_one_below_the_other():
    model = HACNN(size=(64, 32))
    centres = model.ha1(torch.rand(2, 128, 16, 8))[1]
    expected = torch.tensor([[0, -0.75], [0, -0.25], [0, 0.25], [0, 0.75]]).tanh()
    torch.testing.assert_close(centres, expected.expand(2, 4, 2))


def test_lmbn_drops_the_most_active_rows_in_training():
    torch.manual_seed(0)
    block = _DropBlock(64)
    with torch.no_grad():
        dropped, maps = block(torch.rand(2, 64, 12, 4))
    for image, whole in zip(dropped, maps, strict=True):
        activity = [float(whole[:, y].square().sum(0).max()) for y in range(12)]
        gone = [y for y in range(12) if not image[:, y].any()]
        assert sorted(activity)[-4:] == sorted(activity[y] for y in gone)
        left = [y for y in range(12) if y not in gone]
        assert torch.equal(image[:, left], whole[:, left])
    same, maps = block.eval()(torch.rand(2, 64, 12, 4))
    assert torch.equal(same, maps)


def test_mlfn_weighs_each_factor_as_a_whole():
    torch.manual_seed(0)
    block = MLFNBlock(64, 256, 1, (16, 16)).eval()
    inputs = []
    block.fm_conv3.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.rand(1, 64, 6, 4)
    with torch.no_grad():
        nn.init.zeros_(block.fsm[8].weight)
        block.fsm[8].bias.copy_(torch.full((32,), 40.0))  # a sigmoid of 1 for every factor
        block(x)
        block.fsm[8].bias[5] = -200.0
        block(x)
    full, without = inputs
    assert full.shape[1] == 128  # four channels a factor
    assert full[:, 20:24].any()
    assert not without[:, 20:24].any()
    rest = [c for c in range(128) if not 20 <= c < 24]
    assert torch.equal(full[:, rest], without[:, rest])


def test_shufflenet_mixes_its_groups():
    """Channel j of group g comes to place 3·j + g, so that each group sees all three."""
    torch.manual_seed(0)
    block = ShuffleBlock(240, 240, shrink=False, groups=3).eval()
    inputs = []
    block.conv2.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    x = torch.rand(1, 240, 4, 2)
    block(x)
    before = block.bn1(block.conv1(x)).relu()
    for group in range(3):
        for j in range(20):
            assert torch.equal(inputs[0][:, 3 * j + group], before[:, 20 * group + j])


def test_resnet50mid_ends_with_the_plain_feature():
    torch.manual_seed(0)
    model = create_model("resnet50mid", size=(64, 32)).eval()
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        features = model.embed(x)
        torch.testing.assert_close(features[:, 1024:], model.backbone(x))


def test_deep_sort_files_have_their_weights_under_net_dict(tmp_path):
    torch.manual_seed(0)
    table = read_table(FOLDER / "zqpei_deep_sort.json")
    state = {name: torch.rand(shape) for name, shape in table.tensors.items()}
    torch.save({"net_dict": state, "acc": 0.9, "epoch": 40}, tmp_path / "ckpt.t7")
    model = create_model("deep_sort", num_classes=7, weights=tmp_path / "ckpt.t7")
    assert torch.equal(model.backbone.conv1.bias, state["conv.0.bias"])
    assert torch.equal(model.classifier["default"].weight, state["classifier.4.weight"])
