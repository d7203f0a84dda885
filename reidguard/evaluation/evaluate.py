"""`evaluate`: what a model retrieves, clean and under an attack on queries or gallery."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reidguard.attacks import Attack, InstanceAttack
from reidguard.data import ReIDDataset, iterate_images
from reidguard.errors import InputError
from reidguard.evaluation.features import (
    FeatureStore,
    attack_device,
    module_device,
    to_device,
    to_float,
    told,
)
from reidguard.evaluation.protocol import Protocol
from reidguard.metrics import RankingResult, rank
from reidguard.metrics.quality import achieved_linf, psnr, ssim_and_ms_ssim
from reidguard.models import ReIDModel
from reidguard.nn import inference_view
from reidguard.storage import atomic_write, library_versions, write_json
from reidguard.types import ReIDSample

__all__ = ["AttackedResult", "EvaluationResult", "evaluate"]

Progress = Callable[[int, int], None]
Measure = Callable[[Tensor, Tensor], Tensor]

SIDES = ("query", "gallery")


@dataclass(frozen=True, eq=False)
class AttackedResult:
    """What one kind of adversarial images did: float images, or the 8-bit ones to be saved.

    Attributes:
        ranking: Retrieval figures with these images.
        psnr: Mean over images, dB; infinite if any image is unchanged.
        ssim: Mean over images.
        linf: Largest change of any pixel of any image, in [0, 1] units.
        ms_ssim: Mean over images.
        lpips: Mean over images; None where it was not asked for.
    """

    ranking: RankingResult
    psnr: float
    ssim: float
    linf: float
    ms_ssim: float
    lpips: float | None = None


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """Figures of one model on one dataset, clean and, with an attack, attacked.

    Attributes:
        clean: Retrieval figures with the queries as they are.
        attacked: With the attack's float images; None without an attack.
        attacked_8bit: With the images that a person could save as PNG; None without an attack.
        attack: Class and budget of the attack (``eps`` in [0, 1] units), ``labels`` if it was told
            the true identities, and ``side`` if it was the gallery's; None without one.
        dataset: Name and fingerprints of the dataset.
        counts: Images used: query, gallery, distractors (in the gallery), junk (left out by the
            reader), skipped (queries without a match, which count in no mean).
        skipped: Files of the skipped queries.
        protocol: The protocol, with the metric that was used.
        weights: Fingerprint of the model's weights.
        seconds: Wall time: gallery (features; near 0 when they were kept), queries, ranking.
    """

    clean: RankingResult
    attacked: AttackedResult | None
    attacked_8bit: AttackedResult | None
    attack: dict[str, Any] | None
    dataset: dict[str, Any]
    counts: dict[str, int]
    skipped: tuple[str, ...]
    protocol: dict[str, Any]
    weights: str
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; shares lie in [0, 1], L∞ is in grey levels (1/255)."""
        return {
            "clean": _ranking_dict(self.clean),
            "attacked": _attacked_dict(self.attacked),
            "attacked_8bit": _attacked_dict(self.attacked_8bit),
            "attack": self.attack,
            "dataset": self.dataset,
            "counts": self.counts,
            "skipped": list(self.skipped),
            "protocol": self.protocol,
            "weights": self.weights,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "versions": library_versions(),
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as indented JSON. An infinite PSNR is null."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return a table for people: figures in percent, L∞ in grey levels."""
        ranks = [k for k in (1, 5, 10) if k <= len(self.clean.cmc)]
        head = ["queries", "mAP", *(f"rank-{k}" for k in ranks), "mINP", "L∞ ·255", "PSNR", "SSIM"]
        head += ["MS-SSIM"]
        rows = [("clean", self.clean, ["0", "∞", "1.000", "1.000"])]
        if self.attacked is not None and self.attacked.lpips is not None:
            head += ["LPIPS"]
            rows[0][2].append("0.000")
        for name, result in (
            ("attacked, float", self.attacked),
            ("attacked, 8-bit", self.attacked_8bit),
        ):
            if result is not None:
                decibel = "∞" if math.isinf(result.psnr) else f"{result.psnr:.1f}"
                seen = [f"{255 * result.linf:.2f}", decibel]
                alike = (result.ssim, result.ms_ssim, result.lpips)
                seen += [f"{value:.3f}" for value in alike if value is not None]
                rows.append((name, result.ranking, seen))
        lines = [head, ["---", *["---:"] * (len(head) - 1)]]
        for name, ranking, seen in rows:
            shares = [ranking.mAP, *(ranking.rank_k(k) for k in ranks), ranking.mINP]
            lines.append([name, *(f"{100 * share:.1f}" for share in shares), *seen])
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        if (every := self.dataset["query_every"]) > 1:
            counts += f"; one query in {every}"
        attack = ""
        if self.attack is not None:
            attack = f" under {self.attack['name']}, ε = {255 * self.attack['eps']:g}/255"
            if "labels" in self.attack:
                attack += ", told the true identities"
            if "side" in self.attack:
                attack += ", on the gallery"
        title = f"{self.dataset['name']}{attack} ({counts})"
        return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines), ""])

    def save(self, path: Path | str) -> None:
        """Write the result atomically: as a table if ``path`` ends in .md, else as JSON."""
        if Path(path).suffix == ".md":
            with atomic_write(path) as temporary:
                temporary.write_text(self.to_markdown(), encoding="utf-8")
        else:
            write_json(path, json.loads(self.to_json()))


def _ranking_dict(ranking: RankingResult) -> dict[str, Any]:
    return {"mAP": ranking.mAP, "mINP": ranking.mINP, "cmc": ranking.cmc.tolist()}


def _attacked_dict(result: AttackedResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        **_ranking_dict(result.ranking),
        "psnr": None if math.isinf(result.psnr) else result.psnr,
        "ssim": result.ssim,
        "ms_ssim": result.ms_ssim,
        **({} if result.lpips is None else {"lpips": result.lpips}),
        "linf": 255 * result.linf,
    }


def evaluate(
    model: ReIDModel,
    dataset: ReIDDataset,
    attack: Attack | None = None,
    protocol: Protocol | None = None,
    *,
    store: FeatureStore | None = None,
    batch_size: int = 64,
    query_every: int = 1,
    with_labels: bool = False,
    side: str = "query",
    lpips: Measure | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Rank the gallery for every query, clean and attacked.

    Queries are perturbed, or else the whole gallery. Each image is decoded once, and its
    adversarial image measured twice: as the attack made it, and as :meth:`Budget.quantize` rounds
    it to the 8-bit image that a person could save. Model and attack run in eval mode on the model's
    device and come back untouched.

    Args:
        model: The victim.
        dataset: Its query and gallery are used.
        attack: Perturbs one side; None measures the clean model only. An instance attack must
            be bound; bound to another model, it measures transfer.
        protocol: How to read and score; None is ``Protocol()``.
        store: Keeps clean features for further calls, so that the gallery is extracted once for
            any number of attacks; None keeps them for this call.
        batch_size: Images per forward pass. Changes figures by float noise at most.
        query_every: Use every n-th query, for a quick look.
        with_labels: Tell an instance attack the true identities of the images, as the strongest
            attacker would know them. Otherwise it guesses where it needs them.
        side: What is perturbed: ``"query"``, as in all tables of the field, or ``"gallery"``, every
            image of it, while the queries stay clean. Guides then are best the queries.
        lpips: A :class:`~reidguard.evaluation.LPIPS` on the model's device, to measure how visible
            the change is to a network, too.
        progress: Called with (images done, images in all).

    Raises:
        InputError: If model and attack are on different devices, an instance attack is not bound
            (said before anything is extracted), any other is to be told labels, an option has a
            wrong value, or features are not finite.
        DataError: If an image cannot be read.

    Example:
        >>> import tempfile
        >>> from reidguard.attacks import DeltaAttack
        >>> from reidguard.virtual import read_virtual
        >>> from reidguard.models import wrap_model
        >>> from reidguard.types import InputSpec
        >>> model = wrap_model(torch.nn.Flatten(), input_spec=InputSpec(size=(16, 8)))
        >>> few = {"train_identities": 1, "test_identities": 2, "cameras": 2, "height": 64}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     people = read_virtual(root=f"{folder}/set", images_per_camera=2, **few)
        ...     small = Protocol(image_size=(64, 32))
        ...     result = evaluate(model, people, DeltaAttack(size=(64, 32)), small)
        >>> result.attacked.linf  # a fresh delta changes nothing
        0.0
    """
    protocol = Protocol() if protocol is None else protocol
    if query_every < 1:
        raise InputError(f"query_every must be at least 1, not {query_every}")
    if side not in SIDES:
        raise InputError(f"side must be one of {', '.join(SIDES)}, not {side!r}")
    if side != "query" and attack is None:
        raise InputError("side says what an attack perturbs: give an attack, or leave side out")
    device = module_device(model)
    by_image = isinstance(attack, InstanceAttack)
    if with_labels and not by_image:
        raise InputError("with_labels is for instance attacks, which may use the identities")
    if attack is not None and (its := attack_device(attack, device)) != device:
        cure = "bind it to a model there" if by_image else f"call attack.to({str(device)!r})"
        raise InputError(f"the model is on {device}, the attack on {its}; {cure}")
    store = FeatureStore() if store is None else store
    size, dtype = protocol.image_size, protocol.dtype
    queries = dataset.query[::query_every]
    if not queries or not dataset.gallery:
        raise InputError(f"{dataset.name} has no query or no gallery images; nothing can be ranked")

    clock = time.perf_counter()
    seconds = {}
    key = store.key(model, dataset, "gallery", image_size=size, dtype=dtype)
    ahead = 0 if store.get(key, device) is not None else len(dataset.gallery)
    key = store.key(model, dataset, "query", image_size=size, dtype=dtype, every=query_every)
    clean = store.get(key, device)
    # What is read: images, their attack, and whether their clean features are wanted.
    parts: list[tuple[Sequence[ReIDSample], Attack | None, bool]] = []
    if side == "query" and (clean is None or attack is not None):
        parts.append((queries, attack, clean is None))
    if side == "gallery":
        parts += [] if clean is not None else [(queries, None, True)]
        parts.append((dataset.gallery, attack, False))
    total = ahead + (sum(len(samples) for samples, _, _ in parts) or len(queries))
    gallery = store.features(
        model,
        dataset,
        "gallery",
        image_size=size,
        dtype=dtype,
        batch_size=batch_size,
        progress=None if progress is None else lambda done, _: progress(done, total),
    )
    seconds["gallery"] = time.perf_counter() - clock

    clock = time.perf_counter()
    seen = _Seen(lpips)
    view = inference_view(model)
    for samples, its_attack, want_clean in parts:
        attack_view = None if its_attack is None else inference_view(its_attack)
        with torch.no_grad():
            for place, pixels in iterate_images(samples, size, batch_size):
                one = attack_view
                if one is not None:
                    one = told(one, samples[place], with_labels)
                seen.add(view, one, to_device(pixels, device), dtype, want_clean)
                if progress is not None:
                    progress(ahead + place.stop, total)
        ahead += len(samples)
    if not parts and progress is not None:
        progress(total, total)
    if clean is None:
        clean = torch.cat(seen.clean)
        store.put(key, clean)
    seconds["queries"] = time.perf_counter() - clock

    clock = time.perf_counter()
    metric = model.metric if protocol.metric is None else protocol.metric

    def ranked(query: Tensor, gallery: Tensor) -> RankingResult:
        return rank(
            query,
            gallery,
            query_pids=[s.pid for s in queries],
            query_camids=[s.camid for s in queries],
            gallery_pids=[s.pid for s in dataset.gallery],
            gallery_camids=[s.camid for s in dataset.gallery],
            metric=metric,
            same_camera=protocol.same_camera,
            max_rank=protocol.max_rank,
        )

    def with_attacked(features: Tensor) -> RankingResult:
        return ranked(features, gallery) if side == "query" else ranked(clean, features)

    clean_ranking = ranked(clean, gallery)
    attacked, attacked_8bit = (
        (seen.float_images.result(with_attacked), seen.byte_images.result(with_attacked))
        if attack is not None
        else (None, None)
    )
    seconds["ranking"] = time.perf_counter() - clock
    skipped = clean_ranking.skipped.tolist()
    return EvaluationResult(
        clean=clean_ranking,
        attacked=attacked,
        attacked_8bit=attacked_8bit,
        attack=None
        if attack is None
        else {
            "name": type(attack).__name__,
            "eps": attack.budget.eps,
            **({"labels": "told"} if with_labels else {}),
            **({"side": side} if side != "query" else {}),
        },
        dataset={
            "name": dataset.name,
            "query_every": query_every,
            "fingerprints": {split: dataset.fingerprint(split) for split in ("query", "gallery")},
        },
        counts={
            "query": len(queries),
            "gallery": len(dataset.gallery),
            "distractors": sum(s.pid == 0 for s in dataset.gallery),
            "junk": dataset.junk,
            "skipped": len(skipped),
        },
        skipped=tuple(str(queries[i].path) for i in skipped),
        protocol={**protocol.to_dict(), "metric": metric},
        weights=key["weights"],
        seconds=seconds,
    )


class _Measured:
    """Features and quality of one kind of adversarial images, left on the device until the end."""

    def __init__(self, lpips: Measure | None) -> None:
        self.lpips = lpips
        self.features: list[Tensor] = []
        self.quality: list[Tensor] = []

    def add(self, features: Tensor, x_adv: Tensor, x: Tensor) -> None:
        self.features.append(features)
        values = [achieved_linf(x_adv, x), psnr(x_adv, x), *ssim_and_ms_ssim(x_adv, x)]
        values += [] if self.lpips is None else [self.lpips(x_adv, x)]
        self.quality.append(torch.stack([v.double() for v in values]))

    def result(self, ranked: Callable[[Tensor], RankingResult]) -> AttackedResult:
        linf, *others = torch.cat(self.quality, dim=1).cpu()
        decibel, similarity, multi_scale, *perceived = (float(values.mean()) for values in others)
        return AttackedResult(
            ranking=ranked(torch.cat(self.features)),
            psnr=decibel,
            ssim=similarity,
            linf=float(linf.max()),
            ms_ssim=multi_scale,
            lpips=perceived[0] if perceived else None,
        )


class _Seen:
    def __init__(self, lpips: Measure | None) -> None:
        self.clean: list[Tensor] = []
        self.float_images = _Measured(lpips)
        self.byte_images = _Measured(lpips)

    def add(
        self,
        model: ReIDModel,
        attack: Attack | None,
        pixels: Tensor,
        dtype: torch.dtype,
        want_clean: bool,
    ) -> None:
        x = to_float(pixels, dtype)
        if want_clean:
            self.clean.append(model.features(x))
        if attack is None:
            return
        x_adv = attack(x)
        x_8bit = to_float(attack.budget.quantize(x_adv, x), dtype)
        self.float_images.add(model.features(x_adv), x_adv, x)
        self.byte_images.add(model.features(x_8bit), x_8bit, x)
