"""Gradients away from the parameters: look-ahead and small batches, against loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers import SmoothEmbedder, TinyNet, noise_datasets, random_batch, rng
from reidguard.attacks import CombinatorialAttack, DeltaAttack
from reidguard.attacks.universal import base as universal_module
from reidguard.errors import InputError
from reidguard.learners import LEARNERS, FirstOrderLearner, PlainLearner
from reidguard.learners.displaced import DisplacedLearner, small_batch
from reidguard.objectives import FeatureObjective, InputCopies, MisrankingTriplet
from reidguard.training import MISGD
from reidguard.types import BatchShard, Budget, ReIDBatch

DOUBLE = torch.float64
LR = 0.004


def batch(seed):
    return random_batch(3, 4, (12, 10), seed=seed, low=0.3, high=0.7, dtype=DOUBLE)


def case(past=True):
    """An attack of two stages, its objective, and an optimiser with or without a past."""
    attack = CombinatorialAttack(Budget(0.1), resolution=4, size=(12, 10)).double()
    for number, p in enumerate(attack.parameters()):
        nn.init.uniform_(p, -0.03, 0.03, generator=rng(number))
    optimizer = MISGD(attack.parameters(), lr=LR, momentum=0.5)
    for number, p in enumerate(attack.parameters()):
        noise = torch.randn(p.shape, generator=rng(number + 50), dtype=DOUBLE)
        if past:
            optimizer.state[p]["momentum_buffer"] = noise / noise.abs().sum()
    return attack, FeatureObjective(SmoothEmbedder(), MisrankingTriplet()), optimizer


def rows(b, chosen):
    return ReIDBatch(
        *(getattr(b, name)[chosen] for name in ("images", "pids", "camids", "indices"))
    )


def gradients(learner, attack, objective, optimizer, values, train, test):
    """The learner's gradients at these parameters, in a second attack that is left alone."""
    with torch.no_grad():
        for p, value in zip(attack.parameters(), values, strict=True):
            p.copy_(value)
    learner.step(attack, objective, train, test, optimizer=optimizer)
    return [p.grad.clone() for p in attack.parameters()]


@pytest.mark.parametrize("name", ["plain", "joint", "first_order", "hessian_free", "maml"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_every_learner_against_a_loop(name, nesterov):
    attack, objective, optimizer = case()
    twin, _, other = case()
    start = [p.detach().clone() for p in attack.parameters()]
    values = start
    if nesterov:
        buffers = [optimizer.state[p]["momentum_buffer"] for p in attack.parameters()]
        values = [v - LR * b.sign() for v, b in zip(values, buffers, strict=True)]
    expected = [torch.zeros_like(v) for v in start]
    for part in ([0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]):
        found = gradients(
            LEARNERS.create(name),
            twin,
            objective,
            other,
            values,
            rows(batch(1), part),
            rows(batch(2), part),
        )
        expected = [e + g for e, g in zip(expected, found, strict=True)]
        values = [v - LR * g.sign() for v, g in zip(values, found, strict=True)]
    displaced = DisplacedLearner(LEARNERS.create(name), 2, nesterov)
    assert displaced.needs_meta_test == (name != "plain")
    displaced.step(attack, objective, batch(1), batch(2), optimizer=optimizer)
    for p, gradient, before in zip(attack.parameters(), expected, start, strict=True):
        assert torch.equal(p, before)
        torch.testing.assert_close(p.grad, gradient, rtol=1e-6, atol=1e-12)


def quadratic(module, b):
    """½ Σ over images of (w − mean pixel)²: at w its gradient is n·w − Σ of the means."""
    return 0.5 * (module.weight.flatten()[0] - b.images.mean((1, 2, 3))).square().sum()


def point():
    module = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(module.weight, 0.9)
    return module


def test_small_batches_of_a_quadratic():
    """Two images of one identity: the gradients are 0.9 − a, and 0.9 − lr − b."""
    means = torch.tensor([0.2, 0.4], dtype=DOUBLE)
    index = torch.arange(2)
    b = ReIDBatch(means.view(2, 1, 1, 1).expand(2, 3, 2, 2), index * 0, index, index)
    module = point()
    optimizer = MISGD(module.parameters(), lr=0.1)
    result = DisplacedLearner(PlainLearner(), 2).step(module, quadratic, b, optimizer=optimizer)
    assert module.weight.grad.item() == pytest.approx((0.9 - 0.2) + (0.8 - 0.4))
    assert result.train_loss.item() == pytest.approx((0.5 * 0.7**2 + 0.5 * 0.4**2) / 2)
    assert result.test_loss is None
    assert module.weight.item() == 0.9


def test_looking_ahead_follows_the_momentum_alone():
    module, b = point(), random_batch(1, 3, (2, 2), dtype=DOUBLE)
    optimizer = MISGD(module.parameters(), lr=0.1, momentum=0.5)
    learner = DisplacedLearner(PlainLearner(), nesterov=True)
    total = b.images.mean((1, 2, 3)).sum().item()
    learner.step(module, quadratic, b, optimizer=optimizer)
    assert module.weight.grad.item() == pytest.approx(3 * 0.9 - total)  # no momentum yet
    optimizer.step()
    here = module.weight.item()
    assert here == pytest.approx(0.8)
    learner.step(module, quadratic, b, optimizer=optimizer)
    assert module.weight.grad.item() == pytest.approx(3 * (here - 0.1) - total)
    assert module.weight.item() == here
    optimizer.param_groups[0]["momentum"] = 0.0
    learner.step(module, quadratic, b, optimizer=optimizer)
    assert module.weight.grad.item() == pytest.approx(3 * here - total)


def test_every_move_ends_inside_the_bounds():
    """At the border of the ball a look-ahead outwards stays there, so no gradient is cut off."""
    attack, objective, optimizer = case()
    eps = attack.budget.eps
    with torch.no_grad():
        for p in attack.parameters():
            p.copy_(-eps * optimizer.state[p]["momentum_buffer"].sign())
    seen = []

    def watching(module, b):
        seen.append(max(p.detach().abs().max().item() for p in module.parameters()))
        return objective(module, b)

    learner = DisplacedLearner(PlainLearner(), 4, True, attack.clip_parameters)
    learner.step(attack, watching, batch(1), optimizer=optimizer)
    assert len(seen) == 4
    assert max(seen) == eps


def test_temporary_parameters_are_kept_where_the_learner_keeps_them():
    attack, objective, optimizer = case(past=False)
    before = [p.detach().clone() for p in attack.parameters()]
    learner = FirstOrderLearner(inner="sign", keep_temporary=True)
    for parts in (1, 2):
        DisplacedLearner(learner, parts).step(
            attack, objective, batch(1), batch(2), optimizer=optimizer
        )
        for p, old in zip(attack.parameters(), before, strict=True):
            moved = (p.detach() - old).abs().max().item()
            assert moved == pytest.approx(parts * LR)
            p.data.copy_(old)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_small_batch_of_a_shard_is_the_shard_of_the_small_batch(parts):
    joint = batch(1)
    here = torch.tensor([4, 5, 6, 7])  # the second of three identities
    shard = ReIDBatch(**{**vars(rows(joint, here)), "shard": BatchShard(here, 12)})
    for part in range(parts):
        whole, own = small_batch(joint, part, parts), small_batch(shard, part, parts)
        if parts > 1:
            assert own.shard.total == len(whole) == 12 // parts
        assert torch.equal(whole.images[own.shard.rows], own.images)
        assert torch.equal(whole.pids[own.shard.rows], own.pids)
    assert small_batch(None, 0, parts) is None


def test_it_needs_the_optimizer():
    attack, objective, _ = case()
    with pytest.raises(InputError, match="pass step\\(\\) the optimizer"):
        DisplacedLearner(PlainLearner(), 2).step(attack, objective, batch(1))


SIZE = (32, 16)
SMALL = {"image_size": SIZE, "identities": 2, "images_per_identity": 4}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return noise_datasets(tmp_path_factory.mktemp("sets"), 4, SIZE)


def test_fit_takes_the_learner_as_it_is_where_both_are_off(sets, monkeypatch):
    calls = []
    monkeypatch.setattr(
        universal_module, "learn", lambda module, **words: calls.append(words) or 0.0
    )
    learner = PlainLearner()
    attack = DeltaAttack(size=SIZE)
    attack.fit(TinyNet(), sets[0], steps=1, learner=learner, **SMALL)
    attack.fit(TinyNet(), sets[0], steps=1, learner=learner, nesterov=True, **SMALL)
    attack.fit(TinyNet(), sets[0], steps=1, learner=learner, aggregate=4, **SMALL)
    first, second, third = (call["learner"] for call in calls)
    assert first is learner
    assert (second.learner, second.parts, second.nesterov) == (learner, 1, True)
    assert (third.learner, third.parts, third.nesterov) == (learner, 4, False)
    assert attack.provenance["learner"] == "plain"


def test_parts_divide_the_images_of_an_identity(sets):
    with pytest.raises(InputError, match="aggregate=3 does not divide images_per_identity=4"):
        DeltaAttack(size=SIZE).fit(TinyNet(), sets[0], steps=1, aggregate=3, **SMALL)


def test_an_interrupted_run_resumes_with_the_same_bits(sets, tmp_path):
    options = {"nesterov": True, "aggregate": 2, "shift": 2, "admix": 0.2, "scales": 2}
    options |= {**SMALL, "steps": 5, "checkpoint_every": 2}

    class StopError(Exception):
        pass

    def stop(progress):
        if progress.phase == "learning" and progress.done == 3:
            raise StopError

    def attack(**more):
        torch.manual_seed(0)
        return DeltaAttack(size=SIZE).fit(TinyNet(), sets[0], **options, **more)

    path = tmp_path / "checkpoint"
    with pytest.raises(StopError):
        attack(checkpoint=path, progress=stop)
    assert path.exists()
    assert torch.equal(attack(checkpoint=path).delta, attack().delta)


def test_the_passes_of_a_step(sets):
    """Images that the surrogate sees with a gradient: scales times the batch, in small batches."""
    sizes = []

    class Counted(TinyNet):
        def embed(self, inputs):
            if inputs.requires_grad:
                sizes.append(len(inputs))
            return super().embed(inputs)

    attack, model = DeltaAttack(size=SIZE), Counted()
    for options, expected in (
        ({}, [8]),
        ({"nesterov": True, "shift": 2, "admix": 0.2}, [8]),
        ({"scales": 3}, [8, 8, 8]),
        ({"aggregate": 2}, [4, 4]),
        ({"aggregate": 2, "scales": 3}, [4] * 6),
    ):
        sizes.clear()
        attack.fit(model, sets[0], steps=1, **options, **SMALL)
        assert sizes == expected, options


def test_maml_differentiates_through_the_copies():
    """The exact gradient of two stages against finite differences of the written-out loss."""
    attack, _, optimizer = case()
    copies = InputCopies(shift=2, scales=2, admix=0.2)
    objective = FeatureObjective(SmoothEmbedder(), MisrankingTriplet(), copies)
    learner = LEARNERS.create("maml", inner="sgd", inner_lr=0.05, inner_momentum=0.0)

    def total():
        """L_mtr(w) + L_mte(w − lr ∇L_mtr(w)), with the same draws in both."""
        torch.manual_seed(3)
        loss = objective(attack, batch(1))
        slopes = torch.autograd.grad(loss, list(attack.parameters()))
        values = [p.detach().clone() for p in attack.parameters()]
        with torch.no_grad():
            for p, slope in zip(attack.parameters(), slopes, strict=True):
                p.sub_(0.05 * slope)
            torch.manual_seed(3)
            result = loss + objective(attack, batch(2))
            for p, value in zip(attack.parameters(), values, strict=True):
                p.copy_(value)
        return result.item()

    torch.manual_seed(3)
    learner.step(attack, objective, batch(1), batch(2), optimizer=optimizer)
    delta = attack.delta.delta
    found, direction = delta.grad.clone(), torch.randn(delta.shape, generator=rng(9), dtype=DOUBLE)
    middle, h, ends = delta.detach().clone(), 1e-6, []
    for sign in (1, -1):
        delta.data.copy_(middle + sign * h * direction)
        ends.append(total())
    expected = (ends[0] - ends[1]) / (2 * h)
    assert (found * direction).sum().item() == pytest.approx(expected, rel=1e-5)
