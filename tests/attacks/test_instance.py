"""Instance attacks against closed forms, small loops and the contract."""

import copy
import io
import math
import pickle
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reidguard.attacks import (
    ATTACKS,
    FNA,
    ODFA,
    SMA,
    GradientAttack,
    Guides,
    InstanceAttack,
    MetricFGSM,
    MetricIFGSM,
    MetricMIFGSM,
    SquareAttack,
    create_attack,
    load_attack,
)
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.testing import ATTACK_CHECKS
from reidguard.types import Budget, InputSpec

EPS = Budget(8 / 255)
RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
NAMES = [n for n in ATTACKS.list() if issubclass(ATTACKS.get(n), InstanceAttack)]
GRADIENT = [n for n in NAMES if n != "square"]
SHAPE = (3, 6, 4)
SIZE = math.prod(SHAPE)
QUICK = {"square": {"steps": 20}, "sma": {"steps": 4}, "fna": {"steps": 4}, "odfa": {"steps": 4}}


def linear(width, metric="euclidean", seed=0):
    """φ(x) = Wx in float64."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIZE, width, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(width, SIZE, generator=generator(seed)))
    return wrap_model(net, input_spec=RAW, metric=metric)


def weight(model):
    return model.network[1].weight.detach()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def images(count=4, seed=0):
    """Away from black and white, so that only the ball binds; 8-bit, float64."""
    pixels = torch.randint(20, 236, (count, *SHAPE), generator=generator(seed))
    return pixels.double() / 255


def guides_for(model, seed=5):
    """Identities 3, 7 and 9, of unequal sizes, and a distractor."""
    pids = torch.tensor([3, 7, 7, 3, 9, 3, 0, 9])
    return Guides(model.features(images(8, seed)), pids)


def convolutional(metric="cosine", seed=0):
    """A small network that takes images of any size and keeps batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Conv2d(8, 6, 3, padding=1),
        )
    return wrap_model(net.double().eval(), input_spec=RAW, metric=metric)


def bound(name, model, **options):
    return create_attack(name, **{**QUICK.get(name, {}), **options}).bind(model, guides_for(model))


# --- closed forms: a linear embedder, whose best perturbation is known -------------------------


def test_sma_finds_the_best_perturbation_of_a_one_dimensional_feature():
    model, x = linear(1), images()
    moved = model.features(SMA(EPS, steps=16).bind(model)(x)) - model.features(x)
    best = EPS.eps * weight(model).abs().sum()  # |w·δ| ≤ ε‖w‖₁, reached at ±ε·sign(w)
    torch.testing.assert_close(moved.abs(), best.expand(4, 1))


def test_sma_reaches_the_best_corner_of_a_plane():
    model, x = linear(2, seed=3), images()
    found = SMA(EPS, steps=17, restarts=20).bind(model)(x)
    distance = (model.features(found) - model.features(x)).norm(dim=1)
    # max over δ of |Wδ| = max over directions u of ε‖Wᵀu‖₁
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    best = EPS.eps * (directions @ weight(model)).abs().sum(1).max()
    assert (distance <= best * (1 + 1e-6)).all()
    assert (distance > 0.999 * best).all()  # signed steps may end in a neighbouring corner
    torch.testing.assert_close(distance.max(), best, rtol=1e-6, atol=0)


def test_odfa_shrinks_a_one_dimensional_feature_towards_its_opposite():
    model, x = linear(1), images()
    clean = model.features(x)
    moved = model.features(ODFA(EPS, steps=16).bind(model)(x)) - clean
    best = -clean.sign() * EPS.eps * weight(model).abs().sum()
    assert (clean.abs() > best.abs() / 2).all()  # so that −φ(x) is not overshot
    torch.testing.assert_close(moved, best)


def test_fna_goes_to_the_corner_that_the_two_means_span():
    model, x = linear(5), images()
    guides = guides_for(model)
    pids = torch.tensor([3, 7, 9, 3])
    found = FNA(EPS, steps=16).bind(model, guides).with_labels(pids)(x)
    for image, adversarial, pid in zip(x, found, pids, strict=True):
        clean = weight(model) @ image.flatten()
        means = {i: guides.features[guides.pids == i].mean(0) for i in (3, 7, 9)}
        others = {i: (clean - mean).norm() for i, mean in means.items() if i != pid}
        pull = means[max(others, key=others.get)]
        # the goal is linear in the feature: its gradient is 2 Wᵀ(mean_n − mean_p) everywhere
        corner = EPS.eps * (weight(model).T @ (pull - means[int(pid)])).sign().view(SHAPE)
        # sign(0) aside, the iterations end at the corner exactly
        torch.testing.assert_close(adversarial - image, corner)


@pytest.mark.parametrize("targeted", [False, True])
def test_metric_fgsm_is_one_signed_step(targeted):
    model, x = linear(5), images()
    guides = guides_for(model)
    found = MetricFGSM(EPS, targeted=targeted).bind(model, guides).with_labels([3, 7, 9, 3])(x)
    for image, adversarial, pid in zip(x, found, (3, 7, 9, 3), strict=True):
        clean = weight(model) @ image.flatten()
        means = {i: guides.features[guides.pids == i].mean(0) for i in (3, 7, 9)}
        others = {i: (clean - mean).norm() for i, mean in means.items() if i != pid}
        mean = means[max(others, key=others.get) if targeted else pid]
        away = (weight(model).T @ (clean - mean)).sign().view(SHAPE)
        torch.testing.assert_close(adversarial - image, (-EPS.eps if targeted else EPS.eps) * away)


@pytest.mark.parametrize("momentum", [0.0, 1.0, 0.4])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_metric_iterations_equal_a_loop_over_guides(momentum, metric):
    model, x = linear(5, metric), images()
    guides, pids = guides_for(model), [3, 7, 9, 9]
    attack = MetricIFGSM(EPS, momentum=momentum).bind(model, guides).with_labels(pids)
    found = attack(x)
    assert attack.steps == 10
    for image, adversarial, pid in zip(x, found, pids, strict=True):
        own = guides.features[guides.pids == pid]
        y, gathered = image.clone(), torch.zeros(SHAPE, dtype=torch.float64)
        for _ in range(10):
            y.requires_grad_()
            feature = weight(model) @ y.flatten()
            total = 0.0
            for guide in own:  # each guide by itself: the attack knows their mean only
                if metric == "cosine":
                    total = total + (feature / feature.norm() - guide / guide.norm()).square().sum()
                else:
                    total = total + (feature - guide).square().sum()
            (gradient,) = torch.autograd.grad(total / len(own), y)
            gathered = momentum * gathered + gradient / gradient.abs().mean()
            y = y.detach() + gathered.sign() / 255
            y = torch.minimum(torch.maximum(y, image - EPS.eps), image + EPS.eps).clamp(0, 1)
        torch.testing.assert_close(adversarial, y)


def apgd(model, image, start, goal, eps, steps):
    """Auto-PGD of one image, as its paper's Algorithm 1 tells it, with lists of all iterates."""
    low, high = (image - eps).clamp(min=0), (image + eps).clamp(max=1)

    def value_and_gradient(y):
        y = y.clone().requires_grad_()
        value = goal(model.features(y[None]))[0]
        return float(value.detach()), torch.autograd.grad(value, y)[0]

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    checkpoints = sorted({math.ceil(round(share * steps, 9)) for share in p})
    x, value = [start], [value_and_gradient(start)[0]]
    arrived = list(value)  # f where step k arrived; value[k] is f where step k + 1 leaves
    length, best, top, momentum_from = 2 * eps, start, value[0], None
    at_last = (length, top)
    halvings = 0
    for k in range(steps):
        _, gradient = value_and_gradient(x[-1])
        z = torch.minimum(torch.maximum(x[-1] + length * gradient.sign(), low), high)
        if momentum_from is not None:
            z = x[-1] + 0.75 * (z - x[-1]) + 0.25 * (x[-1] - momentum_from)
            z = torch.minimum(torch.maximum(z, low), high)
        momentum_from = x[-1]
        x.append(z)
        arrived.append(value_and_gradient(z)[0])
        value.append(arrived[-1])
        if arrived[-1] > top:
            best, top = z, arrived[-1]
        if k + 1 in checkpoints:
            since = checkpoints[checkpoints.index(k + 1) - 1]
            risen = sum(arrived[i + 1] > value[i] for i in range(since, k + 1))
            halve = risen < 0.75 * (k + 1 - since) or (length, top) == at_last
            at_last = (length, top)
            if halve:
                halvings += 1
                length, x[-1], value[-1], momentum_from = length / 2, best, top, best
    return best, halvings


@pytest.mark.parametrize(("metric", "steps"), [("euclidean", 23), ("cosine", 23)])
def test_adaptive_steps_equal_a_loop_over_iterates(metric, steps):
    model, x = convolutional(metric), images(4)
    attack = SMA(EPS, steps=steps, step_size=None).bind(model)
    adversarial = attack(x)
    noise = 2 * attack.uniform(x, "start 0", SHAPE) - 1
    starts = (x + EPS.eps * noise).clamp(0, 1)
    halvings = []
    for image, start, result in zip(x, starts, adversarial, strict=True):
        own = normed(model, image[None])

        def goal(feature, own=own):
            feature = F.normalize(feature) if metric == "cosine" else feature
            return (feature - own).square().sum(1)

        expected, halved = apgd(model, image, start, goal, EPS.eps, steps)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
        halvings.append(halved)
    assert max(halvings) > 0  # so that the loop says something
    assert len(set(halvings)) > 1 or min(halvings) > 1


class ScriptedAttack(GradientAttack):
    """Auto-PGD on an objective whose values and gradient signs are written down beforehand."""

    random_start = False

    def __init__(self, budget, values, signs):
        super().__init__(budget, steps=len(values) - 1, step_size=None)
        self.values, self.signs = values, signs

    def objective(self, clean, target):
        step = iter(range(len(self.values)))

        def value(features):
            k = next(step, -1)  # further calls are not steps
            slope = self.signs[k] * (features - features.detach()).sum(1)
            return self.values[k] + slope

        return value


@pytest.mark.parametrize(
    ("steps", "rises", "halved"),
    [(16, 3, False), (16, 2, True), (100, 17, False), (100, 16, True)],
)
def test_the_step_is_halved_after_fewer_than_three_quarters_of_rises(steps, rises, halved):
    """The first window has ⌈0.22 · steps⌉ steps: 3 of 4 are enough, as 17 of 22; 16 are not."""
    window = math.ceil(0.22 * steps)
    changes = [-0.001] * (window - rises) + [1.0] * rises
    values = [sum(changes[:k]) for k in range(window + 1)] + [0.0] * (steps - window)
    signs = [1.0] * window + [-1.0] * (steps - window + 1)
    seen = []

    class Recorder:
        metric = "euclidean"

        def features(self, x):
            seen.append(x.detach().clone())
            return x.flatten(1)

    x = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    ScriptedAttack(Budget(0.25), values, signs).bind(Recorder())(x)
    iterates = [float(image.mean()) for image in seen[1:]]  # the first pass is for clean features
    assert iterates[window] == pytest.approx(0.75)  # at the ball's upper end, and the best is there
    # Down by 3/4 of the step (as the momentum is zero there): of 2ε = 0.5, or of its half.
    assert iterates[window + 1] == pytest.approx(0.75 - 0.75 * (0.25 if halved else 0.5))


def test_adaptive_steps_reach_the_best_corner():
    model, x = linear(1), images()
    moved = model.features(SMA(EPS, steps=16, step_size=None).bind(model)(x)) - model.features(x)
    best = EPS.eps * weight(model).abs().sum()
    torch.testing.assert_close(moved.abs(), best.expand(4, 1))
    guides = guides_for(model)
    fixed, adaptive = (
        FNA(EPS, steps=16, step_size=s).bind(model, guides)(x) for s in (1 / 255, None)
    )
    torch.testing.assert_close(adaptive, fixed)  # the goal is linear, its corner the only optimum


@pytest.mark.parametrize("cls", [SMA, MetricIFGSM])
def test_adaptive_steps_never_end_below_their_start(cls):
    """Even where every step leads down, as the first ones of length 2ε may."""
    model, x = convolutional(), images(8)
    for steps in (1, 2, 6):
        attack = cls(Budget(0.5), steps=steps, step_size=None)
        attack = attack.bind(model, guides_for(model)).with_labels([3, 7, 9, 3] * 2)
        goal = attack.objective(normed(model, x), attack.target)
        start = x
        if cls is SMA:
            start = (x + 0.5 * (2 * attack.uniform(x, "start 0", SHAPE) - 1)).clamp(0, 1)
        assert (goal(normed(model, attack(x))) >= goal(normed(model, start)) - 1e-12).all()


def test_a_kernel_of_one_pixel_smooths_nothing():
    model, x = convolutional(), images()
    plain, one, three = (bound("sma", model, translation=width)(x) for width in (0, 1, 3))
    assert torch.equal(plain, one)
    assert not torch.equal(plain, three)


@pytest.mark.parametrize("name", GRADIENT)
def test_diversity_is_fixed_by_seed_and_image(name):
    """On cosines: every goal's gradient depends on what the network sees."""
    model, x = convolutional(), images()
    first = bound(name, model, diversity=1.0)(x)
    assert first.shape == x.shape
    assert torch.equal(first, bound(name, model, diversity=1.0)(x))
    assert not torch.equal(first, bound(name, model, diversity=0.0)(x))
    assert not torch.equal(first, bound(name, model, diversity=1.0, seed=1)(x))


def test_translation_smooths_the_gradient_with_a_gaussian():
    model, x = linear(1), images(1)
    guides = Guides(model.features(images(2, 9)), [1, 2])
    attack = MetricFGSM(EPS, translation=3).bind(model, guides).with_labels([1])
    gradient = ((weight(model) @ x.flatten()) - guides.features[0]) * weight(model)[0]
    line = torch.tensor([math.exp(-4.5), 1, math.exp(-4.5)], dtype=torch.float64)  # 3 σ at ±1
    kernel = torch.outer(line, line) / line.sum() ** 2
    padded = F.pad(gradient.view(SHAPE), (1, 1, 1, 1))
    smooth = torch.zeros(SHAPE, dtype=torch.float64)
    for down in range(3):
        for right in range(3):
            smooth += kernel[down, right] * padded[:, down : down + 6, right : right + 4]
    torch.testing.assert_close(attack(x)[0] - x[0], EPS.eps * smooth.sign())


def test_square_climbs_a_one_dimensional_feature_close_to_its_optimum():
    # equal weights: a square's best signs are all alike, and so is the optimum
    model, x = linear(1), images()
    with torch.no_grad():
        model.network[1].weight.fill_(1.0)
    found = SquareAttack(EPS, steps=600, area=0.3).bind(model)(x)
    distance = (model.features(found) - model.features(x)).abs()
    best = EPS.eps * SIZE
    assert (distance <= best + 1e-9).all()
    assert (distance > 0.95 * best).all()


def test_the_squares_shrink_by_the_schedule_of_the_paper():
    """With constant features no square is kept, so each is seen beside the stripes."""
    height, width, steps, area = 64, 96, 1000, 0.8
    seen = []

    class Constant:
        metric = "euclidean"

        def features(self, x):
            seen.append(x[0].clone())
            return torch.zeros(len(x), 1)

    SquareAttack(EPS, steps=steps, area=area).bind(Constant())(
        torch.full((1, 3, height, width), 0.5)
    )
    _, stripes, *trials = seen
    assert len(trials) == steps
    visible = 0
    for step, image in enumerate(trials):
        iteration = step * 10_000 // steps
        marks = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # for 10,000 iterations
        share = area
        for mark in marks:
            if iteration > mark:
                share /= 2
        side = round(math.sqrt(share * height * width))
        rows = (image != stripes).any(0).any(1).nonzero().flatten()
        if len(rows):  # else all signs are those of the stripes
            assert int(rows[-1] - rows[0]) + 1 == min(side, height), step
            visible += 1
    assert visible > 0.9 * steps


# --- what a user relies on ---------------------------------------------------------------------


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_goal_rises(name, metric):
    model, x = convolutional(metric), images()
    attack = bound(name, model).with_labels([3, 7, 9, 3])
    goal = attack.objective(normed(model, x), attack.target)
    assert (goal(normed(model, attack(x))) > goal(normed(model, x)) + 1e-6).all()


def normed(model, x):
    features = model.features(x).detach()
    return F.normalize(features) if model.metric == "cosine" else features


@pytest.mark.parametrize("name", ["sma", "odfa", "fna", "metric_ifgsm"])
def test_restarts_are_never_worse_for_any_image(name):
    model, x = convolutional(), images(8)
    values = []
    for restarts in (1, 2, 5):
        attack = bound(name, model, steps=3, restarts=restarts).with_labels([3, 7, 9, 3] * 2)
        values.append(attack.objective(normed(model, x), attack.target)(normed(model, attack(x))))
    for fewer, more in pairwise(values):
        assert (more >= fewer - 1e-12).all()
    assert (values[2] > values[0]).any()


@pytest.mark.parametrize("cls", [MetricFGSM, MetricIFGSM, MetricMIFGSM])
def test_targeted_moves_to_the_identity_that_is_bound(cls):
    model, x = convolutional(), images()
    guides = guides_for(model)
    chosen = guides.pids == 7
    target = Guides(guides.features[chosen], guides.pids[chosen])
    found = cls(EPS, targeted=True).bind(model, target)(x)
    mean = F.normalize(target.features).mean(0)
    before = (normed(model, x) - mean).norm(dim=1)
    assert ((normed(model, found) - mean).norm(dim=1) < before).all()


def test_without_labels_the_nearest_guide_tells_the_identity():
    model = linear(5)
    guides = guides_for(model)
    x = images(8, 5) + torch.randint(-2, 3, (8, *SHAPE), generator=generator(1)) / 255
    known = guides.pids != 0  # the distractor is nobody
    labelled = MetricIFGSM(EPS).bind(model, guides).with_labels(guides.pids)(x)
    guessed = MetricIFGSM(EPS).bind(model, guides)(x)
    assert torch.equal(labelled[known], guessed[known])
    assert not torch.equal(
        guessed, MetricIFGSM(EPS).bind(model, guides).with_labels(guides.pids.flip(0))(x)
    )


def test_an_identity_without_guides_is_pushed_from_its_own_clean_feature():
    model, x = linear(5), images(1)
    guides = guides_for(model)
    found = FNA(EPS, steps=16).bind(model, guides).with_labels([1234])(x)
    clean = model.features(x)[0].detach()
    means = torch.stack([guides.features[guides.pids == i].mean(0) for i in (3, 7, 9)])
    pull = means[(means - clean).norm(dim=1).argmax()]
    corner = EPS.eps * (weight(model).T @ (pull - clean)).sign().view(SHAPE)
    torch.testing.assert_close(found[0] - x[0], corner)


def test_square_with_guides_raises_the_margin_of_rank_one():
    model, x = convolutional(), images()
    guides = guides_for(model)
    pids = torch.tensor([3, 7, 9, 1234])
    places = F.normalize(guides.features)

    def margins(batch):
        features, clean = normed(model, batch), normed(model, x)
        for feature, own, pid in zip(features, clean, pids, strict=True):
            squared = (feature - places).square().sum(1)
            mine = squared[guides.pids == pid]
            nearest = mine.min() if len(mine) else (feature - own).square().sum()
            yield float(nearest - squared[guides.pids != pid].min())

    attack = SquareAttack(EPS, steps=60).bind(model, guides).with_labels(pids)
    before, found = list(margins(x)), list(margins(attack(x)))
    assert all(b > a for a, b in zip(before, found, strict=True))
    few = list(
        margins(SquareAttack(EPS, steps=60, seed=0).bind(model, guides).with_labels(pids)(x))
    )
    assert few == found


class Refuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.mean((2, 3))

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a gradient was asked for")


class ScoresOnly:
    """No module, no weights: features and a metric."""

    metric = "cosine"

    def __init__(self):
        self.images = 0

    def features(self, x):
        assert not torch.is_grad_enabled()
        self.images += len(x)
        return Refuses.apply(x)


@pytest.mark.parametrize("with_guides", [False, True])
def test_square_asks_for_features_only_and_as_often_as_it_says(with_guides):
    model, x = ScoresOnly(), images()
    guides = Guides(torch.eye(3), [1, 2, 3]) if with_guides else None
    found = SquareAttack(EPS, steps=30).bind(model, guides)(x)
    assert model.images == 4 * (30 + 2)
    assert not torch.equal(found, x)
    with pytest.raises(AssertionError):
        SMA(EPS).bind(model)(x)  # so the check can fail


@pytest.mark.parametrize(
    ("name", "options", "forward", "backward"),
    [
        ("sma", {"steps": 15}, 16, 15),
        ("fna", {"steps": 7}, 8, 7),
        ("odfa", {"steps": 2, "restarts": 3}, 1 + 3 * 2 + 3, 6),
        ("sma", {"steps": 9, "step_size": None}, 1 + 9 + 1, 9),
        ("fna", {"steps": 4, "step_size": None, "restarts": 2}, 1 + 2 * 5 + 2, 8),
        ("metric_fgsm", {}, 2, 1),
        ("metric_ifgsm", {}, 11, 10),
        ("metric_mifgsm", {"diversity": 0.5, "translation": 3}, 11, 10),
        ("square", {"steps": 9}, 11, 0),
    ],
)
def test_passes_are_those_that_the_docs_promise(name, options, forward, backward):
    model, x = linear(3), images(2)
    attack = bound(name, model, **options)
    seen = {"forward": 0, "backward": 0}

    def count(module, inputs, output):
        seen["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda g: seen.__setitem__("backward", seen["backward"] + 1))
            assert not module.weight.requires_grad  # the weights' gradient is not computed

    model.network[1].register_forward_hook(count)
    attack(x)
    assert seen == {"forward": forward, "backward": backward}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {} if name == "square" else {"diversity": 0.7}) for name in NAMES),
        ("sma", {"step_size": None, "steps": 12}),
    ],
)
def test_an_image_does_not_depend_on_its_batch(name, options):
    model, x = convolutional(), images(5)
    attack = bound(name, model, **options)
    together = attack(x)
    assert torch.equal(together, attack(x))
    order = torch.tensor([4, 2, 0])
    # float64: the rounding of convolutions in other batch sizes turns no sign here
    torch.testing.assert_close(attack(x[order]), together[order])
    torch.testing.assert_close(attack(x[1:2]), together[1:2])


@pytest.mark.parametrize("name", ["sma", "square"])
def test_seeds_differ_and_the_global_generator_is_left_alone(name):
    model, x = convolutional(), images()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = bound(name, model, seed=0)(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, bound(name, model, seed=1)(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_victim_comes_back_untouched(name):
    model, x = convolutional(), images()
    guides = guides_for(model)
    model.network[1].train()
    model.network[0].weight.requires_grad_(False)
    model.network[3].weight.grad = torch.ones_like(model.network[3].weight)
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    create_attack(name, **QUICK.get(name, {})).bind(model, guides)(x)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert model.network[3].weight.grad.eq(1).all()
    assert all(p.grad is None for p in model.network[0].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_victim_is_registered_or_saved(name, tmp_path):
    model, x = convolutional(), images()
    recipe = create_attack(name, budget=Budget(3 / 255), **QUICK.get(name, {}), seed=7)
    attack = recipe.bind(model, guides_for(model))
    assert list(attack.modules()) == [attack]
    assert not list(attack.parameters())
    assert not attack.state_dict()
    attack.save(tmp_path / "attack.safetensors")
    pickled = pickle.dumps(attack)
    assert len(pickled) < 4000
    assert (tmp_path / "attack.safetensors").stat().st_size < 4000
    expected = attack(x)
    again = [load_attack(tmp_path / "attack.safetensors"), copy.deepcopy(attack)]
    again.append(pickle.loads(pickled))
    for unbound in again:
        with pytest.raises(InputError, match="bind"):
            unbound(x)
        assert torch.equal(unbound.bind(model, guides_for(model))(x), expected)
    with pytest.raises(InputError, match="bind"):
        recipe(x)  # binding gave another attack
    buffer = io.BytesIO()
    torch.save(attack, buffer)
    assert buffer.tell() < 8000


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_they_are_switched_off(name, context):
    model, x = convolutional(), images()
    expected = bound(name, model)(x)
    with context():
        found = bound(name, model)(x.clone())
        assert torch.equal(found, expected)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("check", ATTACK_CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_attacks(name, check):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.AdaptiveAvgPool2d((4, 2)), nn.Flatten(), nn.Linear(24, 5))
    model = wrap_model(net, input_spec=RAW)
    guides = Guides(torch.randn(4, 5, generator=generator(0)), [1, 2, 2, 3])
    options = {} if name == "metric_fgsm" else {"steps": 2}
    if name != "square":
        options |= {"diversity": 0.5, "translation": 3}
    check(lambda budget: create_attack(name, budget=budget, **options).bind(model, guides))


@settings(deadline=None, max_examples=30, database=None)
@given(
    eps=st.floats(0, 0.3),
    step_size=st.one_of(st.none(), st.floats(1e-4, 1)),
    restarts=st.integers(1, 3),
    momentum=st.floats(0, 2),
    seed=st.integers(0, 2**40),
)
def test_any_options_stay_in_the_ball(eps, step_size, restarts, momentum, seed):
    model, x = linear(3), images(2, seed % 7)
    momentum = 0.0 if step_size is None else momentum
    options = {"steps": 3, "step_size": step_size, "restarts": restarts, "momentum": momentum}
    found = SMA(Budget(eps), **options, seed=seed).bind(model)(x)
    assert (found - x).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_steps_of_ifgsm_are_the_rule_of_its_paper():
    steps = {e: MetricIFGSM(Budget(e / 255)).steps for e in (0, 0.5, 1, 2, 4, 8, 12, 16, 20)}
    # min(ε + 4, 1.25 ε), rounded up
    assert steps == {0: 1, 0.5: 1, 1: 2, 2: 3, 4: 5, 8: 10, 12: 15, 16: 20, 20: 24}
    assert (MetricIFGSM().momentum, MetricMIFGSM().momentum) == (0.0, 1.0)
    assert (MetricIFGSM(momentum=0.5).momentum, MetricMIFGSM(momentum=0.0).momentum) == (0.5, 0.0)


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in NAMES if ATTACKS.get(n).needs_guides])
def test_missing_guides_are_named(name):
    with pytest.raises(InputError, match="guides=Guides"):
        create_attack(name).bind(linear(2))


def test_other_mistakes_name_the_cure():
    model, x = linear(2), images(2)
    with pytest.raises(InputError, match="wrap_model"):
        SMA().bind(nn.Linear(2, 2))
    with pytest.raises(InputError, match="not bound"):
        SMA().with_labels([1])
    with pytest.raises(InputError, match="with_labels"):
        FNA().bind(model, guides_for(model)).with_labels([3])(x)
    with pytest.raises(InputError, match="two identities"):
        FNA().bind(model, Guides(torch.zeros(2, 2), [4, 4]))(x)
    with pytest.raises(InputError, match="two identities"):
        SquareAttack().bind(model, Guides(torch.zeros(2, 2), [4, 4]))(x)
    with pytest.raises(InputError, match="whole numbers"):
        FNA().bind(model, guides_for(model)).with_labels([0.5, 1.0])
    for features, pids in ((torch.zeros(3), [1, 2, 3]), (torch.zeros(3, 2), [1, 2])):
        with pytest.raises(InputError, match=r"\(G, D\)"):
            Guides(features, pids)
    with pytest.raises(InputError, match="other than 0"):
        Guides(torch.zeros(2, 2), [0, 0])
    with pytest.raises(InputError, match="finite"):
        Guides(torch.full((1, 2), math.nan), [1])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": math.nan}, "step_size"),
        ({"momentum": -1.0}, "momentum"),
        ({"diversity": 1.5}, "diversity"),
        ({"translation": 4}, "translation"),
        ({"translation": -1}, "translation"),
        ({"step_size": None, "momentum": 1.0}, "give a step_size, such as 1/255, or momentum=0"),
    ],
)
def test_wrong_options_are_named(options, word):
    with pytest.raises(InputError, match=word):
        SMA(**options)


@pytest.mark.parametrize("options", [{"steps": 0}, {"area": 0.0}])
def test_wrong_options_of_square_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SquareAttack(**options)
