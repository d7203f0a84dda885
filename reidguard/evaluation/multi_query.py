"""Multi-query search: the mean feature of all images of an identity by the query's camera."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.types import ReIDSample

__all__ = ["QueryGroups"]


@dataclass(frozen=True, eq=False)
class QueryGroups:
    """The images of each query.

    Args:
        dataset: The dataset with all these images, each once, as its query images.
        members: (Q, M) places of a query's images among them, -1 where it has fewer than M.
    """

    dataset: ReIDDataset
    members: Tensor

    @classmethod
    def of(cls, dataset: ReIDDataset, queries: Sequence[ReIDSample]) -> QueryGroups:
        """Find the images of some queries of a dataset.

        They are those of ``dataset.multi_query`` that show the query's identity by its camera, in
        its clothes where the dataset names them; where there is none, the query images that do.

        Raises:
            InputError: If the query images are those of another folder.
        """
        if dataset.original is not None:
            raise InputError(
                "multi_query compares the mean of several images of the dataset, so it cannot take "
                "the query images of another folder: leave one of them out"
            )
        groups: dict[Hashable, list[ReIDSample]] = {}
        for source in (dataset.query, dataset.multi_query):
            found: defaultdict[Hashable, list[ReIDSample]] = defaultdict(list)
            for sample in source:
                found[_shown(sample)].append(sample)
            groups.update(found)
        images: list[ReIDSample] = []
        places: dict[Hashable, list[int]] = {}
        for key in dict.fromkeys(map(_shown, queries)):
            places[key] = list(range(len(images), len(images) + len(groups[key])))
            images += groups[key]
        rows = [places[_shown(query)] for query in queries]
        width = max(map(len, rows))
        members = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
        return cls(dataset._with_queries(images), members)

    def mean(self, features: Tensor) -> Tensor:
        """Return the (Q, D) mean features of the queries.

        Args:
            features: (N, D) of the images.
        """
        members = self.members.to(features.device)
        counts = (members >= 0).sum(1)
        sums = torch.zeros(len(members), features.shape[1], dtype=torch.float64)
        sums = sums.to(features.device)
        for column in members.T:  # one after the other, so that every device rounds alike
            rows = (column >= 0).nonzero().flatten()
            sums[rows] += features[column[rows]].double()
        return (sums / counts[:, None]).to(features.dtype)


def _shown(sample: ReIDSample) -> Hashable:
    return sample.pid, sample.camid, sample.clothes
