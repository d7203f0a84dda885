"""MS-SSIM against the SSIM of the evaluation, and against windows cut out one by one."""

import pytest
import torch
import torch.nn.functional as F

from reidguard.errors import InputError
from reidguard.metrics.quality import ms_ssim, ssim

WEIGHTS = (0.0448, 0.2856)  # Wang et al. 2003, of the two finest scales


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return a, (a + 0.2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).clamp(0, 1)


def test_where_one_scale_fits_it_is_ssim():
    a, b = pair(3, 3, 21, 16)
    torch.testing.assert_close(ms_ssim(a, b), ssim(a, b))


def structure_by_windows(a, b):
    """Contrast and structure, and luminance too, of each window of one channel by itself."""
    taps = torch.tensor(
        [-((i - 5) ** 2) / (2 * 1.5**2) for i in range(11)], dtype=torch.float64
    ).exp()
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    structures, wholes = [], []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (kernel * p).sum(), (kernel * q).sum()
            variance_p = (kernel * (p - mean_p) ** 2).sum()
            variance_q = (kernel * (q - mean_q) ** 2).sum()
            covariance = (kernel * (p - mean_p) * (q - mean_q)).sum()
            structure = (2 * covariance + 0.03**2) / (variance_p + variance_q + 0.03**2)
            luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
            structures.append(structure)
            wholes.append(luminance * structure)
    return torch.stack(structures).mean(), torch.stack(wholes).mean()


def mean_over_channels(a, b, which):
    parts = [structure_by_windows(a[0, c], b[0, c])[which] for c in range(3)]
    return torch.stack(parts).mean()


@pytest.mark.parametrize("size", [(24, 22), (22, 48), (60, 23)])
def test_two_scales_by_windows(size):
    """As many as fit the shorter side; a window may fill it."""
    a, b = pair(1, 3, *size)
    fine = mean_over_channels(a, b, 0)
    coarse = mean_over_channels(F.avg_pool2d(a, 2), F.avg_pool2d(b, 2), 1)
    first, second = WEIGHTS
    total = first + second
    expected = fine ** (first / total) * coarse ** (second / total)
    torch.testing.assert_close(ms_ssim(a, b)[0], expected)


def test_equal_images_are_alike_and_its_gradient_is_true():
    a, b = pair(1, 3, 22, 22)
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(1, dtype=torch.float64))
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda image: ms_ssim(a, image), (b,), fast_mode=True)


def test_small_images_are_refused():
    with pytest.raises(InputError, match="11x11"):
        ms_ssim(torch.rand(1, 3, 10, 40), torch.rand(1, 3, 10, 40))
    with pytest.raises(InputError, match="11x11 pixels, the images have 40x10"):
        ms_ssim(torch.rand(1, 3, 40, 10), torch.rand(1, 3, 40, 10))
    assert ms_ssim(torch.ones(1, 3, 11, 11), torch.ones(1, 3, 11, 11)).tolist() == [1.0]
