import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from reidguard.errors import InputError
from reidguard.records import convert
from reidguard.types import Budget, InputSpec, ReIDSample, check_image_values, check_images

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
shapes = st.tuples(st.integers(1, 2), st.just(3), st.integers(1, 5), st.integers(1, 4))
any_values = st.floats(width=32, allow_nan=True, allow_infinity=True)


@st.composite
def pixels_and_anything(draw):
    """8-bit originals, and any floats of the same shape as what an attack may have made."""
    shape = draw(shapes)
    pixels = torch.from_numpy(draw(hnp.arrays("uint8", shape)))
    wild = torch.from_numpy(draw(hnp.arrays("float32", shape, elements=any_values)))
    return pixels, wild


def inside(y, x, eps):
    """The invariant itself, in float64 and with no tolerance but the promised 1e-6."""
    y, x = y.double(), x.double()
    return bool(((y - x).abs() <= eps + 1e-6).all() and (y >= 0).all() and (y <= 1).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=pixels_and_anything(), eps=st.floats(0, 1))
def test_projection_never_leaves_the_ball_and_is_idempotent(dtype, case, eps):
    pixels, wild = case
    budget = Budget(eps)
    x = (pixels.double() / 255).to(dtype)
    y = budget.project(wild.to(dtype), x)
    assert y.dtype == dtype
    assert inside(y, x, eps)
    assert torch.equal(budget.project(y, x), y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=pixels_and_anything(), eps=st.floats(0, 1))
def test_eight_bit_image_stays_inside(dtype, case, eps):
    pixels, wild = case
    budget = Budget(eps)
    x = (pixels.double() / 255).to(dtype)
    image = budget.quantize(wild.to(dtype), x)
    assert image.dtype == torch.uint8
    assert (image.int() - pixels.int()).abs().max() <= math.floor(255 * eps + 1e-6)
    assert torch.equal(budget.quantize(x, x), pixels)  # no perturbation, no change


def test_half_precision_rounds_inwards_where_rounding_would_leave():
    x = torch.full((1, 3, 1, 1), 74 / 255).to(torch.bfloat16)
    eps = 7.3 / 255
    naive = (x.float() + eps).to(torch.bfloat16)
    assert not inside(naive, x, eps)
    y = Budget(eps).project(x + 1, x)
    assert inside(y, x, eps)
    # and it is the largest such number: the next one is outside
    after = torch.nextafter(y, torch.ones_like(y))
    assert not inside(after, x, eps)


def test_eight_levels_at_eps_seven_and_a_half_are_seven():
    x = torch.full((1, 3, 1, 1), 100 / 255)
    assert int(Budget(7.5 / 255).quantize(x + 1, x)[0, 0, 0, 0]) == 107


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_fall_back_to_the_original(value):
    x = torch.rand(1, 3, 2, 2)
    y = x + 0.01
    y[0, 0, 0, 0] = value
    projected = Budget(8 / 255).project(y, x)
    assert projected[0, 0, 0, 0] == x[0, 0, 0, 0]
    torch.testing.assert_close(projected[0, 1], y[0, 1].clamp(0, 1))


def test_gradient_is_the_true_one_of_the_clip():
    x = torch.full((1, 3, 1, 2), 0.5, dtype=torch.float64)
    free, clipped = 0.51, 0.9
    y = torch.tensor([free, clipped], dtype=torch.float64).expand(1, 3, 1, 2).clone()
    y.requires_grad_()
    Budget(8 / 255).project(y, x).sum().backward()
    assert y.grad[..., 0].eq(1).all()
    assert y.grad[..., 1].eq(0).all()


def test_a_batch_is_quantised_as_its_images_are():
    """Batches are taken apart; the odd rest of nine images is not lost, nor is an empty batch."""
    x = torch.randint(0, 256, (9, 3, 5, 4)) / 255
    wild = x + torch.rand(9, 3, 5, 4) - 0.5
    together = Budget().quantize(wild, x)
    alone = [Budget().quantize(wild[i : i + 1], x[i : i + 1]) for i in range(9)]
    assert torch.equal(together, torch.cat(alone))
    assert Budget().quantize(wild[:0], x[:0]).shape == (0, 3, 5, 4)


def test_quantize_refuses_originals_that_are_not_eight_bit():
    x = torch.full((1, 3, 1, 1), 0.5)
    with pytest.raises(InputError, match="divided by 255"):
        Budget().quantize(x, x)


@pytest.mark.parametrize(
    "eps",
    [
        *(-0.1, 8.0, float("nan"), float("inf"), 1j, True, np.True_, torch.tensor(True), None),
        *([0.1], np.array([0.1]), torch.tensor([0.1, 0.2]), torch.tensor(1j)),
        *("8/255", b"0", object()),
    ],
    ids=lambda eps: type(eps).__name__ + str(eps) * (type(eps) is not object),
)
def test_budget_refuses_what_is_no_radius(eps):
    with pytest.raises(InputError, match=r"eps must lie in \[0, 1\]"):
        Budget(eps)


@pytest.mark.parametrize(
    "eps", [Fraction(1, 4), Decimal("0.25"), np.float32(0.25), np.array(0.25), torch.tensor(0.25)]
)
def test_budget_takes_any_kind_of_number(eps):
    assert Budget(eps) == Budget(0.25)
    assert type(Budget(eps).eps) is float


def test_samples_take_any_kind_of_whole_number_and_path():
    expected = ReIDSample(Path("a.jpg"), 7, 1)
    numbers = [(7, 1), (7.0, 1.0), (np.int32(7), np.uint8(1)), (torch.tensor(7), torch.tensor(1.0))]
    for pid, camid in [*numbers, (Fraction(7), np.array(1))]:
        sample = ReIDSample("a.jpg", pid, camid)
        assert sample == expected
        assert isinstance(sample.path, Path)
        assert (type(sample.pid), type(sample.camid)) == (int, int)
    assert hash(ReIDSample("a.jpg", 7.0, 1)) == hash(expected)


@pytest.mark.parametrize(
    "values",
    [{"path": value} for value in (None, 3, b"a.jpg", "a\0.jpg", ["a.jpg"])]
    + [{"pid": value} for value in (-2, 1.5, math.nan, True, "7", None, 2**63, torch.tensor([7]))]
    + [{"camid": value} for value in (-1, 0.5, math.inf, False, "c1", None, np.array([1]))],
    ids=repr,
)
def test_a_sample_of_anything_else_is_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        ReIDSample(**{"path": "a.jpg", "pid": 1, "camid": 0, **values})


def test_grey_levels_given_as_eps_name_the_cure():
    with pytest.raises(InputError, match="write 8/255"):
        Budget(8)


@pytest.mark.parametrize(
    ("images", "cure"),
    [
        (torch.rand(3, 4, 4), "unsqueeze"),
        (torch.rand(1, 4, 4, 3), "shape"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "/ 255"),
        ("photo.jpg", "Tensor"),
    ],
)
def test_wrong_images_name_the_cure(images, cure):
    with pytest.raises(InputError, match=cure):
        check_images(images)


@pytest.mark.parametrize("bad", [255.0, -0.5, float("nan")])
def test_values_outside_the_unit_range_are_refused(bad):
    images = torch.rand(1, 3, 2, 2)
    images[0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="divided by 255"):
        check_image_values(images)


def test_input_spec_normalises_like_its_definition_and_survives_json():
    spec = InputSpec(size=None, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = torch.rand(2, 3, 3, 2)
    expected = torch.stack(
        [(x[:, c] - m) / s for c, (m, s) in enumerate(zip(spec.mean, spec.std, strict=True))]
    )
    torch.testing.assert_close(spec.apply(x), expected.transpose(0, 1))
    assert convert(spec.to_dict(), InputSpec, "here") == spec


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_input_spec_resizes_every_float_type(dtype):
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    resized = InputSpec(size=(4, 3)).apply(x.to(dtype))
    assert resized.dtype == dtype
    torch.testing.assert_close(resized.float(), InputSpec(size=(4, 3)).apply(x), atol=0.05, rtol=0)


# --- preprocessing of networks in production ---

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_channels_and_range_are_those_of_the_network():
    x = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    caffe = InputSpec(
        size=None, mean=(104, 117, 123), std=(2, 3, 4), channels="bgr", value_range=255
    )
    inputs = caffe.apply(x)
    for n in range(2):
        for place, (channel, mean, std) in enumerate([(2, 104, 2), (1, 117, 3), (0, 123, 4)]):
            expected = (255 * x[n, channel] - mean) / std
            torch.testing.assert_close(inputs[n, place], expected, atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "filtering"),
    [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)],
)
def test_interpolation_is_pillow_s(mode, filtering):
    x = torch.rand(1, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    inputs = InputSpec(size=(8, 6), interpolation=mode, **RAW).apply(x)
    for channel in range(3):
        resized = Image.fromarray(x[0, channel].numpy(), mode="F").resize((6, 8), filtering)
        torch.testing.assert_close(
            inputs[0, channel], torch.from_numpy(np.array(resized)), atol=1e-5, rtol=0
        )


def test_nearest_takes_the_pixel_at_the_centre():
    x = torch.arange(24.0).view(1, 1, 6, 4).expand(1, 3, 6, 4)
    inputs = InputSpec(size=(2, 2), interpolation="nearest", **RAW).apply(x)
    assert inputs[0, 0].tolist() == [[5.0, 7.0], [17.0, 19.0]]


def test_gradients_pass_through_any_preprocessing():
    spec = InputSpec(size=(5, 3), channels="bgr", value_range=255, interpolation="bicubic", **RAW)
    x = torch.rand(1, 3, 8, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(spec.apply, (x,), atol=1e-4)


def test_a_card_keeps_what_is_unusual_and_reads_what_is_left_out():
    assert set(InputSpec().to_dict()) == {"size", "mean", "std"}  # as in files of any age
    spec = InputSpec(channels="bgr", value_range=255, interpolation="nearest", **RAW)
    assert json.loads(json.dumps(spec.to_dict()))["value_range"] == 255
    assert convert(spec.to_dict(), InputSpec, "here") == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": "gbr"}, "channels must be 'rgb' or 'bgr'"),
        ({"value_range": 256}, "value_range must be 1 or 255"),
        ({"value_range": True}, "value_range must be 1 or 255"),
        ({"interpolation": "cubic"}, "interpolation must be 'bilinear'"),
        ({"value_range": 255}, "give mean and std in units of 255"),
    ],
)
def test_wrong_preprocessing_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        InputSpec(**options)
