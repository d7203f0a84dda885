import pytest
import torch
import torch.nn.functional as F

from reidguard.attacks import DeltaAttack
from reidguard.types import Budget


def test_delta_is_added_and_pixels_stop_at_black_and_white():
    attack = DeltaAttack(Budget(8 / 255), size=(4, 2))
    attack.delta.data.copy_(torch.linspace(-8 / 255, 8 / 255, 24).view(1, 3, 4, 2))
    x = torch.rand(5, 3, 4, 2)
    torch.testing.assert_close(attack(x), (x + attack.delta).clamp(0, 1))


def test_delta_is_resized_to_the_image():
    attack = DeltaAttack(size=(8, 4))
    attack.delta.data.uniform_(-0.02, 0.02)
    x = torch.full((1, 3, 12, 9), 0.5)
    expected = F.interpolate(attack.delta, (12, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(attack(x) - x, expected)
    # corners stay corners
    torch.testing.assert_close((attack(x) - x)[0, :, 0, 0], attack.delta[0, :, 0, 0])


def test_gradient_is_zero_where_the_pixel_is_clipped():
    attack = DeltaAttack(Budget(8 / 255), size=(1, 2))
    attack.delta.data.fill_(4 / 255)
    x = torch.tensor([0.5, 1.0]).expand(1, 3, 1, 2)
    attack(x).sum().backward()
    assert attack.delta.grad[..., 0].eq(1).all()
    assert attack.delta.grad[..., 1].eq(0).all()


def test_clip_parameters_keeps_the_budget():
    attack = DeltaAttack(Budget(2 / 255), size=(4, 4))
    attack.delta.data.normal_()
    attack.clip_parameters()
    assert attack.delta.abs().max() <= 2 / 255


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="height, width"):
        DeltaAttack(size=(0, 4))
