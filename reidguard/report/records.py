"""Content of the files in a run folder, as far as it is read again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from reidguard.evaluation.audit_report import Level
from reidguard.evaluation.results import DatasetRecord, EvaluationRecord
from reidguard.records import Count, Fraction

__all__ = ["AuditRecord", "CertificateRecord", "Manifest", "ResultRecord", "SuiteRecord"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of manifest.json: the command, its settings, and how far it is."""

    command: list[str]
    status: Literal["new", "running", "interrupted", "failed", "finished"]
    started: str | None = None
    resumed: list[str] = field(default_factory=list)
    finished: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any]
    options: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    """Digests of the model or attack that was learnt, by the name of its file."""
    given: list[str] | None = None
    """Names of the options that the command line or a file set; None in runs of older versions."""


@dataclass(frozen=True)
class CellRecord:
    """A cell of a grid."""

    model: str
    dataset: str
    setting: str
    evaluation: EvaluationRecord
    attack: str | None = None

    def __post_init__(self) -> None:
        if self.evaluation.attack is None:
            raise ValueError("a cell of a grid needs an attack")


@dataclass(frozen=True)
class TableRecord:
    """A table that is shown as it is."""

    caption: str
    header: list[str]
    text_columns: Count
    rows: list[list[str | int | float | None]]


@dataclass(frozen=True)
class ResultRecord:
    """A result: of an evaluation, a grid, the paper's tables, or any other command."""

    cells: list[CellRecord] = field(default_factory=list)
    evaluation: EvaluationRecord | None = None
    tables: list[TableRecord] = field(default_factory=list)
    training: dict[str, Any] | None = None
    seconds_per_step: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FindingRecord:
    """A finding of an audit."""

    name: str
    level: Level
    measured: str
    limit: str
    cure: str


@dataclass(frozen=True)
class PointRecord:
    """Retrieval metrics at an ε."""

    eps: Fraction
    mAP: Fraction  # noqa: N815 (the field's name for it)
    rank1: Fraction


@dataclass(frozen=True)
class TransferRecord:
    """The mAP under an attack made on the model and under one made on the surrogate."""

    attack: str
    white_box: Fraction
    surrogate: Fraction


@dataclass(frozen=True)
class FactsRecord:
    """What an audit was run on."""

    dataset: str
    eps: Fraction


@dataclass(frozen=True)
class AuditRecord:
    """The result of an audit."""

    warnings: list[str]
    findings: list[FindingRecord]
    curve: list[PointRecord]
    transfer: list[TransferRecord]
    facts: FactsRecord


@dataclass(frozen=True)
class CertificateRecord:
    """The result of a certificate; accuracies go by "rank_1" and so on."""

    dataset: DatasetRecord
    certified: dict[str, float]
    curve: list[dict[str, float]]

    def __post_init__(self) -> None:
        if not {"sigma", "radius"} <= set(self.certified):
            raise ValueError("certified needs sigma and radius")


@dataclass(frozen=True)
class MemberRecord:
    """A member of the suite of attacks."""

    name: str
    restarts: Count
    queries: Count
    broken: Count
    first: Count
    mAP: Fraction | None  # noqa: N815
    forward: Count
    backward: Count
    note: str = ""


@dataclass(frozen=True)
class OptionsRecord:
    """The suite's options."""

    eps: Fraction
    broken_rank: Count
    broken_ap: Fraction


@dataclass(frozen=True)
class CleanRecord:
    """Retrieval metrics without the suite."""

    mAP: Fraction  # noqa: N815
    cmc: Annotated[list[Fraction], Meta(min_length=1)]


@dataclass(frozen=True)
class WorstRecord:
    """Retrieval metrics in the worst case of the suite."""

    mAP: Fraction | None  # noqa: N815
    cmc: Annotated[list[Fraction], Meta(min_length=1)]
    broken: Fraction
    linf_255: float


@dataclass(frozen=True)
class SuiteRecord:
    """The result of the suite of attacks."""

    dataset: DatasetRecord
    suite: OptionsRecord
    clean: CleanRecord
    robust: WorstRecord
    robust_8bit: WorstRecord
    members: list[MemberRecord]
    warnings: list[str]
    suite_findings: list[FindingRecord]
    audit: AuditRecord | None
