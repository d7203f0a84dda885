"""`detection_scores`: how well scores tell attacked queries from clean ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from reidguard.attacks import Attack
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.detection import DETECTION_SCORES, AdaptiveSMA, DetectionScore, Detector
from reidguard.errors import InputError
from reidguard.evaluation.detection_result import DetectionResult
from reidguard.evaluation.features import FeatureStore
from reidguard.evaluation.labels import heads
from reidguard.evaluation.progress import phase
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.retrieval import Retrieval
from reidguard.metrics import RankingResult
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.nn.cameras import cameras_of, depends_on_cameras, with_cameras
from reidguard.options import MeasureOptions
from reidguard.schema import check_instance, documented, resolve
from reidguard.training import ProgressCallback

__all__ = ["detection_scores"]


@documented(MeasureOptions)
@fixed_context()
def detection_scores(
    model: ReIDModel,
    dataset: ReIDDataset,
    attacks: Mapping[str, Attack],
    *,
    scores: Mapping[str, DetectionScore] | None = None,
    others: Sequence[ReIDModel] = (),
    protocol: Protocol | None = None,
    store: FeatureStore | None = None,
    progress: ProgressCallback | None = None,
    **options: Unpack[MeasureOptions],
) -> DetectionResult:
    """Score clean and attacked queries, and say how well each score tells them apart.

    Attacked queries are scored and ranked as the 8-bit images that a file stores. Scores that do
    well under an attack that does not know them may be worthless under one that does: measure an
    :class:`~reidguard.detection.AdaptiveSMA` beside it.

    Args:
        model: The model under attack. It is not changed.
        dataset: Its queries are attacked and scored; its clean gallery is what they are compared
            with.
        attacks: Attacks by name. Instance attacks that are not bound are bound to the model, with
            the gallery as guides; an ``AdaptiveSMA`` to the detector, which then knows mean and
            deviation of the scores of the clean queries.
        scores: Scores by name; None is every registered one with its defaults, without those that
            need other models where there are none.
        others: Further models for :class:`~reidguard.detection.AgreementScore`.
        protocol: How to read and score; None is ``Protocol()``.
        store: Caches clean features for further calls.
        progress: Called with a :class:`~reidguard.training.Progress`: of the clean queries, and of
            those of each attack.
        **options: Any of :class:`~reidguard.options.MeasureOptions`.

    Raises:
        InputError: If there is no attack or no score, one is of another class, something is on
            another device than the model, the protocol has ``rerank`` or ``multi_query``, or
            queries are tracklets.
        DataError: If an image cannot be read.

    Example:
        >>> from reidguard import SMA
        >>> from reidguard.testing import small_dataset, small_model
        >>> attacks = {"SMA": SMA(steps=2), "adaptive": AdaptiveSMA(steps=2)}
        >>> with small_dataset() as data:
        ...     size = Protocol(image_size=(32, 16))
        ...     result = detection_scores(small_model(), data, attacks, protocol=size)
        >>> result.names
        ('blur', 'flip', 'jpeg', 'neighbours', 'shift')
        >>> 0 <= result.auc["adaptive"]["jpeg"] <= 1
        True
    """
    values = resolve(MeasureOptions, options)
    if not isinstance(attacks, Mapping) or not attacks:
        raise InputError('attacks must be some by name, as in {"SMA": SMA()}')
    for name, attack in attacks.items():
        check_instance(Attack, f"the attack {name!r}", attack)
        if name == "clean":
            raise InputError("'clean' is the name of the queries without attack; choose another")
    chosen = _default_scores(bool(others)) if scores is None else dict(scores)
    for name, score in chosen.items():
        check_instance(DetectionScore, f"the score {name!r}", score)
    size = values["batch_size"]
    retrieval = Retrieval(
        model, dataset, protocol, store, size, progress=phase(progress, "gallery")
    )
    retrieval.need_single_images("a detector looks at each query image by itself")
    further = []
    for other in others:
        retrieval.check_device("other model", other)
        search = Retrieval(other, dataset, retrieval.protocol, retrieval.store, size)
        further.append((search.model, search.gallery))
    detector = Detector(retrieval.model, retrieval.gallery, chosen, further)
    run = DetectionRun(retrieval, detector, values["query_every"], progress)
    clean_scores, clean = run.measure(None, "clean queries")
    detector.calibrate(clean_scores)
    bound = {name: run.bind(attack) for name, attack in attacks.items()}
    measured = {name: run.measure(attack, name) for name, attack in bound.items()}
    return DetectionResult(
        tuple(chosen),
        clean_scores.cpu(),
        {name: found.cpu() for name, (found, _) in measured.items()},
        clean,
        {name: ranking for name, (_, ranking) in measured.items()},
        _facts(retrieval, attacks, further, values["query_every"]),
    )


def _default_scores(with_others: bool) -> dict[str, DetectionScore]:
    scores = {name: DETECTION_SCORES.create(name) for name in DETECTION_SCORES.list()}
    return {name: score for name, score in scores.items() if with_others or not score.needs_others}


def _facts(
    retrieval: Retrieval,
    attacks: Mapping[str, Attack],
    others: Sequence[tuple[ReIDModel, Tensor]],
    every: int,
) -> dict[str, Any]:
    dataset = retrieval.dataset
    described = {
        name: {
            "name": type(attack).__name__,
            "eps": attack.budget.eps,
            **({"weight": attack.weight} if isinstance(attack, AdaptiveSMA) else {}),
        }
        for name, attack in attacks.items()
    }
    prints = {split: dataset.fingerprint(split) for split in ("query", "gallery")}
    return {
        "attacks": described,
        "dataset": {
            "name": dataset.name,
            "query_every": every * dataset.query_every,
            "fingerprints": prints,
        },
        "counts": {
            "query": len(dataset.query[::every]),
            "gallery": len(heads(dataset.gallery)),
            "other models": len(others),
        },
        "protocol": {**retrieval.protocol.to_dict(), "metric": retrieval.metric},
        "model": retrieval.model_key,
    }


class DetectionRun:
    """Scores and ranks the queries of a dataset under one attack after the other.

    Args:
        retrieval: Model, dataset and protocol.
        detector: On the model's device.
        every: Every n-th query is used.
        progress: Called with progress by images.
    """

    def __init__(
        self,
        retrieval: Retrieval,
        detector: Detector,
        every: int,
        progress: ProgressCallback | None,
    ) -> None:
        self.retrieval, self.detector, self.progress = retrieval, detector, progress
        self.queries = retrieval.dataset.query[::every]

    def bind(self, attack: Attack) -> Attack:
        """Bind an attack that is not bound yet, and check its device."""
        if isinstance(attack, AdaptiveSMA):
            bound: Attack = attack.bind(self.detector)
        else:
            bound = self.retrieval.bind(attack)
        self.retrieval.check_device("attack", bound)
        return bound

    def measure(self, attack: Attack | None, name: str) -> tuple[Tensor, RankingResult]:
        """Return the (Q, S) scores of the queries under an attack, and their ranking."""
        report, view = phase(self.progress, name), inference_view(self.detector)
        scores, features = [], []
        for place, pixels in self.retrieval.read(self.queries):
            samples = self.queries[place]
            cameras = cameras_of(samples) if depends_on_cameras(view) else None
            with torch.no_grad():
                x = self.retrieval.to_input(pixels)
                if attack is not None:
                    _, x, _ = self.retrieval.perturb(attack, x, samples, with_labels=False)
                scores.append(view.scores(x, cameras))
                features.append(with_cameras(view.model, cameras).features(x))
            report(place.stop, len(self.queries))
        ranking = self.retrieval.rank(torch.cat(features), self.queries)
        return torch.cat(scores), ranking
