"""Figures of an attack: its learnt perturbation, and adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reidguard.attacks import Attack, ColorAttack, DeltaAttack
from reidguard.attacks.universal.color import interpolate_colors
from reidguard.data import ReIDDataset, decode_image
from reidguard.evaluation.features import for_samples
from reidguard.nn import inference_view
from reidguard.report.html import (
    figure,
    figure_row,
    paragraph,
    subsection,
    swatches,
)
from reidguard.report.images import amplified, as_image, color_cube
from reidguard.types import ReIDSample

__all__ = ["adversarial_examples", "evenly_spaced", "perturbation"]

GAIN = 8  # factor by which changes are amplified
CLOTHES = {
    "black": (24, 24, 26),
    "grey": (128, 128, 128),
    "white": (235, 235, 232),
    "navy": (32, 42, 88),
    "denim": (82, 110, 150),
    "red": (178, 42, 44),
    "yellow": (222, 190, 70),
    "green": (62, 104, 64),
    "brown": (104, 74, 50),
    "beige": (206, 184, 150),
    "light skin": (224, 180, 152),
    "dark skin": (106, 72, 54),
}


def evenly_spaced(numbers: Sequence[int], count: int) -> list[int]:
    """Return some of the numbers, evenly spaced.

    Example:
        >>> evenly_spaced(range(10), 2)
        [2, 7]
    """
    count = min(count, len(numbers))
    return [numbers[(2 * i + 1) * len(numbers) // (2 * count)] for i in range(count)]


def perturbation(attack: Attack, width: int = 192) -> list[str]:
    """Return figures of what an attack has learnt: additive pattern, change of colours; maybe none.

    Args:
        attack: Its additive and colour parts are searched for at any depth.
        width: Of the pattern in the page, in pixels.

    Example:
        >>> figures = perturbation(DeltaAttack(size=(32, 16)))
    """
    found = []
    for part in attack.modules():
        if isinstance(part, DeltaAttack):
            pattern = figure(
                amplified(_shown(part), GAIN),
                f"additive pattern, amplified {GAIN} times, on grey",
                f"δ ×{GAIN} on grey",
                width=width,
            )
            found.append(subsection("The pattern added to every image", pattern))
        elif isinstance(part, ColorAttack):
            found.append(_color_change(part.lut))
    return found


def _color_change(lut: Tensor) -> str:
    """Return figures of a colour table: the cube's surface from both ends, and a few colours."""
    views = []
    for dark, corner, colors in ((False, "white", "bright"), (True, "black", "dark")):
        tiles = []
        for table, gain, caption in (
            (None, None, f"before: {colors} colours"),
            (lut, None, "after"),
            (lut, GAIN, f"difference ×{GAIN}, on grey"),
        ):
            cube = color_cube(table, gain=gain, dark=dark, size=192)
            alt = f"colour cube seen from its {corner} corner: {caption}"
            tiles.append(figure(cube, alt, caption))
        views.append(figure_row(*tiles))
    explanation = paragraph(
        "Each point of the cube's surface is a colour; the attack replaces it by the colour at the "
        "same point of the second cube. In the third, grey is no change and a reddish point gains "
        f"red. Below: colours of clothes and skin before | after | with the change ×{GAIN}."
    )
    before = torch.tensor(list(CLOTHES.values())).float()[:, :, None, None] / 255
    after = interpolate_colors(lut.detach().float().cpu(), before).clamp(0, 1)
    exaggerated = (before + GAIN * (after - before)).clamp(0, 1)
    patches = zip(CLOTHES, _css(before), _css(after), _css(exaggerated), strict=True)
    return subsection("The change of every colour", explanation, *views, swatches(list(patches)))


def _css(colors: Tensor) -> list[str]:
    """Return (N, 3, 1, 1) colours in [0, 1] as CSS has them."""
    levels = (255 * colors).round().int().flatten(1).tolist()
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in levels]


def _shown(part: DeltaAttack) -> Tensor:
    """Return δ as a picture of (3, H, W), within the budget."""
    eps = part.budget.eps
    return part.resized(*part.size)[0].detach().clamp(-eps, eps)


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

    Example:
        >>> from reidguard.testing import small_dataset
        >>> with small_dataset() as data:
        ...     rows = adversarial_examples(DeltaAttack(size=(32, 16)), data, (32, 16), count=2)
        >>> len(rows)
        2
    """
    rows = []
    for sample in (dataset.query[i] for i in evenly_spaced(range(len(dataset.query)), count)):
        clean = decode_image(sample.path, size)
        adversarial = adversarial_8bit(attack, clean[None].to(device), [sample])[0].cpu()
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


def adversarial_8bit(attack: Attack, pixels: Tensor, samples: Sequence[ReIDSample]) -> Tensor:
    """Return the adversarial images of the uint8 images (N, 3, H, W) of samples, in uint8."""
    x = pixels.float() / 255
    prepared = for_samples(inference_view(attack), samples, with_labels=False)
    with torch.no_grad():
        return attack.budget.quantize(prepared(x), x)


def identity_name(sample: ReIDSample) -> str:
    """Return "person 12", or "a distractor" for the identity 0."""
    return f"person {sample.pid}" if sample.pid else "a distractor"
