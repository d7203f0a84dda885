"""Bases of δ and tables of few colours: values against loops, learners, files, budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import SmoothEmbedder, noise_datasets, rng
from reidguard.attacks import (
    ColorAttack,
    CombinatorialAttack,
    DeltaAttack,
    MetaAttack,
    PatternAttack,
    UAPRetrieval,
    load_attack,
)
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.attacks.universal.bases import expand
from reidguard.errors import InputError
from reidguard.learners import LEARNERS
from reidguard.report import perturbation
from reidguard.types import Budget

GRID = (4, 3)
OTHERS = ["blocks", "bilinear", "dct"]
EIGHT = Budget(8 / 255)


def attack(basis: str, seed: int = 0) -> DeltaAttack:
    """With coefficients up to their bound."""
    made = DeltaAttack(EIGHT, size=(16, 12), basis=basis, grid=GRID)
    with torch.no_grad():
        made.delta.copy_(made.bound * (2 * torch.rand(made.delta.shape, generator=rng(seed)) - 1))
    return made


@pytest.mark.parametrize("size", [(16, 12), (7, 5), (2, 9), (1, 1)])
def test_a_block_is_constant(size: tuple[int, int]) -> None:
    delta = attack("blocks")
    values = delta.resized(*size)
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = (
                math.floor((place + 0.5) * nodes / pixels)
                for place, nodes, pixels in ((i, GRID[0], size[0]), (j, GRID[1], size[1]))
            )
            assert torch.equal(values[..., i, j], delta.delta[..., row, column])


@pytest.mark.parametrize("size", [(16, 12), (7, 5), (4, 3), (1, 1)])
def test_bilinear_nodes_are_interpolated_as_torch_does(size: tuple[int, int]) -> None:
    delta = attack("bilinear")
    expected = F.interpolate(delta.delta, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(delta.resized(*size), expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("size", [(16, 12), (7, 5), (1, 1)])
def test_dct_is_a_sum_of_cosines(size: tuple[int, int]) -> None:
    delta = attack("dct")
    values = delta.resized(*size).detach()
    for channel in range(3):
        for i in range(size[0]):
            for j in range(size[1]):
                total = 0.0
                for k in range(GRID[0]):
                    for m in range(GRID[1]):
                        cosines = math.cos(math.pi * k * (i + 0.5) / size[0])
                        cosines *= math.cos(math.pi * m * (j + 0.5) / size[1])
                        total += float(delta.delta.detach()[0, channel, k, m]) * cosines
                total *= 2 / math.sqrt(GRID[0] * GRID[1])
                assert float(values[0, channel, i, j]) == pytest.approx(total, abs=1e-6)


def test_a_step_changes_an_image_alike_in_all_bases() -> None:
    for basis in OTHERS:
        made = DeltaAttack(EIGHT, basis=basis, grid=(16, 8))
        with torch.no_grad():
            signs = torch.randint(0, 2, made.delta.shape, generator=rng(0)) * 2 - 1
            made.delta.copy_(signs * EIGHT.eps)
            rms = float(made.resized(256, 128).square().mean().sqrt())
        assert rms == pytest.approx(
            EIGHT.eps, rel={"blocks": 1e-6, "bilinear": 0.4, "dct": 0.15}[basis]
        )


@pytest.mark.parametrize("basis", OTHERS)
def test_the_largest_coefficient_alone_reaches_the_rim(basis: str) -> None:
    for grid in ((16, 8), (1, 2), (1, 1)):
        made = DeltaAttack(EIGHT, basis=basis, grid=grid)
        with torch.no_grad():
            made.delta.zero_()
            made.delta[..., 0, 0] = 1.0
        made.clip_parameters()
        largest = float(made.resized(64, 32).detach().abs().max())
        assert largest <= (EIGHT.eps if basis != "dct" else 2 * EIGHT.eps) + 1e-7
        assert largest >= EIGHT.eps - 1e-7


@pytest.mark.parametrize("basis", OTHERS)
def test_expansion_is_twice_differentiable(basis: str) -> None:
    coefficients = torch.randn(1, 3, *GRID, dtype=torch.float64, generator=rng(1))
    coefficients.requires_grad_()

    def squared(values: torch.Tensor) -> torch.Tensor:
        return expand(values, basis, 6, 5) ** 2

    assert torch.autograd.gradcheck(squared, (coefficients,))
    assert torch.autograd.gradgradcheck(squared, (coefficients,))


def test_values_kept_from_inference_mode_can_be_learnt_with() -> None:
    made = DeltaAttack(EIGHT, basis="bilinear", grid=(5, 2)).double()
    x = torch.full((1, 3, 11, 7), 0.5, dtype=torch.float64)
    with torch.inference_mode():
        made(x)
    made(x).sum().backward()
    assert made.delta.grad is not None


@pytest.mark.parametrize("basis", OTHERS)
def test_autocast_and_low_precision_do_not_blur_the_basis(basis: str) -> None:
    made = attack(basis)
    x = torch.full((1, 3, 16, 12), 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(x), attack(basis)(x))


@pytest.mark.parametrize("basis", OTHERS)
@pytest.mark.parametrize("learner", LEARNERS.list())
def test_every_learner_learns_in_every_basis(learner: str, basis: str, tmp_path) -> None:
    people, others = noise_datasets(tmp_path, 8, (16, 12))
    options = {"steps": 3, "identities": 2, "images_per_identity": 2, "image_size": (16, 12)}
    for made in (
        DeltaAttack(EIGHT, basis=basis, grid=GRID),
        CombinatorialAttack(EIGHT, 1, basis=basis, grid=GRID),
    ):
        made.fit(SmoothEmbedder().float(), people, others, learner=learner, **options)
        assert all(bool(p.any()) for p in made.parameters())
        x = torch.randint(0, 256, (2, 3, 16, 12), generator=rng(2)) / 255
        moved = made.budget.quantize(made(x), x).int() - (255 * x).round().int()
        assert 0 < int(moved.abs().max()) <= 8


@pytest.mark.parametrize("basis", OTHERS)
def test_files_and_fingerprints_know_the_basis(basis: str, tmp_path) -> None:
    x = torch.rand(1, 3, 20, 10, generator=rng(3))
    made = [
        attack(basis),
        UAPRetrieval(basis=basis, grid=GRID),
        CombinatorialAttack(resolution=1, basis=basis, grid=GRID),
        MetaAttack(resolution=1, basis=basis, grid=GRID),
        MetaAttack("delta", basis=basis, grid=GRID),
    ]
    for number, one in enumerate(made):
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.uniform_(-0.02, 0.02, generator=rng(number))
        one.save(tmp_path / "a.safetensors")
        loaded = load_attack(tmp_path / "a.safetensors")
        assert loaded.config() == one.config()
        assert (loaded.config()["basis"], loaded.config()["grid"]) == (basis, GRID)
        assert torch.equal(loaded(x), one(x))
        assert attack_fingerprint(loaded) == attack_fingerprint(one)
    zeros = {b: DeltaAttack(basis=b, grid=GRID) for b in OTHERS}
    assert len({attack_fingerprint(a) for a in zeros.values()}) == len(OTHERS)


def test_the_default_is_pixels() -> None:
    made = DeltaAttack(size=(6, 4))
    assert (made.basis, made.delta.shape) == ("pixels", (1, 3, 6, 4))
    assert made.bound == made.budget.eps


def test_a_report_shows_any_basis() -> None:
    for basis in OTHERS:
        assert len(perturbation(attack(basis))) == 1
    assert len(perturbation(CombinatorialAttack(resolution=1, basis="dct"))) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "block"}, "did you mean 'blocks'"),
        ({"grid": (0, 3)}, "grid must be two whole numbers"),
        ({"grid": (4,)}, "grid must be two whole numbers"),
    ],
)
def test_wrong_bases_are_refused(options, message) -> None:
    for family in (DeltaAttack, CombinatorialAttack, UAPRetrieval):
        with pytest.raises(InputError, match=message):
            family(**options)


# --- tables of few colours ----------------------------------------------------------------------


def tint() -> ColorAttack:
    made = ColorAttack(Budget(8 / 255), resolution=1)
    with torch.no_grad():
        made.offset[:, 0, 0, 0] = torch.tensor([1.0, -0.5, 0.25])  # far outside
    made.clip_parameters()
    return made


def test_a_table_of_one_node_is_a_tint() -> None:
    x = torch.rand(2, 3, 9, 5, generator=rng(4))
    pattern = PatternAttack(Budget(8 / 255), "tint", color=(1, -1, 1))
    torch.testing.assert_close(tint()(x), pattern(x), atol=1e-7, rtol=0)


def test_a_table_of_two_nodes_is_linear_in_each_colour() -> None:
    made = ColorAttack(Budget(1.0), resolution=2)
    with torch.no_grad():
        made.offset[0, 1] = 0.1  # white's red and all others with much red
    grey = torch.full((1, 3, 1, 1), 0.25)
    assert float(made(grey)[0, 0, 0, 0]) == pytest.approx(0.25 + 0.25 * 0.1)


def test_the_gradient_of_one_node_is_that_of_all_pixels() -> None:
    made = ColorAttack(Budget(8 / 255), resolution=1)
    made(torch.full((2, 3, 4, 5), 0.5)).sum().backward()
    assert made.offset.grad is not None
    assert made.offset.grad.flatten().tolist() == [40.0] * 3


def test_a_tint_as_a_table_of_image_editors(tmp_path) -> None:
    made = tint()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    pixels[0, :2] = [[255, 0, 255], [0, 255, 0]]
    ours = made(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    theirs = np.asarray(Image.fromarray(pixels).filter(made.to_pillow()), dtype=float)
    difference = ours[0].permute(1, 2, 0).detach().numpy() * 255 - theirs
    assert np.abs(difference).max() <= 1  # Pillow computes in 16-bit integers
    made.save_cube(tmp_path / "tint.cube")
    lines = (tmp_path / "tint.cube").read_text().splitlines()
    assert lines[1] == "LUT_3D_SIZE 2"
    assert [float(v) for v in lines[2].split()] == pytest.approx(
        [8 / 255, -8 / 255, 8 / 255], abs=1e-6
    )


def test_a_table_needs_a_node() -> None:
    with pytest.raises(InputError, match="resolution must be"):
        ColorAttack(resolution=0)
