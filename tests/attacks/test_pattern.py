"""Fixed patterns: values, periods and phases against explicit loops, and what they refuse."""

import math

import pytest
import torch

from reidguard.attacks import PatternAttack, fixed_patterns, load_attack
from reidguard.errors import InputError
from reidguard.types import Budget

EIGHT = Budget(8 / 255)


def levels(attack, height, width):
    """One channel in grey levels."""
    return (255 * attack.pattern(height, width)[0, 0]).round().int()


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_a_checkerboard_has_squares_of_half_a_period(shift):
    attack = PatternAttack(EIGHT, "checkerboard", period=8, phase=(shift / 8, 0), size=(16, 12))
    board = levels(attack, 16, 12)
    for i in range(16):
        for j in range(12):
            expected = 8 if ((i + shift) // 4 + j // 4) % 2 == 0 else -8
            assert board[i, j] == expected


def test_stripes_are_horizontal_and_turn_with_the_angle():
    flat = levels(PatternAttack(EIGHT, "stripes", period=4, size=(8, 8)), 8, 8)
    assert flat[:, 0].tolist() == [8, 8, -8, -8] * 2
    assert (flat == flat[:, :1]).all()
    upright = levels(PatternAttack(EIGHT, "stripes", period=4, size=(8, 8), angle=90), 8, 8)
    assert torch.equal(upright, flat.T)


def test_a_tint_moves_each_channel_by_its_factor():
    attack = PatternAttack(Budget(10 / 255), "tint", color=(1, -0.5, 0))
    x = torch.full((2, 3, 5, 4), 0.5)
    moved = 255 * (attack(x) - x)
    expected = torch.tensor([10.0, -5.0, 0.0]).view(1, 3, 1, 1).expand(2, 3, 5, 4)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_a_pattern_is_stretched_to_the_image_and_stays_sharp():
    attack = PatternAttack(EIGHT, "checkerboard", period=8, size=(16, 12))
    small = levels(attack, 16, 12)
    large = levels(attack, 32, 24)
    assert torch.equal(large, small.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_gabor_noise_has_the_wavelength_of_its_period():
    """The strongest frequency across its stripes is the one that the period says."""
    for period in (8, 16, 32):
        attack = PatternAttack(EIGHT, "gabor", period=period, size=(128, 64))
        spectrum = torch.fft.rfft(attack.pattern(128, 64)[0, 0], dim=0).abs().pow(2).mean(1)
        assert int(spectrum.argmax()) == pytest.approx(128 / period, rel=0.3)


def perlin_by_hand(angle, u, v):
    """Ken Perlin's noise at one point: four gradients, each times the way from its node."""
    total = 0.0
    for i in (math.floor(u), math.floor(u) + 1):
        for j in (math.floor(v), math.floor(v) + 1):
            du, dv = u - i, v - j
            weight = 1.0
            for t in (1 - abs(du), 1 - abs(dv)):
                weight *= 6 * t**5 - 15 * t**4 + 10 * t**3
            at = float(angle[i % len(angle), j % len(angle)])
            total += weight * (math.cos(at) * du + math.sin(at) * dv)
    return total


def test_perlin_noise_is_that_of_its_definition():
    attack = PatternAttack(EIGHT, "perlin", period=5, size=(20, 10), seed=3)
    nodes = math.ceil(19.5 / 5 - 0.5 / 5) + 2
    generator = torch.Generator().manual_seed(3)
    angle = 2 * math.pi * torch.rand(nodes, nodes, generator=generator, dtype=torch.float64)
    board = levels(attack, 20, 10)
    for i in range(20):
        for j in range(10):
            noise = perlin_by_hand(angle, (i + 0.5) / 5, (j + 0.5) / 5)
            assert board[i, j] == (8 if noise >= 0 else -8)


@pytest.mark.parametrize("kind", ["gabor", "perlin"])
def test_noise_depends_on_its_seed_and_its_phase(kind):
    def noise(**options):
        return PatternAttack(EIGHT, kind, period=8, size=(32, 16), **options).pattern(32, 16)

    assert torch.equal(noise(), noise())
    assert not torch.equal(noise(), noise(seed=1))
    assert not torch.equal(noise(), noise(phase=(0.3, 0)))


@pytest.mark.parametrize("name", fixed_patterns())
def test_each_pattern_of_the_family_uses_the_whole_budget(name, tmp_path):
    attack = fixed_patterns(Budget(4 / 255))[name]
    assert attack.pattern(64, 32).abs().unique().mul(255).tolist() == pytest.approx([4.0])
    attack.save(tmp_path / "p.safetensors")
    loaded = load_attack(tmp_path / "p.safetensors")
    assert loaded.config() == attack.config()
    x = torch.rand(1, 3, 20, 10)
    assert torch.equal(loaded(x), attack(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "checkboard"}, "did you mean 'checkerboard'"),
        ({"period": 1.5}, "period must be a finite number, at least 2"),
        ({"period": math.nan}, "period must be"),
        ({"phase": (0.0, math.inf)}, "phase must be"),
        ({"phase": (0.0,)}, "phase must be"),
        ({"angle": math.nan}, "angle"),
        ({"color": (1, 2, 0)}, "color must be"),
        ({"color": (1, 1)}, "color must be"),
        ({"size": (0, 4)}, "size must be"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PatternAttack(**options)
