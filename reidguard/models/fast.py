"""Features in mixed precision, or by a compiled network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from reidguard.models.base import ReIDModel
from reidguard.models.front import FrontModel
from reidguard.schema import check_instance, checked

__all__ = ["FastModel"]


class FastModel(FrontModel):
    """Computes a model's features faster, and slightly differently.

    It is compared as the model is, has no classifier, and is not saved itself: save the model.
    What it costs in mAP and gains in time depends on network and processor: see
    ``docs/results.rst``.

    Args:
        model: It is not copied.
        amp: Compute under ``torch.autocast`` in bfloat16. Features are float32.
        compile: Compile the network by ``torch.compile`` at the first pass, and again for another
            number of images. On a CPU this needs a C++ compiler.

    Raises:
        InputError: If it is no :class:`ReIDModel`.

    Example:
        >>> import torch
        >>> from reidguard.models import create_model
        >>> model = create_model("osnet_x0_25").eval()
        >>> FastModel(model, amp=True).features(torch.rand(2, 3, 64, 32)).dtype
        torch.float32
    """

    def __init__(self, model: ReIDModel, *, amp: bool = False, compile: bool = False) -> None:
        check_instance(ReIDModel, "model", model)
        super().__init__(model.metric)
        self.model = model
        self.cameras = model.cameras
        self.amp = checked(bool, "amp", amp)
        self.compile_network = checked(bool, "compile", compile)

    def extra_repr(self) -> str:
        """Return what differs from the model, which fingerprints see, too."""
        return f"amp={self.amp}, compile={self.compile_network}"

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return (N, D) features; see :meth:`ReIDModel.features`."""
        run = _compiled() if self.compile_network else _features
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.amp):
            found = run(self.model, x, cameras)
        return found.float() if self.amp else found


def _features(model: ReIDModel, x: Tensor, cameras: Tensor | Sequence[int] | None) -> Tensor:
    return model.features(x, cameras)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    # The network is an argument, so that a copy of this model runs its own network.
    compiled: Any = torch.compile(_features)
    return compiled  # type: ignore[no-any-return]
