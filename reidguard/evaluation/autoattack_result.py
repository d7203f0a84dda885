"""The result of `RetrievalAutoAttack`: the worst case of each query, and each member's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from reidguard.evaluation.audit_report import TITLES, VERDICTS, Finding, audit_verdict
from reidguard.evaluation.results import Result, levels, linf_dict
from reidguard.metrics import MAX_RANK, RankingResult
from reidguard.schema import checked
from reidguard.storage import library_versions
from reidguard.tables import Table, percent

__all__ = ["AutoAttackResult", "MemberResult", "WorstCase"]


@dataclass(frozen=True)
class MemberResult:
    """Results of one member of the suite, with its float images.

    Attributes:
        name: ``clean`` (the images as they are), ``self-metric``, ``furthest-negative``,
            ``universal``, ``transfer`` or ``square``.
        restarts: Independent runs for each query.
        queries: Number of queries it was run on.
        broken: Number of these that it breaks by itself.
        first: Number of queries that it is the first to break, in the order above.
        mAP: Mean over all queries of the lowest average precision that it leaves by itself; None
            if it was not run on all.
        linf: Largest change of any pixel, in [0, 1] units.
        forward: Forward passes per query that it was run on, including those that measure.
        backward: Backward passes per query.
        note: Why it was not run; empty if it was.

    Example:
        >>> member = MemberResult("square", 1, 20, 15, 3, 0.2, 8 / 255, 100, 0)
        >>> member.broken / member.queries
        0.75
    """

    name: str
    restarts: int
    queries: int
    broken: int
    first: int
    mAP: float | None  # noqa: N815 (the field's name for it)
    linf: float
    forward: int
    backward: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class WorstCase:
    """Each query's worst case over all members and restarts, the unchanged image included.

    Attributes:
        ap: (Q,) float64 lowest average precision; NaN where the query has no match at all. Of a
            run with ``early_stop`` it is the lowest that was seen: an upper bound.
        first_match: (Q,) int64 highest rank of the first match, from 1; 0 where there is none. Of a
            run with ``early_stop`` it is exact up to ``broken_rank``.
        broken: (Q,) bool.
        linf: Largest change of any pixel of any query, in [0, 1] units.

    Example:
        >>> import torch
        >>> ap, match = torch.tensor([1.0, 0.0]), torch.tensor([1, 9])
        >>> worst = WorstCase(ap, match, match > 1, 8 / 255)
        >>> worst.ap.mean()
        tensor(0.5000)
    """

    ap: Tensor
    first_match: Tensor
    broken: Tensor
    linf: float

    @property
    def mAP(self) -> float:  # noqa: N802 (the field's name for it)
        """Mean of ``ap`` over the queries that have a match."""
        return float(self.ap[self.first_match > 0].mean())

    @property
    def broken_fraction(self) -> float:
        """Fraction of broken queries among those that have a match."""
        return int(self.broken.sum()) / int((self.first_match > 0).sum())

    def rank_k(self, k: int) -> float:
        """Return the fraction of queries with a match among the first ``k`` under every attack."""
        k = checked(int, "k", k, low=1, high=MAX_RANK)
        answered = self.first_match > 0
        return int((answered & (self.first_match <= k)).sum()) / int(answered.sum())


@dataclass(frozen=True, eq=False)
class AutoAttackResult(Result):
    """Retrieval metrics of a model under the suite.

    Attributes:
        clean: Without attack.
        worst: The worst case of the float images.
        worst_8bit: The worst case of the images as PNG files store them.
        members: In the order in which they ran.
        broken_by: For each query, the first member that breaks its float image; None where none
            does.
        audit: What :meth:`AuditReport.to_dict` returns; None without an audit.
        findings: The suite's own warnings.
        facts: Budget, options, dataset, protocol and weights.

    Example:
        >>> from reidguard import RetrievalAutoAttack
        >>> result = RetrievalAutoAttack().run(model, dataset)  # doctest: +SKIP
        >>> result.worst_8bit.ap.nanmean()  # robust mAP  # doctest: +SKIP
    """

    clean: RankingResult
    worst: WorstCase
    worst_8bit: WorstCase
    members: tuple[MemberResult, ...]
    broken_by: tuple[str | None, ...]
    audit: dict[str, Any] | None
    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Names of all warnings, the audit's first."""
        audited = () if self.audit is None else tuple(self.audit["warnings"])
        return tuple(dict.fromkeys((*audited, *(finding.name for finding in self.findings))))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; fractions and L∞ lie in [0, 1], ``linf_255`` is 255 · L∞.

        Nothing in it depends on the time of measuring. ``mAP`` is null after a run with
        ``early_stop``, which does not measure it.
        """
        return {
            "clean": {"mAP": self.clean.mAP, "cmc": self.clean.cmc[: self._depth].tolist()},
            "robust": self._worst_dict(self.worst),
            "robust_8bit": self._worst_dict(self.worst_8bit),
            "members": [{**asdict(m), **linf_dict(m.linf)} for m in self.members],
            "warnings": list(self.warnings),
            "suite_findings": [asdict(finding) for finding in self.findings],
            "audit": self.audit,
            **self.facts,
            "versions": library_versions(),
        }

    @property
    def _depth(self) -> int:
        """How far rank-k is known of robust queries, and of clean ones."""
        return min(int(self.facts["suite"]["broken_rank"]), len(self.clean.cmc))

    def _worst_dict(self, worst: WorstCase) -> dict[str, Any]:
        return {
            "mAP": None if self.facts["early_stop"] else worst.mAP,
            "cmc": [worst.rank_k(k) for k in range(1, self._depth + 1)],
            "broken": worst.broken_fraction,
            **linf_dict(worst.linf),
        }

    def parts(self) -> list[str | Table]:
        """Return tables in percent, with L∞ in grey levels, the audit's verdict and warnings."""
        suite = self.facts["suite"]
        meaning = (
            f"Broken: no match among the first {suite['broken_rank']} and an average precision "
            f"below {suite['broken_ap']:g}."
        )
        if self.facts["early_stop"]:
            meaning += " Broken queries were attacked no further, so robust mAP is not measured."
        warnings = [f"WARNING: {f.measured}. {f.cure}" for f in self.findings]
        if self.audit is not None:
            warnings += [
                f"{VERDICTS[finding['level']]}: {TITLES[finding['name']]}? {finding['measured']}. "
                f"{finding['cure']}"
                for finding in self.audit["findings"]
                if finding["name"] in self.audit["warnings"]
            ]
        worst, members = self._worst_table(), self._member_table()
        return [self._title(), worst, meaning, members, self._verdict(), *warnings]

    def _title(self) -> str:
        counts, dataset = self.facts["counts"], self.facts["dataset"]
        every = dataset["query_every"]
        part = f"; one query in {every}" if every > 1 else ""
        return (
            f"{dataset['name']} under retrieval-autoattack, "
            f"ε = {255 * self.facts['suite']['eps']:g}/255 ({counts['query']:,} query, "
            f"{counts['gallery']:,} gallery{part})"
        )

    def _worst_table(self) -> Table:
        ranks = [k for k in (1, 5, 10) if k <= self._depth]
        answered = int((self.clean.first_match > 0).sum())
        broken = next(m.broken for m in self.members if m.name == "clean") / answered
        fractions = [self.clean.mAP, *(self.clean.rank_k(k) for k in ranks), broken]
        rows = [["clean", *map(percent, fractions), "0"]]
        for name, worst in (("robust, float", self.worst), ("robust, 8-bit", self.worst_8bit)):
            mean = None if self.facts["early_stop"] else worst.mAP
            cells = [mean, *(worst.rank_k(k) for k in ranks), worst.broken_fraction]
            rows.append([name, *map(percent, cells), levels(worst.linf)])
        header = ["queries", "mAP", *(f"rank-{k}" for k in ranks), "broken", "L∞ ·255"]
        return Table(header, rows, text_columns=1)

    def _member_table(self) -> Table:
        header = ["member", "restarts", "queries", "broken alone", "broken first", "mAP alone"]
        header += ["L∞ ·255", "forward / backward", "note"]
        rows = [
            [
                member.name,
                member.restarts,
                member.queries,
                member.broken,
                member.first,
                percent(member.mAP),
                levels(member.linf),
                f"{member.forward} / {member.backward}",
                member.note,
            ]
            for member in self.members
        ]
        return Table(header, rows)

    def _verdict(self) -> str:
        if self.audit is None:
            return "Audit: left out; masked gradients were not checked for."
        verdict = audit_verdict(len(self.audit["warnings"]))
        return f"Audit ({self.audit['facts']['queries']} queries): {verdict}."
