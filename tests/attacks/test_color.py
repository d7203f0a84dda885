import numpy as np
import pytest
import torch
from PIL import Image

from reidguard.attacks import ColorAttack
from reidguard.attacks.universal.color import interpolate_colors
from reidguard.types import Budget


def eight_corners(table, colour):
    """Trilinear interpolation of one colour, spelt out."""
    top = table.shape[-1] - 1
    u = [float(c) * top for c in colour]
    low = [min(int(v), top - 1) for v in u]
    result = torch.zeros(3, dtype=table.dtype)
    for dr in (0, 1):
        for dg in (0, 1):
            for db in (0, 1):
                weight = 1.0
                for value, base, corner in zip(u, low, (dr, dg, db), strict=True):
                    weight *= value - base if corner else 1 - (value - base)
                result += weight * table[:, low[0] + dr, low[1] + dg, low[2] + db]
    return result


@pytest.mark.parametrize("resolution", [2, 3, 25])
def test_interpolation_matches_eight_corners(resolution):
    g = torch.Generator().manual_seed(resolution)
    table = torch.randn(3, resolution, resolution, resolution, generator=g, dtype=torch.float64)
    x = torch.rand(2, 3, 4, 3, generator=g, dtype=torch.float64)
    x[0, :, 0, 0], x[1, :, 0, 0] = 0, 1  # the ends of the cube
    result = interpolate_colors(table, x)
    for n in range(2):
        for i in range(4):
            for j in range(3):
                expected = eight_corners(table, x[n, :, i, j])
                torch.testing.assert_close(result[n, :, i, j], expected)


def test_interpolation_has_first_and_second_derivatives():
    table = torch.randn(3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.rand(2, 3, 2, 2, dtype=torch.float64)

    def nonlinear(table):  # linear in the table alone, so the second derivative needs a square
        return interpolate_colors(table, x) ** 2

    assert torch.autograd.gradcheck(nonlinear, (table,))
    assert torch.autograd.gradgradcheck(nonlinear, (table,))


def test_gradient_reaches_the_image():
    table = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    inner = (torch.rand(1, 3, 2, 2, dtype=torch.float64) * 0.3 + 0.02).requires_grad_()
    # 0.02 to 0.32 lies inside the first cell of four nodes, away from kinks
    assert torch.autograd.gradcheck(lambda x: interpolate_colors(table, x), (inner,))


def test_a_constant_offset_moves_a_constant_image_by_itself():
    attack = ColorAttack(Budget(8 / 255), resolution=7)
    attack.offset.data[0], attack.offset.data[2] = 3 / 255, -5 / 255
    x = torch.full((1, 3, 6, 4), 0.4)
    moved = (attack(x) - x) * 255
    torch.testing.assert_close(moved[0, :, 0, 0], torch.tensor([3.0, 0.0, -5.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_identity_changes_no_bit(dtype):
    x = (torch.randint(0, 256, (2, 3, 16, 8)) / 255).to(dtype)
    assert torch.equal(ColorAttack()(x), x)


def test_clipped_nodes_bound_every_pixel_without_the_projection():
    attack = ColorAttack(Budget(4 / 255), resolution=5)
    attack.offset.data.normal_(generator=torch.Generator().manual_seed(0))
    attack.clip_parameters()
    x = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(1))
    f = attack.perturb(x)
    assert (f - x).abs().max() <= 4 / 255 + 1e-6
    assert f.min() >= -1e-6
    assert f.max() <= 1 + 1e-6


def random_attack():
    attack = ColorAttack(Budget(8 / 255), resolution=9)
    attack.offset.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    attack.offset.data *= 8 / 255
    attack.clip_parameters()
    return attack


def test_pillow_applies_the_same_colours():
    attack = random_attack()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    ours = attack(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    theirs = np.asarray(Image.fromarray(pixels).filter(attack.to_pillow()), dtype=float)
    difference = ours[0].permute(1, 2, 0).detach().numpy() * 255 - theirs
    assert np.abs(difference).max() <= 1  # Pillow computes in 16-bit integers


def test_cube_file_lists_the_table_with_red_fastest(tmp_path):
    attack = random_attack()
    attack.save_cube(tmp_path / "attack.cube")
    lines = (tmp_path / "attack.cube").read_text().splitlines()
    assert lines[1] == "LUT_3D_SIZE 9"
    table = np.array([line.split() for line in lines[2:]], dtype=float).reshape(9, 9, 9, 3)
    blue_green_red = attack.lut.detach().permute(3, 2, 1, 0).numpy()
    np.testing.assert_allclose(table, blue_green_red, atol=1e-6)
    # the second line after the header is one node further in red
    assert abs(float(lines[3].split()[0]) - 1 / 8) <= 8 / 255 + 1e-6
