"""Ranking: exact distances, and the mAP, CMC and mINP of a ranked gallery, chunked."""

from reidguard.ranking.exact import METRICS, distances
from reidguard.ranking.retrieval import SAME_CAMERA, RankingResult, rank, top_k

__all__ = ["METRICS", "SAME_CAMERA", "RankingResult", "distances", "rank", "top_k"]
