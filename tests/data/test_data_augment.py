from __future__ import annotations

import math

import pytest
import torch

from reidguard.data import Augment, NoisyAugment
from reidguard.data.augment import _cut, _inside, _rectangles
from reidguard.errors import InputError
from reidguard.types import BatchShard

H, W = 24, 12
OFF = {"flip": 0.0, "crop": "none", "erase": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 8, height: int = H, width: int = W) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=generator(99))


def pixel(image: torch.Tensor, y: int, x: int, *, zeros: bool) -> float:
    height, width = image.shape
    if zeros and not (0 <= y < height and 0 <= x < width):
        return 0.0
    return float(image[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])


def cut_by_loops(image: torch.Tensor, box, mirrored: bool, *, zeros: bool) -> torch.Tensor:
    """Bilinear resampling of a box, pixel by pixel."""
    top, left, h, w = (int(v) for v in box)
    height, width = image.shape
    out = torch.empty(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            column = width - 1 - j if mirrored else j
            y = top + (i + 0.5) * h / height - 0.5
            x = left + (column + 0.5) * w / width - 0.5
            if not zeros:  # the border colour continues outside
                y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            y0, x0 = math.floor(y), math.floor(x)
            out[i, j] = sum(
                (1 - abs(y - (y0 + a))) * (1 - abs(x - (x0 + b)))
                * pixel(image, y0 + a, x0 + b, zeros=zeros)
                for a in (0, 1)
                for b in (0, 1)
            )  # fmt: skip
    return out


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "box", [(0, 0, H, W), (3, 2, 17, 7), (5, 4, H - 5, W - 4), (-4, 3, H, W), (2, -5, H, W)]
)
def test_cutting_equals_explicit_loops(box, mirrored, padding):
    images = noise(1).double()
    result = _cut(images, torch.tensor([box]), torch.tensor([mirrored]), padding=padding)
    for channel in range(3):
        expected = cut_by_loops(images[0, channel], box, mirrored, zeros=padding == "zeros")
        torch.testing.assert_close(result[0, channel], expected, atol=1e-12, rtol=0)


def test_switched_off_nothing_changes():
    images = noise()
    torch.testing.assert_close(Augment(**OFF)(images, generator()), images, atol=1e-5, rtol=0)


def test_flips_are_mirrors_and_happen_per_image():
    images = noise(400, 6, 4)
    result = Augment(**{**OFF, "flip": 0.3})(images, generator())
    flipped = torch.tensor(
        [torch.allclose(r, i.flip(-1), atol=1e-5) for r, i in zip(result, images, strict=True)]
    )
    kept = torch.tensor(
        [torch.allclose(r, i, atol=1e-5) for r, i in zip(result, images, strict=True)]
    )
    assert bool((flipped ^ kept).all())
    assert 0.2 < flipped.double().mean() < 0.4


def test_pad_crop_shifts_by_whole_pixels_over_black():
    images = noise(200) + 0.1
    images = images.clamp(max=1)
    result = Augment(**{**OFF, "crop": "pad", "padding": 3})(images, generator())
    shifts = set()
    for image, shifted in zip(images, result, strict=True):
        padded = torch.nn.functional.pad(image, (3, 3, 3, 3))
        matches = [
            (dy, dx)
            for dy in range(7)
            for dx in range(7)
            if torch.allclose(padded[:, dy : dy + H, dx : dx + W], shifted, atol=1e-5)
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) > 40  # of 49


def test_erased_rectangles_have_the_right_share_shape_and_colour():
    images = torch.zeros(600, 3, 64, 32)
    value = (0.2, 0.4, 0.6)
    result = Augment(**{**OFF, "erase": 0.5, "erase_value": value})(images, generator())
    holes = result[:, 0] > 0.1
    touched = holes.flatten(1).any(1)
    assert 0.42 < touched.double().mean() < 0.58
    for image, hole in zip(result[touched], holes[touched], strict=True):
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        h = int(rows.max() - rows.min()) + 1
        w = int(columns.max() - columns.min()) + 1
        assert int(hole.sum()) == h * w  # one whole rectangle
        assert 0.01 < h * w / (64 * 32) < 0.22
        assert 0.2 < h / w < 5
        torch.testing.assert_close(image[:, hole], torch.tensor(value)[:, None].expand(3, h * w))


def test_drawn_rectangles_fit_and_follow_their_ranges():
    boxes, fits = _rectangles(
        4000, 256, 128, area=(0.64, 1.0), aspect=(2.0, 3.0), generator=generator()
    )
    assert fits.double().mean() > 0.99
    top, left, h, w = boxes[fits].double().unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + h <= 256).all() and (left + w <= 128).all())
    shares = h * w / (256 * 128)
    assert bool((shares > 0.63).all() and (shares <= 1).all())
    assert bool((h / w > 1.97).all() and (h / w < 3.05).all())
    slack = 256 - h > 20
    places = (top / (256 - h))[slack]
    assert 0.45 < places.mean() < 0.55
    assert places.min() < 0.03
    assert places.max() > 0.97


def test_a_rectangle_that_never_fits_leaves_the_image_whole():
    images = noise(5, 10, 40)  # as wide as no crop of aspect 2 to 3 and 64 % of the area
    result = Augment(**{**OFF, "crop": "resized"})(images, generator())
    torch.testing.assert_close(result, images, atol=1e-5, rtol=0)


def test_a_rectangle_wider_than_the_image_does_not_fit():
    options = {"area": (0.9, 0.9), "aspect": (0.5, 0.5), "generator": generator()}
    boxes, fits = _rectangles(50, 40, 20, **options)  # 19 x 38 pixels, 20 wide
    assert not fits.any()
    boxes, fits = _rectangles(50, 20, 40, **options)
    assert fits.all()
    assert bool((boxes[:, 1] + boxes[:, 3] <= 40).all())


def test_erased_rectangles_are_as_often_tall_as_wide():
    images = torch.zeros(300, 3, 64, 64)
    off = {**OFF, "erase": 1.0, "erase_value": (1.0, 1.0, 1.0)}
    holes = Augment(**{**off, "erase_aspect": 0.25})(images, generator())[:, 0] > 0.5
    heights, widths = holes.any(2).sum(1).double(), holes.any(1).sum(1).double()
    ratios = heights / widths
    # Uniform in [1/4, 4], as the field's implementation draws it: four fifths are tall.
    assert 0.7 < (ratios > 1).double().mean() < 0.9
    assert ratios.max() > 3


def test_masks_hold_exactly_the_box():
    mask = _inside(torch.tensor([[2, 1, 3, 4], [0, 0, 0, 0]]), 8, 6)
    expected = torch.zeros(2, 1, 8, 6, dtype=torch.bool)
    expected[0, 0, 2:5, 1:5] = True
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_results_stay_images(crop, value):
    images = torch.full((32, 3, 31, 17), value)
    result = Augment(crop=crop)(images, generator())
    assert result.min() >= 0
    assert result.max() <= 1
    mixed = Augment(crop=crop)(noise(32).round(), generator())
    assert mixed.min() >= 0
    assert mixed.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_generator_alone_decides(dtype):
    images = noise().to(dtype)
    before = images.clone()
    torch.manual_seed(1)
    one = Augment()(images, generator(5))
    torch.manual_seed(2)
    two = Augment()(images, generator(5))
    assert one.dtype == dtype
    assert torch.equal(one, two)
    assert torch.equal(images, before)
    assert not torch.equal(one, Augment()(images, generator(6)))


def test_images_of_one_batch_are_augmented_differently():
    image = noise(1).expand(6, -1, -1, -1)
    result = Augment()(image, generator())
    assert len({tuple(r.flatten().tolist()) for r in result}) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"erase": -0.1},
        {"crop": "centre"},
        {"crop_area": (0.0, 1.0)},
        {"erase_area": (0.3, 0.2)},
        {"crop_aspect": (3.0, 2.0)},
        {"erase_aspect": 2.0},
        {"padding": -1},
        {"erase_value": (0.5, 0.5, 2.0)},
    ],
)
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Augment(**wrong)


def test_8_bit_images_are_refused():
    with pytest.raises(InputError, match="255"):
        Augment()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), generator())


def test_noise_has_its_standard_deviation_and_comes_after_the_rest():
    images = 0.4 + 0.2 * noise(8, 64, 32)
    before = Augment()(images, generator())
    after = NoisyAugment.after(Augment(), 0.02)(images, generator())
    difference = (after - before).flatten()
    assert float(difference.std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(difference.mean())) < 5 * 0.02 / len(difference) ** 0.5
    strong = NoisyAugment.after(None, 1.0)(images, generator())
    assert float(strong.min()) == 0  # cut to the range of images
    assert float(strong.max()) == 1


def test_each_process_gets_its_rows_of_the_joint_noise():
    images, augment = noise(6), NoisyAugment(noise=0.1)
    joint = augment(images, generator())
    rows = torch.tensor([1, 4, 5])
    shard = BatchShard(rows=rows, total=6)
    assert torch.equal(augment(images[rows], generator(), shard), joint[rows])
