"""Ranking: exact distances, and the mAP, CMC and mINP of a ranked gallery, chunked."""

from reidguard.metrics.auc import roc_auc
from reidguard.metrics.counting import SAME_CAMERA
from reidguard.metrics.distances import METRICS, distances
from reidguard.metrics.ranking import MAX_RANK, GalleryPart, RankingResult, rank
from reidguard.metrics.reranking import Reranking
from reidguard.metrics.shortlist import top_k

__all__ = [
    "MAX_RANK",
    "METRICS",
    "SAME_CAMERA",
    "GalleryPart",
    "RankingResult",
    "Reranking",
    "distances",
    "rank",
    "roc_auc",
    "top_k",
]
