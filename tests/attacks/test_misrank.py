"""MisRank: its mask, its losses, its two networks in one step, and how it is learnt."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import TinyNet
from reidguard.attacks import MetaAttack, MisRank, load_attack
from reidguard.attacks.misrank.attack import MisRankObjective, nearest_positive_triplet
from reidguard.attacks.misrank.networks import Discriminator, MaskHead, top_k_mask
from reidguard.data import iterate_images
from reidguard.errors import InputError
from reidguard.learners import JointLearner, PlainLearner
from reidguard.metrics.quality import ssim
from reidguard.models import wrap_model
from reidguard.types import Budget, InputSpec, ReIDBatch

SIZE = (32, 16)
SMALL = {"identities": 3, "images_per_identity": 2, "image_size": SIZE}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyNet()


def tiny(**options):
    return MisRank(Budget(8 / 255), **{"size": SIZE, "width": 2, **options})


def batch(seed=0, n=6):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, *SIZE), generator=generator) / 255
    index = torch.arange(n)
    return ReIDBatch(images, index // 2, index, index)


# The mask


def test_the_mask_has_exactly_k_pixels_and_the_gradient_of_the_softmax():
    logits = torch.randn(4, 50, dtype=torch.float64, requires_grad=True)
    mask = top_k_mask(logits, 7, noise=False)
    assert mask.detach().unique().tolist() == [0, 1]
    assert mask.sum(1).tolist() == [7] * 4
    highest = logits.argsort(1, descending=True)[:, :7]
    assert mask.detach().gather(1, highest).eq(1).all()
    weights = torch.randn(4, 50, dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * mask).sum(), logits)
    (expected,) = torch.autograd.grad((weights * logits.softmax(1)).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_noise_draws_the_pixels_in_proportion_to_the_softmax():
    """The first of a Gumbel top-k is a draw from the softmax (Gumbel-max)."""
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    drawn = top_k_mask(probabilities.log().expand(20_000, 3), 1, noise=True).mean(0)
    torch.testing.assert_close(drawn, probabilities, atol=0.02, rtol=0)


@pytest.mark.parametrize("pixels", [1, 37, 512])
def test_as_many_pixels_as_asked_are_attacked(pixels):
    x = torch.full((3, 3, *SIZE), 0.5)  # grey, so that no change is clipped away
    moved = (tiny(pixels=pixels)(x) != x).any(1)
    assert moved.sum((1, 2)).tolist() == [pixels] * 3


def test_by_default_all_pixels_are_attacked():
    attack = tiny()
    assert attack.mask_head is None
    x = torch.full((1, 3, *SIZE), 0.5)
    assert (attack(x) != x).any(1).all()


def test_each_image_has_a_change_of_its_own():
    attack = tiny()
    x = torch.rand(2, 3, *SIZE) * 0.5 + 0.25
    first, second = attack(x) - x
    assert not torch.allclose(first, second)
    # and it does not depend on the company
    torch.testing.assert_close(attack(x[:1]), attack(x)[:1])


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (64, 32)])
def test_images_of_any_size(shape):
    x = torch.rand(2, 3, *shape)
    y = tiny(pixels=40)(x)
    assert y.shape == x.shape
    assert (y - x).abs().max() <= 8 / 255 + 1e-6


def test_the_change_is_the_budget_times_the_generator():
    attack = tiny()
    x = torch.rand(2, 3, *SIZE) * 0.5 + 0.25
    torch.testing.assert_close(attack(x), x + 8 / 255 * attack.generator(2 * x - 1))


def test_a_user_in_need_of_gradients_gets_them_through_the_clip():
    attack = tiny().double()
    x = torch.rand(1, 3, *SIZE, dtype=torch.float64) * 0.5 + 0.25
    weight = next(attack.generator.parameters())
    attack(x).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_the_networks_have_the_published_shape():
    attack = MisRank()
    convolutions = [m for m in attack.generator.modules() if isinstance(m, nn.Conv2d)]
    ups = [m for m in attack.generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.out_channels for m in convolutions] == [32, 64, 128, *[128] * 12, 3]
    assert [m.out_channels for m in ups] == [64, 32]
    plain = [m for m in [*convolutions, *ups] if not hasattr(m, "parametrizations")]
    assert plain == [convolutions[-1]]  # all others are under spectral norm
    for scale in attack.discriminator.scales:
        shapes = [
            (m.in_channels, m.out_channels) for m in scale.modules() if isinstance(m, nn.Conv2d)
        ]
        assert shapes == [(6, 64), (64, 128), (128, 256), (256, 512), (512, 1)]


def test_the_discriminator_judges_at_three_scales():
    judge = Discriminator(1).eval()
    pair = torch.rand(2, 6, 64, 32)
    assert [score.shape[2:] for score in judge(pair)] == [(8, 4), (4, 2), (2, 1)]
    features = judge.features(pair)
    assert MaskHead(1).eval()(features).shape == (2, 1, 64, 32)


# The losses


def triplet_by_loops(features, pids, indices, margin):
    losses = []
    for i in range(len(pids)):
        own = [
            float((features[j] - features[i]).detach().norm())
            for j in range(len(pids))
            if pids[j] == pids[i] and indices[j] != indices[i]
        ]
        other = [
            float((features[j] - features[i]).norm())
            for j in range(len(pids))
            if pids[j] != pids[i]
        ]
        if own and other:
            losses.append(max(0.0, max(other) - min(own) + margin))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(8))
def test_triplet_matches_explicit_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    pids = torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    indices = torch.tensor([4, 4, 5, 6, 7, 8, 9, 10])  # image 4 was sampled twice
    features[1] = features[0]
    found = nearest_positive_triplet(features, pids, indices, 0.3)
    assert float(found) == pytest.approx(triplet_by_loops(features, pids, indices, 0.3), abs=1e-12)


def test_an_image_is_not_its_own_positive():
    """With itself among the positives the push would have no gradient (the released code)."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]], requires_grad=True)
    pids = torch.tensor([0, 0, 1])
    nearest_positive_triplet(features, pids, torch.arange(3)).backward()
    # Descent moves the two of identity 0 apart along the first axis.
    assert features.grad[0, 0] > 0
    assert features.grad[1, 0] < 0


def test_a_batch_without_positives_is_refused():
    with pytest.raises(InputError, match="images_per_identity"):
        nearest_positive_triplet(torch.rand(3, 2), torch.arange(3), torch.arange(3))


def test_generator_loss_by_its_parts(model):
    attack, data = tiny().double(), batch()
    model = model.double().eval()
    data = ReIDBatch(data.images.double(), data.pids, data.camids, data.indices)
    noise = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(1)).double()
    moved = (data.images + 0.1 * noise).clamp(0, 1)
    found = MisRankObjective(model).generator_loss(attack, data, moved)

    judged = attack.discriminator(2 * torch.cat((data.images, moved), 1) - 1)
    assert len(judged) == 3
    deceive = sum(float(((score - 1) ** 2).mean().detach()) for score in judged)
    output = model(moved)
    entropy = 0.0
    for z in output.logits:
        log = z.log_softmax(0)
        spread = torch.full_like(z, 0.1 / len(z))
        spread[z.argmin()] += 0.9
        entropy -= float((spread * log).sum().detach()) / len(data)
    triplet = triplet_by_loops(output.features, data.pids, data.indices, 0.3)
    alike = float(ssim(moved, data.images).mean())  # at 16 pixels one scale fits
    # 1e-6 keeps the logarithm of a triplet of zero finite.
    expected = deceive + 10 * (math.log(entropy + 1e-6) + math.log(triplet + 1e-6))
    expected += 0.1 * (1 - alike)
    assert 1 - alike > 0.01
    assert float(found.detach()) == pytest.approx(expected, abs=1e-8)


def test_discriminator_loss_by_its_parts():
    attack, x = tiny().double(), batch().images.double()
    moved = x.flip(0)
    data = ReIDBatch(x, torch.arange(6) // 2, torch.arange(6), torch.arange(6))
    found = MisRankObjective(None).discriminator_loss(attack, data, moved)
    fake = attack.discriminator(2 * torch.cat((x, moved), 1) - 1)
    real = attack.discriminator(2 * torch.cat((x[:3], x[3:]), 1) - 1)
    expected = sum(float((score.detach() ** 2).mean()) for score in fake) / 2
    expected += sum(float(((score.detach() - 1) ** 2).mean()) for score in real) / 2
    assert float(found.detach()) == pytest.approx(expected, abs=1e-9)


def test_one_step_gives_each_network_the_gradient_of_its_own_loss(model):
    model.eval().requires_grad_(False)
    attack, data = tiny(pixels=100), batch()
    own = copy.deepcopy(attack)
    objective = MisRankObjective(model)
    torch.manual_seed(3)
    PlainLearner().step(attack, objective, data)
    assert not attack.training

    torch.manual_seed(3)
    own.train()
    moved = own(data.images)
    of_generator = objective.generator_loss(own, data, moved)
    of_discriminator = objective.discriminator_loss(own, data, moved)
    learns = [*own.generator.parameters(), *own.mask_head.parameters()]
    expected = torch.autograd.grad(of_generator, learns)
    expected += torch.autograd.grad(of_discriminator, list(own.discriminator.parameters()))
    found = [*attack.generator.parameters(), *attack.mask_head.parameters()]
    found += attack.discriminator.parameters()
    for p, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-4)
    # The mask head learns, which it does not in the released code.
    assert any(p.grad.abs().sum() > 0 for p in attack.mask_head.parameters())


def test_joint_adds_the_other_domain(model):
    model.eval().requires_grad_(False)
    objective = MisRankObjective(model)
    attack = tiny()
    JointLearner().step(attack, objective, batch(0), batch(1))
    both = [p.grad.clone() for p in attack.generator.parameters()]
    alone = tiny()
    PlainLearner().step(alone, objective, batch(0))
    assert any(
        not torch.allclose(a, p.grad)
        for a, p in zip(both, alone.generator.parameters(), strict=True)
    )
    # Running statistics are those of the first domain only.
    for one, other in zip(attack.buffers(), alone.buffers(), strict=True):
        assert torch.equal(one, other)


# Learning


def fit(attack, model, *data, **options):
    return attack.fit(model, *data, **{**SMALL, **options})


def test_it_learns_to_mislead(model, studio):
    attack = tiny()
    before = copy.deepcopy(attack)
    fit(attack, model, studio, steps=15, lr=5e-3)
    assert not attack.training
    assert attack.provenance["objective"] == "misrank"
    pixels = next(iterate_images(studio.train, SIZE, 48))[1].float() / 255
    model.eval()

    def mislead(candidate):
        logits = model(candidate(pixels)).logits
        return float(F.cross_entropy(logits, logits.argmin(1)).detach())

    assert mislead(attack) < mislead(before)


def test_same_seeds_same_bits(model, studio):
    def learn(seed):
        torch.manual_seed(seed)  # the global generator must not matter
        return fit(tiny(pixels=50), model, studio, steps=2).state_dict()

    first, second = learn(1), learn(2)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_resumed_gives_the_same_bits(model, studio, tmp_path):
    whole = fit(tiny(pixels=50), model, studio, steps=4)
    kept = {"checkpoint": tmp_path / "checkpoint", "checkpoint_every": 1, "steps": 4}

    class StopError(Exception):
        pass

    def halt(p):
        if p.metrics and p.done == 2:
            raise StopError

    with pytest.raises(StopError):
        fit(tiny(pixels=50), model, studio, progress=halt, **kept)
    resumed = fit(tiny(pixels=50), model, studio, **kept)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_joint_learns_from_two_sets(model, studio):
    attack = fit(tiny(), model, studio, studio, learner="joint", steps=1)
    assert attack.provenance["learner"] == "joint"
    assert "meta_test" in attack.provenance


@pytest.mark.parametrize("learner", ["maml", "first_order", "hessian_free"])
def test_other_learners_are_refused_by_name(learner, model, studio):
    with pytest.raises(InputError, match=f"plain and joint, not '{learner}'"):
        fit(tiny(), model, studio, studio, learner=learner, steps=1)


def test_meta_attack_refuses_it():
    with pytest.raises(InputError, match="no perturbation that MetaAttack can learn"):
        MetaAttack("misrank", size=SIZE, width=2)


def test_another_objective_is_refused(model, studio):
    with pytest.raises(InputError, match="unknown option 'objective'"):
        fit(tiny(), model, studio, objective="pairwise", steps=1)


def test_a_surrogate_without_classifier_is_refused(studio):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten())
    bare = wrap_model(network, input_spec=InputSpec(size=SIZE), metric="euclidean")
    with pytest.raises(InputError, match="num_classes"):
        fit(tiny(), bare, studio, steps=1)


def test_it_comes_back_from_its_file(model, studio, tmp_path):
    attack = fit(tiny(pixels=50), model, studio, steps=1)
    attack.save(tmp_path / "misrank.safetensors")
    loaded = load_attack(tmp_path / "misrank.safetensors")
    x = torch.rand(2, 3, 40, 20)
    assert isinstance(loaded, MisRank)
    assert torch.equal(loaded(x), attack(x))
    assert loaded.provenance == attack.provenance


@pytest.mark.parametrize(
    "options", [{"size": (30, 16)}, {"size": (8, 16)}, {"pixels": 0}, {"pixels": 513}, {"width": 0}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        tiny(**options)
