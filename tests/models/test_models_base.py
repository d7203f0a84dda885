from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from reidguard import models
from reidguard.errors import CheckpointError, InputError, RegistryError
from reidguard.fingerprint import weights_fingerprint
from reidguard.models import MODELS, ReIDModel, create_model, load_model, register_model, wrap_model
from reidguard.nn import inference_view
from reidguard.storage import library_versions, load_tensors, read_card, save_tensors
from reidguard.types import InputSpec

SMALL = {"size": (64, 32)}


def small_ide(**kwargs) -> ReIDModel:
    return create_model("ide", backbone="resnet18", **SMALL, **kwargs)


class Linear(ReIDModel):
    """The simplest model there is: mean colours, with weights that a test can know."""

    def __init__(self, num_classes=None, metric="cosine") -> None:
        super().__init__(input_spec=InputSpec(size=(8, 4)), metric=metric, num_classes=num_classes)
        self.layer = nn.Linear(3, 2)
        self.build_classifiers(2)

    def embed(self, inputs):
        return self.layer(inputs.mean((2, 3)))


# --- contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["osnet_x0_25", "ide"])
@pytest.mark.parametrize("size", [(64, 32), (50, 90), (7, 5)])
def test_features_of_any_image_size(name, size):
    options = {"backbone": "resnet18"} if name == "ide" else {}
    model = create_model(name, num_classes=4, **SMALL, **options).eval()
    images = torch.rand(2, 3, *size)
    output = model(images)
    assert output.features.shape == (2, 512)
    assert output.embeddings.shape == (2, 512)
    assert output.logits.shape == (2, 4)
    assert torch.equal(output.features, model.features(images))
    # raw features: a model compared by cosine does not normalise them itself
    assert not torch.allclose(output.features.norm(dim=1), torch.ones(2), atol=1e-3)


def test_normalisation_and_resizing_happen_inside():
    model = Linear()
    images = torch.rand(2, 3, 16, 8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    small = torch.nn.functional.interpolate(images, (8, 4), mode="bilinear", antialias=True)
    expected = model.layer((small.mean((2, 3)) - mean) / std)
    torch.testing.assert_close(model.features(images), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_dtype_are_converted_to_that_of_the_weights(dtype):
    model = Linear()
    images = torch.rand(2, 3, 8, 4)
    features = model.features(images.to(dtype))
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, model.features(images), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("images", "cure"),
    [
        (torch.rand(3, 8, 4), "unsqueeze"),
        (torch.zeros(1, 3, 8, 4, dtype=torch.uint8), "/ 255"),
        (torch.rand(1, 1, 8, 4), "N, 3, H, W"),
    ],
)
def test_wrong_images_are_refused(images, cure):
    with pytest.raises(InputError, match=cure):
        Linear().features(images)


def test_each_part_has_a_classifier_of_its_own_in_each_domain():
    model = Linear(num_classes={"market1501": 5, "virtual": 3})
    model.build_part_classifiers([2, 4], bias=False)
    parts = [torch.rand(6, 2), torch.rand(6, 4)]
    for domain, identities in model.num_classes.items():
        weights = [layer.weight for layer in model.classifier[domain]]
        assert [tuple(w.shape) for w in weights] == [(identities, 2), (identities, 4)]
        scores = model.part_logits(parts, domain)
        for part, weight, score in zip(parts, weights, scores, strict=True):
            torch.testing.assert_close(score, part @ weight.T)
    assert model.part_logits(parts, None) is None
    with pytest.raises(ValueError, match="shorter"):
        model.part_logits(parts[:1], "virtual")


def test_domains():
    images = torch.rand(2, 3, 8, 4)
    plain, one = Linear(), Linear(num_classes=5)
    two = Linear(num_classes={"market1501": 5, "virtual": 3})
    assert (plain.num_classes, one.num_classes) == ({}, {"default": 5})
    assert plain(images).logits is None
    assert one(images).logits.shape == (2, 5)
    assert one(images, domain="default").logits.shape == (2, 5)
    assert two(images, domain="virtual").logits.shape == (2, 3)
    torch.testing.assert_close(
        two(images, domain="market1501").logits,
        two.classifier["market1501"](two.features(images)),
    )
    with pytest.raises(InputError, match="market1501, virtual"):
        two(images)
    with pytest.raises(InputError, match="did you mean 'virtual'"):
        two(images, domain="virtul")
    with pytest.raises(InputError, match="num_classes"):
        plain(images, domain="virtual")


@pytest.mark.parametrize(
    "wrong", [0, -1, 2.5, True, {"a": 0}, {"a.b": 3}, {"keys": 3}, {"": 3}, {3: 3}, "751"]
)
def test_wrong_num_classes(wrong):
    with pytest.raises(InputError):
        Linear(num_classes=wrong)


def test_wrong_metric():
    with pytest.raises(InputError, match="euclidean"):
        Linear(metric="manhattan")


# --- registry ---------------------------------------------------------------------------------


def test_zoo_is_listed():
    assert set(MODELS.list()) >= {"ide", "osnet_x0_25", "osnet_x0_5", "osnet_x0_75", "osnet_x1_0"}


def test_mistakes_in_create_model():
    with pytest.raises(RegistryError, match="did you mean 'osnet_x0_25'"):
        create_model("osnet_x025")
    with pytest.raises(InputError, match=r"lastt_stride.*it takes.*last_stride"):
        create_model("ide", lastt_stride=1)
    with pytest.raises(InputError, match=r"size must be"):
        create_model("osnet_x0_25", size=256)
    with pytest.raises(RegistryError, match="registered twice"):
        register_model("ide")(Linear)


# --- save and load ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("osnet_x0_25", {}),
        ("osnet_x0_5", {"size": (48, 24), "num_classes": 5}),
        ("ide", {"backbone": "resnet18", "last_stride": 1, "size": (64, 32), "num_classes": 5}),
        ("ide", {"backbone": "resnet18", "num_classes": {"virtual": 2, "market1501": 3}}),
    ],
)
def test_save_and_load_are_bit_identical(tmp_path, name, options):
    model = create_model(name, **options)
    with torch.no_grad():  # running statistics that differ from the initial ones
        model(torch.rand(4, 3, 64, 32), domain=next(iter(model.num_classes), None))
    model.provenance = {"epochs": 3}
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")

    assert type(loaded) is type(model)
    assert not loaded.training
    assert (loaded.input_spec, loaded.metric) == (model.input_spec, model.metric)
    assert list(loaded.num_classes.items()) == list(model.num_classes.items())
    assert weights_fingerprint(loaded) == weights_fingerprint(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    images = torch.rand(2, 3, 64, 32)
    assert torch.equal(loaded.features(images), model.eval().features(images))
    card = read_card(tmp_path / "m.safetensors")
    assert card["training"] == {"epochs": 3}
    assert card["name"] == name
    assert card["versions"] == library_versions()

    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "m.safetensors"
    ).read_bytes()


def test_half_precision_survives(tmp_path):
    model = create_model("osnet_x0_25", **SMALL).bfloat16()
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in loaded.parameters())


def test_own_input_spec_survives(tmp_path):
    model = create_model("osnet_x0_25")
    model.input_spec = InputSpec(size=None, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    model.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").input_spec == model.input_spec


def test_a_plugin_model_saves_like_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(MODELS, "_factories", dict(MODELS._factories))  # leave no trace

    @register_model("test-plugin-linear")
    def build(num_classes=None):
        return Linear(num_classes)

    model = create_model("test-plugin-linear", num_classes={"a": 2})
    model.save(tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.layer.weight, model.layer.weight)


def test_what_cannot_be_saved_says_why(tmp_path):
    with pytest.raises(InputError, match="register_model"):
        wrap_model(nn.Conv2d(3, 2, 1)).save(tmp_path / "m.safetensors")
    model = create_model("osnet_x0_25")
    model.provenance = {"when": object()}
    with pytest.raises(InputError, match="JSON"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def damage(path, change):
    state, card = load_tensors(path)
    change(state, card)
    card.pop("schema")
    save_tensors(path, state, card)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state, card: state.pop("conv1.conv.weight"), "conv1.conv.weight"),
        (lambda state, card: state.update(extra=torch.zeros(1)), "extra"),
        (lambda state, card: state.update({"fc.0.bias": torch.zeros(3)}), "fc.0.bias"),
        (lambda state, card: state["fc.0.bias"].fill_(torch.nan), "NaN"),
        (lambda state, card: card.update(kind="attack"), "'attack'"),
        (lambda state, card: card.update(name="osnet_x9"), "unknown model"),
        (lambda state, card: card.update(metric="manhattan"), "metric"),
        (lambda state, card: card.update(kwargs={"siz": 3}), "siz"),
        (lambda state, card: card.update(kwargs=3), "kwargs: expected object, got int"),
        (lambda state, card: card.update(num_classes=[["a", 0]]), "num_classes"),
        (lambda state, card: card.update(num_classes=5), "num_classes: expected array, got int"),
        (lambda state, card: card.pop("input_spec"), "missing required field input_spec"),
        (lambda state, card: card["input_spec"].update(std=[0, 0, 0]), "input_spec: std must be"),
    ],
)
def test_damaged_checkpoints(tmp_path, change, says):
    path = tmp_path / "m.safetensors"
    create_model("osnet_x0_25").save(path)
    damage(path, change)
    with pytest.raises(CheckpointError, match=says):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 5, 400, 5000, -1])
def test_truncated_checkpoints(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    create_model("osnet_x0_25").save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        load_model(path)
    with pytest.raises(CheckpointError):
        create_model("osnet_x0_25", weights=path)


def test_a_checkpoint_never_downloads(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    small_ide().save(path)
    damage(path, lambda state, card: card["kwargs"].update(pretrained=True))
    asked = []
    build = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or build(*a, **k)
    )
    load_model(path)
    assert set(asked) == {False}


# --- fingerprint ------------------------------------------------------------------------------


def test_fingerprint_tells_weights_apart():
    model = small_ide(num_classes=3)
    base = weights_fingerprint(model)
    assert weights_fingerprint(copy.deepcopy(model)) == base
    assert weights_fingerprint(inference_view(model)) == base
    for name, tensor in model.state_dict().items():
        if name in (
            "backbone.bn1.running_mean",
            "backbone.conv1.weight",
            "classifier.default.bias",
        ):
            changed = copy.deepcopy(model)
            flat = changed.state_dict()[name].view(-1)
            flat[0] = torch.nextafter(tensor.view(-1)[0], torch.tensor(9.0))
            assert weights_fingerprint(changed) != base, name
    assert weights_fingerprint(copy.deepcopy(model).bfloat16()) != base


def test_fingerprint_tells_strides_apart():
    wide = small_ide(last_stride=1)
    other = small_ide(last_stride=2)
    other.load_state_dict(wide.state_dict())
    assert weights_fingerprint(wide) != weights_fingerprint(other)


# --- wrapped strangers ------------------------------------------------------------------------


def test_wrap_plain_sequential():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    spec = InputSpec(size=(16, 8))
    model = wrap_model(net, input_spec=spec, metric="euclidean")
    images = torch.rand(2, 3, 40, 30)
    torch.testing.assert_close(model.features(images), net(spec.apply(images)).mean((2, 3)))
    output = model(images)
    assert output.logits is None
    assert (model.metric, model.num_classes) == ("euclidean", {})


def test_wrap_timm():
    net = timm.create_model("resnet18", num_classes=0).eval()
    model = wrap_model(net, input_spec=InputSpec(size=(64, 32)))
    images = torch.rand(2, 3, 64, 32)
    torch.testing.assert_close(model.features(images), net(model.input_spec.apply(images)))
    by_name = wrap_model(net, input_spec=model.input_spec, features="forward_features")
    torch.testing.assert_close(by_name.features(images), model.features(images))


def test_wrap_with_a_function_of_the_module():
    class Pair(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), x

    model = wrap_model(Pair(), features=lambda net, x: net(x)[0])
    assert model.features(torch.rand(2, 3, 8, 8)).shape == (2, 3)
    with pytest.raises(InputError, match=r"gives a tuple.*features="):
        wrap_model(Pair()).features(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    "net", [nn.Flatten(0), nn.Flatten(2), nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, -1)))]
)
def test_wrap_refuses_other_shapes(net):
    with pytest.raises(InputError, match=r"gives shape.*features="):
        wrap_model(net).features(torch.rand(2, 3, 8, 8))


def test_wrap_refuses_what_is_no_network():
    with pytest.raises(InputError, match="Module"):
        wrap_model(lambda x: x)
    with pytest.raises(InputError, match="no method 'embedding'"):
        wrap_model(nn.Identity(), features="embedding")
    with pytest.raises(InputError, match="already"):
        wrap_model(create_model("osnet_x0_25"))


def test_wrapped_network_loads_its_own_checkpoint(tmp_path):
    from reidguard.models import load_weights

    source, target = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3)
    torch.save(source.state_dict(), tmp_path / "net.pth")
    report = load_weights(wrap_model(target), tmp_path / "net.pth")
    assert report.missing == ()
    assert torch.equal(source.weight, target.weight)


def test_every_public_name_of_the_package_is_there():
    """Those of architectures are imported on first use."""
    assert [name for name in models.__all__ if not hasattr(models, name)] == []
