"""Figures of an attack: its learnt perturbation, and adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reidguard.attacks import Attack, ColorAttack, DeltaAttack
from reidguard.data import ReIDDataset, decode_image
from reidguard.nn import inference_view
from reidguard.report.html import figure, figure_row
from reidguard.report.images import amplified, as_image, color_cube
from reidguard.types import ReIDSample

__all__ = ["adversarial_examples", "evenly_spaced", "perturbation"]

GAIN = 8  # factor by which changes are amplified


def evenly_spaced(numbers: Sequence[int], count: int) -> list[int]:
    """Return some of the numbers, evenly spaced.

    Example:
        >>> evenly_spaced(range(10), 2)
        [2, 7]
    """
    count = min(count, len(numbers))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count)]


def perturbation(attack: Attack, width: int = 128) -> list[str]:
    """Return figures of what an attack has learnt: additive pattern, colour cube; maybe none.

    Args:
        attack: Its additive and colour parts are searched for at any depth.
        width: Of the pattern in the page, in pixels.
    """
    parts = list(attack.modules())
    rows = [
        figure_row(
            figure(
                amplified(part.delta[0], GAIN),
                f"additive pattern, amplified {GAIN} times, on grey",
                f"δ, the additive pattern, ×{GAIN}",
                width=width,
            )
        )
        for part in parts
        if isinstance(part, DeltaAttack)
    ]
    for part in parts:
        if not isinstance(part, ColorAttack):
            continue
        for dark, corner in ((False, "white"), (True, "black")):
            tiles = []
            for lut, gain, caption in (
                (None, None, f"the colour cube from its {corner} corner"),
                (part.lut, None, "after the attack"),
                (part.lut, GAIN, f"its change ×{GAIN}, on grey"),
            ):
                cube = color_cube(lut, gain=gain, dark=dark, size=192)
                alt = f"colour cube seen from its {corner} corner: {caption}"
                tiles.append(figure(cube, alt, caption))
            rows.append(figure_row(*tiles))
    return rows


def adversarial_examples(
    attack: Attack,
    dataset: ReIDDataset,
    size: tuple[int, int],
    *,
    count: int = 3,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Return some queries, evenly spaced: clean, the change, and the 8-bit adversarial image.

    Args:
        attack: On ``device``.
        dataset: Its queries are shown.
        size: (height, width) of the images.
        count: Number of queries.
        device: Of the attack.
    """
    rows = []
    for sample in (dataset.query[i] for i in evenly_spaced(range(len(dataset.query)), count)):
        clean = decode_image(sample.path, size)
        adversarial = adversarial_8bit(attack, clean[None].to(device))[0].cpu()
        change = (adversarial.float() - clean.float()) / 255
        largest = round(255 * float(change.abs().max()))
        views = (
            (as_image(clean), "clean"),
            (amplified(change, GAIN), f"change ×{GAIN}, on grey"),
            (as_image(adversarial), f"adversarial; largest change {largest}/255"),
        )
        name = identity_name(sample)
        rows.append(figure_row(*(figure(i, f"{name}: {v}", v, width=128) for i, v in views)))
    return rows


def adversarial_8bit(attack: Attack, pixels: Tensor) -> Tensor:
    """Return the adversarial images of uint8 images (N, 3, H, W), quantized to uint8."""
    x = pixels.float() / 255
    with torch.no_grad():
        return attack.budget.quantize(inference_view(attack)(x), x)


def identity_name(sample: ReIDSample) -> str:
    """Return "person 12", or "a distractor" for the identity 0."""
    return f"person {sample.pid}" if sample.pid else "a distractor"
