import pytest
import torch

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack
from reidguard.types import Budget

SIZE = (8, 4)


def learnt(stacked, scale=1.0):
    """Both stages at random places of their balls."""
    g = torch.Generator().manual_seed(0)
    attack = CombinatorialAttack(Budget(8 / 255), 5, SIZE, stacked)
    attack.color.offset.data.uniform_(-scale * 8 / 255, scale * 8 / 255, generator=g)
    attack.delta.delta.data.uniform_(-scale * 8 / 255, scale * 8 / 255, generator=g)
    attack.clip_parameters()
    return attack


def parts(attack):
    """The same stages as attacks of their own."""
    color, delta = ColorAttack(Budget(8 / 255), 5), DeltaAttack(Budget(8 / 255), SIZE)
    color.load_state_dict(attack.color.state_dict())
    delta.load_state_dict(attack.delta.state_dict())
    return color, delta


X = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_inside_the_ball_it_is_the_sum_of_its_stages():
    attack = learnt(stacked=False, scale=0.4)
    color, delta = parts(attack)
    torch.testing.assert_close(attack(X), (color.perturb(X) + delta.delta).clamp(0, 1))


def test_joint_stays_in_one_ball_where_stacked_leaves_it():
    joint, stacked = learnt(stacked=False), learnt(stacked=True)
    assert (joint(X) - X).abs().max() <= 8 / 255 + 1e-6
    reached = (stacked(X) - X).abs().max()
    assert 8 / 255 + 1e-3 < reached <= 16 / 255 + 1e-6
    assert stacked.budget == Budget(16 / 255)  # and it says so


def test_stacked_is_one_attack_after_the_other():
    attack = learnt(stacked=True)
    color, delta = parts(attack)
    torch.testing.assert_close(attack(X), delta(color(X)))


def test_a_pixel_beyond_the_ball_moves_neither_stage():
    attack = CombinatorialAttack(Budget(8 / 255), 2, (1, 2))
    attack.color.offset.data.fill_(6 / 255)
    attack.delta.delta.data[..., 0] = 6 / 255  # 12 in all: clipped
    attack.delta.delta.data[..., 1] = 1 / 255  # 7 in all: free
    attack(torch.full((1, 3, 1, 2), 0.5)).sum().backward()
    assert attack.delta.delta.grad[..., 0].eq(0).all()
    assert attack.delta.delta.grad[..., 1].eq(1).all()
    assert attack.color.offset.grad.sum() == pytest.approx(3)  # the free pixel's three channels


def test_stage_sizes_are_means_over_pixels():
    attack = CombinatorialAttack(Budget(8 / 255), 3, SIZE)
    attack.color.offset.data.fill_(2 / 255)
    attack.delta.delta.data.fill_(-3 / 255)
    recoloured, added = attack.stage_sizes(torch.full((1, 3, *SIZE), 0.5))
    assert recoloured * 255 == pytest.approx(2, abs=1e-4)
    assert added * 255 == pytest.approx(3, abs=1e-4)
