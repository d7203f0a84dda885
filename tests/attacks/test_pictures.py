"""Attacks on Pillow images and image files: inside the ball in whole grey levels, at any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from reidguard.attacks import FNA, SMA, ColorAttack, DeltaAttack, Guides, PatternAttack
from reidguard.errors import DataError, InputError
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec


def embedder():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten())
    return wrap_model(network, input_spec=InputSpec(size=(16, 8)))


def attacks(budget):
    """One of each family, with parameters that would leave the ball if they could."""
    generator = torch.Generator().manual_seed(1)
    learned = [DeltaAttack(budget, size=(8, 4)), ColorAttack(budget, resolution=3)]
    for attack in learned:
        for parameter in attack.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    model = embedder()
    guides = Guides(torch.randn(4, 16, generator=torch.Generator().manual_seed(2)), [1, 1, 2, 2])
    return [
        *learned,
        PatternAttack(budget, "checkerboard", period=4),
        SMA(budget, steps=2).bind(model),
        FNA(budget, steps=1).bind(model, guides),
    ]


def picture(seed, size):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(3, 40), st.integers(3, 60)),
    st.one_of(st.integers(0, 32).map(float), st.floats(0, 255)),
    st.integers(0, 4),
)
def test_the_image_stays_inside_the_ball_in_grey_levels(seed, size, levels, which):
    original = picture(seed, size)
    attack = attacks(Budget(levels / 255))[which]
    changed = attack.apply(original)
    assert changed.mode == "RGB"
    assert changed.size == size
    change = np.abs(np.asarray(changed, int) - np.asarray(original, int))
    assert change.max() <= int(levels + 1e-4)


def test_it_is_the_quantized_result_of_the_attack():
    original = picture(0, (20, 30))
    x = torch.from_numpy(np.array(original)).permute(2, 0, 1)[None] / 255
    for attack in attacks(Budget(8 / 255)):
        with torch.no_grad():
            expected = attack.budget.quantize(attack.eval()(x), x)[0].permute(1, 2, 0).numpy()
        attack.train()
        assert (np.array(attack.apply(original)) == expected).all()
        assert attack.training  # and left as it was
        assert (np.array(original) == (255 * x[0].permute(1, 2, 0)).round().byte().numpy()).all()


def test_other_modes_and_files(tmp_path):
    attack = PatternAttack(Budget(8 / 255))
    colours = picture(1, (12, 24))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        image = colours.convert(mode)
        expected = np.array(attack.apply(image.convert("RGB")))
        assert (np.array(attack.apply(image)) == expected).all()
    colours.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert attack.apply(path).tobytes() == attack.apply(colours).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    colours.save(tmp_path / "turned.png", exif=turned)
    assert attack.apply(tmp_path / "turned.png").size == (24, 12)


def test_mistakes(tmp_path):
    attack = PatternAttack()
    for mode in ("I", "F", "I;16"):
        with pytest.raises(InputError, match="no 8-bit colours: convert it"):
            attack.apply(Image.new(mode, (4, 4)))
    with pytest.raises(InputError, match="not a ndarray"):
        attack.apply(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="not bound to a target model"):
        SMA().apply(Image.new("RGB", (4, 4)))
    with pytest.raises(DataError, match="missing"):
        attack.apply(tmp_path / "missing.png")
    with pytest.raises(InputError, match="no pixels"):
        attack.apply(Image.new("RGB", (0, 4)))
    (tmp_path / "no.png").write_bytes(b"text")
    with pytest.raises(DataError, match="cannot read the image"):
        attack.apply(tmp_path / "no.png")


def test_a_function_goes_to_every_module():
    names = []
    attack = DeltaAttack(size=(4, 2))
    assert attack.apply(lambda module: names.append(type(module).__name__)) is attack
    assert names[-1] == "DeltaAttack"
