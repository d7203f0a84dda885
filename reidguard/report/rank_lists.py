"""Rank lists of queries, clean and adversarial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from reidguard.attacks import Attack
from reidguard.data import ReIDDataset, decode_image
from reidguard.evaluation import FeatureStore
from reidguard.evaluation.features import module_device
from reidguard.evaluation.labels import ranking_labels
from reidguard.metrics import top_k
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, with_cameras
from reidguard.report.attack_figures import adversarial_8bit, identity_name
from reidguard.report.html import rank_list
from reidguard.report.images import as_image
from reidguard.types import ReIDSample

__all__ = ["Retrieval", "thumbnail"]

LENGTH = 8  # gallery images of a rank list
MAX_HEIGHT = 128  # pixels of an image in a rank list
BATCH = 32


@dataclass(frozen=True)
class Retrieval:
    """Retrieval of a dataset's gallery images for its queries, clean and adversarial.

    In all methods ``queries`` are indices into ``dataset.query`` and ``images``, if given, are
    uint8 images (N, 3, H, W) that replace them.

    Args:
        model: Computes the features.
        dataset: Queries and gallery.
        store: Caches clean features.
        size: (height, width) of the images.

    Example:
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     retrieval = Retrieval(small_model(), data, FeatureStore(), (32, 16))
        ...     retrieval.dataset.name
        'small'
    """

    model: ReIDModel
    dataset: ReIDDataset
    store: FeatureStore
    size: tuple[int, int]

    def attacked(self, attack: Attack, queries: Sequence[int]) -> Tensor:
        """Return the 8-bit adversarial images (N, 3, H, W) of queries, on the CPU.

        Args:
            attack: On the model's device.
            queries: Indices of the queries.
        """
        device = module_device(self.model)
        parts = []
        for start in range(0, len(queries), BATCH):
            part = queries[start : start + BATCH]
            samples = [self.dataset.query[query] for query in part]
            parts.append(adversarial_8bit(attack, self._clean(part).to(device), samples).cpu())
        return torch.cat(parts)

    def rank1_correct(
        self, queries: Sequence[int] | None = None, images: Tensor | None = None
    ) -> list[int]:
        """Return the queries (by default of all) whose rank-1 match is correct."""
        queries = range(len(self.dataset.query)) if queries is None else queries
        best = self._ranking(queries, images, 1)[:, 0].tolist()
        gallery = self.dataset.gallery
        return [
            query
            for query, match in zip(queries, best, strict=True)
            if match >= 0 and gallery[match].pid == self.dataset.query[query].pid
        ]

    def rank_lists(
        self,
        queries: Sequence[int],
        images: Tensor | None = None,
        *,
        title: str,
        blur: bool = False,
    ) -> list[str]:
        """Return the rank list of each query as HTML.

        Args:
            queries: Indices of the queries.
            images: Images in place of the queries; None for the clean ones.
            title: Above each list, before the person's name.
            blur: Show people as 4 × 8 blocks of colour.
        """
        ranking = self._ranking(queries, images, LENGTH)
        lists = []
        for query, image, matches in zip(
            queries, self._clean(queries) if images is None else images, ranking, strict=True
        ):
            sample = self.dataset.query[query]
            results = []
            for match in (self.dataset.gallery[i] for i in matches.tolist() if i >= 0):
                shown = thumbnail(as_image(decode_image(match.path, self.size)), blur)
                results.append((shown, _name(match), match.pid == sample.pid))
            name = _name(sample)
            shown_query = (thumbnail(as_image(image), blur), name)
            lists.append(rank_list(f"{title}: {name}", shown_query, results))
        return lists

    def _clean(self, queries: Sequence[int]) -> Tensor:
        return torch.stack([decode_image(self.dataset.query[q].path, self.size) for q in queries])

    def _ranking(self, queries: Sequence[int], images: Tensor | None, count: int) -> Tensor:
        """Return the gallery indices (N, count) of the best matches; -1 where there are fewer."""
        model, dataset = self.model, self.dataset
        samples = [dataset.query[query] for query in queries]
        if images is None:
            features = self.store.features(model, dataset, "query", image_size=self.size)
            features = features[list(queries)]
        else:
            device, view = module_device(model), inference_view(model)
            with torch.no_grad():
                features = torch.cat(
                    [
                        with_cameras(view, cameras).features(batch.to(device).float() / 255)
                        for batch, cameras in zip(
                            torch.split(images, BATCH),
                            torch.split(cameras_of(samples), BATCH),
                            strict=True,
                        )
                    ]
                )
        _, indices = top_k(
            features,
            self.store.features(model, dataset, "gallery", image_size=self.size),
            min(count, len(dataset.gallery)),
            **ranking_labels(samples, dataset.gallery),
            metric=model.metric,
        )
        return indices


def thumbnail(image: Image.Image, blur: bool = False) -> Image.Image:
    """Return an image as rank lists show it, or blurred to 4 × 8 blocks of colour.

    Example:
        >>> from PIL import Image
        >>> thumbnail(Image.new("RGB", (64, 128))).size[0] > 0
        True
    """
    height = min(MAX_HEIGHT, image.height)
    width = max(1, round(image.width * height / image.height))
    if blur:
        image = image.resize((4, 8), Image.Resampling.BOX)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _name(sample: ReIDSample) -> str:
    return f"{identity_name(sample)}, camera {sample.camid}"
