"""The blurred model against a loop over the pixels, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from helpers import rng
from reidguard.attacks import SMA
from reidguard.defenses import DEFENSES, Blur
from reidguard.errors import InputError
from reidguard.models import BlurModel
from reidguard.models.blur import gaussian_blur
from reidguard.testing import DEFENSE_CHECKS, small_model
from reidguard.types import Budget


def blurred(image, sigma):
    """Pixel by pixel, along one axis and then the other."""

    def line(values):
        reach, result = math.ceil(3 * sigma), []
        for i in range(len(values)):
            near = [j for j in range(len(values)) if abs(i - j) <= reach]
            weights = [math.exp(-(((i - j) / sigma) ** 2) / 2) for j in near]
            pairs = zip(weights, near, strict=True)
            result.append(sum(w * values[j] for w, j in pairs) / sum(weights))
        return result

    rows = [line(row) for row in image]
    columns = [line(column) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def test_the_blur_is_a_gaussian_along_both_axes():
    images = torch.rand(1, 3, 7, 5, generator=rng(0), dtype=torch.float64)
    found = gaussian_blur(images, 0.8)
    for channel in range(3):
        wanted = torch.tensor(blurred(images[0, channel].tolist(), 0.8), dtype=torch.float64)
        torch.testing.assert_close(found[0, channel], wanted)


def test_images_are_shrunk_and_enlarged_before():
    model = small_model()
    x = torch.rand(2, 3, 32, 16, generator=rng(1))
    small = F.interpolate(x, (16, 8), mode="bilinear", antialias=True)
    wanted = gaussian_blur(F.interpolate(small, (32, 16), mode="bilinear"), 1.5)
    view = BlurModel(model, sigma=1.5, scale=0.5)
    torch.testing.assert_close(view.transform(x), wanted)
    torch.testing.assert_close(view.features(x), model.features(wanted))
    same = BlurModel(model, sigma=0.0, scale=1.0)
    assert torch.equal(same.features(x), model.features(x))


def test_gradients_pass_exactly():
    """The transform is linear: its derivative by finite differences is exact."""
    view = BlurModel(small_model(), sigma=1.0, scale=0.5)
    x = torch.rand(1, 3, 8, 6, generator=rng(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(view.transform, (x,))


def test_an_attack_that_knows_the_blur_moves_the_features_of_blurred_images():
    view = BlurModel(small_model(), sigma=1.0, scale=0.5).eval()
    x = torch.rand(4, 3, 32, 16, generator=rng(3))
    budget = Budget(8 / 255)

    def moved(target):
        adversarial = SMA(budget, steps=10).bind(target)(x)
        assert float((adversarial - x).abs().max()) <= budget.eps + 1e-6
        return (view.features(adversarial) - view.features(x)).norm(dim=1).mean()

    with torch.no_grad():
        noise = budget.eps * torch.randn(x.shape, generator=rng(4)).sign()
        random = (view.features((x + noise).clamp(0, 1)) - view.features(x)).norm(dim=1).mean()
    assert moved(view) > moved(view.model)
    assert moved(view) > 2 * random


@pytest.mark.parametrize("check", DEFENSE_CHECKS)
def test_the_defense_keeps_the_contract(check):
    check(lambda model, source, other: Blur().fit(model, source))


def test_options():
    assert isinstance(DEFENSES.create("blur", sigma=2), Blur)
    for options in ({"sigma": -1.0}, {"scale": 0.0}, {"scale": 1.5}, {"sigma": float("nan")}):
        for make in (Blur, lambda **o: BlurModel(small_model(), **o)):
            with pytest.raises(InputError):
                make(**options)
    with pytest.raises(InputError, match="ReIDModel"):
        BlurModel(torch.nn.Flatten())
