"""The result of `evaluate`, and the formats in which every result is written."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from reidguard.errors import InputError
from reidguard.files import atomic_write
from reidguard.metrics import RankingResult
from reidguard.nn.gradients import zero_gradient_text
from reidguard.records import Fraction, to_path
from reidguard.storage import library_versions
from reidguard.tables import Table

__all__ = ["AttackedResult", "EvaluationRecord", "EvaluationResult", "Result"]


class Result(ABC):
    """A result that can be written as JSON and as Markdown.

    Example:
        >>> from reidguard import evaluate
        >>> result = evaluate(model, dataset)  # doctest: +SKIP
        >>> text = result.to_json()  # doctest: +SKIP
    """

    FORMATS: ClassVar[dict[str, str]] = {".json": "to_json", ".md": "to_markdown"}
    """Names of the formatting methods, by file extension."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""

    @abstractmethod
    def parts(self) -> list[str | Table]:
        """Return the paragraphs and tables of the text."""

    def to_json(self) -> str:
        """Return :meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return :meth:`parts` as Markdown."""
        parts = [part if isinstance(part, str) else part.to_markdown() for part in self.parts()]
        return "\n\n".join(parts) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the result atomically, in the format of the extension of ``path``.

        Raises:
            InputError: If there is no format of that extension.
            CheckpointError: If the file cannot be written.
        """
        suffix = to_path(path).suffix
        if suffix not in self.FORMATS:
            raise InputError(f"{path} must end in one of {', '.join(self.FORMATS)}")
        text: str = getattr(self, self.FORMATS[suffix])()
        with atomic_write(path) as temporary:
            temporary.write_text(text.removesuffix("\n") + "\n", "utf-8")


@dataclass(frozen=True)
class RankingRecord:
    """Retrieval metrics in a result file."""

    mAP: Fraction  # noqa: N815 (the field's name for it)
    mINP: Fraction  # noqa: N815
    cmc: Annotated[list[Fraction], Meta(min_length=1)]


@dataclass(frozen=True)
class AttackedRecord(RankingRecord):
    """Retrieval metrics and image quality in a result file."""

    linf_255: float
    psnr: float | None
    ssim: float
    ms_ssim: float


@dataclass(frozen=True)
class AttackRecord:
    """The attack of an evaluation in a result file."""

    name: str
    eps: Fraction


@dataclass(frozen=True)
class DatasetRecord:
    """The dataset of an evaluation in a result file."""

    name: str
    query_folder: str | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """What is read again of :meth:`EvaluationResult.to_dict`."""

    clean: RankingRecord
    attack: AttackRecord | None
    attacked: AttackedRecord | None
    attacked_8bit: AttackedRecord | None
    dataset: DatasetRecord
    weights: str

    def __post_init__(self) -> None:
        parts = [self.attack, self.attacked, self.attacked_8bit]
        if self.dataset.query_folder is not None and self.attack is None:
            parts.pop()  # the images of the folder
        if len({part is None for part in parts}) > 1:
            raise ValueError("attack, attacked and attacked_8bit belong together")


@dataclass(frozen=True, eq=False)
class AttackedResult:
    """Retrieval and image quality with one kind of adversarial images, float or 8-bit.

    Attributes:
        ranking: Retrieval metrics with these images.
        psnr: Mean over images, dB; infinite if any image is unchanged.
        ssim: Mean over images.
        linf: Largest change of any pixel of any image, in [0, 1] units.
        ms_ssim: Mean over images.
        lpips: Mean over images; None where it was not measured.

    Example:
        >>> from reidguard import DeltaAttack, Protocol, evaluate
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     protocol = Protocol(image_size=(32, 16))
        ...     result = evaluate(small_model(), data, DeltaAttack(), protocol=protocol)
        >>> result.attacked_8bit.linf, result.attacked_8bit.ssim  # nothing is learnt yet
        (0.0, 1.0)
    """

    ranking: RankingResult
    psnr: float
    ssim: float
    linf: float
    ms_ssim: float
    lpips: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; an infinite PSNR is null."""
        return {
            **_ranking_dict(self.ranking),
            "psnr": None if math.isinf(self.psnr) else self.psnr,
            "ssim": self.ssim,
            "ms_ssim": self.ms_ssim,
            **({} if self.lpips is None else {"lpips": self.lpips}),
            **linf_dict(self.linf),
        }


@dataclass(frozen=True, eq=False)
class EvaluationResult(Result):
    """Metrics of one model on one dataset, clean and, with an attack, attacked.

    Attributes:
        clean: Retrieval metrics without attack.
        attacked: With the attack's float images; None without an attack.
        attacked_8bit: With the images as a PNG file stores them, or, without an attack, with those
            of the folder that :meth:`ReIDDataset.with_query
            <reidguard.ReIDDataset.with_query>` read; None where there are neither.
        attack: Class and budget of the attack (``eps`` in [0, 1] units), ``with_labels`` if it was
            given the ground-truth identities, ``side`` if it perturbed the gallery, and
            ``zero_gradients``, the fraction of its gradients that are zero or not finite, where
            that is above 1 %; None without one.
        dataset: Name and fingerprints of the dataset, and the folder of its query images, if that
            is another one.
        counts: Images used: query, gallery, distractors (in the gallery), junk (left out by the
            reader), skipped (queries without a match, which count in no mean).
        skipped: Files of the skipped queries.
        protocol: The protocol, with the metric that was used.
        weights: Fingerprint of the model's weights.
        seconds: Wall time: gallery (near 0 when its features were cached), queries, ranking.

    Example:
        >>> from reidguard import Protocol, evaluate
        >>> from reidguard.testing import small_dataset, small_model
        >>> with small_dataset() as data:
        ...     result = evaluate(small_model(), data, protocol=Protocol(image_size=(32, 16)))
        >>> result.counts["query"], 0 <= result.clean.mAP <= 1, result.attacked
        (4, True, None)
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
        """Return plain JSON values; fractions and L∞ lie in [0, 1], ``linf_255`` is 255 · L∞.

        An infinite PSNR is null.
        """
        attacked = {name: getattr(self, name) for name in ("attacked", "attacked_8bit")}
        return {
            **vars(self),
            "clean": _ranking_dict(self.clean),
            **{name: result and result.to_dict() for name, result in attacked.items()},
            "skipped": list(self.skipped),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "versions": library_versions(),
        }

    def parts(self) -> list[str | Table]:
        """Return a title, and a table in percent; with changed images L∞ in grey levels."""
        ranks = [k for k in (1, 5, 10) if k <= len(self.clean.cmc)]
        folder = self.dataset.get("query_folder")
        changed = {"attacked, float": self.attacked, "attacked, 8-bit": self.attacked_8bit}
        clean = "clean"
        if folder is not None and self.attack is None:
            changed = {f"images of {folder}": self.attacked_8bit}
        elif folder is not None:
            clean = f"images of {folder}"
        measured = {name: result for name, result in changed.items() if result is not None}
        header = ["queries", "mAP", *(f"rank-{k}" for k in ranks), "mINP"]
        unchanged = []
        if measured:
            header += ["L∞ ·255", "PSNR", "SSIM", "MS-SSIM"]
            unchanged = ["0", "∞", "1.000", "1.000"]
        if any(result.lpips is not None for result in measured.values()):
            header += ["LPIPS"]
            unchanged += ["0.000"]
        rows = [[clean, *_ranking_cells(self.clean, ranks), *unchanged]]
        for name, result in measured.items():
            psnr = "∞" if math.isinf(result.psnr) else f"{result.psnr:.1f}"
            similarity = (result.ssim, result.ms_ssim, result.lpips)
            quality = [levels(result.linf), psnr]
            quality += [f"{value:.3f}" for value in similarity if value is not None]
            rows.append([name, *_ranking_cells(result.ranking, ranks), *quality])
        zero = 0.0 if self.attack is None else self.attack.get("zero_gradients", 0.0)
        name = "" if self.attack is None else self.attack["name"]
        warned = [f"WARNING: {zero_gradient_text(name, zero)}"] if zero else []
        return [self._title(), Table(header, rows), *warned]

    def _title(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in self.counts.items())
        if (every := self.dataset["query_every"]) > 1:
            counts += f"; one query in {every}"
        words = {
            "flip": "mirrored images",
            "multi_query": "several images",
            "rerank": "re-ranked",
            "amp": "in bfloat16",
            "compile": "compiled",
        }
        counts += "".join(f"; {word}" for name, word in words.items() if name in self.protocol)
        attack = ""
        if self.attack is not None:
            attack = f" under {self.attack['name']}, ε = {255 * self.attack['eps']:g}/255"
            if self.attack.get("with_labels"):
                attack += ", given the true identities"
            if "side" in self.attack:
                attack += ", on the gallery"
        return f"{self.dataset['name']}{attack} ({counts})"


def linf_dict(linf: float) -> dict[str, float]:
    """Return an L∞ distance in [0, 1] units, and in grey levels under ``linf_255``."""
    return {"linf": linf, "linf_255": 255 * linf}


def levels(linf: float) -> str:
    """Return an L∞ distance as text, in grey levels."""
    return f"{255 * linf:.2f}"


def ranking_metric(values: Mapping[str, Any], metric: str) -> float:
    """Return "mAP", "mINP" or "rank1", a fraction in [0, 1], of a ranking's JSON values."""
    return float(values["cmc"][0] if metric == "rank1" else values[metric])


def _ranking_dict(ranking: RankingResult) -> dict[str, Any]:
    return {"mAP": ranking.mAP, "mINP": ranking.mINP, "cmc": ranking.cmc.tolist()}


def _ranking_cells(ranking: RankingResult, ranks: list[int]) -> list[str]:
    fractions = [ranking.mAP, *(ranking.rank_k(k) for k in ranks), ranking.mINP]
    return [f"{100 * fraction:.1f}" for fraction in fractions]
