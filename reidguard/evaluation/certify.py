"""`certify`: L2 radii within which the smoothed ranking provably finds the query's identity.

Randomised smoothing (Cohen et al., 2019). For classifiers the smoothed verdict is the class that
most noisy copies of an image get; retrieval has no classes, and here the verdict is whether a match
is among the first k of the gallery.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.distributed import entered_by_first, from_all, rows_here
from reidguard.errors import InputError
from reidguard.evaluation.certify_result import CertifyResult
from reidguard.evaluation.evaluate import evaluate_with, shared_facts
from reidguard.evaluation.features import FeatureStore
from reidguard.evaluation.progress import phase
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.retrieval import Retrieval
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, with_cameras
from reidguard.options import CertifyOptions
from reidguard.schema import documented, resolve, settings
from reidguard.storage import ResumableStore
from reidguard.training import ProgressCallback
from reidguard.types import ReIDSample

__all__ = ["certify"]


@documented(CertifyOptions)
@fixed_context()
def certify(
    model: ReIDModel,
    dataset: ReIDDataset,
    *,
    protocol: Protocol | None = None,
    state: Path | str | None = None,
    store: FeatureStore | None = None,
    progress: ProgressCallback | None = None,
    **options: Unpack[CertifyOptions],
) -> CertifyResult:
    """Certify the ranking of each query against changes of the query image, by random noise.

    For a query image x of the protocol's size in [0, 1], and ``η ~ N(0, σ²)`` in each pixel value,
    the event is that a match is among the first k of the clean gallery for ``clip(x + η)``, cut
    to [0, 1]; the query's own identity and camera are left out, as the protocol says. From n draws
    follows a lower bound p on its probability (Clopper–Pearson, wrong with a probability of at
    most α). Where ``p > 1/2``, the event has a probability above 1/2 at every image within the L2
    distance ``r = σ · Φ⁻¹(p)`` of x (Cohen et al., 2019); else the query has no radius. Cutting,
    the model's resizing, its network and the ranking are all part of the event, so nothing about
    them is assumed.

    The smoothed ranking is what is certified, not the model's own: a system must rank noisy copies
    and take the majority. Each k has a bound of its own.

    Args:
        model: The model; it is not changed. One trained with ``train_model(noise=σ)`` has larger
            radii.
        dataset: Its queries are certified, its gallery is ranked.
        protocol: How to read and score; None is ``Protocol()``.
        state: Folder from which an interrupted run resumes; at most one query is repeated.
        store: Caches clean features for further calls.
        progress: Called with a :class:`~reidguard.training.Progress`: of clean features, then of
            noisy images.
        **options: Any of :class:`~reidguard.options.CertifyOptions`.

    Raises:
        InputError: If an option has a wrong value, the protocol has ``rerank`` or ``multi_query``,
            queries are tracklets, or no query has a match.
        DataError: If an image cannot be read.
        CheckpointError: If a file cannot be written, or ``state`` is of another run.

    Example:
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     options = {"protocol": Protocol(image_size=(32, 16)), "draws": 20, "alpha": 0.05}
        ...     result = certify(small_model(), data, sigma=0.01, **options)
        >>> result.hits.shape, result.accuracy(1, 0.0) >= result.accuracy(1, 0.01)
        (torch.Size([4, 3]), True)
    """
    values = resolve(CertifyOptions, options)
    _check_ranks(values["ranks"])
    retrieval = Retrieval(model, dataset, protocol, store, values["batch_size"])
    retrieval.need_single_images("a certificate is about one query image by itself")
    query_every = values["query_every"]
    clean = evaluate_with(retrieval, None, query_every, phase(progress, "clean features"))
    own = settings(CertifyOptions, values)
    del own["query_every"]  # the dataset's facts have it
    facts = {"certify": own, **shared_facts(clean, retrieval)}
    order = retrieval.key("query", query_every)["order"]
    noise = {name: value for name, value in own.items() if name not in ("alpha", "radius")}
    entries = ResumableStore(
        state, {**facts, "certify": noise, "order": order}, card="certify.json"
    )
    answered = (clean.clean.first_match > 0).nonzero().flatten().tolist()
    samples, names = dataset.query[::query_every], dataset.query_names[::query_every]
    counter = HitCounter(retrieval, values)
    with entered_by_first(entries):
        hits = counter.count_all([samples[i] for i in answered], entries, progress)
    found = tuple(names[i] for i in answered)
    return CertifyResult(found, values["ranks"], hits, clean.clean, facts)


class HitCounter:
    """Counts in how many noisy copies of a query a match is among the first k.

    Args:
        retrieval: Model, dataset and protocol.
        options: All of :class:`~reidguard.options.CertifyOptions`.
    """

    def __init__(self, retrieval: Retrieval, options: dict[str, Any]) -> None:
        self.retrieval, self.options = retrieval, options
        _ = retrieval.gallery  # extracted by all processes together
        self.model = inference_view(retrieval.model)

    def count_all(
        self,
        queries: Sequence[ReIDSample],
        entries: ResumableStore,
        progress: ProgressCallback | None,
    ) -> Tensor:
        """Return the (Q, ranks) hits of all queries, which have a match each.

        Each of several processes counts those of its part of the queries.
        """
        rows, draws = rows_here(len(queries), 1), self.options["draws"]
        report = phase(progress, "noisy images")
        counts: list[list[int]] = []
        for place in range(rows.start, rows.stop):
            name = f"query-{place:06d}"
            hits = entries.get(name, list[int])
            if hits is None or len(hits) != len(self.options["ranks"]):
                _, pixels = next(self.retrieval.read(queries[place : place + 1]))
                hits = self.count(queries[place], pixels)
                entries.put(name, hits)
            counts.append(hits)
            report(len(counts) * draws, (rows.stop - rows.start) * draws)
        return torch.tensor(from_all(counts), dtype=torch.int64)

    @torch.no_grad()
    def count(self, sample: ReIDSample, pixels: Tensor) -> list[int]:
        """Return the hits at each rank of one query, (1, 3, H, W) uint8.

        The noise is drawn on the CPU, image by image, fixed by the seed and the query's pixels: it
        depends neither on the device nor on the batch size.
        """
        x = self.retrieval.to_input(pixels)
        generator = _generator(self.options["seed"], pixels)
        draws, size = self.options["draws"], self.retrieval.batch_size
        hits = [0] * len(self.options["ranks"])
        for start in range(0, draws, size):
            count = min(size, draws - start)
            noise = torch.stack(
                [torch.randn(x.shape[1:], generator=generator) for _ in range(count)]
            )
            noisy = (x + self.options["sigma"] * noise.to(x)).clamp(0, 1)
            samples = [sample] * count
            model = with_cameras(self.model, cameras_of(samples))
            ranking = self.retrieval.rank(model.features(noisy), samples)
            for place, rank in enumerate(self.options["ranks"]):
                hits[place] += int((ranking.first_match <= rank).sum())
        return hits


def _check_ranks(ranks: tuple[int, ...]) -> None:
    if list(ranks) != sorted(set(ranks)):
        raise InputError(f"ranks must rise, as in (1, 5, 10), not {ranks}")


def _generator(seed: int, pixels: Tensor) -> torch.Generator:
    """Return a CPU generator that is fixed by a seed and an image."""
    key = f"{seed} certify {tuple(pixels.shape)} ".encode() + pixels.cpu().numpy().tobytes()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
