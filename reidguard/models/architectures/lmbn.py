"""LMBN: a lightweight multi-branch network on OSNet (Herzog et al., ICIP 2021)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reidguard.models.architectures.osnet import WIDTHS, OmniScaleBlock, shrinking
from reidguard.models.base import ReIDModel, ReIDOutput, image_size
from reidguard.models.checkpoint_formats import head_rule, rename
from reidguard.models.factory import register_model
from reidguard.models.layers import ConvBN, initialise
from reidguard.types import InputSpec

__all__ = ["LMBN"]

FEATURES = 512  # of each part
# The necks of the seven vectors, in their order within the feature: whole image, whole image with
# dropped rows, whole image of the partial branch, its halves, and halves of the channels.
REDUCTIONS = ("reduction_0", "reduction_4", "reduction_1", "reduction_2", "reduction_3")
CHANNEL_NECKS = ("reduction_ch_0", "reduction_ch_1")
NECKS = (*REDUCTIONS, *CHANNEL_NECKS)
DROPPED_HEIGHT = 0.33  # of the maps, in training


class _Neck(nn.Module):
    """A 1×1 convolution, unless ``reduce`` is False, and a batch norm without shift."""

    def __init__(self, channels: int, *, reduce: bool) -> None:
        super().__init__()
        if reduce:
            self.reduction = nn.Conv2d(channels, FEATURES, 1, bias=False)
        self.reduce = reduce
        self.bn = nn.BatchNorm1d(FEATURES)
        self.bn.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, 512) vectors before and after the norm."""
        before = (self.reduction(x) if self.reduce else x).flatten(1)
        return before, self.bn(before)


class _DropBlock(nn.Module):
    """A block, after which training drops the most active rows of the maps (Top-DB-Net)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.drop_batch_bottleneck = OmniScaleBlock(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps with and without dropped rows."""
        maps = self.drop_batch_bottleneck(x)
        if not self.training:
            return maps, maps
        rows = maps.detach().square().sum(1).amax(2)
        dropped = rows.topk(round(DROPPED_HEIGHT * rows.shape[1])).indices
        mask = torch.ones_like(rows).scatter(1, dropped, 0)
        return maps * mask[:, None, :, None], maps


def _branch(second: int, third: int) -> nn.Sequential:
    """Return the rest of an OSNet; names are those of a slice of its stages."""
    rest = [("1", OmniScaleBlock(second, second)), ("2", shrinking(second))]
    stage = nn.Sequential(OmniScaleBlock(second, third), OmniScaleBlock(third, third))
    return nn.Sequential(nn.Sequential(OrderedDict(rest)), stage, ConvBN(third, third))


@register_model("lmbn_n")
class LMBN(ReIDModel):
    """LMBN-n: three branches of OSNet x1.0 that see the image whole, in halves and by channels.

    The feature is seven vectors of 512 numbers, each of length 1, interleaved and compared by
    cosine. In training :class:`ReIDOutput` has the embeddings of the three vectors of the whole
    image, before their norms, and the logits of all seven.

    Args:
        num_classes: Training identities, one number or one per domain.
        size: Height and width that images are resized to. The tracker boxmot takes (256, 128).
    """

    def __init__(
        self,
        *,
        num_classes: int | Mapping[str, int] | None = None,
        size: tuple[int, int] = (384, 128),
    ) -> None:
        spec = InputSpec(size=image_size(size))
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        stem, first, second, third = WIDTHS
        self.backone = nn.Sequential(  # the name in published files
            ConvBN(3, stem, kernel=7, stride=2),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Sequential(
                OmniScaleBlock(stem, first), OmniScaleBlock(first, first), shrinking(first)
            ),
            OmniScaleBlock(first, second),
        )
        self.global_branch = _branch(second, third)
        self.partial_branch = _branch(second, third)
        self.channel_branch = _branch(second, third)
        for name in REDUCTIONS:
            self.add_module(name, _Neck(third, reduce=True))
        self.shared = nn.Sequential(
            nn.Conv2d(third // len(CHANNEL_NECKS), FEATURES, 1, bias=False),
            nn.BatchNorm2d(FEATURES),
            nn.ReLU(),
        )
        for name in CHANNEL_NECKS:
            self.add_module(name, _Neck(FEATURES, reduce=False))
        self.batch_drop_block = _DropBlock(third)
        initialise(self)
        self.build_part_classifiers([FEATURES] * len(NECKS), bias=False)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 3584) features."""
        return self._joined(self._parts(inputs)[1])

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        """Return features, the embeddings of three parts and the logits of all seven.

        See :meth:`ReIDModel.forward`.
        """
        chosen = self.resolve_domain(domain)
        before, after = self._parts(self.prepare(x))
        logits = self.part_logits(after, chosen)
        return ReIDOutput(self._joined(after), before[:3], logits)

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the seven classifiers of published files to the one domain of this model."""
        rules = []
        for number, name in enumerate(NECKS):
            pattern = rf"{name}\.classifier\."
            own = head_rule(pattern, self.num_classes, f"{number}.")
            rules += own or [(pattern, f"classifier.?.{number}.")]
        return rename(state, rules)

    @staticmethod
    def _joined(parts: list[Tensor]) -> Tensor:
        return F.normalize(torch.stack(parts, 2), dim=1).flatten(1)

    def _parts(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the seven vectors before and after their norms."""
        x = self.backone(inputs)
        dropped, whole = self.batch_drop_block(self.global_branch(x))
        partial = self.partial_branch(x)
        upper, lower = torch.split(F.adaptive_avg_pool2d(partial, (2, 1)), 1, 2)
        by_channels = self.channel_branch(x).mean((2, 3), keepdim=True)
        pooled = [
            whole.mean((2, 3), keepdim=True),
            dropped.amax((2, 3), keepdim=True),
            partial.amax((2, 3), keepdim=True),
            upper,
            lower,
            *(self.shared(chunk) for chunk in by_channels.chunk(2, 1)),
        ]
        pairs = [
            self.get_submodule(name)(vector) for name, vector in zip(NECKS, pooled, strict=True)
        ]
        return [before for before, _ in pairs], [after for _, after in pairs]
