from __future__ import annotations

import os
from pathlib import Path

import higher
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.func import functional_call

from reidguard.errors import CheckpointError, InputError
from reidguard.models import create_model, wrap_model
from reidguard.nn import inference_view
from reidguard.objectives.reid import ReIDObjective
from reidguard.types import InputSpec, ReIDBatch, check_images

PUBLISHED = "osnet_x0_25_market1501.pth"


def number_of_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- OSNet ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("osnet_x1_0", 2.2), ("osnet_x0_75", 1.3), ("osnet_x0_5", 0.6), ("osnet_x0_25", 0.2)],
)
def test_osnet_has_the_published_size(name, millions):
    model = create_model(name)
    assert round(number_of_parameters(model) / 1e6, 1) == millions
    assert model.metric == "cosine"
    with_head = create_model(name, num_classes=751)
    assert number_of_parameters(with_head) - number_of_parameters(model) == 751 * 513


def test_osnet_streams_see_three_to_nine_pixels():
    """The receptive field of each stream of a block, measured by its gradient."""
    block = create_model("osnet_x0_25").eval().double().conv2[1]
    for scale, stream in enumerate((block.conv2a, block.conv2b, block.conv2c, block.conv2d), 1):
        x = torch.rand(1, 16, 15, 15, dtype=torch.float64, requires_grad=True)
        for conv in stream.modules():  # positive weights: no ReLU hides anything
            if isinstance(conv, nn.Conv2d):
                nn.init.constant_(conv.weight, 0.1)
        (gradient,) = torch.autograd.grad(stream(x)[0, :, 7, 7].sum(), x)
        rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
        assert rows == list(range(7 - scale, 8 + scale))


def test_osnet_shrinks_the_image_by_sixteen():
    model = create_model("osnet_x0_25").eval()
    sizes = []
    for part in (model.conv1, model.maxpool, model.conv2, model.conv3, model.conv4):
        part.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[1:])))
    model.features(torch.rand(1, 3, 256, 128))
    assert sizes == [(16, 128, 64), (16, 64, 32), (64, 32, 16), (96, 16, 8), (128, 16, 8)]


@pytest.fixture
def published() -> Path:
    folder = os.environ.get("REIDGUARD_WEIGHTS")
    if not folder:
        pytest.skip("REIDGUARD_WEIGHTS is not set: the published weights are not here")
    path = Path(folder) / PUBLISHED
    if not path.is_file():
        pytest.skip(f"REIDGUARD_WEIGHTS has no {PUBLISHED}")
    return path


def test_published_osnet_loads_completely(published):
    with_head = create_model("osnet_x0_25", num_classes=751, weights=published)
    report = with_head.load_report
    assert len(report.loaded) == 567
    assert (report.missing, report.unexpected, report.mismatched) == ((), (), ())
    assert report.dropped_heads == ()
    raw = torch.load(published, weights_only=True, map_location="cpu")
    assert torch.equal(with_head.classifier["default"].weight, raw["classifier.weight"])

    named = create_model("osnet_x0_25", num_classes={"market1501": 751}, weights=published)
    assert torch.equal(named.classifier["market1501"].bias, raw["classifier.bias"])

    plain = create_model("osnet_x0_25", weights=published)
    assert plain.num_classes == {}
    assert not plain.training
    assert len(plain.load_report.loaded) == 565
    assert plain.load_report.dropped_heads == ("classifier.weight", "classifier.bias")
    assert "565 of 565" in str(plain.load_report)
    assert "dropped heads" in str(plain.load_report)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, raw[name]), name


def test_published_osnet_of_another_width_is_refused(published):
    with pytest.raises(CheckpointError, match="does not fit this OSNet"):
        create_model("osnet_x0_5", weights=published)


def test_published_osnet_knows_its_training_people(published):
    """Its classifier names the identities of training images: architecture and head are right."""
    data = os.environ.get("REIDGUARD_DATA")
    if not data:
        pytest.skip("REIDGUARD_DATA is not set: Market-1501 is not here")
    folder = Path(data) / "market1501" / "bounding_box_train"
    paths = sorted(folder.glob("*.jpg"))
    if not paths:
        pytest.skip(f"no images in {folder}")
    import numpy as np

    labels = {pid: i for i, pid in enumerate(sorted({p.name.split("_")[0] for p in paths}))}
    chosen = paths[:: len(paths) // 24]
    pixels = [np.asarray(Image.open(p).resize((128, 256), Image.BILINEAR)) for p in chosen]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    check_images(images)
    model = create_model("osnet_x0_25", num_classes=751, weights=published)
    with torch.no_grad():
        guesses = inference_view(model)(images).logits.argmax(1)
    truth = torch.tensor([labels[p.name.split("_")[0]] for p in chosen])
    assert (guesses == truth).float().mean() >= 0.9


# --- IDE --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "width"),
    [
        ("resnet18", 512),
        ("vit_tiny_patch16_224", 192),
        ("convnext_atto", 320),
        ("mobilenetv3_small_050", 1024),
    ],
)
def test_ide_on_timm_backbones(backbone, width):
    model = create_model("ide", backbone=backbone, num_classes=3, size=(64, 32))
    assert model.training
    assert model.metric == "euclidean"
    assert model.input_spec.size == (64, 32)
    cfg = model.backbone.pretrained_cfg
    assert (model.input_spec.mean, model.input_spec.std) == (cfg["mean"], cfg["std"])
    output = model.eval()(torch.rand(2, 3, 40, 50))
    assert output.features.shape == (2, width)
    assert output.logits.shape == (2, 3)


@pytest.mark.slow
def test_ide_on_swin():
    model = create_model("ide", backbone="swin_tiny_patch4_window7_224").eval()
    assert model.features(torch.rand(1, 3, 256, 128)).shape == (1, 768)


def test_ide_defaults_are_the_papers():
    model = create_model("ide", num_classes=751).eval()
    assert model.features(torch.rand(1, 3, 256, 128)).shape == (1, 2048)
    assert model.input_spec.size == (256, 128)
    maps = model.backbone.forward_features(torch.rand(1, 3, 256, 128))
    assert maps.shape == (1, 2048, 8, 4)
    assert [tuple(p.shape) for p in model.classifier.parameters()] == [(751, 2048), (751,)]


def test_ide_feature_is_the_average_of_the_last_maps():
    model = create_model("ide", backbone="resnet18", size=(64, 32)).eval()
    images = torch.rand(2, 3, 64, 32)
    maps = model.backbone.forward_features(model.input_spec.apply(images))
    torch.testing.assert_close(model.features(images), maps.mean((2, 3)))


def test_ide_last_stride_keeps_the_resolution():
    images = torch.rand(1, 3, 64, 32)
    for backbone in ("resnet18", "resnet26d", "seresnet18"):
        model = create_model("ide", backbone=backbone, last_stride=1, size=(64, 32)).eval()
        assert model.backbone.forward_features(images).shape[2:] == (4, 2), backbone


def test_ide_without_labels_builds_no_branch():
    model = create_model("ide", backbone="resnet18", size=(64, 32))
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone"}


def test_ide_building_leaves_running_statistics_fresh():
    model = create_model("ide", backbone="resnet18", num_classes=3)
    counts = [b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts
    assert not any(int(count) for count in counts)
    assert model.backbone.training


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"backbone": "resnte50"}, "did you mean 'resnet50'"),
        ({"backbone": "hf-hub:timm/resnet18"}, "unknown timm backbone"),
        ({"backbone": 5}, "unknown timm backbone"),
        ({"backbone": "resnet18.no_such_tag"}, "no_such_tag"),
        ({"backbone": "resnet18", "last_stride": 3}, "last_stride"),
        ({"backbone": "convnext_atto", "last_stride": 1}, "layer4"),
        ({"backbone": "vit_tiny_patch16_224", "size": (50, 50, 3)}, "size must be"),
        ({"backbone": "convit_tiny", "size": (256, 128)}, "choose another size"),
    ],
)
def test_ide_mistakes(options, says):
    with pytest.raises(InputError, match=says):
        create_model("ide", **options)


def test_ide_takes_a_plain_backbone_checkpoint(tmp_path):
    import timm

    source = timm.create_model("resnet18", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    model = create_model("ide", backbone="resnet18", weights=tmp_path / "net.pth")
    assert model.load_report.unexpected == ()
    assert model.load_report.dropped_heads == ("backbone.fc.weight", "backbone.fc.bias")
    assert torch.equal(model.backbone.conv1.weight, source.conv1.weight)


# --- derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"), [("ide", {"backbone": "resnet18"}), ("osnet_x0_25", {})]
)
def test_second_order_through_the_training_loss(name, options):
    """d/dw of the gradient to the images, against central differences in float64.

    The step is far below the distance to the next ReLU kink for nearly all units.
    """
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, size=(32, 16), **options).double()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 3, 32, 16, dtype=torch.float64))
    model.eval()
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    images = torch.rand(6, 3, 32, 16, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(images)
    weight = next(p for p in model.parameters() if p.dim() == 4)
    along = torch.randn_like(weight)

    def slope() -> torch.Tensor:
        """The loss's derivative along the image direction, still a function of the weights."""
        loss = ReIDObjective(margin=5.0)(model, ReIDBatch(images, pids, pids, pids))
        (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
        return (gradient * direction).sum()

    (second,) = torch.autograd.grad(slope(), weight)
    step = 1e-7
    with torch.no_grad():
        weight.add_(along, alpha=step)
    above = slope().detach()
    with torch.no_grad():
        weight.sub_(along, alpha=2 * step)
    below = slope().detach()
    expected = (above - below) / (2 * step)
    assert expected.abs() > 0
    torch.testing.assert_close((second * along).sum(), expected, rtol=1e-3, atol=1e-6)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = create_model("osnet_x0_25", num_classes=4, size=(64, 32))
    pids = torch.arange(4).repeat_interleave(2)
    colours = torch.rand(4, 3, 1, 1).repeat_interleave(2, 0)
    images = (colours + 0.05 * torch.rand(8, 3, 64, 32)).clamp(0, 1)
    batch = ReIDBatch(images, pids, pids, pids)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = ReIDObjective()(model, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [pytest.param("ide", {"backbone": "resnet18"}, marks=pytest.mark.slow), ("osnet_x0_25", {})],
)
def test_meta_gradient_with_higher_equals_a_functional_loop(name, options):
    """`higher` copies the class itself, which not every class survives."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, size=(32, 16), **options).double().eval()
    pids = torch.tensor([0, 0, 1, 1, 2, 2])
    batch = ReIDBatch(torch.rand(6, 3, 32, 16, dtype=torch.float64), pids, pids, pids)
    objective, rate = ReIDObjective(margin=5.0), 0.01

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self):
            return objective(self.inner, batch) + self.inner.features(batch.images).square().mean()

    learned = Wrapper()
    parameters = dict(learned.named_parameters())
    optimiser = torch.optim.SGD(learned.parameters(), rate)
    with higher.innerloop_ctx(learned, optimiser, copy_initial_weights=False) as (fast, inner):
        inner.step(fast())
        ours = torch.autograd.grad(fast(), list(parameters.values()))

    def functional(weights):
        return functional_call(learned, weights, ())

    first = torch.autograd.grad(
        functional(parameters), list(parameters.values()), create_graph=True
    )
    stepped = {
        key: weight - rate * gradient
        for (key, weight), gradient in zip(parameters.items(), first, strict=True)
    }
    expected = torch.autograd.grad(functional(stepped), list(parameters.values()))
    for key, mine, theirs in zip(parameters, ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, key=key: f"{key}: {text}")


def test_a_wrapped_timm_network_brings_its_normalisation():
    network = timm.create_model("test_resnet", num_classes=0)
    spec = wrap_model(network).input_spec
    assert spec.mean == tuple(network.pretrained_cfg["mean"])
    assert spec.std == tuple(network.pretrained_cfg["std"])
    assert spec.size == (256, 128)
    assert wrap_model(nn.Conv2d(3, 4, 3)).input_spec == InputSpec()
