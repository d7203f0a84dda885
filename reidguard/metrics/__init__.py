"""Ranking: exact distances, and the mAP, CMC and mINP of a ranked gallery, chunked."""

from reidguard.metrics.counting import SAME_CAMERA
from reidguard.metrics.distances import METRICS, distances
from reidguard.metrics.ranking import MAX_RANK, GalleryPart, RankingResult, rank, top_k
from reidguard.metrics.reranking import Reranking

__all__ = [
    "MAX_RANK",
    "METRICS",
    "SAME_CAMERA",
    "GalleryPart",
    "RankingResult",
    "Reranking",
    "distances",
    "rank",
    "top_k",
]
