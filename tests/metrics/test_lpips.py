"""LPIPS with weights from files, against its formula written out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision import models

from reidguard.errors import CheckpointError, InputError
from reidguard.evaluation import LPIPS

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def files(folder: Path, network: str) -> tuple[Path, Path]:
    """Random weights under the names of torchvision and of the lpips package."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {"alex": models.alexnet, "vgg": models.vgg16}[network](weights=None)
        lines = {
            f"lin{i}.model.1.weight": torch.rand(1, count, 1, 1)
            for i, count in enumerate(CHANNELS[network])
        }
    state = {k: v for k, v in made.state_dict().items() if k.startswith("features.")}
    torch.save(state, folder / "backbone.pth")
    torch.save(lines, folder / "linear.pth")
    return folder / "backbone.pth", folder / "linear.pth"


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return files(tmp_path_factory.mktemp("weights"), "alex")


def pair(size: tuple[int, int] = (128, 64)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(2, 3, *size, generator=generator)
    noise = torch.randn(x.shape, generator=generator) * torch.tensor([0.02, 0.2]).view(2, 1, 1, 1)
    return (x + noise).clamp(0, 1), x


def written_out(backbone: Path, linear: Path, a: torch.Tensor, b: torch.Tensor) -> float:
    """One pair of images through AlexNet's convolutions, position after position."""
    state, lines = torch.load(backbone), torch.load(linear)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    maps = [((image[None] - mean) / std) for image in (a, b)]
    total = 0.0
    layers = (
        (0, 4, 2, False),
        (3, 1, 2, True),
        (6, 1, 1, True),
        (8, 1, 1, False),
        (10, 1, 1, False),
    )
    for number, (place, stride, padding, pooled) in enumerate(layers):
        for i in (0, 1):
            if pooled:
                maps[i] = torch.nn.functional.max_pool2d(maps[i], 3, 2)
            weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
            maps[i] = torch.conv2d(maps[i], weight, bias, stride, padding).clamp(min=0)
        p, q = maps[0][0].double(), maps[1][0].double()
        channel = lines[f"lin{number}.model.1.weight"].flatten().double()
        values = []
        for row in range(p.shape[1]):
            for column in range(p.shape[2]):
                u, v = p[:, row, column], q[:, row, column]
                values.append((channel * (u / u.norm() - v / v.norm()) ** 2).sum())
        total += float(torch.stack(values).mean())
    return total


def test_it_equals_its_formula(alex):
    y, x = pair()
    measure = LPIPS(*alex)
    expected = [written_out(*alex, a, b) for a, b in zip(y, x, strict=True)]
    assert measure(y, x).tolist() == pytest.approx(expected, rel=1e-4)
    assert measure(x, x).tolist() == [0.0, 0.0]
    assert measure(y, x).dtype == torch.float32
    assert measure(y, x)[1] > measure(y, x)[0] > 0


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_the_lpips_package_agrees(network, tmp_path):
    """Its own weights of channels, and ours of the backbone."""
    package = pytest.importorskip("lpips")
    backbone, _ = files(tmp_path, network)
    theirs = package.LPIPS(net=network, pnet_rand=True, verbose=False)
    made = {"alex": models.alexnet, "vgg": models.vgg16}[network](weights=None).features
    made.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(backbone).items()})
    for part in (theirs.net.slice1, theirs.net.slice2, theirs.net.slice3, theirs.net.slice4,
                 theirs.net.slice5):  # fmt: skip
        for name, layer in part.named_children():
            layer.load_state_dict(made[int(name)].state_dict())
    y, x = pair()
    ours = LPIPS(backbone)
    assert ours.network == network
    wanted = theirs(y, x, normalize=True).flatten().tolist()
    assert ours(y, x).tolist() == pytest.approx(wanted, rel=1e-4)


def test_mistakes_name_the_cure(alex, tmp_path, monkeypatch):
    backbone, linear = alex
    with pytest.raises(CheckpointError, match="there is no file"):
        LPIPS(tmp_path / "none.pth", linear)
    with pytest.raises(CheckpointError, match="neither AlexNet nor VGG-16"):
        LPIPS(linear, linear)
    with pytest.raises(CheckpointError, match=r"alex\.pth"):
        LPIPS(backbone, backbone)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"reidguard\[lpips\]"):
        LPIPS(backbone)
    measure = LPIPS(*alex)
    for size in ((63, 64), (64, 63)):
        y, x = pair(size)
        with pytest.raises(InputError, match=rf"at least 64 pixels.* {size[0]}x{size[1]}"):
            measure(y, x)
    with pytest.raises(InputError, match="must be equal"):
        measure(y[:1], x)


def test_its_network_is_frozen_and_double_precision_is_taken(alex):
    measure = LPIPS(*alex)
    assert not measure.training
    assert not any(p.requires_grad for p in measure.parameters())
    y, x = pair((64, 64))
    wide = measure(y.double().requires_grad_(), x.double())
    assert wide.dtype == torch.float64
    assert not wide.requires_grad
    torch.testing.assert_close(wide.float(), measure(y, x))


def test_the_installed_package_gives_the_weights_of_channels(alex, tmp_path, monkeypatch):
    backbone, linear = alex
    weights = tmp_path / "lpips" / "weights" / "v0.1"
    weights.mkdir(parents=True)
    (weights / "alex.pth").write_bytes(linear.read_bytes())
    spec = SimpleNamespace(origin=str(tmp_path / "lpips" / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "lpips" else None)
    before = torch.get_rng_state()
    for name, value in LPIPS(backbone).named_buffers():
        number = name.removeprefix("linear")
        assert torch.equal(value, torch.load(linear)[f"lin{number}.model.1.weight"])
    assert torch.equal(torch.get_rng_state(), before)  # no random number is drawn
    spec.origin = None  # a folder of that name is no package
    with pytest.raises(InputError, match=r"reidguard\[lpips\]"):
        LPIPS(backbone)


@pytest.mark.filterwarnings("ignore:for 0.weight")
def test_the_first_kernel_says_which_network_it_is(alex, tmp_path):
    """3 is VGG-16's, whose last convolution is number 28; 11 AlexNet's, whose last is 10."""
    state, path = torch.load(alex[0]), tmp_path / "part.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with torch.device("meta"), pytest.raises(CheckpointError, match=r"28\.weight"):
        LPIPS(path, alex[1])
    torch.save({"features.0.weight": state["features.0.weight"]}, path)
    with torch.device("meta"), pytest.raises(CheckpointError, match=r"10\.weight"):
        LPIPS(path, alex[1])
    torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5)}, path)
    with pytest.raises(CheckpointError, match="neither AlexNet nor VGG-16"):
        LPIPS(path, alex[1])
