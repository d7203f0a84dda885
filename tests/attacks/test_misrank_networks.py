"""MisRank's networks against their layers written out, with the weights of the modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import rng
from reidguard.attacks import MisRank
from reidguard.attacks.misrank.networks import Discriminator, Generator, MaskHead, top_k_mask
from reidguard.types import Budget

SIZE = (32, 16)


def varied(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights that are not 0 and 1; in eval mode and float64."""
    generator = rng(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
    return network.double().eval()


class Layers:
    """Convolutions and batch norms of a network, in the order of its definition."""

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self.convolutions = [m for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        self.norms = [m for m in modules if isinstance(m, nn.BatchNorm2d)]

    def next(self, *, spectral: bool = True, bias: bool = False) -> tuple[Tensor, Tensor | None]:
        layer = self.convolutions.pop(0)
        weight = layer.weight
        if spectral:
            rows = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
            largest = torch.linalg.matrix_norm(rows.flatten(1).detach(), 2)
            assert 0.5 < largest < 2  # its estimate is that of a few power iterations
        assert (layer.bias is not None) == bias
        return weight, layer.bias

    def norm(self, x: Tensor) -> Tensor:
        layer = self.norms.pop(0)
        mean, variance = (v.view(-1, 1, 1) for v in (layer.running_mean, layer.running_var))
        weight, bias = (v.view(-1, 1, 1) for v in (layer.weight, layer.bias))
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def end(self) -> None:
        assert not self.convolutions
        assert not self.norms


@torch.no_grad()
def test_generator():
    torch.manual_seed(0)
    network, x = varied(Generator(3)), torch.rand(2, 3, *SIZE, dtype=torch.float64) * 2 - 1
    layers = Layers(network)

    def plain(y, pad=0, mode="constant", **options):
        weight, _ = layers.next()
        return layers.norm(F.conv2d(F.pad(y, [pad] * 4, mode), weight, **options))

    y = plain(x, 3, "reflect").relu()
    for _ in range(2):
        y = plain(y, 1, stride=2).relu()
    assert y.shape == (2, 12, SIZE[0] // 4, SIZE[1] // 4)
    for _ in range(6):
        y = y + plain(plain(y, 1, "reflect").relu(), 1, "reflect")
    for _ in range(2):
        weight, _ = layers.next()
        y = F.conv_transpose2d(y, weight, stride=2, padding=1, output_padding=1)
        y = layers.norm(y).relu()
    weight, bias = layers.next(spectral=False, bias=True)
    y = F.conv2d(F.pad(y, [3] * 4, "reflect"), weight, bias).tanh()
    layers.end()
    torch.testing.assert_close(network(x), y)


def same_padding(x: Tensor, stride: int) -> Tensor:
    """Zeros for a kernel of 4, half of them before, the odd one after."""
    pads = []
    for size in (x.shape[3], x.shape[2]):
        out = (size + stride - 1) // stride
        total = max(0, (out - 1) * stride + 4 - size)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


@torch.no_grad()
@pytest.mark.parametrize("size", [SIZE, (17, 22)])
def test_discriminator(size):
    torch.manual_seed(0)
    network, pair = varied(Discriminator(2)), torch.rand(2, 6, *size, dtype=torch.float64) * 2 - 1
    layers = Layers(network)
    scores, features, x = [], network.features(pair), pair
    assert len(features) == 3
    for scale in features:
        weight, bias = layers.next(bias=True)
        y = F.leaky_relu(F.conv2d(same_padding(x, 2), weight, bias, stride=2), 0.2)
        expected = [y]
        for stride in (2, 2, 1):
            weight, _ = layers.next()
            y = F.leaky_relu(
                layers.norm(F.conv2d(same_padding(y, stride), weight, stride=stride)), 0.2
            )
            expected.append(y)
        weight, bias = layers.next(spectral=False, bias=True)
        expected.append(F.conv2d(same_padding(y, 1), weight, bias))
        scores.append(expected[-1])
        assert len(scale) == 5
        for ours, theirs in zip(scale, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        # The mean over the 3 × 3 pixels that lie in the image, at every second one.
        ones = torch.ones_like(x[:, :1])
        kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype)
        counts = F.conv2d(ones, kernel, stride=2, padding=1)
        x = F.conv2d(x, kernel.expand(6, 1, 3, 3), stride=2, padding=1, groups=6) / counts
    layers.end()
    assert [y.shape[1] for y in features[0]] == [2, 4, 8, 16, 1]
    for ours, theirs in zip(network(pair), scores, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_mask_head():
    torch.manual_seed(0)
    judge, head = varied(Discriminator(2)), varied(MaskHead(2))
    features = judge.features(torch.rand(2, 6, *SIZE, dtype=torch.float64) * 2 - 1)
    layers = Layers(head)
    x = features[2][3]
    widths = []
    for fine in (features[1][3], features[0][3], features[0][1]):
        weight, _ = layers.next()
        aside = F.leaky_relu(layers.norm(F.conv2d(fine, weight)), 0.2)
        up = F.interpolate(x, fine.shape[2:], mode="bilinear", align_corners=False)
        weight, _ = layers.next()
        x = F.leaky_relu(layers.norm(F.conv2d(aside + up, weight, padding=1)), 0.2)
        widths.append(x.shape[1])
    assert widths == [16, 8, 4]
    for _ in range(2):
        weight, bias = layers.next(bias=True)
        x = F.leaky_relu(F.conv_transpose2d(x, weight, bias, stride=2), 0.2)
    weight, bias = layers.next(spectral=False, bias=True)
    x = F.conv2d(x, weight, bias)
    layers.end()
    assert x.shape == (2, 1, *SIZE)
    torch.testing.assert_close(head(features), x)


@torch.no_grad()
@pytest.mark.parametrize("shape", [SIZE, (48, 20), (9, 11)])
@pytest.mark.parametrize("pixels", [-1, 60])
def test_images_are_resized_for_the_networks_and_changes_back(shape, pixels):
    attack = MisRank(Budget(0.05), size=SIZE, pixels=pixels, width=2, seed=3)
    for network in (attack.generator, attack.discriminator):
        varied(network).float()
    x = torch.rand(2, 3, *shape, generator=rng(0)) * 0.8 + 0.1
    other = shape != SIZE
    small = x
    if other:
        small = F.interpolate(x, SIZE, mode="bilinear", align_corners=False, antialias=True)
    change = 0.05 * attack.generator(2 * small - 1)
    mask = torch.ones(2, 1, *SIZE)
    if pixels > 0:
        features = attack.discriminator.features(2 * torch.cat((small, small + change), 1) - 1)
        mask = top_k_mask(attack.mask_head(features).flatten(1), pixels, noise=False)
        mask = mask.view(2, 1, *SIZE)
        assert torch.equal(mask, attack.mask(small, small + change))
    if other:
        change = F.interpolate(change, shape, mode="bilinear", align_corners=False)
        mask = F.interpolate(mask, shape, mode="nearest")
    torch.testing.assert_close(attack(x), x + change * mask)
    assert not torch.equal(attack(x), x)


def test_without_a_head_the_mask_is_one_everywhere():
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(MisRank(size=SIZE, width=2).mask(x, x), torch.ones(2, 1, *SIZE))


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = MisRank(size=SIZE, width=2, seed=1, pixels=5).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = MisRank(size=SIZE, width=2, seed=1, pixels=5).state_dict()
    other = MisRank(size=SIZE, width=2, seed=2, pixels=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    usual = MisRank(size=SIZE, width=2, pixels=5).state_dict()
    zero = MisRank(size=SIZE, width=2, seed=0, pixels=5).state_dict()
    assert all(torch.equal(usual[name], zero[name]) for name in usual)


def test_half_precision_images_are_computed_in_the_dtype_of_the_weights():
    attack = MisRank(Budget(8 / 255), size=SIZE, width=2)
    x = (torch.randint(0, 256, (1, 3, *SIZE), generator=rng(0)) / 255).to(torch.bfloat16)
    result = attack.perturb(x)
    assert result.dtype == torch.float32
    wide = x.float()
    torch.testing.assert_close(result, wide + 8 / 255 * attack.generator(2 * wide - 1))
    assert attack.perturb(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "options", [{"size": (16, 16)}, {"pixels": 1}, {"pixels": 512}, {"width": 1}]
)
def test_the_ends_of_ranges_are_allowed(options):
    attack = MisRank(**{"size": SIZE, "width": 2, **options})
    assert attack.config() | options == attack.config()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": (12, 16)}, "at least 16"),
        ({"size": (32, 18)}, "multiples of 4"),
        ({"size": (32, 16, 16)}, "height, width"),
        ({"pixels": 513}, "at most 512, not 513"),
        ({"pixels": -2}, "at least -1"),
        ({"pixels": 0}, "-1 for all"),
        ({"width": 0}, "width"),
    ],
)
def test_what_lies_beyond_is_named(options, word):
    with pytest.raises(ValueError, match=word):
        MisRank(**{"size": SIZE, "width": 2, **options})
