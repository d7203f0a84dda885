"""A model family on a backbone of its own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from reidguard import InputSpec, ReIDModel


class ExampleCNN(ReIDModel):
    """Four convolutions; the feature is their average over all places.

    Args:
        num_classes: Training identities, one number or one per domain.
        width: Channels of the first convolution; a file remembers it.
        size: Height and width that images are resized to.
    """

    def __init__(
        self,
        num_classes: int | Mapping[str, int] | None = None,
        width: int = 16,
        size: tuple[int, int] = (128, 64),
    ) -> None:
        height, breadth = size
        super().__init__(
            input_spec=InputSpec(size=(height, breadth)), metric="cosine", num_classes=num_classes
        )
        layers: list[nn.Module] = []
        channels = 3
        for number in range(4):
            wider = width * 2**number
            layers += [
                nn.Conv2d(channels, wider, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.SiLU(),
            ]
            channels = wider
        self.layers = nn.Sequential(*layers)
        self.build_classifiers(channels)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return (N, 8·width) features of images that are already resized and normalised."""
        features: Tensor = self.layers(inputs).mean((2, 3))
        return features
