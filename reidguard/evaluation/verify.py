"""`verify`: check empirically that an attack respects its budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import Attack
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset, iterate_images
from reidguard.data.images import to_device
from reidguard.errors import InputError
from reidguard.evaluation.features import CountCallback, attack_device, for_samples, to_float
from reidguard.metrics.quality import achieved_linf
from reidguard.nn import inference_view
from reidguard.nn.gradients import count_gradients
from reidguard.schema import MAX_SIDE, check_instance, checked
from reidguard.types import TOLERANCE, check_images

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True)
class VerifyReport:
    """Measured changes of the images that an attack was run on.

    Attributes:
        images: Number of images.
        eps: The budget, in [0, 1] units.
        linf: Largest change of a float image, in [0, 1] units.
        levels: Largest change of an 8-bit image, in grey levels.
        moved: Fraction of pixels of the 8-bit images of which any channel changed.
        in_range: Whether all values were finite and in [0, 1].
        passed: Whether float and 8-bit images stayed inside the budget and in range.

    Example:
        >>> report = VerifyReport(2, 8 / 255, 8 / 255, 8, 1.0, in_range=True, passed=True)
        >>> report.passed, report.levels
        (True, 8)
    """

    images: int
    eps: float
    linf: float
    levels: int
    moved: float
    in_range: bool
    passed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "inside" if self.passed else "OUTSIDE"
        return (
            f"{verdict} the budget of {255 * self.eps:g}/255 on {self.images} images: L∞ "
            f"{255 * self.linf:.3f}/255 as float, {self.levels}/255 as 8-bit; "
            f"{100 * self.moved:.1f} % of pixels moved; "
            f"{'all' if self.in_range else 'NOT all'} values in [0, 1]"
        )


@fixed_context()
def verify(
    attack: Attack,
    images: Tensor | ReIDDataset,
    *,
    split: str = "query",
    image_size: tuple[int, int] = (256, 128),
    batch_size: int = 64,
    progress: CountCallback | None = None,
) -> VerifyReport:
    """Run an attack on images and measure the largest change.

    Args:
        attack: Runs in eval mode on its own device (an instance attack on its target model's), and
            is not changed.
        images: (N, 3, H, W), either uint8 or float 8-bit pixels divided by 255; or a dataset.
        split: Which split of a dataset to use.
        image_size: (height, width) at which a dataset's images are read.
        batch_size: Images at a time.
        progress: Called with (images done, images in all).

    Raises:
        InputError: If there are no images, they have no 8-bit original, or an instance attack is
            not bound.

    Example:
        >>> from reidguard.attacks import create_attack
        >>> pixels = torch.randint(0, 256, (2, 3, 64, 32), dtype=torch.uint8)
        >>> verify(create_attack("delta", size=(64, 32)), pixels).passed
        True
    """
    batch_size = checked(int, "batch_size", batch_size, low=1, high=10**6)
    image_size = checked(tuple[int, int], "image_size", image_size, low=1, high=MAX_SIDE)
    check_instance(Attack, "attack", attack)
    view = inference_view(attack)
    if isinstance(images, ReIDDataset):
        samples = images.split(split)
        total = len(samples)
        batches: Iterator[tuple[Attack, Tensor]] = (
            (for_samples(view, samples[place], with_labels=False), pixels)
            for place, pixels in iterate_images(samples, image_size, batch_size)
        )
        device = attack_device(attack)
    else:
        check_instance(Tensor, "images", images)
        check_images(to_float(images[:0]) if images.dtype == torch.uint8 else images)
        total = len(images)
        batches = ((view, batch) for batch in torch.split(images, batch_size))
        device = attack_device(attack, images.device)
    if total == 0:
        raise InputError("there are no images to verify the attack on")
    measurements = []
    done = 0
    with torch.no_grad(), count_gradients(type(attack).__name__):
        for prepared, batch in batches:
            x = to_device(batch, device)
            x = to_float(x) if x.dtype == torch.uint8 else x
            measurements.append(_measure(prepared, x))
            done += len(batch)
            if progress is not None:
                progress(done, total)
    table = torch.cat(measurements, dim=1).cpu()
    linf, levels = float(table[0].max()), int(table[1].max())
    in_range = bool(table[3].all())
    budget = attack.budget
    return VerifyReport(
        images=total,
        eps=budget.eps,
        linf=linf,
        levels=levels,
        moved=float(table[2].mean()),
        in_range=in_range,
        passed=in_range and linf <= budget.eps + TOLERANCE and levels <= budget.levels,
    )


def _measure(attack: Attack, x: Tensor) -> Tensor:
    """Return (4, N) float64: L∞, 8-bit L∞, fraction of changed pixels, in range."""
    x_adv = attack(x)
    pixels = (255 * x.double()).round()
    change = (attack.budget.quantize(x_adv, x).double() - pixels).abs()
    in_range = (x_adv.isfinite() & (x_adv >= -TOLERANCE) & (x_adv <= 1 + TOLERANCE)).all(1)
    return torch.stack(
        [
            achieved_linf(x_adv, x).double(),
            change.amax((1, 2, 3)),
            (change.amax(1) > 0).double().mean((1, 2)),
            in_range.all(2).all(1).double(),
        ]
    )
