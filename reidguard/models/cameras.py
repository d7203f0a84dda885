"""Models whose features depend on the camera that took an image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.models.base import Metric, ReIDModel, ReIDOutput
from reidguard.nn.cameras import check_cameras
from reidguard.schema import checked
from reidguard.types import InputSpec

__all__ = ["CameraModel"]

MAX_CAMERAS = 10**6


class CameraModel(ReIDModel):
    """A model with an embedding of each camera, such as TransReID's side information.

    Evaluation, attacks, training and defenses give it the cameras of the samples. In your own
    calls, pass them: ``model.features(x, cameras=camids)``. A subclass implements :meth:`embed`
    with the rows of its embedding.

    Args:
        input_spec: See :class:`ReIDModel`.
        metric: See :class:`ReIDModel`.
        num_classes: See :class:`ReIDModel`.
        cameras: How many cameras the embedding has; 0 builds a model that needs none.
        first_camera: The number of the first camera. In most datasets cameras count from 1.

    Raises:
        InputError: If there is a single camera, or an argument is out of its range.

    Example:
        >>> model = create_model("transreid", cameras=6)  # doctest: +SKIP
        >>> model.features(x, cameras=torch.tensor([1, 3])).shape  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        input_spec: InputSpec,
        metric: Metric,
        num_classes: int | Mapping[str, int] | None = None,
        cameras: int = 0,
        first_camera: int = 1,
    ) -> None:
        super().__init__(input_spec=input_spec, metric=metric, num_classes=num_classes)
        count = checked(int, "cameras", cameras, low=0, high=MAX_CAMERAS)
        first = checked(int, "first_camera", first_camera, low=0, high=MAX_CAMERAS)
        if count == 1:
            raise InputError("cameras must be 0, for none, or at least 2, not 1")
        self.cameras = range(first, first + count) if count else None

    @abstractmethod
    def embed(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return (N, D) features of inputs that are already resized and normalised.

        Args:
            inputs: (N, 3, H, W).
            rows: (N,) int64, the row of each image's camera in the embedding; None without one.
        """

    def features(self, x: Tensor, cameras: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the test-time embedding, before any L2 normalisation.

        Args:
            x: (N, 3, H, W) images in [0, 1], any size.
            cameras: (N,) their cameras, as the samples of a dataset number them.

        Returns:
            (N, D).

        Raises:
            InputError: If ``x`` is not such a tensor, or the cameras are missing or unknown.
        """
        return self.embed(self.prepare(x), self.rows(cameras, x))

    if TYPE_CHECKING:  # Module's own returns Any

        def __call__(
            self,
            x: Tensor,
            domain: str | None = None,
            cameras: Tensor | Sequence[int] | None = None,
        ) -> ReIDOutput:
            """Return the training outputs: see :meth:`forward`."""

    def forward(
        self,
        x: Tensor,
        domain: str | None = None,
        cameras: Tensor | Sequence[int] | None = None,
    ) -> ReIDOutput:
        """Return features, embeddings and logits; see :meth:`ReIDModel.forward`.

        Args:
            x: Images of any size.
            domain: Whose classifier to use. May be left out if there is only one.
            cameras: (N,) cameras, as for :meth:`features`.
        """
        chosen = self.resolve_domain(domain)
        features = self.features(x, cameras)
        logits = None if chosen is None else self.logits(features, chosen)
        return ReIDOutput(features, features, logits)

    def rows(self, cameras: Tensor | Sequence[int] | None, x: Tensor) -> Tensor | None:
        """Return the (N,) rows of cameras in the embedding, on the device of ``x``; None without.

        Raises:
            InputError: If the cameras are missing, of another number than the images, or (checked
                on the CPU only) unknown. ``fit`` and ``evaluate`` check those of a dataset first.
        """
        if self.cameras is None:
            return None
        known = f"{self.cameras[0]} to {self.cameras[-1]}"
        if cameras is None:
            raise InputError(
                f"the features of this {type(self).__name__} depend on the camera of each image: "
                f"pass features(x, cameras=...) with N numbers from {known}, and to an instance "
                "attack attack.with_cameras(...); evaluate and fit take them from the samples"
            )
        numbers = torch.as_tensor(cameras)
        if numbers.shape != x.shape[:1] or numbers.is_floating_point():
            raise InputError(
                f"cameras must be one whole number for each of the {len(x)} images, not "
                f"{numbers.dtype} of shape {tuple(numbers.shape)}"
            )
        if numbers.device.type == "cpu":
            check_cameras(self, numbers)
        return numbers.to(x.device, torch.int64, non_blocking=True) - self.cameras[0]
