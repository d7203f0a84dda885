"""The result of `certify`: what is certified of each query, and the accuracy by radius."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reidguard.errors import InputError
from reidguard.evaluation.results import Result
from reidguard.evaluation.smoothing import certified_radius, lower_bound, upper_bound
from reidguard.metrics import RankingResult
from reidguard.schema import checked
from reidguard.storage import library_versions
from reidguard.tables import Table, percent

__all__ = ["CertifyResult"]

POINTS = 20  # steps of the curve over the radius


@dataclass(frozen=True, eq=False)
class CertifyResult(Result):
    """Certified rank-k of a smoothed ranking.

    All accuracies are fractions of the queries that have a match in the gallery.

    Attributes:
        names: The Q queries that have a match.
        ranks: The ranks k.
        hits: (Q, ranks) int64, in how many noise draws a match is among the first k.
        clean: The ranking without noise, of all queries.
        facts: Options, dataset, protocol and model.

    Example:
        >>> from reidguard import certify
        >>> result = certify(model, dataset, sigma=0.1)  # doctest: +SKIP
        >>> result.accuracy(1, 0.1)  # certified rank-1 at an L2 radius of 0.1  # doctest: +SKIP
    """

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    hits: Tensor
    clean: RankingResult
    facts: dict[str, Any]

    @property
    def radii(self) -> Tensor:
        """(Q, ranks) float64, the certified L2 radius of each query; 0 where there is none."""
        sigma, draws, alpha = (self.facts["certify"][n] for n in ("sigma", "draws", "alpha"))
        radii = [
            [certified_radius(lower_bound(hits, draws, alpha), sigma) for hits in row]
            for row in self.hits.tolist()
        ]
        return torch.tensor(radii, dtype=torch.float64, device="cpu").view(self.hits.shape)

    @property
    def abstained(self) -> Tensor:
        """(Q, ranks) bool, where the draws leave open which of hit and miss is likelier."""
        draws, alpha = self.facts["certify"]["draws"], self.facts["certify"]["alpha"]
        undecided = [
            [lower_bound(h, draws, alpha) <= 0.5 <= upper_bound(h, draws, alpha) for h in row]
            for row in self.hits.tolist()
        ]
        return torch.tensor(undecided, device="cpu").view(self.hits.shape)

    def accuracy(self, rank: int, radius: float) -> float:
        """Return the certified rank-k at a radius.

        Args:
            rank: One of ``ranks``.
            radius: L2, in [0, 1] pixel units.

        Returns:
            The fraction of queries whose certified radius is larger.

        Raises:
            InputError: If the rank was not measured, or the radius is negative.
        """
        if rank not in self.ranks:
            raise InputError(f"rank {rank!r} was not certified; choose one of {self.ranks}")
        radius = checked(float, "radius", radius, low=0, high=1e6)
        return float((self.radii[:, self.ranks.index(rank)] > radius).double().mean())

    @property
    def curve(self) -> list[dict[str, float]]:
        """Certified rank-k at evenly spaced radii, from 0 to the largest that n draws can give."""
        sigma, draws, alpha = (self.facts["certify"][n] for n in ("sigma", "draws", "alpha"))
        largest, radii = certified_radius(lower_bound(draws, draws, alpha), sigma), self.radii
        points = []
        for step in range(POINTS + 1):
            radius = largest * step / POINTS
            fractions = (radii > radius).double().mean(0).tolist()
            points.append({"radius": radius, **self._by_rank(fractions)})
        return points

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; accuracies lie in [0, 1], radii are L2 in [0, 1] pixel units.

        ``certified`` is the accuracy at the radius of the options, ``smoothed`` the fraction of
        queries for which most draws are hits, and ``queries`` has hits and radius of each query.
        """
        options = self.facts["certify"]
        certified = [self.accuracy(rank, options["radius"]) for rank in self.ranks]
        return {
            "clean": {"mAP": self.clean.mAP, "cmc": self.clean.cmc.tolist()},
            "certified": {
                "sigma": options["sigma"],
                "radius": options["radius"],
                **self._by_rank(certified),
            },
            "smoothed": self._by_rank(self._smoothed),
            "abstained": self._by_rank(self.abstained.double().mean(0).tolist()),
            "curve": self.curve,
            "queries": [
                {"name": name, "hits": self._by_rank(hits), "radius": self._by_rank(radii)}
                for name, hits, radii in zip(
                    self.names, self.hits.tolist(), self.radii.tolist(), strict=True
                )
            ],
            "warnings": [],
            **self.facts,
            "versions": library_versions(),
        }

    @property
    def _smoothed(self) -> list[float]:
        majority = 2 * self.hits > self.facts["certify"]["draws"]
        values: list[float] = majority.double().mean(0).tolist()
        return values

    def _by_rank(self, values: list[Any]) -> dict[str, Any]:
        return {f"rank_{rank}": value for rank, value in zip(self.ranks, values, strict=True)}

    def parts(self) -> list[str | Table]:
        """Return what was certified, and tables in percent: by rank, and by radius."""
        options, radii = self.facts["certify"], self.radii
        radius = options["radius"]
        header = ["rank", "clean", "smoothed", f"certified, r = {radius:g}", "abstained"]
        rows = [
            [
                f"rank-{rank}",
                percent(self.clean.rank_k(rank)) if rank <= len(self.clean.cmc) else None,
                percent(self._smoothed[place]),
                percent(self.accuracy(rank, radius)),
                percent(float(self.abstained[:, place].double().mean())),
            ]
            for place, rank in enumerate(self.ranks)
        ]
        steps = self.curve[:: POINTS // 5]
        by_radius = [
            [f"{point['radius']:.3f}", *(percent(point[f"rank_{rank}"]) for rank in self.ranks)]
            for point in steps
        ]
        median = float(radii[:, 0].median())
        meaning = (
            f"Certified: with a confidence of {100 * (1 - options['alpha']):g} % for each query, a "
            "match is among the first k of most noisy copies of every image within the L2 radius "
            "r, in [0, 1] pixel units of the image that the model is given. Median radius of "
            f"rank-{self.ranks[0]}: {median:.3f}."
        )
        names = [f"rank-{rank}" for rank in self.ranks]
        return [
            self._title(),
            Table(header, rows, text_columns=1),
            meaning,
            Table(["certified, r", *names], by_radius, text_columns=0),
        ]

    def _title(self) -> str:
        options, every = self.facts["certify"], self.facts["dataset"]["query_every"]
        part = f"; one query in {every}" if every > 1 else ""
        return (
            f"{self.facts['dataset']['name']}, ranking smoothed by Gaussian noise of "
            f"σ = {options['sigma']:g}, {options['draws']:,} draws for each of "
            f"{len(self.names):,} queries with a match{part}"
        )
