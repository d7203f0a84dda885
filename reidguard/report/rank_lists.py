"""Rank lists of queries, clean and adversarial."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from reidguard.attacks import Attack
from reidguard.data import ReIDDataset, decode_image
from reidguard.evaluation import FeatureStore
from reidguard.evaluation.features import module_device
from reidguard.metrics import top_k
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.report.attack_figures import adversarial_8bit, identity_name
from reidguard.report.html import rank_list
from reidguard.report.images import as_image
from reidguard.types import ReIDSample

__all__ = ["attacked_queries", "before_and_after", "rank1_correct", "rank_lists", "thumbnail"]

LENGTH = 8  # gallery images of a rank list
MAX_HEIGHT = 128  # pixels of an image in a rank list
BATCH = 32


def rank1_correct(
    model: ReIDModel,
    dataset: ReIDDataset,
    store: FeatureStore,
    size: tuple[int, int],
    images: Tensor | None = None,
    queries: Sequence[int] | None = None,
) -> list[int]:
    """Return the indices of the queries whose rank-1 match is correct.

    Args:
        model: Computes the features.
        dataset: Queries and gallery.
        store: Caches clean features.
        size: (height, width) of the images.
        images: uint8 images (N, 3, H, W) in place of the queries; None for the clean ones.
        queries: Indices of the queries; None for all.
    """
    queries = range(len(dataset.query)) if queries is None else queries
    best = _ranking(model, dataset, store, size, images, queries, 1)[:, 0].tolist()
    return [
        query
        for query, match in zip(queries, best, strict=True)
        if match >= 0 and dataset.gallery[match].pid == dataset.query[query].pid
    ]


def before_and_after(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack,
    queries: Sequence[int],
    *,
    store: FeatureStore,
    size: tuple[int, int],
    blur: bool = False,
) -> list[str]:
    """Return the rank lists of some queries, each before and after the attack (as 8-bit images).

    Args:
        model: Computes the features.
        dataset: Queries and gallery.
        attack: Perturbs the queries, on the model's device.
        queries: Indices of the queries.
        store: Caches clean features.
        size: (height, width) of the images.
        blur: Show people as 4 × 8 blocks of colour.
    """
    _, adversarial = attacked_queries(model, dataset, attack, queries, size)
    lists = [
        rank_lists(model, dataset, queries, images, title=title, store=store, size=size, blur=blur)
        for title, images in (("Before", None), ("After", adversarial))
    ]
    return [part for one_query in zip(*lists, strict=True) for part in one_query]


def rank_lists(
    model: ReIDModel,
    dataset: ReIDDataset,
    queries: Sequence[int],
    images: Tensor | None = None,
    *,
    title: str,
    store: FeatureStore,
    size: tuple[int, int],
    blur: bool = False,
) -> list[str]:
    """Return the rank list of each of some queries.

    Args:
        model: Computes the features.
        dataset: Queries and gallery.
        queries: Indices of the queries.
        images: uint8 images (N, 3, H, W) in place of the queries; None for the clean ones.
        title: Above each list, before the person's name.
        store: Caches clean features.
        size: (height, width) of the images.
        blur: Show people as 4 × 8 blocks of colour.
    """
    ranking = _ranking(model, dataset, store, size, images, queries, LENGTH)
    if images is None:
        images = _query_images(dataset, queries, size)
    lists = []
    for query, image, matches in zip(queries, images, ranking, strict=True):
        sample = dataset.query[query]
        results = []
        for match in (dataset.gallery[i] for i in matches.tolist() if i >= 0):
            shown = thumbnail(as_image(decode_image(match.path, size)), blur)
            results.append((shown, _name(match), match.pid == sample.pid))
        name = _name(sample)
        lists.append(
            rank_list(f"{title}: {name}", (thumbnail(as_image(image), blur), name), results)
        )
    return lists


def attacked_queries(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack,
    queries: Sequence[int],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Return uint8 queries (N, 3, H, W) on the CPU, clean and adversarial."""
    clean, device = _query_images(dataset, queries, size), module_device(model)
    batches = [adversarial_8bit(attack, b.to(device)).cpu() for b in torch.split(clean, BATCH)]
    return clean, torch.cat(batches)


def thumbnail(image: Image.Image, blur: bool = False) -> Image.Image:
    """Return an image as rank lists show it, or blurred to 4 × 8 blocks of colour."""
    height = min(MAX_HEIGHT, image.height)
    width = max(1, round(image.width * height / image.height))
    if blur:
        image = image.resize((4, 8), Image.Resampling.BOX)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _query_images(dataset: ReIDDataset, queries: Sequence[int], size: tuple[int, int]) -> Tensor:
    return torch.stack([decode_image(dataset.query[query].path, size) for query in queries])


def _ranking(
    model: ReIDModel,
    dataset: ReIDDataset,
    store: FeatureStore,
    size: tuple[int, int],
    images: Tensor | None,
    queries: Sequence[int],
    count: int,
) -> Tensor:
    """Return the gallery indices (N, count) of the best matches; -1 where there are fewer."""
    if images is None:
        features = store.features(model, dataset, "query", image_size=size)[list(queries)]
    else:
        device, view = module_device(model), inference_view(model)
        with torch.no_grad():
            batches = (batch.to(device).float() / 255 for batch in torch.split(images, BATCH))
            features = torch.cat([view.features(batch) for batch in batches])
    samples = [dataset.query[query] for query in queries]
    _, indices = top_k(
        features,
        store.features(model, dataset, "gallery", image_size=size),
        min(count, len(dataset.gallery)),
        query_pids=[s.pid for s in samples],
        query_camids=[s.camid for s in samples],
        gallery_pids=[s.pid for s in dataset.gallery],
        gallery_camids=[s.camid for s in dataset.gallery],
        metric=model.metric,
    )
    return indices


def _name(sample: ReIDSample) -> str:
    return f"{identity_name(sample)}, camera {sample.camid}"
