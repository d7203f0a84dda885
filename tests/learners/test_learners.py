"""Every learner's gradient against closed forms, explicit loops and finite differences."""

import gc

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from helpers import SmoothEmbedder, imagine_silent_peer, random_batch, rng
from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.errors import InputError, TrainingError
from reidguard.learners import (
    LEARNERS,
    FirstOrderLearner,
    HessianFreeLearner,
    JointLearner,
    MAMLLearner,
    PlainLearner,
)
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.training import MISGD
from reidguard.types import BatchShard, Budget

DOUBLE = torch.float64
TEMPORARY = [FirstOrderLearner, HessianFreeLearner, MAMLLearner]


def close(found, wanted, tolerance=1e-9):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


# --- a quadratic, where everything is known ---------------------------------------------------


class Point(nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.w = nn.Parameter(torch.randn(size, generator=rng(), dtype=DOUBLE))


def quadratic(module, batch):
    matrix, centre = batch
    off = module.w - centre
    return 0.5 * off @ matrix @ off


def bowl(seed, size=4):
    root = torch.randn(size, size, generator=rng(seed), dtype=DOUBLE)
    centre = torch.randn(size, generator=rng(seed + 1), dtype=DOUBLE)
    return root @ root.T + torch.eye(size, dtype=DOUBLE), centre


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("learner", TEMPORARY)
def test_closed_form_on_a_quadratic(learner, steps):
    (a, at), (b, bt) = bowl(1), bowl(5)
    module, lr = Point(), 0.03
    w = module.w.detach().clone()
    shrink = torch.linalg.matrix_power(torch.eye(4, dtype=DOUBLE) - lr * a, steps)
    temporary = at + shrink @ (w - at)
    outer = b @ (temporary - bt)
    wanted = a @ (w - at) + (outer if learner is FirstOrderLearner else shrink @ outer)
    result = learner(inner="sgd", inner_lr=lr, inner_steps=steps).step(
        module, quadratic, (a, at), (b, bt)
    )
    close(module.w.grad, wanted, 1e-7 if learner is HessianFreeLearner else 1e-11)
    close(result.train_loss, 0.5 * (w - at) @ a @ (w - at))
    close(result.test_loss, 0.5 * (temporary - bt) @ b @ (temporary - bt))
    assert torch.equal(module.w, w)
    assert result.unused == ()


@pytest.mark.parametrize("learner", [HessianFreeLearner, MAMLLearner])
def test_momentum_within_the_inner_steps(learner):
    (a, at), (b, bt) = bowl(1), bowl(5)
    module, lr, momentum = Point(), 0.03, 0.7
    w = module.w.detach().clone().requires_grad_()
    temporary, buffer = w, torch.zeros(4, dtype=DOUBLE)
    for _ in range(3):
        buffer = momentum * buffer + a @ (temporary - at)
        temporary = temporary - lr * buffer
    loss = 0.5 * (w - at) @ a @ (w - at) + 0.5 * (temporary - bt) @ b @ (temporary - bt)
    (wanted,) = torch.autograd.grad(loss, w)
    learner(inner="sgd", inner_lr=lr, inner_steps=3, inner_momentum=momentum).step(
        module, quadratic, (a, at), (b, bt)
    )
    close(module.w.grad, wanted, 1e-7)


def test_plain_and_joint_on_a_quadratic():
    (a, at), (b, bt) = bowl(1), bowl(5)
    module = Point()
    w = module.w.detach().clone()
    PlainLearner().step(module, quadratic, (a, at), (b, bt))
    close(module.w.grad, a @ (w - at))
    JointLearner().step(module, quadratic, (a, at), (b, bt))
    close(module.w.grad, a @ (w - at) + b @ (w - bt))


# --- networks and attacks ---------------------------------------------------------------------


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 4),
        )
        for p in self.net.parameters():
            nn.init.normal_(p, std=0.5, generator=rng(p.numel()))
        self.double()

    def forward(self, x):
        return self.net(x)


def batch(seed):
    return random_batch(4, 2, (12, 10), seed=seed, low=0.3, high=0.7, dtype=DOUBLE)


def cross_entropy(module, b):
    return F.cross_entropy(module(b.images), b.pids)


def case(name):
    """A module, its objective, and an outer optimiser that has a past."""
    if name == "cnn":
        module, objective, lr = Classifier(), cross_entropy, 0.05
    else:
        budget, size = Budget(0.1), (12, 10)
        module = {
            "color": lambda: ColorAttack(budget, resolution=4),
            "delta": lambda: DeltaAttack(budget, size),
            "both": lambda: CombinatorialAttack(budget, resolution=4, size=size),
        }[name]().double()
        objective, lr = FeatureObjective(SmoothEmbedder(), MisrankingTriplet()), 0.004
        for number, p in enumerate(module.parameters()):
            nn.init.uniform_(p, -0.03, 0.03, generator=rng(number))
    optimizer = MISGD(module.parameters(), lr=lr, momentum=0.5)
    for number, p in enumerate(module.parameters()):
        shape = (p.shape, p.dtype)
        noise = torch.randn(shape[0], generator=rng(number + 50), dtype=shape[1])
        optimizer.state[p]["momentum_buffer"] = noise / noise.abs().sum()
    return module, objective, optimizer


CASES = ["cnn", "color", "delta", "both"]


def meta_loss(module, objective, optimizer, weights, steps):
    """Both losses as a function of the weights: functional_call and the formula of the step."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, b):
            return objective(self.module, b)

    names = [f"module.{name}" for name, _ in module.named_parameters()]
    state = {f"module.{k}": v.clone() for k, v in module.named_buffers()}

    def loss(values, b):
        return functional_call(Loss(), {**dict(zip(names, values, strict=True)), **state}, (b,))

    group = optimizer.param_groups[0]
    velocities = [optimizer.state[p]["momentum_buffer"] for p in module.parameters()]
    values, first = list(weights), None
    for _ in range(steps):
        train = loss(values, batch(1))
        first = train if first is None else first
        slopes = torch.autograd.grad(train, values, create_graph=True)
        velocities = [
            group["momentum"] * v + g / g.abs().sum()
            for v, g in zip(velocities, slopes, strict=True)
        ]
        values = [
            p - group["lr"] * v / v.abs().mean() for p, v in zip(values, velocities, strict=True)
        ]
    return first + loss(values, batch(2))


def leaves(module):
    return [p.detach().clone().requires_grad_() for p in module.parameters()]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_maml_equals_a_loop_by_hand(name, steps):
    module, objective, optimizer = case(name)
    weights = leaves(module)
    wanted = torch.autograd.grad(meta_loss(module, objective, optimizer, weights, steps), weights)
    MAMLLearner(inner_steps=steps).step(module, objective, batch(1), batch(2), optimizer=optimizer)
    for p, g in zip(module.parameters(), wanted, strict=True):
        close(p.grad, g)
        assert g.abs().max() > 0


@pytest.mark.parametrize("name", CASES)
def test_maml_equals_finite_differences(name):
    module, objective, optimizer = case(name)
    weights = leaves(module)
    MAMLLearner().step(module, objective, batch(1), batch(2), optimizer=optimizer)
    h = 1e-6
    for direction in range(3):
        along = [torch.randn(w.shape, generator=rng(direction), dtype=DOUBLE) for w in weights]
        up, down = (
            meta_loss(
                module,
                objective,
                optimizer,
                [
                    (w + s * h * d).detach().requires_grad_()
                    for w, d in zip(weights, along, strict=True)
                ],
                1,
            )
            for s in (1, -1)
        )
        slope = sum((p.grad * d).sum() for p, d in zip(module.parameters(), along, strict=True))
        close(slope, (up - down).detach() / (2 * h), 1e-5)


def gradients(learner, name, **options):
    module, objective, optimizer = case(name)
    learner(**options).step(module, objective, batch(1), batch(2), optimizer=optimizer)
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_the_second_order_term_of_hessian_free_is_that_of_maml(name, steps):
    first = gradients(FirstOrderLearner, name, inner_steps=steps)
    exact = gradients(MAMLLearner, name, inner_steps=steps) - first
    assert exact.norm() > 1e-3 * first.norm(), "nothing to compare"
    for difference, least, length in ((0.01, 0.999, 0.05), (0.1, 0.98, 0.3)):
        free = gradients(HessianFreeLearner, name, inner_steps=steps, difference=difference) - first
        assert F.cosine_similarity(free, exact, dim=0) > least
        assert abs(float(free.norm() / exact.norm()) - 1) < length


def trained_with_adam(steps, eps):
    module = Classifier()
    outer = torch.optim.Adam(module.parameters(), lr=0.02, betas=(0.8, 0.99), eps=eps)
    for number in range(steps):
        outer.zero_grad()
        cross_entropy(module, batch(10 + number)).backward()
        outer.step()
    return module, outer


@pytest.mark.parametrize("past", [0, 3])
def test_inner_adam_goes_where_adam_goes(past):
    module, outer = trained_with_adam(past, eps=1e-3)
    goal, its = trained_with_adam(past, eps=1e-3)
    for _ in range(2):
        its.zero_grad()
        cross_entropy(goal, batch(1)).backward()
        its.step()
    learner = FirstOrderLearner(inner="adam", inner_steps=2, keep_temporary=True)
    learner.step(module, cross_entropy, batch(1), batch(2), optimizer=outer)
    for found, wanted in zip(module.parameters(), goal.parameters(), strict=True):
        close(found.detach(), wanted.detach())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("past", [0, 3])
def test_inner_adam_is_that_of_higher(steps, past):
    """From nothing, and from the moments of an outer Adam that has a past."""
    module, outer = trained_with_adam(past, eps=1e-12)  # which higher does not correct for bias
    with higher.innerloop_ctx(module, outer, copy_initial_weights=False) as (copied, inner):
        first = cross_entropy(copied, batch(1))
        inner.step(first)
        for _ in range(steps - 1):
            inner.step(cross_entropy(copied, batch(1)))
        loss = first + cross_entropy(copied, batch(2))
        wanted = torch.autograd.grad(loss, list(module.parameters()))
    learner = MAMLLearner(inner="adam", inner_steps=steps)
    learner.step(module, cross_entropy, batch(1), batch(2), optimizer=outer)
    for p, g in zip(module.parameters(), wanted, strict=True):
        close(p.grad, g, 1e-6)
        assert g.abs().max() > 0
    free = HessianFreeLearner(inner="adam", inner_steps=steps, difference=0.001)
    free.step(module, cross_entropy, batch(1), batch(2), optimizer=outer)
    found, exact = (torch.cat([g.flatten() for g in gs]) for gs in
                    ([p.grad for p in module.parameters()], wanted))  # fmt: skip
    if past:  # a first step of Adam is nearly a sign: its derivative is no smooth function
        assert F.cosine_similarity(found, exact, dim=0) > 0.999


def test_a_sign_has_no_second_order_term():
    first, free, exact = (gradients(k, "delta", inner="sign") for k in TEMPORARY)
    close(exact, first)
    close(free, first)


def test_the_inner_step_begins_with_the_outer_momentum():
    module, objective, optimizer = case("delta")
    learner = FirstOrderLearner(keep_temporary=True)
    before = module.delta.detach().clone()
    PlainLearner().step(module, objective, batch(1))
    gradient = module.delta.grad.clone()
    learner.step(module, objective, batch(1), batch(2), optimizer=optimizer)
    buffer = optimizer.state[module.delta]["momentum_buffer"]
    velocity = 0.5 * buffer + gradient / gradient.abs().sum()
    close(module.delta.detach(), before - 0.004 * velocity / velocity.abs().mean())
    close((module.delta.detach() - before).abs().mean(), torch.tensor(0.004, dtype=DOUBLE))


def test_the_inner_sign_step_is_that_of_mi_sgd():
    """Three steps, against the optimiser itself from the same buffer."""
    (a, at), other = bowl(1), bowl(5)
    module, reference = Point(), Point()
    optimizers = []
    for point in (module, reference):
        optimizers.append(MISGD(point.parameters(), lr=0.05, momentum=0.9))
        buffer = torch.tensor([0.4, -0.3, -0.2, 0.1], dtype=DOUBLE)
        optimizers[-1].state[point.w]["momentum_buffer"] = buffer.clone()
    for _ in range(3):
        optimizers[1].zero_grad()
        quadratic(reference, (a, at)).backward()
        optimizers[1].step()
    learner = FirstOrderLearner(inner="sign", inner_steps=3, keep_temporary=True)
    learner.step(module, quadratic, (a, at), other, optimizer=optimizers[0])
    close(module.w.detach(), reference.w.detach())
    assert torch.equal(optimizers[0].state[module.w]["momentum_buffer"], buffer)


@pytest.mark.parametrize(("inner", "from_buffer"), [("sgd", True), ("scaled", False)])
def test_an_inner_step_without_the_outer_buffer(inner, from_buffer):
    """That of the raw gradient never has it: it counts another kind of gradient."""
    (a, at), other = bowl(1), bowl(5)
    module = Point()
    w = module.w.detach().clone()
    optimizer = MISGD(module.parameters(), lr=0.03, momentum=0.9)
    optimizer.state[module.w]["momentum_buffer"] = torch.ones(4, dtype=DOUBLE)
    learner = FirstOrderLearner(inner=inner, keep_temporary=True, from_buffer=from_buffer)
    learner.step(module, quadratic, (a, at), other, optimizer=optimizer)
    gradient = a @ (w - at)
    step = gradient if inner == "sgd" else gradient / gradient.abs().mean()
    close(module.w.detach(), w - 0.03 * step)


@pytest.mark.parametrize("learner", TEMPORARY)
def test_inner_adam_where_the_gradient_is_zero(learner):
    """A second moment of zero has no root to differentiate."""
    module = Point()
    w = module.w.detach().clone()
    learner(inner="adam", inner_lr=0.01).step(
        module, lambda m, b: (b * m.w[:2]).square().sum(), 1.0, 2.0
    )
    assert torch.equal(module.w.grad[2:], torch.zeros(2, dtype=DOUBLE))
    assert torch.isfinite(module.w.grad).all()
    close(module.w.grad[:2], 2 * w[:2] + 8 * (w[:2] - 0.01 * w[:2].sign()), 1e-4)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("difference", [None, 0.02])
@pytest.mark.parametrize("start", [3.0, 0.0])
def test_the_difference_of_hessian_free(size, difference, start):
    """On w³ + bw, where it does not vanish; h·r has that fraction of w or of the inner step."""
    module, lr = Point(1), 0.05
    nn.init.constant_(module.w, start)
    options = {} if difference is None else {"difference": difference}
    learner = HessianFreeLearner(inner="sgd", inner_lr=lr, **options)

    def objective(m, of_train):
        w = m.w.sum()
        return w**3 + 2 * w if of_train else -size * w

    learner.step(module, objective, True, False)
    gradient = 3 * start**2 + 2
    r = lr * size  # (∂d/∂g)ᵀ v with d = -lr·g and v = -size
    moved = (difference or 0.1) * max(start, lr * gradient)
    product = (3 * (start + moved) ** 2 - 3 * start**2) / moved * r
    close(module.w.grad, torch.tensor([gradient - size + product], dtype=DOUBLE))


# --- rules that every learner keeps -----------------------------------------------------------

ALL = [PlainLearner, JointLearner, *TEMPORARY]


def make(learner, **options):
    return learner(inner_lr=0.01, **options) if learner in TEMPORARY else learner()


@pytest.mark.parametrize("learner", ALL)
def test_batch_norm_moves_once_as_in_one_plain_pass(learner):
    module, reference = Classifier(), Classifier()
    cross_entropy(reference, batch(1))
    options = {"inner_steps": 2} if learner in TEMPORARY else {}
    make(learner, **options).step(module, cross_entropy, batch(1), batch(2))
    for (name, found), wanted in zip(module.named_buffers(), reference.buffers(), strict=True):
        assert torch.equal(found, wanted), name
    assert module.net[1].num_batches_tracked == 1


@pytest.mark.parametrize("learner", ALL)
def test_random_layers_draw_the_same_in_every_pass(learner):
    seen = []

    class Noisy(Point):
        def draw(self):
            seen.append(F.dropout(torch.ones(50, dtype=DOUBLE)))
            return seen[-1]

    module = Noisy()
    torch.manual_seed(3)
    make(learner).step(module, lambda m, b: (m.w.sum() * m.draw() - b).square().sum(), 1.0, 2.0)
    assert len(seen) == {PlainLearner: 1, HessianFreeLearner: 3}.get(learner, 2)
    assert all(torch.equal(mask, seen[0]) for mask in seen)
    torch.manual_seed(3)
    assert torch.equal(seen[0], F.dropout(torch.ones(50, dtype=DOUBLE)))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Point()
        self.spare = nn.Parameter(torch.zeros(2, dtype=DOUBLE))

    @property
    def doubled(self):
        return 2 * self.inner.w


@pytest.mark.parametrize("read", [lambda m: m.inner.w, lambda m: m.doubled / 2])
def test_direct_reads_of_parameters_see_the_temporary_ones(read):
    (a, at), (b, bt) = bowl(1), bowl(5)

    def objective(module, bowl):
        off = read(module) - bowl[1]
        return 0.5 * off @ bowl[0] @ off

    wanted, found = Point(), Nested()
    MAMLLearner(inner="sgd", inner_lr=0.03).step(wanted, quadratic, (a, at), (b, bt))
    result = MAMLLearner(inner="sgd", inner_lr=0.03).step(found, objective, (a, at), (b, bt))
    close(found.inner.w.grad, wanted.w.grad)
    assert result.unused == ("spare",)
    assert found.spare.grad is None


@pytest.mark.parametrize("learner", TEMPORARY)
def test_a_meta_test_that_reaches_nothing_is_an_error(learner):
    def objective(module, which):
        return (module.inner.w if which == "train" else module.spare).square().sum()

    with pytest.raises(TrainingError, match=r"reaches no parameter.*inner\.w"):
        make(learner).step(Nested(), objective, "train", "test")


@pytest.mark.parametrize("learner", TEMPORARY)
def test_a_parameter_that_only_the_meta_test_reaches_still_learns(learner):
    def objective(module, which):
        loss = module.inner.w.square().sum()
        return loss if which == "train" else loss + (module.spare - 1).square().sum()

    module = Nested()
    assert make(learner).step(module, objective, "train", "test").unused == ()
    close(module.spare.grad, torch.full((2,), -2.0, dtype=DOUBLE))


@pytest.mark.parametrize("learner", TEMPORARY)
def test_frozen_parameters_stay_out(learner):
    module, objective, optimizer = case("both")
    module.color.offset.requires_grad_(False)
    learner().step(module, objective, batch(1), batch(2), optimizer=optimizer)
    assert module.color.offset.grad is None
    assert module.delta.delta.grad is not None


@pytest.mark.parametrize("learner", TEMPORARY)
def test_tied_parameters_are_one(learner):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Point(), Point()
            self.two.w = self.one.w

    def objective(module, bowl):
        return quadratic(module.one, bowl) + quadratic(module.two, bowl)

    def twice(module, bowl):
        return 2 * quadratic(module, bowl)

    tied, single = Tied(), Point()
    make(learner, inner="sgd").step(tied, objective, bowl(1), bowl(5))
    make(learner, inner="sgd").step(single, twice, bowl(1), bowl(5))
    close(tied.one.w.grad, single.w.grad, 1e-7)


def test_what_a_learner_lacks_is_said():
    (a, at), (b, bt) = bowl(1), bowl(5)
    with pytest.raises(InputError, match="inner_lr"):
        MAMLLearner().step(Point(), quadratic, (a, at), (b, bt))
    with pytest.raises(InputError, match="meta-test batch"):
        MAMLLearner(inner_lr=1.0).step(Point(), quadratic, (a, at))
    with pytest.raises(InputError, match="scaled"):
        MAMLLearner(inner="steepest")
    with pytest.raises(InputError, match="inner_steps"):
        LEARNERS.create("first_order", inner_steps=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difference": 0.0}, "difference must be .* above 0"),
        ({"inner_lr": 0.0}, "inner_lr must be .* above 0"),
        ({"inner_momentum": -0.1}, "inner_momentum must be .* at least 0"),
        ({"inner_steps": 0}, "inner_steps must be .* at least 1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        HessianFreeLearner(**options)


def test_options_are_reported():
    for learner in (PlainLearner, JointLearner):
        assert learner().config() == {}
    defaults = {
        "inner": "scaled",
        "inner_steps": 1,
        "inner_lr": None,
        "inner_momentum": None,
        "from_buffer": True,
        "keep_temporary": False,
    }
    for learner in (FirstOrderLearner, MAMLLearner):
        assert learner().config() == defaults
    assert HessianFreeLearner().config() == defaults | {"difference": 0.1}
    chosen = {"inner": "sgd", "inner_steps": 2, "inner_lr": 0.1, "inner_momentum": 0.0}
    assert HessianFreeLearner(**chosen).config() == defaults | chosen | {"difference": 0.1}


@pytest.mark.parametrize("learner", ALL)
def test_losses_and_unused_parameters_are_reported(learner):
    """A gradient of an earlier step does not survive where there is none in this one."""
    (a, at), (b, bt) = bowl(1), bowl(5)
    module = Nested()
    module.frozen = nn.Parameter(torch.zeros(1, dtype=DOUBLE), requires_grad=False)
    module.spare.grad = torch.ones(2, dtype=DOUBLE)
    w = module.inner.w.detach().clone()
    options = {"inner": "sgd"} if learner in TEMPORARY else {}
    result = make(learner, **options).step(
        module, lambda m, bowl: quadratic(m.inner, bowl), (a, at), (b, bt)
    )
    assert result.unused == ("spare",)
    assert module.spare.grad is None
    close(result.train_loss, 0.5 * (w - at) @ a @ (w - at))
    after = w - 0.01 * a @ (w - at) if learner in TEMPORARY else w
    if learner is PlainLearner:
        assert result.test_loss is None
    else:
        close(result.test_loss, 0.5 * (after - bt) @ b @ (after - bt))
        assert not result.test_loss.requires_grad
    assert not result.train_loss.requires_grad


@pytest.mark.parametrize("learner", TEMPORARY)
def test_a_meta_test_loss_without_a_gradient_is_an_error(learner):
    def objective(module, of_train):
        return module.w.square().sum() if of_train else torch.tensor(1.0)

    with pytest.raises(TrainingError, match="reaches no parameter"):
        make(learner).step(Point(), objective, True, False)
    with pytest.raises(TrainingError, match="moved none"):
        make(learner).step(Point(), lambda m, b: torch.tensor(1.0), True, False)


def test_maml_refuses_a_module_that_recomputes():
    module = Nested()
    module.inner.recomputes = True
    with pytest.raises(InputError, match="recompute"):
        MAMLLearner(inner_lr=0.1).step(module, lambda m, b: m.inner.w.sum(), 1.0, 1.0)
    module.inner.recomputes = False
    MAMLLearner(inner_lr=0.1).step(module, lambda m, b: m.inner.w.square().sum(), 1.0, 1.0)


class ShardedBowl(tuple):
    """A bowl that is the part of a joint batch."""

    shard = BatchShard(torch.arange(2), 4)


@pytest.mark.parametrize("learner", ALL)
def test_gradients_are_means_over_the_processes(learner, monkeypatch):
    """With another process whose gradients are zero, each mean is half of what is found here."""
    imagine_silent_peer(monkeypatch)
    (a, at), (b, bt) = bowl(1), bowl(5)
    module, lr = Point(), 0.03
    w = module.w.detach().clone()
    options = {"inner": "sgd", "inner_lr": lr} if learner in TEMPORARY else {}
    batches = ShardedBowl((a, at)), ShardedBowl((b, bt))
    learner(**options).step(module, quadratic, *batches)
    train = a @ (w - at) / 2
    test = b @ (w - lr * train - bt) / 2
    wanted = {
        PlainLearner: train,
        JointLearner: train + b @ (w - bt) / 2,
        FirstOrderLearner: train + test,
        HessianFreeLearner: train + test - lr * a @ test / 2,
        # Here the derivative of w' is averaged as well.
        MAMLLearner: train + (test - lr * a @ test / 2) / 2,
    }[learner]
    close(module.w.grad, wanted, 1e-7)


# --- networks without a second derivative -----------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "cure"),
    [
        (F.hardsigmoid, "hessian_free"),
        (F.hardsigmoid, "first_order"),
    ],
)
def test_a_missing_second_derivative_names_the_cure(operation, cure):
    def objective(module, b):
        return (operation(module.w.float().view(1, 1, 2, 2)) * b).square().sum()

    module = Point()
    with pytest.raises(TrainingError, match=cure):
        MAMLLearner(inner_lr=0.1).step(module, objective, 1.0, 2.0)
    for learner in (FirstOrderLearner, HessianFreeLearner):
        learner(inner_lr=0.1).step(module, objective, 1.0, 2.0)
        assert torch.isfinite(module.w.grad).all()


# --- memory -----------------------------------------------------------------------------------


def live_bytes():
    everything = (o for o in gc.get_objects() if issubclass(type(o), torch.Tensor))
    tensors = {id(o): o for o in everything if o.layout == torch.strided}
    return sum(t.untyped_storage().nbytes() for t in tensors.values())


@pytest.mark.parametrize("learner", ALL)
def test_memory_does_not_grow(learner):
    module, b = Classifier(), batch(1)
    made = make(learner)

    def steps(count):
        for _ in range(count):
            made.step(module, cross_entropy, b, b)

    steps(3)
    gc.collect()
    gc.disable()  # so that nothing but reference counts frees a tensor
    try:
        before = live_bytes()
        steps(200)
        assert live_bytes() <= before + 1000
    finally:
        gc.enable()
