"""Instance attacks against one image after the other, step after step."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import rng
from reidguard.attacks import (
    FNA,
    ODFA,
    SMA,
    Guides,
    MetricFGSM,
    MetricIFGSM,
    MetricMIFGSM,
    SquareAttack,
)
from reidguard.attacks.instance.base import Prototypes
from reidguard.errors import InputError
from reidguard.models import wrap_model
from reidguard.objectives.diversity import diverse
from reidguard.types import Budget, InputSpec

EPS = Budget(8 / 255)
RAW = InputSpec(size=None, mean=(0, 0, 0), std=(1, 1, 1))
SHAPE = (3, 7, 10)
LABELS = [3, 7, 9, 1234]  # of the last one there is no guide


def embedder(metric="cosine"):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(120, 6)
    )
    return wrap_model(network.double().eval(), input_spec=RAW, metric=metric)


def images(count=4, seed=0, low=20, high=236):
    return torch.randint(low, high, (count, *SHAPE), generator=rng(seed)).double() / 255


def guides_for(model, seed=5):
    return Guides(model.features(images(8, seed)), [3, 7, 7, 3, 9, 3, 0, 9])


def compared(model, x):
    features = model.features(x).detach()
    return F.normalize(features) if model.metric == "cosine" else features


# --- guides ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_prototypes_by_loops(metric):
    features = torch.randn(9, 4, generator=rng(0), dtype=torch.float64) * 3
    pids = [7, 2, 0, 2, 9, 7, 7, 0, 2]
    prototypes = Prototypes(Guides(features, pids), metric)
    places = F.normalize(features) if metric == "cosine" else features
    torch.testing.assert_close(prototypes.features, places)
    assert prototypes.known.tolist() == [2, 7, 9]
    assert prototypes.index.tolist() == [1, 0, -1, 0, 2, 1, 1, -1, 0]
    means = [torch.stack([places[i] for i in range(9) if pids[i] == p]).mean(0) for p in (2, 7, 9)]
    torch.testing.assert_close(prototypes.means, torch.stack(means))
    torch.testing.assert_close(prototypes.squares, places.square().sum(1))

    queries = torch.randn(40, 4, generator=rng(1), dtype=torch.float64)
    nearest, furthest, others = [], [], []
    excluded = torch.arange(40) % 4 - 1  # -1 excludes nothing
    for query, out in zip(queries, excluded.tolist(), strict=True):
        known = [i for i in range(9) if pids[i] != 0]
        best = min(known, key=lambda i: float((query - places[i]).norm()))
        nearest.append([2, 7, 9].index(pids[best]))
        away = [float((query - mean).norm()) for mean in means]
        furthest.append(max(range(3), key=away.__getitem__))
        others.append(max((i for i in range(3) if i != out), key=away.__getitem__))
    assert prototypes.nearest_identity(queries).tolist() == nearest
    assert prototypes.furthest_identity(queries, None).tolist() == furthest
    assert prototypes.furthest_identity(queries, excluded).tolist() == others
    assert len({*nearest}) == 3
    assert len({*furthest}) > 1

    found = prototypes.identity_of(torch.tensor([2, 9, 7, 0, 3, 8, 10, 1]))
    assert found[:3].tolist() == [0, 2, 1]
    assert (found[3:] < 0).all()
    fallback = torch.randn(8, 4, generator=rng(2), dtype=torch.float64)
    mixed = prototypes.mean_of(found, fallback)
    torch.testing.assert_close(mixed[:3], torch.stack([means[0], means[2], means[1]]))
    assert torch.equal(mixed[3:], fallback[3:])


def test_of_a_single_identity_it_is_the_furthest():
    prototypes = Prototypes(Guides(torch.eye(3), [4, 4, 0]), "euclidean")
    assert prototypes.furthest_identity(torch.eye(3), torch.zeros(3).long()).tolist() == [0] * 3
    with pytest.raises(InputError, match=r"FNA needs guides of at least two .* pid 4"):
        prototypes.need_two("FNA")
    Prototypes(Guides(torch.eye(3), [4, 5, 0]), "euclidean").need_two("FNA")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guides_in_half_precision_are_compared_in_float32(dtype):
    features = torch.randn(4, 5, generator=rng(0)).to(dtype)
    prototypes = Prototypes(Guides(features, [1, 1, 2, 2]), "cosine")
    assert prototypes.features.dtype == prototypes.means.dtype == torch.float32
    torch.testing.assert_close(prototypes.features, F.normalize(features.float()))


@pytest.mark.parametrize(
    ("features", "pids"),
    [
        (torch.zeros(2, 2), [1.0, 2.0]),
        (torch.zeros(2, 2), [[1], [2]]),
        (torch.zeros(2, 2, 2), [1, 2]),
        (torch.zeros(2, 2), [0, 0]),
        (torch.tensor([[1.0, torch.inf]]), [1]),
    ],
)
def test_what_is_no_set_of_guides_is_refused(features, pids):
    with pytest.raises(InputError, match="guides"):
        Guides(features, pids)


def test_guides_are_constant_and_their_pids_are_int64():
    features = torch.ones(2, 2, requires_grad=True)
    guides = Guides(features, torch.tensor([0, 3], dtype=torch.int32))
    assert not guides.features.requires_grad
    assert guides.pids.dtype == torch.int64
    assert features.requires_grad


# --- random draws ------------------------------------------------------------------------------


def test_draws_depend_on_seed_purpose_shape_and_8_bit_content_alone():
    x = images(3).float()
    attack = SMA(seed=4)
    draws = attack.uniform(x, "start", (2, 3))
    assert draws.shape == (3, 2, 3)
    assert draws.dtype == x.dtype
    assert 0 <= float(draws.min()) < float(draws.max()) < 1
    assert torch.equal(attack.uniform(x[1:2] + 0.4 / 255, "start", (2, 3)), draws[1:2])
    assert torch.equal(attack.uniform(x[1:2] - 0.4 / 255, "start", (2, 3)), draws[1:2])
    for other in (
        attack.uniform(x + 0.6 / 255, "start", (2, 3)),
        attack.uniform(x, "end", (2, 3)),
        SMA(seed=5).uniform(x, "start", (2, 3)),
        attack.uniform(x.transpose(2, 3).reshape(3, 3, 10, 7), "start", (2, 3)),
    ):
        assert not (other == draws).any()
    # The same on any machine and in any version: the key is hashed.
    pixels = (x[0] * 255).round().to(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(b"4 start (3, 7, 10) " + pixels, digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    assert torch.equal(draws[0], torch.rand(2, 3, generator=generator))


# --- gradient attacks --------------------------------------------------------------------------


def smoothed(gradient, width):
    """A Gaussian that ends at 3 σ, written as a sum of shifted pictures."""
    places = [3 * (2 * i / (width - 1) - 1) for i in range(width)]
    line = [math.exp(-p * p / 2) / sum(math.exp(-q * q / 2) for q in places) for p in places]
    half = width // 2
    padded = F.pad(gradient, [half] * 4)
    result = torch.zeros_like(gradient)
    height, across = gradient.shape[2:]
    for i, down in enumerate(line):
        for j, right in enumerate(line):
            result += down * right * padded[:, :, i : i + height, j : j + across]
    return result


def ascend(attack, model, x, start, goal, restart, low, high):
    """PGD of one image as a batch, with DI's draws, TI's kernel and MI's momentum."""
    draws = None
    if attack.diversity > 0:
        draws = attack.uniform(start, f"diversity {restart}", (attack.steps, 4))
    y, velocity = start, torch.zeros_like(x)
    for step in range(attack.steps):
        y = y.clone().requires_grad_()
        seen = y if draws is None else diverse(y, draws[:, step], attack.diversity)
        features = model.features(seen)
        features = F.normalize(features) if model.metric == "cosine" else features
        (gradient,) = torch.autograd.grad(goal(features).sum(), y)
        if attack.translation:
            gradient = smoothed(gradient, attack.translation)
        if attack.momentum:
            velocity = attack.momentum * velocity + gradient / gradient.abs().mean()
            gradient = velocity
        y = torch.minimum(torch.maximum(y.detach() + attack.step_size * gradient.sign(), low), high)
    return y


def goal_of(attack, model, image, guides, pid):
    """The objective of each attack, with its mean over guides written as a loop."""
    clean = compared(model, image)[0]
    places = F.normalize(guides.features) if model.metric == "cosine" else guides.features
    pids = guides.pids.tolist()

    def distance(f, to):
        return (f - to).square().sum(1)

    if isinstance(attack, SMA):
        return lambda f: distance(f, clean)
    if isinstance(attack, ODFA):
        return lambda f: -distance(f, -clean)
    own = [places[i] for i in range(len(pids)) if pids[i] == pid] or [clean]
    means = {
        p: places[[i for i in range(len(pids)) if pids[i] == p]].mean(0) for p in {*pids} - {0}
    }
    away = {p: float((clean - mean).norm()) for p, mean in means.items() if p != pid}
    furthest = means[max(away, key=away.get)]
    if isinstance(attack, FNA):
        return lambda f: sum(distance(f, g) for g in own) / len(own) - distance(f, furthest)
    if attack.targeted:
        return lambda f: -distance(f, furthest)
    return lambda f: sum(distance(f, g) for g in own) / len(own)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "attack",
    [
        SMA(EPS, steps=3, restarts=3, step_size=3 / 255, seed=2),
        SMA(EPS, steps=4, diversity=0.6, translation=5),
        ODFA(EPS, steps=4, step_size=2 / 255, momentum=0.7),
        ODFA(Budget(0.1), steps=3, restarts=2, translation=3, diversity=1.0),
        FNA(EPS, steps=4, restarts=2, step_size=3 / 255),
        FNA(Budget(0.2), steps=3, step_size=0.06, momentum=1.0, translation=7),
        MetricIFGSM(Budget(4 / 255), restarts=3),
        MetricIFGSM(EPS, targeted=True, diversity=0.3),
        MetricMIFGSM(EPS, steps=4, diversity=0.9, translation=3, seed=1),
        MetricMIFGSM(EPS, steps=3, targeted=True, restarts=2),
        MetricFGSM(EPS, diversity=1.0, translation=5, seed=3),
        MetricFGSM(EPS, targeted=True),
    ],
    ids=lambda a: f"{type(a).__name__}",
)
def test_gradient_attacks_by_loops(attack, metric):
    model, x = embedder(metric), images(low=0, high=256)
    guides = guides_for(model)
    found = attack.bind(model, guides).with_labels(LABELS)(x)
    eps = attack.budget.eps
    for row, pid in enumerate(LABELS):
        image = x[row : row + 1]
        goal = goal_of(attack, model, image, guides, pid)
        low, high = (image - eps).clamp(min=0), (image + eps).clamp(max=1)
        results, values = [], []
        for restart in range(attack.restarts):
            start = image
            if restart or isinstance(attack, SMA | ODFA | FNA):
                noise = attack.uniform(image, f"start {restart}", SHAPE)
                start = (image + eps * (2 * noise - 1)).clamp(0, 1)
            results.append(ascend(attack, model, image, start, goal, restart, low, high))
            values.append(float(goal(compared(model, results[-1]))))
        best = results[values.index(max(values))]
        torch.testing.assert_close(found[row : row + 1], best, rtol=0, atol=1e-9)
    assert not torch.equal(found, x)


def test_the_momentum_survives_a_gradient_of_zero():
    """At the image itself the self-metric is flat: the first step gives no direction."""

    class Flat(SMA):
        random_start = False

    model, x = embedder("euclidean"), images(2)
    found = Flat(EPS, steps=3, momentum=1.0).bind(model)(x)
    assert torch.equal(found, x)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "restarts": 1},
        {"step_size": 1e-9},
        {"step_size": None, "momentum": 0.0},
        {"momentum": 0.0},
        {"diversity": 0.0},
        {"diversity": 1.0},
        {"translation": 0},
        {"translation": 1},
    ],
)
def test_the_ends_of_ranges_are_allowed(options):
    attack = SMA(**options)
    assert {name: getattr(attack, name) for name in options} == options


@pytest.mark.parametrize(
    "options",
    [
        {"step_size": -1e-9},
        {"step_size": math.inf},
        {"momentum": math.inf},
        {"momentum": -1e-9},
        {"diversity": -1e-9},
        {"diversity": 1 + 1e-9},
        {"translation": 2},
        {"translation": -3},
        {"steps": 0, "restarts": 2},
        {"steps": 2, "restarts": 0},
    ],
)
def test_what_lies_beyond_is_refused(options):
    with pytest.raises(InputError):
        SMA(**options)


def test_usual_values_are_those_of_the_docs():
    for attack in (SMA(), ODFA(), FNA()):
        assert (attack.budget, attack.steps, attack.step_size) == (EPS, 15, 1 / 255)
        rest = attack.restarts, attack.momentum, attack.diversity, attack.translation, attack.seed
        assert rest == (1, 0, 0, 0, 0)
    attack = MetricFGSM(Budget(0.1))
    assert (attack.steps, attack.step_size, attack.targeted) == (1, 0.1, False)
    assert MetricFGSM(Budget(0)).step_size == 1 / 255
    assert MetricFGSM().step_size == 8 / 255
    assert (MetricIFGSM().step_size, MetricIFGSM().targeted) == (1 / 255, False)
    assert MetricIFGSM(Budget(8.0000005 / 255)).steps == 10
    square = SquareAttack()
    assert (square.budget, square.steps, square.area, square.seed) == (EPS, 1000, 0.8, 0)


@pytest.mark.parametrize(
    "cls", [SMA, ODFA, FNA, MetricFGSM, MetricIFGSM, MetricMIFGSM, SquareAttack]
)
def test_each_attack_keeps_its_budget(cls):
    assert cls(Budget(0.1)).budget == Budget(0.1)
    assert cls().budget == EPS


# --- Square ------------------------------------------------------------------------------------


def square_by_loops(attack, image, draws, stripes, score):
    height, width = image.shape[1:]
    eps = attack.budget.eps

    def signs(uniform):
        return [[-eps if float(u) < 0.5 else eps for u in row] for row in uniform]

    best = image.clone()
    for channel, row in enumerate(signs(stripes[:, 0])):
        for column, change in enumerate(row):
            best[channel, :, column] = (image[channel, :, column] + change).clamp(0, 1)
    value = score(best)
    marks = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for step in range(attack.steps):
        area = attack.area
        for mark in marks:
            if step / attack.steps > mark / 10_000:
                area /= 2
        side = max(1, min(round(math.sqrt(area * height * width)), height, width))
        top = int(float(draws[step, 0]) * (height - side + 1))
        left = int(float(draws[step, 1]) * (width - side + 1))
        trial = best.clone()
        (changes,) = signs(draws[step, None, 2:])
        for channel, change in enumerate(changes):
            part = (channel, slice(top, top + side), slice(left, left + side))
            trial[part] = (image[part] + change).clamp(0, 1)
        if score(trial) > value:
            best, value = trial, score(trial)
    return best


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("with_guides", [False, True])
def test_square_by_loops(metric, with_guides):
    model, x = embedder(metric), images(low=0, high=256)
    guides = guides_for(model)
    places = F.normalize(guides.features) if metric == "cosine" else guides.features
    attack = SquareAttack(EPS, steps=40, area=0.5, seed=6)
    bound = attack.bind(model, guides if with_guides else None)
    if with_guides:
        bound = bound.with_labels(LABELS)
    found = bound(x)
    draws, stripes = attack.uniform(x, "squares", (40, 5)), attack.uniform(x, "stripes", (3, 1, 10))
    for row, pid in enumerate(LABELS):
        clean = compared(model, x[row : row + 1])[0]

        def score(image, clean=clean, pid=pid):
            feature = compared(model, image[None])[0]
            if not with_guides:
                return float((feature - clean).square().sum())
            squares = (feature - places).square().sum(1)
            own = guides.pids == pid
            nearest = squares[own].min() if own.any() else (feature - clean).square().sum()
            return float(nearest - squares[~own].min())

        expected = square_by_loops(attack, x[row], draws[row], stripes[row], score)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"steps": 1}, {"area": 1.0}, {"area": 1e-9}])
def test_square_takes_the_ends_of_its_ranges(options):
    attack = SquareAttack(EPS, **{"steps": 3, **options})
    x = images(2)
    assert not torch.equal(attack.bind(embedder())(x), x)


@pytest.mark.parametrize("options", [{"steps": 0}, {"area": 0.0}, {"area": 1.001}, {"area": -1}])
def test_square_refuses_what_lies_beyond(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SquareAttack(**options)


# --- binding -----------------------------------------------------------------------------------


def test_what_lacks_features_or_a_metric_cannot_be_bound():
    for lacking in (SimpleNamespace(metric="cosine"), SimpleNamespace(features=len), 3):
        with pytest.raises(InputError, match="wrap_model"):
            SMA().bind(lacking)
    with pytest.raises(InputError, match="wrap_model"):
        SMA().bind(SimpleNamespace(features=3, metric="cosine"))


def test_guides_on_another_device_are_refused():
    guides = SimpleNamespace(features=torch.zeros(2, 6, device="meta"), pids=[1, 2])
    with pytest.raises(InputError, match=r"on cpu and the guides' features on meta.*'cpu'"):
        FNA().bind(embedder(), guides)


def test_labels_have_one_number_for_each_image():
    bound = FNA(steps=1).bind(embedder(), guides_for(embedder()))
    for pids in ([[1, 2]], 3, [1.5]):
        with pytest.raises(InputError, match="whole numbers"):
            bound.with_labels(pids)
    labelled = bound.with_labels(torch.tensor([3, 7], dtype=torch.int32))
    assert labelled.target.pids.dtype == torch.int64
    assert bound.target.pids is None
    with pytest.raises(InputError, match="labels of 2 images and got 4"):
        labelled(images())
    assert labelled.target.prototypes is bound.target.prototypes


def test_no_images_give_no_images():
    empty = images()[:0]
    assert SMA(steps=1).bind(embedder())(empty).shape == empty.shape
