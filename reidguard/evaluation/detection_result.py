"""The result of `detection_scores`: how well each score tells attacked queries from clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from reidguard.evaluation.results import Result
from reidguard.metrics import RankingResult
from reidguard.metrics.auc import roc_auc
from reidguard.storage import library_versions
from reidguard.tables import Table, percent

__all__ = ["DetectionResult"]


@dataclass(frozen=True, eq=False)
class DetectionResult(Result):
    """Scores of clean and of attacked queries, and what the attacks did to the ranking.

    Attributes:
        names: The S scores.
        clean_scores: (Q, S) of the clean queries.
        attacked_scores: (Q, S) of the 8-bit images of each attack, by its name.
        clean: The ranking of the clean queries.
        attacked: The ranking of each attack's 8-bit images, by its name.
        facts: Attacks, options, dataset, protocol and models.

    Example:
        >>> from reidguard import SMA, detection_scores
        >>> result = detection_scores(model, dataset, {"SMA": SMA()})  # doctest: +SKIP
        >>> result.auc["SMA"]["jpeg"]  # doctest: +SKIP
    """

    names: tuple[str, ...]
    clean_scores: Tensor
    attacked_scores: Mapping[str, Tensor]
    clean: RankingResult
    attacked: Mapping[str, RankingResult]
    facts: dict[str, Any]

    @property
    def auc(self) -> dict[str, dict[str, float]]:
        """Area under the ROC curve by attack and score.

        It is the probability that an attacked query has a higher score than a clean one: 0.5 is
        chance, 1 is perfect detection, and below 0.5 attacked queries look less suspicious.
        """
        return {
            attack: {
                name: roc_auc(self.clean_scores[:, place], scores[:, place])
                for place, name in enumerate(self.names)
            }
            for attack, scores in self.attacked_scores.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; AUC, mAP and rank-1 lie in [0, 1]."""
        scores = {"clean": self.clean_scores, **self.attacked_scores}
        rankings = {"clean": self.clean, **self.attacked}
        return {
            "auc": self.auc,
            "rankings": {
                name: {"mAP": ranking.mAP, "rank_1": ranking.rank_k(1)}
                for name, ranking in rankings.items()
            },
            "scores": {
                kind: dict(zip(self.names, values.T.tolist(), strict=True))
                for kind, values in scores.items()
            },
            **self.facts,
            "versions": library_versions(),
        }

    def parts(self) -> list[str | Table]:
        """Return a table of AUC, and one of what the attacks did to the ranking, in percent."""
        auc, every = self.auc, self.facts["dataset"]["query_every"]
        counts = f"{len(self.clean_scores):,} queries" + (f"; one in {every}" if every > 1 else "")
        rows = [[name, *(f"{auc[attack][name]:.3f}" for attack in auc)] for name in self.names]
        rankings = {"clean": self.clean, **self.attacked}
        ranked = [[n, percent(r.mAP), percent(r.rank_k(1))] for n, r in rankings.items()]
        return [
            f"{self.facts['dataset']['name']}: detection of attacked queries ({counts})",
            Table(["AUC of the score", *auc], rows, text_columns=1),
            "AUC: the probability that an attacked query has a higher score than a clean one; 0.5 "
            "is chance. An attack that does not know the detector says little about it.",
            Table(["queries, 8-bit", "mAP", "rank-1"], ranked, text_columns=1),
        ]
