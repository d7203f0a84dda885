"""Evaluation protocol: the settings that comparable evaluations have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from reidguard.errors import InputError
from reidguard.metrics import MAX_RANK, METRICS, SAME_CAMERA, Reranking
from reidguard.schema import MAX_SIDE, checked

__all__ = ["Protocol"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SWITCHES = ("flip", "multi_query", "amp", "compile")


@dataclass(frozen=True)
class Protocol:
    """Settings of reading images and scoring rankings. The defaults are the usual ones.

    With every protocol, junk (identity -1) is ignored, distractors (0) stay in the gallery, and
    ties count against the match.

    Args:
        image_size: (height, width) of the 8-bit images that attacks see and saved images have.
            The model resizes further by its own InputSpec.
        metric: ``"euclidean"`` or ``"cosine"``; None takes the model's own.
        same_camera: ``"exclude"`` leaves out, per query, gallery images of the same identity by the
            same camera, or in the same clothes where samples have :class:`ReIDSample.clothes
            <reidguard.ReIDSample>`; ``"keep"`` counts them as matches.
        max_rank: Length of the CMC curve.
        dtype: Float type of the images given to the attack and the model.
        flip: Whether a feature is the mean of those of the image and of its mirror image, as
            :class:`~reidguard.models.FlipModel` computes it.
        amp: Whether features are computed under autocast in bfloat16: see
            :class:`~reidguard.models.FastModel`, also for ``compile``.
        compile: Whether the network is compiled by ``torch.compile``.
        multi_query: Whether a query's feature is the mean over all images of its identity by its
            camera: those of ``dataset.multi_query`` (Market-1501's ``gt_bbox``), or, where there
            are none, the query images. An attack on the queries perturbs each of these images.
        rerank: Whether to re-rank by k-reciprocal encodings, with the usual settings or those of a
            :class:`~reidguard.metrics.Reranking`, whose metric is that of the protocol.

    Example:
        >>> Protocol(image_size=(384, 128)).to_dict()["image_size"]
        [384, 128]
        >>> Protocol(rerank=True).rerank
        Reranking(metric='euclidean', k1=20, k2=6, weight=0.3)
    """

    image_size: tuple[int, int] = (256, 128)
    metric: str | None = None
    same_camera: str = "exclude"
    max_rank: int = 50
    dtype: torch.dtype = torch.float32
    flip: bool = False
    amp: bool = False
    compile: bool = False
    multi_query: bool = False
    rerank: Reranking | bool | None = None

    def __post_init__(self) -> None:
        size = checked(tuple[int, int], "image_size", self.image_size, low=1, high=MAX_SIDE)
        object.__setattr__(self, "image_size", size)
        if self.metric is not None and self.metric not in METRICS:
            raise InputError(
                f"unknown metric {self.metric!r}; use one of {', '.join(METRICS)}, or None for the "
                "model's own"
            )
        if self.same_camera not in SAME_CAMERA:
            raise InputError(
                f"same_camera must be one of {', '.join(SAME_CAMERA)}, not {self.same_camera!r}"
            )
        checked(int, "max_rank", self.max_rank, low=1, high=MAX_RANK)
        if self.dtype not in _DTYPES:
            raise InputError(
                f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {self.dtype!r}"
            )
        for name in _SWITCHES:
            checked(bool, name, getattr(self, name))
        if not isinstance(self.rerank, Reranking):
            rerank = self.rerank is not None and checked(bool, "rerank", self.rerank)
            object.__setattr__(self, "rerank", Reranking() if rerank else None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rerank = asdict(self.rerank) if isinstance(self.rerank, Reranking) else {}
        rerank.pop("metric", None)
        return {
            "image_size": list(self.image_size),
            "metric": self.metric,
            "same_camera": self.same_camera,
            "max_rank": self.max_rank,
            "dtype": str(self.dtype).removeprefix("torch."),
            **{name: True for name in _SWITCHES if getattr(self, name)},
            **({"rerank": rerank} if rerank else {}),
        }
