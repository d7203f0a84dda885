"""Labels of samples for a ranking: identities, cameras, clothes, and what a query does not see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.metrics import GalleryPart, RankingResult, rank
from reidguard.metrics.counting import JUNK
from reidguard.metrics.ranking import summarize
from reidguard.types import ReIDSample

__all__ = ["has_tracklets", "heads", "pool_tracklets", "rank_visible", "ranking_labels"]


class RankingLabels(TypedDict):
    """Identities and cameras, as :func:`~reidguard.metrics.rank` takes them."""

    query_pids: Tensor
    query_camids: Tensor
    gallery_pids: Tensor
    gallery_camids: Tensor


UNKNOWN = (-1, -2)  # clothes of queries and gallery that match none of the other's


def ranking_labels(query: Sequence[ReIDSample], gallery: Sequence[ReIDSample]) -> RankingLabels:
    """Return the labels that :func:`~reidguard.metrics.rank` takes, by its argument.

    Cameras are of shape (N,), or (N, 2) with the clothes beside them where samples have any.
    """
    labels: dict[str, Tensor] = {}
    clothed = any(sample.clothes for sample in gallery)
    for name, samples, unknown in zip(("query", "gallery"), (query, gallery), UNKNOWN, strict=True):
        camids = torch.tensor([sample.camid for sample in samples], dtype=torch.int64)
        if clothed:
            clothes = [sample.clothes or unknown for sample in samples]
            camids = torch.stack([camids, torch.tensor(clothes, dtype=torch.int64)], 1)
        labels[f"{name}_pids"] = torch.tensor([s.pid for s in samples], dtype=torch.int64)
        labels[f"{name}_camids"] = camids
    return cast(RankingLabels, labels)


def rank_visible(
    query: Tensor,
    gallery: Tensor | Sequence[Tensor] | GalleryPart,
    labels: RankingLabels,
    hidden: Mapping[int, frozenset[int]],
    samples: tuple[Sequence[ReIDSample], Sequence[ReIDSample]],
    settings: dict[str, Any],
) -> RankingResult:
    """Rank for each query the gallery without the cameras that are hidden from it.

    Args:
        query: (Q, D) features.
        gallery: Features, as :func:`~reidguard.metrics.rank` takes them.
        labels: Of :func:`ranking_labels`.
        hidden: For a camera of queries, the cameras of the gallery that they do not search.
        samples: The Q samples that ``query`` is of, and those of the gallery.
        settings: Further arguments of :func:`~reidguard.metrics.rank`.
    """
    groups: dict[frozenset[int], list[int]] = {}
    queries, images = samples
    for row, sample in enumerate(queries):
        groups.setdefault(frozenset(hidden.get(sample.camid, ())), []).append(row)
    if len(groups) == 1 and not next(iter(groups)):
        return rank(query, gallery, **labels, **settings)
    ap = torch.full((len(queries),), math.nan, dtype=torch.float64)
    inp, first = ap.clone(), torch.zeros(len(queries), dtype=torch.int64)
    for unseen, places in groups.items():
        rows = torch.tensor(places)
        pids = torch.tensor([JUNK if s.camid in unseen else s.pid for s in images])
        own: RankingLabels = {
            "query_pids": labels["query_pids"][rows],
            "query_camids": labels["query_camids"][rows],
            "gallery_pids": pids,
            "gallery_camids": labels["gallery_camids"],
        }
        if len(groups) > 1 and not bool(torch.isin(own["query_pids"], pids).any()):
            continue  # none of these queries has a match
        part = rank(query[rows.to(query.device)], gallery, **own, **settings)
        ap[rows], inp[rows], first[rows] = part.ap, part.inp, part.first_match
    if not bool((first > 0).any()):
        raise InputError("no query has a match in the part of the gallery that it searches")
    return summarize(ap, inp, first, settings["max_rank"])


def has_tracklets(samples: Sequence[ReIDSample]) -> bool:
    """Return whether any of the samples is a frame of a tracklet."""
    return any(sample.tracklet for sample in samples)


def heads(samples: Sequence[ReIDSample]) -> list[ReIDSample]:
    """Return the first frame of each tracklet, and the single images, in their order."""
    return [samples[rows[0]] for rows in _frames(samples)]


def pool_tracklets(features: Tensor, samples: Sequence[ReIDSample]) -> Tensor:
    """Return the mean feature of each tracklet, and those of single images, (T, D).

    Args:
        features: (N, D) of the frames.
        samples: The N samples, in any order; the result is in that of :func:`heads`.
    """
    groups = _frames(samples)
    means = features.new_empty(len(groups), features.shape[1])
    for number, rows in enumerate(groups):
        means[number] = features[rows].double().mean(0).to(features.dtype)
    return means


def _frames(samples: Sequence[ReIDSample]) -> list[list[int]]:
    """Return the places of each tracklet's frames; a single image is one of its own."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, sample in enumerate(samples):
        key = (1, sample.tracklet) if sample.tracklet else (0, row)
        groups.setdefault(key, []).append(row)
    return list(groups.values())
