"""Cameras of images, for models whose features depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.types import ReIDSample

__all__ = [
    "cameras_of",
    "check_cameras",
    "depends_on_cameras",
    "probe_cameras",
    "with_cameras",
]

M = TypeVar("M")


def depends_on_cameras(model: object) -> bool:
    """Return whether the features of a model depend on the cameras of the images."""
    return getattr(model, "cameras", None) is not None


def cameras_of(samples: Sequence[ReIDSample]) -> Tensor:
    """Return the (N,) int64 cameras of samples."""
    return torch.tensor([sample.camid for sample in samples], dtype=torch.int64)


def check_cameras(model: Any, cameras: Tensor) -> None:
    """Refuse cameras that a model does not know; on a GPU this waits for the device.

    Args:
        model: A model without cameras takes any.
        cameras: (N,) whole numbers.

    Raises:
        InputError: Naming both ranges, and the cure.
    """
    if not depends_on_cameras(model) or not len(cameras):
        return
    known: range = model.cameras
    low, high = (int(number) for number in torch.aminmax(cameras))
    if low < known[0] or high > known[-1]:
        raise InputError(
            f"the images are of cameras {low} to {high}, and the {type(model).__name__} knows "
            f"cameras {known[0]} to {known[-1]}: create it with first_camera=<the dataset's first "
            "number>, or take images of the dataset that it was trained on"
        )


def probe_cameras(model: Any, count: int) -> Tensor | None:
    """Return ``count`` cameras that a model knows, for a pass on made-up images; else None."""
    if not depends_on_cameras(model):
        return None
    known: range = model.cameras
    return torch.tensor([known[i % len(known)] for i in range(count)], dtype=torch.int64)


def with_cameras(model: M, cameras: Tensor | Sequence[int] | None) -> M:
    """Return a view of a model that gives it the cameras of the next batch of images.

    A model whose features do not depend on cameras is returned as it is, and so is any model
    without cameras.

    Args:
        model: Anything with ``features``; its ``cameras`` say whether it uses them.
        cameras: (N,) cameras of the N images of each call.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(cameras=range(1, 3), metric="cosine",
        ...                         features=lambda x, cameras=None: cameras)
        >>> with_cameras(model, [1, 2]).features(torch.rand(2, 3, 8, 4))
        tensor([1, 2])
    """
    if cameras is None or not depends_on_cameras(model):
        return model
    return cast(M, _CameraView(model, torch.as_tensor(cameras)))


class _CameraView:
    """A model with the cameras of the images that it is called with."""

    def __init__(self, model: Any, cameras: Tensor) -> None:
        self._model, self._cameras = model, cameras

    def features(self, x: Tensor) -> Tensor:
        features: Tensor = self._model.features(x, cameras=self._cameras)
        return features

    def __call__(self, x: Tensor, domain: str | None = None) -> Any:
        return self._model(x, domain=domain, cameras=self._cameras)

    @property
    def members(self) -> list[Any]:
        """The members of an ensemble, with the same cameras."""
        return [with_cameras(member, self._cameras) for member in self._model.members]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
