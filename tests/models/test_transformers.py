"""TransReID, CLIP-ReID and SOLIDER: the contract, attacks, and their parts against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reidguard.attacks import SMA, DeltaAttack
from reidguard.errors import CheckpointError, InputError
from reidguard.models import create_model, load_weights
from reidguard.models.architectures.solider import _Merging, _ShiftedWindows
from reidguard.models.architectures.transreid import _shuffled
from reidguard.testing import MODEL_CHECKS, small_dataset

TINY = {"size": (64, 32)}
FAMILIES = {
    "transreid": {"backbone": "test_vit", "stride": 12, "cameras": 4, **TINY},
    "transreid-global": {"backbone": "test_vit", "parts": False, **TINY},
    "clip_reid": {"backbone": "test_vit", "cameras": 4, **TINY},
    "clip_reid-resnet": {"backbone": "resnet50_clip", **TINY},
    "solider": {"backbone": "swin_tiny", **TINY},
}
LARGE = [
    pytest.param(name, marks=pytest.mark.slow if "-resnet" in name or name == "solider" else ())
    for name in FAMILIES
]


def build(family: str, num_classes=None, **changes):
    options = {**FAMILIES[family], **changes}
    return create_model(family.partition("-")[0], num_classes=num_classes, **options)


@pytest.mark.parametrize("check", MODEL_CHECKS)
@pytest.mark.parametrize("family", LARGE)
def test_contract(family, check):
    check(lambda num_classes: build(family, num_classes))


@pytest.mark.parametrize("family", LARGE)
def test_attacks_run(family):
    """A universal attack with plain gradients and by maml, and a gradient attack on each image."""
    torch.manual_seed(0)
    model = build(family).eval()
    with small_dataset("one") as one, small_dataset("two", 1) as two:  # cameras 1 to 4
        options = {"identities": 2, "images_per_identity": 2, "image_size": (32, 16), "steps": 1}
        for learner in ("plain", "maml"):
            attack = DeltaAttack(size=(32, 16)).fit(model, one, two, learner=learner, **options)
            assert float(attack.delta.detach().abs().max()) > 0
    x = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0))
    x = (255 * x).round() / 255
    adversarial = SMA(steps=1).bind(model).with_cameras([1, 4])(x)
    features = [model.features(images, cameras=[1, 4]) for images in (x, adversarial)]
    assert bool(((features[0] - features[1]).norm(dim=1) > 0).all())


@pytest.mark.parametrize("family", ["transreid", "transreid-global", "clip_reid"])
def test_neck_and_camera(family):
    torch.manual_seed(0)
    before = build(family, 5).eval()
    for module in before.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    after = build(family, 5, neck="after").eval()
    after.load_state_dict(before.state_dict())
    x = torch.rand(2, 3, 64, 32)
    cameras = None if before.cameras is None else [2, 3]
    with torch.no_grad():
        one, two = before.features(x, cameras), after.features(x, cameras)
        output = before(x, cameras=cameras)
    parts = output.embeddings if isinstance(output.embeddings, list) else [output.embeddings]
    logits = output.logits if isinstance(output.logits, list) else [output.logits]
    necks = [m for m in before.children() if isinstance(m, torch.nn.BatchNorm1d)]
    parts = parts[-len(necks) :]  # CLIP-ReID has one more, of the block before
    with torch.no_grad():
        necked = [neck(part) for neck, part in zip(necks, parts, strict=True)]
        layers = before.classifier["default"]
        expected = [layer(v) for layer, v in zip(layers, necked, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(logits, expected, strict=True))
    quarter = 1 / 4 if family == "transreid" else 1
    for feature, vectors in ((one, parts), (two, necked)):
        joined = torch.cat([vectors[0], *(quarter * v for v in vectors[1:])], 1)
        torch.testing.assert_close(feature, joined)
    if cameras is not None:
        with torch.no_grad():
            assert not torch.allclose(before.features(x, [3, 2]), one)


def test_patches_are_shifted_by_four_and_interleaved():
    """Patch k of 2n goes to place 2(k − 4) if that is in the first half, else to the odd ones."""
    places = torch.arange(12.0).view(1, 12, 1)
    assert _shuffled(places).flatten().tolist() == [4, 10, 5, 11, 6, 0, 7, 1, 8, 2, 9, 3]
    odd = _shuffled(torch.arange(5.0).view(1, 5, 1)).flatten().tolist()
    assert odd == [4, 2, 0, 3, 1, 2]  # the last but one is repeated


def test_overlapping_patches():
    base = create_model("transreid", backbone="test_vit", stride=12).base
    assert base.patch_embed.grid_size == (21, 10)
    x = torch.rand(1, 3, 256, 128)
    layer = base.patch_embed.proj
    patches = x.unfold(2, 16, 12).unfold(3, 16, 12)  # (1, 3, 21, 10, 16, 16)
    expected = torch.einsum("ncyxhw,ochw->nyxo", patches, layer.weight) + layer.bias
    torch.testing.assert_close(base.patch_embed(x), expected.flatten(1, 2), atol=1e-4, rtol=1e-4)


def test_shifted_windows_equal_attention_between_neighbours():
    """Each place attends to those of its 7×7 window on the padded maps, rolled by three."""
    torch.manual_seed(0)
    layer = _ShiftedWindows(32, shift=True).double()
    inner = layer.w_msa
    torch.nn.init.normal_(inner.relative_position_bias_table)
    x = torch.randn(1, 9, 5, 32, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 2, 0, 5))[0]  # 14 × 7
    q, k, v = inner.qkv(padded).chunk(3, -1)
    height, width = padded.shape[:2]

    def window(row: int, column: int) -> tuple[int, int, int, int]:
        rolled = ((row - 3) % height, (column - 3) % width)
        wraps = (rolled[0] >= height - 3, rolled[1] >= width - 3)
        return (rolled[0] // 7, rolled[1] // 7, *wraps)

    places = [(r, c) for r in range(height) for c in range(width)]
    expected = torch.zeros_like(padded)
    for r, c in places:
        mates = [(a, b) for a, b in places if window(a, b) == window(r, c)]
        scores = []
        for a, b in mates:
            down = (r - 3) % height % 7 - (a - 3) % height % 7
            right = (c - 3) % width % 7 - (b - 3) % width % 7
            bias = inner.relative_position_bias_table[13 * (down + 6) + right + 6, 0]
            scores.append(q[r, c] @ k[a, b] / 32**0.5 + bias)
        weights = torch.stack(scores).softmax(0)
        expected[r, c] = sum(w * v[a, b] for w, (a, b) in zip(weights, mates, strict=True))
    expected = inner.proj(expected)[:9, :5]
    torch.testing.assert_close(layer(x)[0], expected)


def test_merging_joins_neighbours_as_unfold_does():
    layer = _Merging(3)
    x = torch.rand(2, 5, 3, 3)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)
    joined = F.unfold(padded, 2, stride=2).transpose(1, 2)
    expected = layer.reduction(layer.norm(joined)).view(2, 3, 2, 6)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.slow
def test_semantic_weight_interpolates_scale_and_shift():
    models = [build("solider", semantic_weight=weight).eval() for weight in (0.0, 1.0)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.rand(1, 3, 64, 32)
    base = models[0].base
    by_hand = []
    for column, model in enumerate((models[0], models[1])):
        maps = base.patch_embed(model.prepare(x))
        for number, stage in enumerate(base.stages):
            for block in stage.blocks:
                maps = block(maps)
            if number < 3:
                maps = stage.downsample(maps)
                chosen = 1 - column  # the pair is (weight, 1 − weight)
                w, b = base.semantic_embed_w[number], base.semantic_embed_b[number]
                scale = F.softplus(w.weight[:, chosen] + w.bias)
                maps = maps * scale + b.weight[:, chosen] + b.bias
        by_hand.append(base.norm3(maps).mean((1, 2)))
    for model, expected in zip(models, by_hand, strict=True):
        torch.testing.assert_close(model.features(x), expected)
    assert not torch.allclose(*by_hand)


def test_files_of_backbones_and_of_other_cameras(tmp_path):
    model = create_model("transreid", backbone="test_vit", parts=False, **TINY)
    path = tmp_path / "vit.pth"
    torch.save(model.base.state_dict(), path)
    fresh = create_model("transreid", backbone="test_vit", parts=False, **TINY)
    with pytest.warns(UserWarning, match="bottleneck"):
        loaded = create_model("transreid", weights=path, backbone="test_vit", parts=False, **TINY)
    assert torch.equal(loaded.base.pos_embed, model.base.pos_embed)
    assert not torch.equal(fresh.base.pos_embed, model.base.pos_embed)
    six = create_model("transreid", backbone="test_vit", cameras=6, **TINY)
    torch.save(six.state_dict(), path)
    with pytest.raises(CheckpointError, match="sie_embed"):
        load_weights(create_model("transreid", backbone="test_vit", cameras=8, **TINY), path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("transreid", {"backbone": "test_vit", "neck": "beside"}, "before.*after"),
        ("transreid", {"backbone": "resnet18"}, "choose another size or backbone"),
        ("transreid", {"backbone": "test_vit", "size": (16, 16)}, "fewer than 4 patches"),
        ("transreid", {"backbone": "vit_small_transreid", "pretrained": True}, "no weights"),
        ("transreid", {"backbone": "test_vit", "stride": 0}, "stride"),
        ("clip_reid", {"backbone": "resnet50_clip", "cameras": 6}, "for ViTs"),
        ("clip_reid", {"backbone": "test_vit", "cameras": 1}, "at least 2"),
        ("solider", {"backbone": "swin_huge"}, "swin_tiny, swin_small, swin_base"),
        ("solider", {"semantic_weight": 1.5, "backbone": "swin_tiny"}, "semantic_weight"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(InputError, match=message):
        create_model(name, **options)
