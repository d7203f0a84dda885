"""PCB, AGW, ensembles and transformers: computed again by hand, and through losses and attacks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from helpers import random_batch, rng
from reidguard.attacks import DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.defenses import MetaDefense
from reidguard.errors import InputError
from reidguard.learners import LEARNERS
from reidguard.models import EnsembleModel, create_model, load_model, wrap_model
from reidguard.models.architectures.agw import GeM, NonLocal
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.objectives.reid import ReIDObjective, identity_loss, triplet_loss
from reidguard.training import train_model
from reidguard.types import Budget, InputSpec, ReIDBatch, ReIDSample

SIZE = (64, 32)
VIT = {"backbone": "test_vit", "size": SIZE}


def images(count: int = 6, size: tuple[int, int] = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=rng(seed))


def batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> ReIDBatch:
    batch = random_batch(3, 2, SIZE, seed=seed)
    return replace(batch, images=batch.images.to(dtype))


def small_pcb(**options):
    torch.manual_seed(0)
    given = {"backbone": "test_resnet", "size": (96, 32), "num_classes": 3, **options}
    return create_model("pcb", **given)


def small_agw(**options):
    torch.manual_seed(0)
    given = {"backbone": "test_resnet", "size": SIZE, "num_classes": 3, **options}
    return create_model("agw", **given)


def stir(model: nn.Module) -> None:
    """Give norms and biases values that a mistake would show in."""
    for seed, tensor in enumerate([*model.parameters(), *model.buffers()]):
        if tensor.dim() == 1:
            tensor.data = torch.rand(tensor.shape, generator=rng(seed)) + 0.5


# --- PCB --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [6, 7, 16])
def test_pcb_equals_a_loop_over_stripes(rows):
    model = small_pcb(size=(16 * rows, 32), num_classes={"a": 3, "b": 4}).eval()
    stir(model)
    x = images(3, (16 * rows, 32))
    maps = model.backbone.forward_features(model.input_spec.apply(x))
    assert maps.shape[2] == rows  # the last stride is 1
    wanted, logits = [], []
    for i in range(6):
        first, last = i * rows // 6, -(-(i + 1) * rows // 6)
        convolution, norm, _ = model.parts[i]
        stripe = maps[:, :, first:last].mean((2, 3)) @ convolution.weight[:, :, 0, 0].T
        stripe = (stripe - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        wanted.append((stripe * norm.weight + norm.bias).relu())
        head = model.classifier["b"][i]
        logits.append(wanted[-1] @ head.weight.T + head.bias)
    output = model(x, domain="b")
    assert model.metric == "euclidean"
    torch.testing.assert_close(model.features(x), torch.cat(wanted, 1))
    torch.testing.assert_close(output.features, torch.cat(wanted, 1))
    torch.testing.assert_close(output.embeddings, wanted)
    torch.testing.assert_close(output.logits, logits)


def test_pcb_pooled_feature_is_that_of_the_original():
    model = small_pcb(feature="pooled").eval()
    x = images(3, (96, 32))
    maps = model.backbone.forward_features(model.input_spec.apply(x))
    stripes = [maps[:, :, i].mean(2) for i in range(6)]  # one row each
    wanted = torch.cat([stripe / stripe.norm(dim=1, keepdim=True) for stripe in stripes], 1)
    assert model.metric == "cosine"
    torch.testing.assert_close(model.features(x), wanted)
    torch.testing.assert_close(model(x).features, wanted)


def test_pcb_at_its_published_size():
    model = create_model("pcb", num_classes=751).eval()
    output = model(torch.rand(1, 3, 256, 128))
    assert output.features.shape == (1, 1536)
    assert [tuple(p.shape) for p in output.logits] == [(1, 751)] * 6
    # ResNet-50 without its classifier, and per stripe 2048×256, the norm and the classifier
    expected = 23_508_032 + 6 * (2048 * 256 + 2 * 256 + 257 * 751)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_pcb_drops_in_training_only():
    model = small_pcb()
    x = images(4, (96, 32))
    assert not torch.equal(model(x).features, model(x).features)
    model.eval()
    assert torch.equal(model(x).features, model(x).features)


def test_losses_of_parts_are_added():
    model = small_pcb().eval()
    b = batch()
    output = model(b.images)
    wanted = sum(triplet_loss(part, b.pids) for part in output.embeddings)
    wanted = wanted + sum(identity_loss(part, b.pids) for part in output.logits)
    torch.testing.assert_close(ReIDObjective()(model, b), wanted)


@pytest.mark.parametrize("batch_norm", ["shared", "separate"])
def test_a_defense_takes_parts(batch_norm):
    model = small_pcb().eval()
    b = batch()
    joint = DefenseBatch(**{**vars(b), "domain": "default"}, adversarial=2)
    found = DefenseObjective(batch_norm=batch_norm)(model, joint)
    # in eval mode the statistics are the same for all
    torch.testing.assert_close(found, ReIDObjective()(model, b))
    found.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"feature": "both"}, "'reduced' or 'pooled'"),
        ({"parts": 0}, "parts must be .* at least 1, not 0"),
        ({"size": (64, 32)}, "have 4 rows at height 64"),
        ({"backbone": "test_vit", "last_stride": 2}, "maps"),
        ({"backbone": "swin_tiny_patch4_window7_224", "last_stride": 2, "size": SIZE}, "maps"),
        ({"backbone": "test_convnext"}, "pass last_stride=2"),
    ],
)
def test_pcb_mistakes(options, says):
    with pytest.raises(InputError, match=says):
        small_pcb(**options)


@pytest.mark.parametrize(
    "backbone", ["test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
)
@pytest.mark.parametrize("name", ["pcb", "agw"])
def test_on_other_cnns(name, backbone):
    options = {"parts": 2} if name == "pcb" else {"non_local": (0, 0, 0, 0)}
    model = create_model(
        name, backbone=backbone, last_stride=2, size=SIZE, num_classes=3, **options
    )
    output = model.eval()(images())
    assert torch.isfinite(output.features).all()
    loss = ReIDObjective()(model, batch())
    loss.backward()


# --- AGW --------------------------------------------------------------------------------------


def test_non_local_equals_loops_over_places():
    block = NonLocal(4).double().eval()
    stir(block)
    block.double()
    x = torch.rand(2, 4, 3, 2, generator=rng(), dtype=torch.float64)
    flat = x.flatten(2)  # (N, C, places)
    theta, phi, g = (
        (layer.weight.flatten() @ flat + layer.bias) for layer in (block.theta, block.phi, block.g)
    )
    attended = torch.zeros(2, 6, dtype=torch.float64)
    for n in range(2):
        for i in range(6):
            for j in range(6):
                attended[n, i] += theta[n, i] * phi[n, j] * g[n, j] / 6
    wanted = x + block.out(attended.view(2, 1, 3, 2))
    torch.testing.assert_close(block(x), wanted)
    assert not torch.allclose(wanted, x)


def test_gem_is_the_generalised_mean():
    x = torch.rand(2, 3, 4, 5, generator=rng()) + 0.1
    torch.testing.assert_close(GeM(1.0)(x), x.mean((2, 3)))
    torch.testing.assert_close(GeM(3.0)(x), (x**3).mean((2, 3)) ** (1 / 3))
    assert (GeM(200.0)(x) - x.amax((2, 3))).abs().max() < 0.05
    assert GeM().p.requires_grad
    assert torch.isfinite(GeM()(-x)).all()


def test_agw_is_resnet_50_with_five_blocks_and_a_neck():
    model = create_model("agw", num_classes=751).eval()
    assert model.metric == "cosine"
    assert model.features(torch.rand(1, 3, 256, 128)).shape == (1, 2048)
    assert model.backbone.forward_features(torch.rand(1, 3, 64, 32)).shape[2:] == (4, 2)
    blocks = [name for name, part in model.named_modules() if isinstance(part, NonLocal)]
    assert blocks == [
        *(f"backbone.layer2.non_local.{i}" for i in (2, 3)),
        *(f"backbone.layer3.non_local.{i}" for i in (3, 4, 5)),
    ]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    attention = sum(3 * (c + 1) + 2 * c + 2 * c for c in (512, 512, 1024, 1024, 1024))
    assert trained == 23_508_032 + attention + 1 + 2048 + 2048 * 751


def test_fresh_non_local_blocks_change_nothing():
    """Their last norm starts at zero, so pretrained weights keep their meaning."""
    model, plain = small_agw().eval(), small_agw(non_local=(0, 0, 0, 0)).eval()
    missing, unexpected = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert unexpected
    assert all("non_local" in name for name in unexpected)
    torch.testing.assert_close(model.features(images()), plain.features(images()))


def test_agw_neck_stands_between_the_losses():
    model = small_agw().eval()
    stir(model.neck)
    output = model(images())
    maps = model.backbone.forward_features(model.input_spec.apply(images()))
    pooled = maps.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
    torch.testing.assert_close(output.embeddings, pooled)
    torch.testing.assert_close(output.features, model.neck(pooled))
    torch.testing.assert_close(output.features, model.features(images()))
    head = model.classifier["default"]
    assert head.bias is None
    torch.testing.assert_close(output.logits, model.neck(pooled) @ head.weight.T)
    assert not model.neck.bias.requires_grad


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"non_local": (0, 2, 3)}, "four numbers"),
        ({"p": 0}, "above 0"),
        ({"stem": "keras"}, "fast-reid"),
        ({"backbone": "test_convnext", "last_stride": 2}, "non_local="),
        (
            {"backbone": "test_convnext", "last_stride": 2, "stem": "no-relu"},
            "stem='no-relu' is for ResNets",
        ),
    ],
)
def test_agw_mistakes(options, says):
    with pytest.raises(InputError, match=says):
        small_agw(**options)


@pytest.mark.parametrize("name", ["ide", "agw"])
def test_stems(name):
    def first_maps(stem):
        model = create_model(name, backbone="resnet18", size=SIZE, stem=stem).eval()
        model.backbone.layer1 = nn.Identity()
        maps = []
        model.backbone.layer1.register_forward_hook(lambda m, i, out: maps.append(out))
        model.features(images())
        convolved = model.backbone.bn1(model.backbone.conv1(model.input_spec.apply(images())))
        return maps[0], convolved

    found, convolved = first_maps("no-relu")
    torch.testing.assert_close(found, F.max_pool2d(convolved, 3, 2, 1))
    assert found.min() < 0
    found, convolved = first_maps("fast-reid")
    torch.testing.assert_close(found, F.max_pool2d(convolved.relu(), 3, 2, ceil_mode=True))


# --- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [small_pcb, small_agw])
def test_saved_and_loaded_bit_by_bit(make, tmp_path):
    model = make(num_classes={"a": 3, "b": 5}).eval()
    stir(model)
    model.save(tmp_path / "m.safetensors")
    again = load_model(tmp_path / "m.safetensors")
    for one, two in zip(
        (model.features(images()), *list_of(model(images(), domain="b").logits)),
        (again.features(images()), *list_of(again(images(), domain="b").logits)),
        strict=True,
    ):
        assert torch.equal(one, two)


def list_of(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("make", [small_pcb, small_agw])
def test_inference_views_give_the_same(make):
    model = make().eval()
    stir(model)
    before = model(images())
    with torch.no_grad():
        inside = inference_view(model)(images())
    for name in ("features", "embeddings", "logits"):
        torch.testing.assert_close(getattr(inside, name), getattr(before, name))


@pytest.mark.parametrize("make", [small_pcb, small_agw])
def test_training_lowers_the_loss_of_all_parts(make):
    model = make()
    colours = torch.rand(3, 3, 1, 1, generator=rng()).repeat_interleave(2, 0)
    b = batch()
    b = ReIDBatch((colours + 0.05 * b.images).clamp(0, 1), b.pids, b.camids, b.indices)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    objective, losses = ReIDObjective(), []
    for _ in range(10):
        loss = objective(model, b)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("make", [small_pcb, small_agw])
def test_second_order_of_attacks(make):
    """Along a random direction, against central differences of the gradient."""
    model = make().double().eval()
    x = images().double()
    direction = torch.randn(x.shape, generator=rng(1), dtype=x.dtype)
    other = torch.randn(x.shape, generator=rng(2), dtype=x.dtype)

    def slope(at):
        at = at.detach().requires_grad_()
        features = model.features(at)
        (gradient,) = torch.autograd.grad(features.square().mean(), at, create_graph=True)
        return at, (gradient * direction).sum()

    at, value = slope(x)
    (second,) = torch.autograd.grad(value, at)
    h = 1e-7
    expected = (slope(x + h * other)[1] - slope(x - h * other)[1]).detach() / (2 * h)
    assert expected.abs() > 0
    torch.testing.assert_close((second * other).sum(), expected, rtol=1e-3, atol=1e-7)


# --- ensembles --------------------------------------------------------------------------------


def two_members():
    torch.manual_seed(1)
    return create_model("ide", backbone="test_resnet", size=SIZE), small_agw()


def test_an_ensemble_means_the_cosines_of_its_members():
    one, two = two_members()
    one.backbone.register_forward_hook(lambda m, i, out: 1000 * out)  # its scale does not matter
    both = EnsembleModel([one, two]).eval()
    x = images()
    features = F.normalize(both.features(x))
    cosines = [F.normalize(m.features(x)) @ F.normalize(m.features(x)).T for m in (one, two)]
    torch.testing.assert_close(features @ features.T, (cosines[0] + cosines[1]) / 2)
    assert both.metric == "cosine"
    assert both.num_classes == {}


def test_members_resize_and_normalise_for_themselves():
    size, other = (8, 4), (6, 6)
    maps = [nn.Conv2d(3, width, 1) for width in (2, 3)]
    specs = [InputSpec(size=size), InputSpec(size=other, mean=(0, 0, 0), std=(1, 1, 1))]
    members = [wrap_model(m, input_spec=s) for m, s in zip(maps, specs, strict=True)]
    found = EnsembleModel(members).features(images())
    wanted = torch.cat([F.normalize(m.features(images())) for m in members], 1)
    torch.testing.assert_close(found, wanted)


def test_members_of_a_view_keep_their_memory_format():
    """A stranger's network may call view(), which fails on channels-last maps."""

    class Viewer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.layer(x).view(len(x), -1)[:, :8]

    one, _ = two_members()
    both = EnsembleModel([wrap_model(Viewer(), input_spec=InputSpec(size=(8, 6))), one])
    before = both.eval().features(images())
    view = inference_view(both)
    with torch.no_grad():
        torch.testing.assert_close(view.features(images()), before)
        convolution = view.members[1].backbone.conv1
        convolution = convolution[0] if isinstance(convolution, nn.Sequential) else convolution
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def test_an_ensemble_needs_models(tmp_path):
    with pytest.raises(InputError, match="needs models"):
        EnsembleModel([])
    with pytest.raises(InputError, match="Conv2d: use wrap_model"):
        EnsembleModel([nn.Conv2d(3, 4, 3)])
    with pytest.raises(InputError, match="cannot be rebuilt"):
        EnsembleModel(list(two_members())).save(tmp_path / "e.safetensors")


# --- learning attacks on them -----------------------------------------------------------------


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> ReIDDataset:
    """Three people in clothes of one colour each."""
    folder, samples = tmp_path_factory.mktemp("people"), []
    for pid in (1, 2, 3):
        colour = torch.rand(3, 1, 1, generator=rng(pid))
        for number in range(2):
            pixels = colour + 0.2 * torch.rand(3, *SIZE, generator=rng(10 * pid + number))
            array = (255 * pixels.clamp(0, 1)).byte().permute(1, 2, 0).numpy()
            path = folder / f"{pid}_{number}.png"
            Image.fromarray(array).save(path)
            samples.append(ReIDSample(path, pid, number + 1))
    return ReIDDataset("three", samples, [], [])


SHORT = {"image_size": SIZE, "identities": 3, "images_per_identity": 2}


def surrogate(name):
    if name == "ensemble":
        return EnsembleModel(list(two_members()))
    if name == "vit":
        torch.manual_seed(2)
        return create_model("ide", num_classes=3, **VIT)
    return {"pcb": small_pcb, "agw": small_agw}[name]()


@pytest.mark.parametrize("learner", ["plain", "first_order", "hessian_free", "maml"])
@pytest.mark.parametrize("name", ["pcb", "agw", "vit", "ensemble"])
def test_every_learner_takes_a_step_on_them(name, learner):
    model = surrogate(name)
    state = copy.deepcopy(model.state_dict())
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    nn.init.uniform_(attack.delta, -0.01, 0.01, generator=rng())
    objective = FeatureObjective(inference_view(model), MisrankingTriplet())
    options = {} if learner == "plain" else {"inner_lr": 0.003}
    LEARNERS.create(learner, **options).step(attack, objective, batch(0), batch(1))
    assert torch.isfinite(attack.delta.grad).all()
    assert attack.delta.grad.abs().max() > 0
    assert all(torch.equal(t, state[key]) for key, t in model.state_dict().items())


def test_attacks_see_all_members_alike():
    """The gradient is that of one member if all are the same, and knows no order or scale."""
    one, two = two_members()

    def gradient(model):
        attack = DeltaAttack(Budget(8 / 255), size=SIZE)
        nn.init.uniform_(attack.delta, -0.01, 0.01, generator=rng())
        FeatureObjective(inference_view(model), MisrankingTriplet())(attack, batch()).backward()
        return attack.delta.grad

    alone = gradient(two)
    assert alone.abs().max() > 0
    torch.testing.assert_close(gradient(EnsembleModel([two, two])), alone, rtol=1e-4, atol=1e-9)
    both = gradient(EnsembleModel([one, two]))
    torch.testing.assert_close(gradient(EnsembleModel([two, one])), both, rtol=1e-4, atol=1e-9)
    assert not torch.allclose(both, alone, rtol=0.1)
    one.backbone.register_forward_hook(lambda m, i, out: 100 * out)
    torch.testing.assert_close(gradient(EnsembleModel([one, two])), both, rtol=1e-4, atol=1e-9)


def test_an_attack_learns_on_an_ensemble(people):
    both = EnsembleModel(list(two_members())).eval()
    attack = DeltaAttack(Budget(8 / 255), size=SIZE).fit(both, people, steps=8, **SHORT)
    assert attack.delta.abs().max() > 0
    x = images(4)
    with torch.no_grad():
        for member in both.members:
            assert not torch.equal(member.features(attack(x)), member.features(x))


@pytest.mark.parametrize("name", ["pcb", "agw", "vit"])
def test_training_and_defending_them(name, people):
    model = surrogate(name)
    train_model(model, people, steps=2, **SHORT)
    attack = DeltaAttack(Budget(8 / 255), size=SIZE).fit(model, people, steps=2, **SHORT)
    robust = MetaDefense(attack).fit(model, people, people, steps=1, **SHORT)
    assert type(robust) is type(model)
    assert set(robust.num_classes.values()) == {3}
    assert len(robust.num_classes) == 2
    x = images(2)
    assert torch.isfinite(robust.features(x)).all()
    assert not torch.equal(robust.features(x), model.eval().features(x))
