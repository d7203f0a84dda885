"""Ranking: exact distances, and the mAP, CMC and mINP of a ranked gallery, chunked."""

from reidguard.ranking.exact import distances
from reidguard.ranking.retrieval import RankingResult, rank, top_k

__all__ = ["RankingResult", "distances", "rank", "top_k"]
