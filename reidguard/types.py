"""Values that all packages share: budget, input spec, samples, batches.

Everywhere in this library an *image tensor* is RGB of shape ``(N, 3, H, W)`` with values in
[0, 1], and ε is an L∞ radius in those units: 8 grey levels are ``8/255``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from typing_extensions import Self

from reidguard.errors import InputError
from reidguard.input_spec import InputSpec
from reidguard.schema import as_number, as_whole_number

__all__ = [
    "BatchShard",
    "Budget",
    "Embedder",
    "InputSpec",
    "Metric",
    "Progress",
    "ProgressCallback",
    "ReIDBatch",
    "ReIDSample",
    "check_image_values",
    "check_images",
]

# Room for float32 rounding. One operation errs by at most 6e-8 on [0, 1]; a grey level is 4e-3.
TOLERANCE = 1e-6


def check_images(images: Tensor) -> None:
    """Refuse what is not a float tensor of shape (N, 3, H, W). Costs nothing, on any device.

    Raises:
        InputError: Naming the actual type or shape, and how to fix it.

    Example:
        >>> check_images(torch.rand(1, 3, 4, 2))
        >>> check_images(torch.rand(3, 4, 2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: ...
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor, not {type(images).__name__}")
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise InputError(
            f"images must have shape (N, 3, H, W), not {tuple(images.shape)}; "
            "a single image needs images.unsqueeze(0)"
        )
    if not images.is_floating_point():
        raise InputError(
            f"images must be floating point in [0, 1], not {images.dtype}; "
            "convert 8-bit pixels with images.float() / 255"
        )


def check_image_values(images: Tensor) -> None:
    """Refuse pixels outside [0, 1] and NaN. On a GPU this waits for the device.

    Raises:
        InputError: With the actual range.

    Example:
        >>> check_image_values(torch.rand(1, 3, 4, 2))
        >>> check_image_values(torch.full((1, 3, 4, 2), 2.0))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        reidguard.errors.InputError: ...
    """
    if images.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # NaN fails every comparison
        raise InputError(
            f"images must lie in [0, 1] and be finite, but range from {low:.4g} to {high:.4g}; "
            "pass unnormalised RGB divided by 255: a model's mean and std belong in its InputSpec"
        )


Metric = Literal["euclidean", "cosine"]


class Embedder(Protocol):
    """Protocol of a model in attacks and rankings: features, and the metric that compares them.

    Example:
        >>> from reidguard.models import create_model
        >>> model: Embedder = create_model("osnet_x0_25")
        >>> model.metric
        'cosine'
    """

    @property
    def metric(self) -> Metric:
        """How features are compared."""

    def features(self, x: Tensor) -> Tensor:
        """Return (N, D) features of (N, 3, H, W) images in [0, 1], before any normalisation."""


@dataclass(frozen=True)
class Budget:
    """The L∞ ball that no attack may leave.

    Args:
        eps: Radius in [0, 1] pixel units; the paper uses 8/255. Any number, also a fraction, or an
            array or tensor of one number.

    Raises:
        InputError: If it is no number, or none in [0, 1].

    Example:
        >>> budget = Budget(8 / 255)
        >>> budget.levels
        8
        >>> x = torch.full((1, 3, 2, 2), 0.5)
        >>> round(float((budget.project(x + 1, x) - x).max()) * 255, 3)
        8.0
    """

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        eps = as_number(self.eps)
        if eps is None or not 0 <= eps <= 1:
            hint = "; write a number, such as 8 / 255 without quotes"
            if eps is not None:
                hint = f"; for {eps:g} grey levels write {eps:g}/255" if eps > 1 else ""
            raise InputError(f"eps must lie in [0, 1], not {self.eps!r}{hint}")
        object.__setattr__(self, "eps", eps)

    @property
    def levels(self) -> int:
        """Whole grey levels inside the budget, ⌊255·ε + 1e-6⌋."""
        return math.floor(255 * self.eps + TOLERANCE)

    def __str__(self) -> str:
        return f"{255 * self.eps:g}/255"

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Clip to the ε-ball around ``x`` and to [0, 1].

        The gradient passes where nothing is clipped and is zero elsewhere. Values that are not
        finite fall back to ``x``. In float16 and bfloat16 the bound is computed in float32 and
        the result is rounded towards the inside, so that it is never outside.

        Args:
            x_adv: Perturbed images, (N, 3, H, W), any values.
            x: The originals in [0, 1], same shape and dtype.

        Returns:
            Images with ``|result - x| <= eps + 1e-6`` that lie in [0, 1], in the dtype of ``x``.
        """
        if x_adv.shape != x.shape:
            raise InputError(
                f"the perturbed images have shape {tuple(x_adv.shape)}, the originals "
                f"{tuple(x.shape)}; a perturbation must keep the image size"
            )
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        centre, perturbed = x.to(wide), x_adv.to(wide)
        # A look at the sum costs one pass over the images, the replacement costs six. On a GPU
        # the look would stall the device, and the passes are cheap.
        if perturbed.device.type != "cpu" or not math.isfinite(float(perturbed.detach().sum())):
            perturbed = torch.where(torch.isfinite(perturbed), perturbed, centre)
        low = (centre - self.eps).clamp(min=0)
        high = (centre + self.eps).clamp(max=1)
        # As perturbed.clamp(low, high), whose own derivative takes six passes over the images.
        bounded = perturbed.detach().clamp(low, high)
        clipped = torch.where(bounded == perturbed.detach(), perturbed, bounded)
        return clipped if x.dtype == wide else _round_inwards(clipped.to(x.dtype), low, high)

    def quantize(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Round to the 8-bit image that is still inside the budget.

        Args:
            x_adv: Adversarial images, (N, 3, H, W) in [0, 1].
            x: The originals, which must be 8-bit images divided by 255.

        Returns:
            uint8 images that differ from the uint8 originals by at most :attr:`levels`.

        Raises:
            InputError: If ``x`` does not come from 8-bit pixels, so that no 8-bit original exists.
        """
        if x_adv.shape != x.shape:
            raise InputError(f"shapes differ: {tuple(x_adv.shape)} and {tuple(x.shape)}")
        # A few images at a time, in double precision, fit a CPU's cache.
        step = 4 if x.device.type == "cpu" else max(1, len(x))
        pairs = zip(torch.split(x_adv.detach(), step), torch.split(x.detach(), step), strict=True)
        return torch.cat([self._quantize(*pair) for pair in pairs])

    def _quantize(self, x_adv: Tensor, x: Tensor) -> Tensor:
        pixels = 255 * x.to(torch.float64)
        original = pixels.round()
        # Half precision stores k/255 with an error below half a grey level, so k comes back.
        slack = 255 * torch.finfo(x.dtype).eps
        if pixels.numel() and not bool(((pixels - original).abs() <= slack + 1e-3).all()):
            raise InputError(
                "quantize needs originals that are 8-bit pixels divided by 255; "
                "round them first: x = (x * 255).round() / 255"
            )
        perturbed = torch.where(torch.isfinite(x_adv), x_adv, x).to(torch.float64)
        low = (original - self.levels).clamp(min=0)
        high = (original + self.levels).clamp(max=255)
        return (255 * perturbed).round().clamp(low, high).to(torch.uint8)


def _round_inwards(y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Move half-precision values that rounding put outside [low, high] one step back inside."""
    with torch.no_grad():
        wide = y.detach().to(low.dtype)
        # Non-negative floats are ordered like their bit patterns, so ±1 is the next float.
        # (+0 also clears the sign of -0.)
        bits = (y.detach() + 0).view(torch.int16)
        inside = (bits - (wide > high).short() + (wide < low).short()).view(y.dtype)
        step = inside - y.detach()  # zero or one unit in the last place: y + step is exact
    return y + step


@dataclass(frozen=True)
class ReIDSample:
    """One image of one person, seen by one camera.

    Args:
        path: The image file; text becomes a path.
        pid: Identity. 0 marks a distractor in a gallery: a person that no query shows. −1 marks
            junk, which no dataset holds. Other whole numbers, such as NumPy's, become an int.
        camid: Camera, from 0 on.
        clothes: Clothes that the identity wears, from 1 on, where a ranking leaves out gallery
            images of the query's identity in the query's clothes; 0 where clothes do not matter.
        tracklet: Number of the tracklet that the image is a frame of, from 1 on; a ranking compares
            the mean features of tracklets. 0 for a single image.

    Raises:
        InputError: If the path is none, or a number is no whole number in its range.

    Example:
        >>> sample = ReIDSample("query/0002_c1s1_000451_03.jpg", pid=2, camid=1)
        >>> sample.path.name, sample.pid
        ('0002_c1s1_000451_03.jpg', 2)
    """

    path: Path
    pid: int
    camid: int
    clothes: int = 0
    tracklet: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path) or "\0" in str(self.path):
            if not isinstance(self.path, str | os.PathLike) or "\0" in os.fsdecode(self.path):
                raise InputError(f"path must be the path of an image file, not {self.path!r}")
            object.__setattr__(self, "path", Path(os.fsdecode(self.path)))
        for name, least in (("pid", -1), ("camid", 0), ("clothes", 0), ("tracklet", 0)):
            value = getattr(self, name)
            number = value if type(value) is int else as_whole_number(value)
            if number is None or not least <= number < 2**63:
                raise InputError(
                    f"{name} of {self.path} must be a whole number from {least} on, not {value!r}; "
                    "number identities from 1 and cameras from 0"
                )
            if number is not value:
                object.__setattr__(self, name, number)


@dataclass(frozen=True, eq=False)
class BatchShard:
    """Which rows of a joint batch a process holds.

    Args:
        rows: (n,) int64, ascending positions in the joint batch.
        total: Length of the joint batch.

    Example:
        >>> shard = BatchShard(torch.tensor([0, 1, 4, 5]), 8)
        >>> here, chosen = shard.choose(torch.tensor([1, 2, 5]))
        >>> here, chosen.rows, chosen.total  # rows 1 and 5 are here, first and last of three
        (tensor([1, 3]), tensor([0, 2]), 3)
    """

    rows: Tensor
    total: int

    def choose(self, chosen: Tensor) -> tuple[Tensor, BatchShard]:
        """Return where the chosen rows of the joint batch are in this shard, and their shard.

        Args:
            chosen: Ascending positions in the joint batch, the same in all processes.
        """
        chosen = chosen.to(self.rows.device)
        here = torch.isin(self.rows, chosen).nonzero().flatten()
        return here, BatchShard(torch.searchsorted(chosen, self.rows[here]), len(chosen))

    def followed_by(self, other: BatchShard) -> BatchShard:
        """Return the shard of two joint batches in a row."""
        rows = torch.cat((self.rows, other.rows.to(self.rows.device) + self.total))
        return BatchShard(rows, self.total + other.total)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BatchShard:
        """Return the shard with its rows on ``device``."""
        return replace(self, rows=self.rows.to(device, non_blocking=non_blocking))


@dataclass(frozen=True)
class ReIDBatch:
    """A batch of training images.

    Args:
        images: (N, 3, H, W) in [0, 1].
        pids: (N,) int64, consecutive training labels from 0.
        camids: (N,) int64.
        indices: (N,) int64 positions in the dataset's split.
        features: Clean features (N, D), where they were computed before; else None.
        shard: Which rows of a joint batch these are, where several processes learn together.

    Example:
        >>> numbers = torch.arange(4)
        >>> batch = ReIDBatch(torch.rand(4, 3, 8, 4), numbers // 2, numbers % 2, numbers)
        >>> batch.pids
        tensor([0, 0, 1, 1])
    """

    images: Tensor
    pids: Tensor
    camids: Tensor
    indices: Tensor
    features: Tensor | None = None
    shard: BatchShard | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on ``device``; from pinned memory the copy does not block."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | BatchShard)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Progress:
    """Progress of a long operation, as a callback receives it.

    Args:
        phase: Name of the current phase, for display.
        done: Units finished.
        total: Units in all.
        metrics: Metrics of the newest finished step (empty in phases that learn nothing).

    Example:
        >>> Progress("learning", done=3, total=100, metrics={"loss": 0.5}).metrics["loss"]
        0.5
    """

    phase: str
    done: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)


ProgressCallback = Callable[[Progress], None]
