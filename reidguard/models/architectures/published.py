"""What networks with a fixed architecture share: the head of their files, and their variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from reidguard.models.base import ReIDModel
from reidguard.models.checkpoint_formats import name_head
from reidguard.models.factory import register_model

__all__ = ["PublishedModel", "register_variants"]


class PublishedModel(ReIDModel):
    """A network whose published files have one classifier and otherwise its own names."""

    def adapt_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Give the one classifier of a published file to the one domain of this model."""
        return name_head(state, self.num_classes)


def register_variants(
    build: Callable[..., ReIDModel], summary: str, variants: Mapping[str, Mapping[str, Any]]
) -> None:
    """Register a network under several names, each with options of its own.

    Args:
        build: Takes these options, ``num_classes`` and ``size``.
        summary: What the network is, in one sentence.
        variants: Options by name.
    """
    for name, options in variants.items():
        register_model(name)(_variant(build, summary, options))


def _variant(
    build: Callable[..., ReIDModel], summary: str, options: Mapping[str, Any]
) -> Callable[..., ReIDModel]:
    def variant(
        num_classes: int | Mapping[str, int] | None = None, size: tuple[int, int] = (256, 128)
    ) -> ReIDModel:
        return build(**options, num_classes=num_classes, size=size)

    variant.__doc__ = summary
    return variant
