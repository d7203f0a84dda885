"""`evaluate`: retrieval metrics of a model, clean and with attacked queries or gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from reidguard.attacks import Attack, InstanceAttack
from reidguard.contexts import fixed_context
from reidguard.data import ReIDDataset
from reidguard.distributed import from_all, world
from reidguard.errors import InputError, printable
from reidguard.evaluation.features import CountCallback, FeatureStore
from reidguard.evaluation.labels import has_tracklets, heads
from reidguard.evaluation.multi_query import QueryGroups
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.results import EvaluationResult
from reidguard.evaluation.retrieval import Retrieval
from reidguard.evaluation.split_pass import Measure, SplitPass
from reidguard.metrics import GalleryPart, RankingResult
from reidguard.models import ReIDModel
from reidguard.nn.gradients import (
    ZERO_LIMIT,
    GradientCount,
    count_gradients,
    warn_of_zero_gradients,
)
from reidguard.options import EvaluateOptions
from reidguard.schema import check_instance, documented, resolve
from reidguard.types import ReIDSample

__all__ = ["evaluate"]


@documented(EvaluateOptions)
@fixed_context()
def evaluate(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack | None = None,
    protocol: Protocol | None = None,
    *,
    store: FeatureStore | None = None,
    lpips: Measure | None = None,
    progress: CountCallback | None = None,
    **options: Unpack[EvaluateOptions],
) -> EvaluationResult:
    """Rank the gallery for every query, clean and attacked.

    Queries are perturbed, or else the whole gallery; an instance attack on the gallery is best
    bound with the queries as guides. Each image is decoded once, and its
    adversarial image measured twice: as the attack returns it, and as :meth:`Budget.quantize`
    rounds it to the 8-bit image that a PNG file stores. Model and attack run in eval mode on the
    model's device and are not changed.

    Query images of another folder (``dataset.with_query(folder)``) are measured like 8-bit images
    of an attack: beside the dataset's own queries, which are the clean ones, and with their
    distance from these. Under an attack they are what is attacked.

    An attack whose gradients are zero or not finite for more than 1 % of the images, or were while
    it was learnt, is a :class:`~reidguard.ZeroGradientWarning`, and ``zero_gradients`` in the
    result's ``attack`` has the fraction.

    Several processes that ``torch.distributed`` connects share the work, and all return the result
    that one alone would: call it in each of them with the same arguments.

    Args:
        model: The target model.
        dataset: Its query and gallery are used.
        attack: Perturbs one side; None measures the clean model only. An instance attack must
            be bound; bound to another model, it measures transfer.
        protocol: How to read and score; None is ``Protocol()``.
        store: Caches clean features for further calls, so that the gallery is extracted once for
            any number of attacks; None caches them for this call.
        lpips: A :class:`~reidguard.evaluation.LPIPS` on the model's device, a further measure of
            how visible the change is.
        progress: Called with (images done, images in all).
        **options: Any of :class:`~reidguard.options.EvaluateOptions`.

    Raises:
        InputError: If model and attack are on different devices, an instance attack is not bound
            (checked before anything is extracted), ``with_labels`` is set for another attack, an
            option has a wrong value, or features are not finite.
        DataError: If an image cannot be read.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from reidguard.attacks import DeltaAttack
        >>> from reidguard.data import load_dataset
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
        >>> few = "virtual:plaza?identities=2&cameras=2&images_per_camera=2&height=64"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = load_dataset(few, folder=f"{folder}/set")
        ...     small = Protocol(image_size=(64, 32))
        ...     result = evaluate(model, people, DeltaAttack(size=(64, 32)), small)
        >>> result.attacked.linf  # a fresh delta changes nothing
        0.0
    """
    values = resolve(EvaluateOptions, options)
    query_every, with_labels, side = (values[n] for n in ("query_every", "with_labels", "side"))
    _check(attack, with_labels, side)
    check_instance(ReIDDataset, "dataset", dataset)
    replaced = attack is None and dataset.original is not None
    clean_dataset = dataset.original if replaced and dataset.original is not None else dataset
    retrieval = Retrieval(model, clean_dataset, protocol, store, values["batch_size"])
    retrieval.check_device("attack", attack)
    queries = clean_dataset.query[::query_every]
    groups = retrieval.query_groups(query_every, dataset)
    searched = retrieval if groups is None else retrieval.with_dataset(groups.dataset)
    passes = {
        split: SplitPass(
            searched, split, every, attack if split == side else None, with_labels, lpips
        )
        for split, every in (("gallery", 1), ("query", query_every if groups is None else 1))
    }
    if replaced:
        passes["query"].replacements = dataset.query[::query_every]
    with count_gradients() as count:
        seconds = _run(passes, progress)
    zero_gradients = _zero_gradients(attack, count)
    clock = time.perf_counter()

    ranking = partial(_rank, retrieval, queries, passes, groups)
    clean_ranking = ranking({})
    attacked, attacked_8bit = passes[side].results(lambda shards: ranking({side: shards}))
    seconds["ranking"] = time.perf_counter() - clock
    skipped = clean_ranking.skipped.tolist()
    units = heads(queries)
    if attack is not None:
        warn_of_zero_gradients(type(attack).__name__, zero_gradients)
    return EvaluationResult(
        clean=clean_ranking,
        attacked=attacked,
        attacked_8bit=attacked_8bit,
        attack=None if attack is None else _attack_dict(attack, with_labels, side, zero_gradients),
        dataset=_dataset_dict(dataset, query_every, groups),
        counts=_counts(dataset, len(units), len(skipped), groups),
        skipped=tuple(str(units[i].path) for i in skipped),
        protocol={**retrieval.protocol.to_dict(), "metric": retrieval.metric},
        weights=retrieval.model_key["weights"],
        seconds=seconds,
    )


def evaluate_with(
    retrieval: Retrieval,
    attack: Attack | None,
    query_every: int,
    progress: CountCallback | None = None,
) -> EvaluationResult:
    """Return what :func:`evaluate` gives for a retrieval's model, dataset, protocol and store."""
    return evaluate(
        retrieval.model,
        retrieval.dataset,
        attack,
        retrieval.protocol,
        store=retrieval.store,
        progress=progress,
        batch_size=retrieval.batch_size,
        query_every=query_every,
    )


def shared_facts(clean: EvaluationResult, retrieval: Retrieval) -> dict[str, Any]:
    """Return what results of a clean evaluation and more say of dataset, protocol and model."""
    return {
        "dataset": clean.dataset,
        "counts": clean.counts,
        "protocol": clean.protocol,
        "model": retrieval.model_key,
    }


def _rank(
    retrieval: Retrieval,
    queries: Sequence[ReIDSample],
    passes: Mapping[str, SplitPass],
    groups: QueryGroups | None,
    attacked: Mapping[str, Sequence[Tensor]],
) -> RankingResult:
    """Rank the gallery by clean features, but for those of the attacked split."""
    shards: dict[str, Sequence[Tensor]] = {name: p.shards() for name, p in passes.items()}
    shards |= attacked
    query = passes["query"].whole(shards["query"])
    query = query if groups is None else groups.mean(query)
    gallery: Sequence[Tensor] | GalleryPart = shards["gallery"]
    if has_tracklets(retrieval.dataset.gallery):
        gallery = [passes["gallery"].whole(shards["gallery"])]
    elif world() is not None:
        gallery = GalleryPart(shards["gallery"], passes["gallery"].rows.start)
    return retrieval.rank(query, queries, gallery)


def _run(passes: dict[str, SplitPass], progress: CountCallback | None) -> dict[str, float]:
    """Run the passes, and return the seconds of each."""
    total = sum(p.num_images for p in passes.values())
    if total == 0 and progress is not None:
        count = len(passes["query"].samples)
        progress(count, count)
    seconds, done = {}, 0

    def tick(images: int) -> None:
        if progress is not None:
            progress(done + images, total)

    for split, name in (("gallery", "gallery"), ("query", "queries")):
        clock = time.perf_counter()
        count = passes[split].num_images
        passes[split].run(tick)
        done += count
        seconds[name] = time.perf_counter() - clock
    return seconds


def _check(attack: Attack | None, with_labels: bool, side: str) -> None:
    if attack is not None:
        check_instance(Attack, "attack", attack)
    if side != "query" and attack is None:
        raise InputError("side is what an attack perturbs: give an attack, or leave side out")
    if with_labels and not isinstance(attack, InstanceAttack):
        raise InputError("with_labels is for instance attacks, which may use the identities")


def _counts(
    dataset: ReIDDataset, queries: int, skipped: int, groups: QueryGroups | None
) -> dict[str, int]:
    gallery = heads(dataset.gallery)
    return {
        "query": queries,
        **({} if groups is None else {"query images": len(groups.dataset.query)}),
        "gallery": len(gallery),
        "distractors": sum(s.pid == 0 for s in gallery),
        "junk": dataset.junk,
        "skipped": skipped,
    }


def _dataset_dict(
    dataset: ReIDDataset, query_every: int, groups: QueryGroups | None
) -> dict[str, Any]:
    folder = dataset.query_folder
    prints = {split: dataset.fingerprint(split) for split in ("query", "gallery")}
    if groups is not None:
        prints["multi_query"] = groups.dataset.fingerprint("query")
    return {
        "name": dataset.name,
        "query_every": query_every * dataset.query_every,
        **({} if folder is None else {"query_folder": printable(str(folder))}),
        "fingerprints": prints,
    }


def _zero_gradients(attack: Attack | None, count: GradientCount) -> float:
    """Return the fraction of unusable gradients, of this attack or of its learning."""
    learnt = (attack.provenance or {}).get("zero_gradients", 0.0) if attack is not None else 0.0
    counts = from_all([count.read()])
    total = GradientCount(*(sum(pair[i] for pair in counts) for i in range(2)))
    return max(total.zero_fraction, learnt if isinstance(learnt, float) else 0.0)


def _attack_dict(
    attack: Attack, with_labels: bool, side: str, zero_gradients: float
) -> dict[str, Any]:
    return {
        "name": type(attack).__name__,
        "eps": attack.budget.eps,
        **({"with_labels": True} if with_labels else {}),
        **({"side": side} if side != "query" else {}),
        **({"zero_gradients": zero_gradients} if zero_gradients > ZERO_LIMIT else {}),
    }
