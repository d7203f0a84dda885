"""PSNR, SSIM and L∞ against explicit loops in numpy."""

import math

import numpy as np
import pytest
import torch

from reidguard.errors import InputError
from reidguard.evaluation import achieved_linf, ms_ssim, psnr, ssim
from reidguard.metrics.quality import ssim_and_ms_ssim


def loop_ssim(a, b):
    """SSIM by its formula, window after window, in float64."""
    offsets = np.arange(11) - 5
    one = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(one, one)
    window /= window.sum()
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for channel in range(3):
        for top in range(a.shape[1] - 10):
            for left in range(a.shape[2] - 10):
                p = a[channel, top : top + 11, left : left + 11]
                q = b[channel, top : top + 11, left : left + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                values.append(
                    (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
    return np.mean(values)


def pair(dtype=torch.float32, n=6, size=(17, 14)):
    g = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, *size, generator=g)
    noise = torch.linspace(0.01, 0.3, n).view(n, 1, 1, 1) * torch.randn(x.shape, generator=g)
    return (x + noise).clamp(0, 1).to(dtype), x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssim_equals_loops(dtype):
    y, x = pair(dtype)
    expected = [
        loop_ssim(a, b) for a, b in zip(y.double().numpy(), x.double().numpy(), strict=True)
    ]
    assert ssim(y, x).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim(y, x).dtype == dtype


def queries():
    """Two images of 256x128 with waves, and changes of them, without a random generator."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(128.0), indexing="ij")
    x, y = x.double(), y.double()
    waves = [0.5 + 0.4 * torch.sin(x / (7 + 3 * c) + y / (11 - 2 * c)) for c in range(3)]
    clean = torch.stack([torch.stack(waves), torch.stack(waves).flip(2)])
    noise = torch.stack([torch.sin(13.7 * x * y / 50 + c) for c in range(3)])
    changed = [clean[0] + 8 / 255 * noise.sign(), 0.9 * clean[1] + 0.03 + 4 / 255 * noise]
    return torch.stack(changed).clamp(0, 1), clean


def test_other_libraries_agree_at_the_size_of_queries():
    """scikit-image 0.26.0 (SSIM) and torchmetrics 1.9.0 (the others) on these images.

    structural_similarity(y, x, channel_axis=0, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1.0); four scales with their betas divided by their sum.
    torchmetrics leaves out a border, hence the tolerance.
    """
    y, x = queries()
    assert ssim(y, x).tolist() == pytest.approx([0.857911031063536, 0.9691459022924164], abs=1e-9)
    assert ms_ssim(y, x).tolist() == pytest.approx([0.988333558, 0.992640652], abs=2e-5)
    assert psnr(y, x).tolist() == pytest.approx([30.0860, 28.8084], abs=1e-4)
    assert ms_ssim(y.float(), x.float()).tolist() == pytest.approx(ms_ssim(y, x).tolist(), abs=1e-5)


def test_psnr_and_linf_equal_loops():
    y, x = pair()
    for i, (a, b) in enumerate(zip(y.double().numpy(), x.double().numpy(), strict=True)):
        mse = np.mean((a - b) ** 2)
        assert float(psnr(y, x)[i]) == pytest.approx(10 * math.log10(1 / mse), abs=1e-4)
        assert float(achieved_linf(y, x)[i]) == pytest.approx(np.abs(a - b).max(), abs=1e-7)


def test_white_noise_of_eight_levels_has_the_known_ssim():
    """±8/255 on a mid-grey image: the variance formula gives the value in closed form."""
    g = torch.Generator().manual_seed(0)
    x = torch.full((1, 3, 128, 128), 0.5)
    y = x + 8 / 255 * torch.randint(0, 2, x.shape, generator=g).mul(2).sub(1)
    offsets = np.arange(11) - 5
    one = np.exp(-(offsets**2) / (2 * 1.5**2))
    concentration = ((one / one.sum()) ** 2).sum() ** 2  # variance of the window's mean
    variance = (8 / 255) ** 2 * (1 - concentration)
    assert float(ssim(y, x)) == pytest.approx(0.03**2 / (variance + 0.03**2), abs=0.01)


def test_identical_images_are_perfect():
    _, x = pair()
    assert ssim(x, x).tolist() == pytest.approx([1.0] * len(x))
    assert psnr(x, x).isinf().all()
    assert achieved_linf(x, x).tolist() == [0.0] * len(x)


def test_half_precision_is_measured_in_float32():
    y, x = pair(torch.bfloat16)
    for measure in (psnr, ssim, ms_ssim, achieved_linf):
        assert measure(y, x).dtype == torch.float32
        assert torch.equal(measure(y, x), measure(y.float(), x.float()))


def test_mistakes():
    y, x = pair()
    with pytest.raises(InputError, match="must be equal"):
        psnr(y[:2], x)
    with pytest.raises(InputError, match="11x11"):
        ssim(y[..., :10], x[..., :10])


def test_both_similarities_at_once_are_those_one_by_one():
    y, x = pair(n=5, size=(30, 26))
    fine, multi_scale = ssim_and_ms_ssim(y.requires_grad_(), x)
    assert torch.equal(fine, ssim(y, x))
    torch.testing.assert_close(multi_scale, ms_ssim(y, x).detach())
    assert not fine.requires_grad
    assert not multi_scale.requires_grad
    assert ms_ssim(y, x).requires_grad


@pytest.mark.parametrize("measure", [psnr, ssim, achieved_linf])
def test_measures_keep_no_graph(measure):
    y, x = pair()
    assert not measure(y.requires_grad_(), x).requires_grad


@pytest.mark.parametrize("wide", ["first", "second"])
def test_one_image_in_double_precision_is_enough(wide):
    y, x = pair(torch.float64)
    given = (y, x.float()) if wide == "first" else (y.float(), x)
    found = ssim(*given)
    assert found.dtype == torch.float64
    expected = ssim(given[0].double(), given[1].double())
    assert torch.equal(found, expected)
