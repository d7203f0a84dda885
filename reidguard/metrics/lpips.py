"""LPIPS: how different two images look to a network, weighted as people judged."""

from __future__ import annotations

from importlib import util
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from reidguard.contexts import seeded
from reidguard.errors import CheckpointError, InputError
from reidguard.metrics.quality import pair_of
from reidguard.tensor_files import read_tensors

__all__ = ["LPIPS"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of torchvision's networks: the ReLUs that are looked at, and their channels.
TAPS = {
    "alex": ((1, 4, 7, 9, 11), (64, 192, 384, 256, 256)),
    "vgg": ((3, 8, 15, 22, 29), (64, 128, 256, 512, 512)),
}
SMALLEST = 64  # pixels; below, the networks' last maps vanish or see mostly their padding


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al., CVPR 2018), version 0.1.

    Features of five layers, of unit length over channels at each position; squared differences are
    weighted by channel, averaged over positions and added up. 0 for equal images; larger is more
    different. Nothing is downloaded: the files are yours.

    Args:
        backbone: Weights of AlexNet or VGG-16, as torchvision publishes them; which of them it is,
            is seen from the file.
        linear: Weights of the channels, as the ``lpips`` package has them (``alex.pth``,
            ``vgg.pth``). None takes the installed package's: ``pip install "reidguard[lpips]"``.

    Raises:
        CheckpointError: If a file is missing, damaged, or of another network.
        InputError: If ``linear`` is None and the package is not installed.

    Example:
        >>> lpips = LPIPS("alexnet.pth")  # doctest: +SKIP
        >>> lpips(images, adversarial).mean()  # doctest: +SKIP
    """

    def __init__(self, backbone: Path | str, linear: Path | str | None = None) -> None:
        super().__init__()
        state = read_tensors(backbone)
        first = state.get("features.0.weight")
        if first is None or first.shape[2] not in (3, 11):
            raise CheckpointError(
                f"{backbone} is neither AlexNet nor VGG-16: give a file that torchvision publishes"
            )
        self.network = "alex" if first.shape[2] == 11 else "vgg"
        made = models.alexnet if self.network == "alex" else models.vgg16
        with seeded(0):
            self.features = made(weights=None).features
        self.taps, channels = TAPS[self.network]
        body = {
            name.removeprefix("features."): value
            for name, value in state.items()
            if name.startswith("features.")
        }
        try:
            self.features.load_state_dict(body)
        except RuntimeError as error:
            raise CheckpointError(f"{backbone} does not fit: {error}") from error
        linear = _installed(self.network) if linear is None else linear
        read = read_tensors(linear)
        for number, count in enumerate(channels):
            weight = read.get(f"lin{number}.model.1.weight")
            if weight is None or weight.shape != (1, count, 1, 1):
                raise CheckpointError(
                    f"{linear} does not hold the channels' weights for {self.network}: give the "
                    f"lpips package's {self.network}.pth"
                )
            self.register_buffer(f"linear{number}", weight.float())
        self.requires_grad_(False).eval()

    def forward(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distances (N,) of images (N, 3, H, W) in [0, 1], in float32 or float64.

        Raises:
            InputError: If shapes differ, or a side is below 64 pixels.
        """
        x_adv, x = pair_of(x_adv.detach(), x.detach())
        if min(x.shape[2:]) < SMALLEST:
            raise InputError(
                f"LPIPS needs sides of at least {SMALLEST} pixels, the images have "
                f"{x.shape[2]}x{x.shape[3]}"
            )
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        weights = next(self.features.parameters())
        maps = ((torch.cat([x_adv, x]) - mean) / std).to(weights)
        total: Tensor = weights.new_zeros(len(x))
        number = 0
        with torch.no_grad():
            for place, layer in enumerate(self.features[: self.taps[-1] + 1]):
                maps = layer(maps)
                if place not in self.taps:
                    continue
                unit = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
                off = (unit[: len(x)] - unit[len(x) :]).square()
                total += (off * self.get_buffer(f"linear{number}")).sum(1).mean((1, 2))
                number += 1
        return total.to(x.dtype)


def _installed(network: str) -> Path:
    found = util.find_spec("lpips")
    if found is None or found.origin is None:
        raise InputError(
            "the weights of LPIPS's channels are not here: give their file, or pip install "
            '"reidguard[lpips]"'
        )
    return Path(found.origin).parent / "weights" / "v0.1" / f"{network}.pth"
