"""The blurred model against a loop over the pixels, and its gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from helpers import rng
from reidguard.attacks import SMA
from reidguard.defenses import DEFENSES, Blur
from reidguard.errors import CheckpointError, InputError
from reidguard.models import BlurModel, FlipModel, create_model, load_model
from reidguard.models.blur import gaussian_blur
from reidguard.models.fingerprint import model_key
from reidguard.storage import load_tensors, save_tensors
from reidguard.testing import DEFENSE_CHECKS, small_dataset, small_model
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
    assert torch.autograd.gradgradcheck(view.transform, (x,))


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


def test_training_outputs_are_the_models_of_transformed_images():
    model = small_model({"a": 3, "b": 5})
    view = BlurModel(model, sigma=1.0, scale=0.5)
    x = torch.rand(2, 3, 32, 16, generator=rng(5))
    assert view.num_classes == {"a": 3, "b": 5}
    output, expected = view(x, domain="b"), model(view.transform(x), domain="b")
    for found, wanted in zip(vars(output).values(), vars(expected).values(), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(view.logits(output.features, "a"), model.logits(output.features, "a"))
    with pytest.raises(InputError, match="say which one"):
        view(x)
    with pytest.raises(InputError, match="N, 3, H, W"):
        view.features(x[0])


@pytest.mark.parametrize("name", ["ide", "pcb"])
def test_a_saved_blur_is_loaded_to_the_bit(name, tmp_path):
    """With the preprocessing, metric and classifiers that the model has now."""
    model = create_model(name, backbone="resnet18", size=(96, 32), num_classes={"a": 3, "b": 2})
    model.input_spec = replace(model.input_spec, mean=(0.1, 0.2, 0.3), channels="bgr")
    model.metric = "cosine" if model.metric == "euclidean" else "euclidean"
    x = torch.rand(2, 3, 96, 40, generator=rng(6))
    with small_dataset() as data:
        blurred = Blur(sigma=0.7, scale=0.3).fit(model.eval(), data)
    blurred.save(tmp_path / "blur.safetensors")
    loaded = load_model(tmp_path / "blur.safetensors")
    assert isinstance(loaded, BlurModel)
    assert not loaded.training
    assert (loaded.sigma, loaded.scale) == (0.7, 0.3)
    assert torch.equal(loaded.features(x), blurred.features(x))
    assert not torch.equal(loaded.features(x), model.features(x))
    for part, wanted in zip(loaded.model(x, domain="b").logits, model(x, domain="b").logits,
                            strict=True):  # fmt: skip
        assert torch.equal(part, wanted)
    assert loaded.metric == model.metric
    assert loaded.input_spec == loaded.model.input_spec == model.input_spec
    assert loaded.num_classes == model.num_classes
    assert loaded.provenance == blurred.provenance
    assert model_key(loaded) == model_key(blurred)
    assert model_key(loaded) != model_key(BlurModel(loaded.model, sigma=0.8, scale=0.3))
    loaded.save(tmp_path / "again.safetensors")
    first, second = (tmp_path / f"{n}.safetensors" for n in ("blur", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_preprocessing_of_a_blurred_model_is_the_models():
    view, x = BlurModel(small_model()), torch.rand(2, 3, 32, 16, generator=rng(7))
    before = view.features(x)
    view.input_spec = replace(view.input_spec, channels="bgr")
    assert torch.equal(view.features(x.flip(1)), before)


def test_files_that_do_not_fit_and_models_without_a_file(tmp_path):
    path = tmp_path / "blur.safetensors"
    BlurModel(small_model(), sigma=1.0, scale=0.5).save(path)
    state, card = load_tensors(path, "model")
    for blur in ({"sigma": -1.0, "scale": 0.5}, {"sigma": 1.0, "scale": 0.0}, {"sigma": 1.0}, None):
        save_tensors(tmp_path / "damaged.safetensors", state, {**card, "blur": blur})
        with pytest.raises(CheckpointError):
            load_model(tmp_path / "damaged.safetensors")
    with pytest.raises(InputError, match="a file has one blur"):
        BlurModel(BlurModel(small_model())).save(path)
    with pytest.raises(InputError, match="not made by create_model"):
        BlurModel(FlipModel(small_model())).save(path)


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
