"""The copies of adversarial images that a surrogate sees, against loops and a linear embedder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from helpers import TinyNet, imagine_silent_peer, noise_datasets, random_batch, rng
from reidguard.attacks import (
    ColorAttack,
    CombinatorialAttack,
    DeltaAttack,
    MetaAttack,
    MisRank,
    UAPRetrieval,
)
from reidguard.errors import InputError
from reidguard.objectives import AttackLoss, FeatureObjective, InputCopies, MisrankingTriplet
from reidguard.objectives.diversity import diverse
from reidguard.objectives.inputs import partners, shifted
from reidguard.types import BatchShard, ReIDBatch

ALL = {"diversity": 0.6, "shift": 3, "scales": 3, "admix": 0.3}
SIZE = (32, 16)
SMALL = {"image_size": SIZE, "identities": 2, "images_per_identity": 2, "steps": 2}
DOUBLE = torch.float64


class Means:
    """Features are the means of an image's quarters, so that a shift changes them."""

    metric = "euclidean"

    def features(self, x):
        return F.adaptive_avg_pool2d(x, 2).flatten(1)


def moved_by_loops(image, right, down):
    result = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                result[:, y, x] = image[:, y - down, x - right]
    return result


def test_a_shift_moves_whole_pixels_and_leaves_black():
    images = torch.rand(5, 3, 7, 5, generator=rng(0))
    draws = torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.5], [0.3, 0.9], [0.61, 0.2]])
    found = shifted(images, draws, 2)  # five places each way, a fifth of the draws for each
    moves = [(-2, -2), (2, 2), (0, 0), (-1, 2), (1, -1)]
    for image, result, (right, down) in zip(images, found, moves, strict=True):
        assert torch.equal(result, moved_by_loops(image, right, down))


def test_a_shift_beyond_the_image_leaves_nothing():
    images = torch.rand(1, 3, 2, 2)
    assert not shifted(images, torch.zeros(1, 2), 2).any()


def test_a_shift_has_both_derivatives():
    x = torch.rand(2, 3, 4, 3, dtype=DOUBLE, generator=rng(0), requires_grad=True)
    draws = torch.tensor([[0.0, 0.7], [0.9, 0.4]])

    def square(v):
        return shifted(v, draws, 1).square()

    assert torch.autograd.gradcheck(square, x)
    assert torch.autograd.gradgradcheck(square, x)


def test_partners_are_of_other_identities_and_equally_likely():
    pids = torch.tensor([7, 7, 2, 2, 2, 5])
    for n, (pid, others) in enumerate([(7, [2, 3, 4, 5]), (2, [0, 1, 5]), (5, [0, 1, 2, 3, 4])]):
        draws = (torch.arange(1200) + 0.5) / 1200
        rows = partners(torch.full((1200,), pid), pids, draws)
        counts = torch.bincount(rows, minlength=6)
        assert counts.nonzero().flatten().tolist() == others, n
        assert (counts[others] - 1200 / len(others)).abs().max() <= 1
    assert int(partners(pids[:2], pids[:2], torch.tensor([0.0, 0.9]))[0]) in (0, 1)


def copies_by_loops(attack, batch, options, total, rows):
    """Copies written out image by image, with the draws in the order of the documentation."""
    copies, images = [], attack(batch.images)
    for power in range(options["scales"]):
        partner = torch.rand(total, 1)[rows, 0]
        shrink, move = torch.rand(total, 4)[rows], torch.rand(total, 2)[rows]
        copy = []
        for n, image in enumerate(images):
            others = [i for i, pid in enumerate(batch.pids) if pid != batch.pids[n]]
            other = batch.images[others[int(partner[n] * len(others))]]
            seen = (image + options["admix"] * other) / 2**power
            seen = diverse(seen[None], shrink[n][None], options["diversity"])[0]
            places = 2 * options["shift"] + 1
            right, down = (int(d * places) - options["shift"] for d in move[n])
            copy.append(moved_by_loops(seen, right, down))
        copies.append(torch.stack(copy))
    return copies


def test_all_together_against_loops():
    batch, model = random_batch(3, 2, (12, 8), seed=1), Means()
    loss = MisrankingTriplet(margin=9.0)
    torch.manual_seed(4)
    found = FeatureObjective(model, loss, InputCopies(**ALL))(lambda x: x / 2, batch)
    torch.manual_seed(4)
    copies = copies_by_loops(lambda x: x / 2, batch, ALL, 6, torch.arange(6))
    clean = model.features(batch.images)
    expected = [loss(model.features(copy), clean, batch.pids) for copy in copies]
    torch.testing.assert_close(found, sum(expected) / 3)


def test_the_copies_of_a_shard_are_its_rows_of_the_joint_ones(monkeypatch):
    """Of eight rows, 0, 1, 4 and 5 are another process's, with zeros as its images."""
    imagine_silent_peer(monkeypatch)
    rows = torch.tensor([2, 3, 6, 7])
    joint = random_batch(4, 2, (12, 8), seed=2)
    joint.images[[0, 1, 4, 5]] = 0
    joint.pids[[0, 1, 4, 5]] = 0  # zeros, too
    parts = {k: v[rows] for k, v in vars(joint).items() if isinstance(v, torch.Tensor)}
    shard = ReIDBatch(**parts, shard=BatchShard(rows, 8))
    for options in (ALL, {"admix": 0.5}, {"shift": 4}):
        copies = InputCopies(**options)
        torch.manual_seed(4)
        found = list(copies(shard.images / 2, shard))
        torch.manual_seed(4)
        for one, whole in zip(found, copies(joint.images / 2, joint), strict=True):
            torch.testing.assert_close(one, whole[rows])


class MoveAlong(AttackLoss):
    def __init__(self, direction):
        self.direction = direction

    def __call__(self, adversarial, clean, pids):
        return -((adversarial - clean) @ self.direction).mean()


class Linear:
    metric = "euclidean"
    weight = torch.randn(5, 3 * 4 * 2, dtype=DOUBLE, generator=rng(0))

    def features(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("admix", [0.0, 0.4])
def test_the_gradient_of_a_linear_embedder_by_scaled_copies(admix):
    """φ(x) = Wx, to be moved along u: each copy has −Wᵀu / 2^i; what is mixed in is constant."""
    direction = torch.randn(5, dtype=DOUBLE, generator=rng(1))
    batch = random_batch(2, 2, (4, 2), low=0.3, high=0.7, dtype=DOUBLE)
    attack = DeltaAttack(size=(4, 2)).double()
    copies = InputCopies(scales=4, admix=admix)
    FeatureObjective(Linear(), MoveAlong(direction), copies)(attack, batch).backward()
    expected = -(Linear.weight.T @ direction) * (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4
    torch.testing.assert_close(attack.delta.grad.flatten(), expected)


def test_the_gradient_of_a_linear_embedder_by_shifts():
    """−Wᵀu, moved back by the shift of each image and cut off at the border; their mean."""
    direction = torch.randn(5, dtype=DOUBLE, generator=rng(1))
    batch = random_batch(5, 4, (4, 2), low=0.3, high=0.7, dtype=DOUBLE)
    attack = DeltaAttack(size=(4, 2)).double()
    torch.manual_seed(0)
    FeatureObjective(Linear(), MoveAlong(direction), InputCopies(shift=1))(attack, batch).backward()
    torch.manual_seed(0)
    pattern = (Linear.weight.T @ direction).view(3, 4, 2)
    places = [(int(3 * right) - 1, int(3 * down) - 1) for right, down in torch.rand(20, 2)]
    assert len(set(places)) > 5
    expected = -sum(moved_by_loops(pattern, -right, -down) for right, down in places) / 20
    torch.testing.assert_close(attack.delta.grad[0], expected)


def test_off_is_off():
    batch = random_batch(2, 2, (12, 8))
    before = torch.get_rng_state()
    (only,) = InputCopies()(batch.images, batch)
    assert only is batch.images
    (same,) = InputCopies(shift=0, scales=1, admix=0.0, diversity=0.0)(batch.images, batch)
    assert same is batch.images
    list(InputCopies(scales=3)(batch.images, batch))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return noise_datasets(tmp_path_factory.mktemp("sets"), 4, SIZE)


def fitted(attack, sets, models, **options):
    torch.manual_seed(0)
    surrogates = [TinyNet() for _ in range(models)]
    attack.fit(surrogates if models > 1 else surrogates[0], *sets, **options, **SMALL)
    return torch.cat([p.detach().flatten() for p in attack.parameters()]), attack


LEARNT = [
    (lambda: DeltaAttack(size=SIZE), 1, {"learner": "joint"}),
    (lambda: DeltaAttack(basis="blocks", grid=(4, 2)), 2, {"ensemble": "loss"}),
    (lambda: DeltaAttack(basis="dct", grid=(4, 2)), 2, {"ensemble": "gradient"}),
    (lambda: ColorAttack(resolution=3), 2, {"learner": "first_order"}),
    (lambda: CombinatorialAttack(resolution=3, size=SIZE), 1, {"learner": "hessian_free"}),
    (lambda: MetaAttack("delta", size=SIZE), 2, {}),
    (lambda: MetaAttack("delta", size=SIZE), 2, {"ensemble": "left_out"}),
    (lambda: DeltaAttack(size=SIZE), 2, {"ensemble": "logits", "objective": "labelwise"}),
    (lambda: MetaAttack("delta", preset="released", size=SIZE), 1, {}),
    (lambda: UAPRetrieval(size=SIZE), 1, {"objective": "self_metric"}),
]


@pytest.mark.parametrize(("make", "models", "options"), LEARNT)
def test_every_attack_and_learner_takes_all_of_them(sets, make, models, options):
    more = {**ALL, "nesterov": True, "aggregate": 2}
    one, attack = fitted(make(), sets, models, **options, **more)
    again, _ = fitted(make(), sets, models, **options, **more)
    without, other = fitted(make(), sets, models, **options)
    assert torch.equal(one, again)
    assert not torch.equal(one, without)
    assert {name: attack.provenance[name] for name in more} == more
    off = {"diversity": 0.0, "shift": 0, "scales": 1, "admix": 0.0}
    off |= {"nesterov": False, "aggregate": 1}
    assert {name: other.provenance[name] for name in more} == off
    same, _ = fitted(make(), sets, models, **options, **off)
    assert torch.equal(same, without)


@pytest.mark.parametrize("name", ["diversity", "shift", "scales", "admix", "nesterov", "aggregate"])
def test_each_alone_changes_the_attack(sets, name):
    value = {**ALL, "nesterov": True, "aggregate": 2}[name]
    steps = {**SMALL, "steps": 4}
    deltas = []
    for options in ({}, {name: value}):
        torch.manual_seed(0)
        attack = DeltaAttack(size=SIZE).fit(TinyNet(), sets[0], **{**steps, **options})
        deltas.append(attack.delta.detach())
    assert not torch.equal(*deltas)


def test_misrank_takes_none(sets):
    with pytest.raises(InputError, match="unknown option 'scales'"):
        MisRank(size=SIZE, width=2).fit(TinyNet(), sets[0], scales=2, **SMALL)
