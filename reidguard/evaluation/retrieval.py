"""A model on a dataset: cached clean features, adversarial batches and rankings."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import Attack, Guides, InstanceAttack
from reidguard.data import ReIDDataset, iterate_images
from reidguard.data.images import to_device
from reidguard.errors import InputError
from reidguard.evaluation.features import (
    CountCallback,
    FeatureStore,
    attack_device,
    features_key,
    for_samples,
    module_device,
    to_float,
)
from reidguard.evaluation.labels import (
    has_tracklets,
    heads,
    pool_tracklets,
    rank_visible,
    ranking_labels,
)
from reidguard.evaluation.multi_query import QueryGroups
from reidguard.evaluation.protocol import Protocol
from reidguard.metrics import GalleryPart, RankingResult, Reranking, rank
from reidguard.models import FastModel, FlipModel, ReIDModel
from reidguard.models.fingerprint import model_key
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, check_cameras
from reidguard.schema import check_instance
from reidguard.types import ReIDSample

__all__ = ["Retrieval"]


class Retrieval:
    """The search of a dataset's gallery by a model, under a protocol.

    Clean features are extracted once, into the store, and shared by all attacks.

    Args:
        model: On the device on which everything runs.
        dataset: Its query and gallery are used.
        protocol: How to read and score; None is ``Protocol()``.
        store: Caches clean features; None is a new one.
        batch_size: Images per forward pass.
        progress: Called with (images done, images in all) while the gallery is read.

    Raises:
        InputError: If the dataset has no query or no gallery images.
    """

    def __init__(
        self,
        model: ReIDModel,
        dataset: ReIDDataset,
        protocol: Protocol | None = None,
        store: FeatureStore | None = None,
        batch_size: int = 64,
        progress: CountCallback | None = None,
    ) -> None:
        check_instance(ReIDModel, "model", model)
        check_instance(ReIDDataset, "dataset", dataset)
        if not dataset.query or not dataset.gallery:
            raise InputError(
                f"{dataset.name} has no query or no gallery images; nothing can be ranked"
            )
        check_cameras(model, cameras_of((*dataset.query, *dataset.gallery)))
        self.protocol = Protocol() if protocol is None else protocol
        self.dataset = dataset
        self.model, self._variant = _variant(model, self.protocol)
        self._plain = model
        self.store = FeatureStore() if store is None else store
        self.batch_size, self.progress = batch_size, progress
        self.device = module_device(model)
        self.metric = model.metric if self.protocol.metric is None else self.protocol.metric

    def check_device(self, name: str, module: Attack | ReIDModel | None) -> None:
        """Check that an attack or another model is on the model's device.

        Raises:
            InputError: If it is not, or it is an instance attack that is not bound.
        """
        if module is None:
            return
        device = attack_device(module, self.device)
        if device != self.device:
            cure = f"move it with .to({str(self.device)!r})"
            if isinstance(module, InstanceAttack):
                cure = "bind it to a model there"
            raise InputError(f"the model is on {self.device}, the {name} on {device}; {cure}")

    def need_single_images(self, reason: str) -> None:
        """Refuse searches in which the result of a query depends on other images than its own.

        Args:
            reason: Begins the message: what is done to each image by itself.

        Raises:
            InputError: If the protocol re-ranks or averages, or queries are tracklets.
        """
        if self.protocol.rerank or self.protocol.multi_query:
            raise InputError(
                f"{reason}, and with rerank or multi_query its result depends on others: use a "
                "protocol without rerank and multi_query, and evaluate() for single attacks"
            )
        if has_tracklets(self.dataset.query):
            raise InputError(
                f"{reason}, and a tracklet is the mean of its frames: use evaluate() for single "
                "attacks"
            )

    def key(self, split: str, every: int = 1) -> dict[str, Any]:
        """Return what determines the clean features of every ``every``-th sample of a split."""
        return features_key(
            self.model_key,
            self.dataset,
            split,
            image_size=self.protocol.image_size,
            dtype=self.protocol.dtype,
            every=every,
        )

    @cached_property
    def model_key(self) -> dict[str, Any]:
        """What the features of the model depend on, computed at the first access."""
        return {**model_key(self._plain, self.protocol.image_size), **self._variant}

    def with_dataset(self, dataset: ReIDDataset) -> Retrieval:
        """Return the same search of a dataset with other query images."""
        result = copy.copy(self)
        result.dataset = dataset
        return result

    def query_groups(self, every: int, dataset: ReIDDataset | None = None) -> QueryGroups | None:
        """Return the images of every ``every``-th query; None unless the protocol has several.

        Args:
            every: One in how many queries is used.
            dataset: The user's, if its query images are not those of the search.
        """
        if not self.protocol.multi_query:
            return None
        return QueryGroups.of(dataset or self.dataset, self.dataset.query[::every])

    @cached_property
    def gallery(self) -> Tensor:
        """The (G, D) clean features of the gallery, extracted at the first access.

        Each of several processes extracts its part and gets all of them.
        """
        return self.store.features(
            self.model,
            self.dataset,
            "gallery",
            image_size=self.protocol.image_size,
            dtype=self.protocol.dtype,
            batch_size=self.batch_size,
            progress=self.progress,
            key=self.key("gallery"),
        )

    def guides(self) -> Guides:
        """Return the gallery as guides for instance attacks."""
        return Guides(self.gallery, [sample.pid for sample in self.dataset.gallery])

    def bind(self, attack: Attack) -> Attack:
        """Bind an instance attack that is not bound to the model, with the gallery as guides."""
        if not isinstance(attack, InstanceAttack) or attack._target is not None:
            return attack
        return attack.bind(self.model, self.guides() if attack.needs_guides else None)

    def read(self, samples: Sequence[ReIDSample]) -> Iterator[tuple[slice, Tensor]]:
        """Yield the places and the uint8 images of batches."""
        return iterate_images(samples, self.protocol.image_size, self.batch_size)

    def to_input(self, pixels: Tensor) -> Tensor:
        """Return uint8 images as (N, 3, H, W) in [0, 1] on the model's device."""
        return to_float(to_device(pixels, self.device), self.protocol.dtype)

    def perturb(
        self, attack: Attack, x: Tensor, samples: Sequence[ReIDSample], with_labels: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run an attack on one batch.

        Args:
            attack: On the model's device; bound, if it is an instance attack.
            x: (N, 3, H, W) in [0, 1].
            samples: The N samples that ``x`` shows.
            with_labels: Whether an instance attack is given their ground-truth identities.

        Returns:
            The adversarial images (N, 3, H, W): as the attack returns them, rounded to 8 bits but
            in [0, 1], and these as uint8, as a PNG file stores them.
        """
        images = for_samples(inference_view(attack), samples, with_labels)(x)
        saved = attack.budget.quantize(images, x)
        return images, to_float(saved, self.protocol.dtype), saved

    def rank(
        self,
        query: Tensor,
        samples: Sequence[ReIDSample],
        gallery: Sequence[Tensor] | GalleryPart | None = None,
    ) -> RankingResult:
        """Rank the gallery for queries; tracklets are queries, and images of it, by their mean.

        Args:
            query: (Q, D) features.
            samples: The Q samples that they are of.
            gallery: Features in shards; None for the clean ones of the whole gallery. Of tracklets
                all shards are needed.
        """
        metric: str | Reranking = self.metric
        if isinstance(self.protocol.rerank, Reranking):
            metric = replace(self.protocol.rerank, metric=self.metric)
        features: Tensor | Sequence[Tensor] | GalleryPart = (
            self.gallery if gallery is None else gallery
        )
        images: Sequence[ReIDSample] = self.dataset.gallery
        if has_tracklets((*samples, *images)):
            assert not isinstance(features, GalleryPart)
            frames = features if isinstance(features, Tensor) else torch.cat(list(features))
            query, features = pool_tracklets(query, samples), pool_tracklets(frames, images)
            samples, images = heads(samples), heads(images)
        labels = ranking_labels(samples, images)
        settings: dict[str, Any] = {
            "metric": metric,
            "same_camera": self.protocol.same_camera,
            "max_rank": self.protocol.max_rank,
        }
        if self.dataset.hidden:
            both = (samples, images)
            return rank_visible(query, features, labels, self.dataset.hidden, both, settings)
        return rank(query, features, **labels, **settings)


def _variant(model: ReIDModel, protocol: Protocol) -> tuple[ReIDModel, dict[str, bool]]:
    """Return the model that computes a protocol's features, and the settings that it adds."""
    added: dict[str, bool] = {}
    if isinstance(model, FastModel):  # it was prepared for this protocol before
        return model, added
    if protocol.flip and not isinstance(model, FlipModel):
        model = FlipModel(model)
        added["flip"] = True
    if protocol.amp or protocol.compile:
        model = FastModel(model, amp=protocol.amp, compile=protocol.compile)
        added |= {name: True for name in ("amp", "compile") if getattr(protocol, name)}
    return model, added
