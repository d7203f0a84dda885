"""What `RetrievalAutoAttack` found: the worst case of every query, and the share of each member."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from reidguard.evaluation.audit import Finding
from reidguard.metrics import RankingResult
from reidguard.storage import atomic_write, library_versions, write_json

__all__ = ["AutoAttackResult", "MemberResult", "WorstCase"]


@dataclass(frozen=True)
class MemberResult:
    """What one member of the suite did, by its float images.

    Attributes:
        name: ``clean`` (the images as they are), ``self-metric``, ``furthest-negative``,
            ``universal``, ``transfer`` or ``square``.
        restarts: Independent runs for each query.
        queries: How many queries it was run on.
        broken: How many of these it breaks by itself.
        first: How many it was the first to break, in the order above.
        mAP: Mean over all queries of the lowest average precision that it leaves by itself; None
            if it was not run on all.
        linf: Largest change of any pixel, in [0, 1] units.
        forward: Forward passes per query that it was run on, measuring included.
        backward: Backward passes per query.
        note: Why it was not run, where it was not.
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
    """

    ap: Tensor
    first_match: Tensor
    broken: Tensor
    linf: float

    @property
    def mAP(self) -> float:  # noqa: N802 (the field's name for it)
        """Mean of :attr:`ap` over the queries that have a match."""
        return float(self.ap[self.first_match > 0].mean())

    @property
    def broken_share(self) -> float:
        """Fraction of broken queries among those that have a match."""
        return float(self.broken.sum() / (self.first_match > 0).sum())

    def rank_k(self, k: int) -> float:
        """Return the share of queries with a match among the first ``k`` whatever is done."""
        answered = self.first_match > 0
        return float((answered & (self.first_match <= k)).sum() / answered.sum())


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What is left of a model under the suite.

    Attributes:
        clean: Retrieval figures without attack.
        worst: The worst case of the float images.
        worst_8bit: The worst case of the images that a person could save.
        members: In the order in which they ran.
        broken_by: For each query, the member that broke its float image first; None where the query
            is whole.
        audit: What :meth:`AuditReport.to_dict` gives; None if the audit was left out.
        findings: Warnings of the suite's own.
        facts: Budget, options, dataset, protocol and weights.
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
        return (*audited, *(finding.name for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; shares lie in [0, 1], L∞ is in grey levels (1/255).

        Nothing in it depends on when or how fast it was measured. ``mAP`` is null after a run with
        ``early_stop``, which does not measure it.
        """
        return {
            "clean": {"mAP": self.clean.mAP, "cmc": self.clean.cmc[: self._depth].tolist()},
            "robust": self._worst_dict(self.worst),
            "robust_8bit": self._worst_dict(self.worst_8bit),
            "members": [{**asdict(m), "linf": 255 * m.linf} for m in self.members],
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
            "broken": worst.broken_share,
            "linf": 255 * worst.linf,
        }

    def to_json(self) -> str:
        """Return :meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_markdown(self) -> str:
        """Return tables for people: figures in percent, L∞ in grey levels."""
        suite, counts = self.facts["suite"], self.facts["counts"]
        ranks = [k for k in (1, 5, 10) if k <= self._depth]
        head = ["queries", "mAP", *(f"rank-{k}" for k in ranks), "broken", "L∞ ·255"]
        broken = next(m.broken for m in self.members if m.name == "clean") / self._answered
        shares = [self.clean.mAP, *(self.clean.rank_k(k) for k in ranks), broken]
        rows = [["clean", *map(_percent, shares), "0"]]
        for name, worst in (("robust, float", self.worst), ("robust, 8-bit", self.worst_8bit)):
            figure = None if self.facts["early_stop"] else worst.mAP
            shares = [*(worst.rank_k(k) for k in ranks), worst.broken_share]
            cells = map(_percent, [figure, *shares])
            rows.append([name, *cells, f"{255 * worst.linf:.2f}"])
        every = self.facts["dataset"]["query_every"]
        part = f"; one query in {every}" if every > 1 else ""
        title = (
            f"{self.facts['dataset']['name']} under retrieval-autoattack, "
            f"ε = {255 * suite['eps']:g}/255 ({counts['query']:,} query, "
            f"{counts['gallery']:,} gallery{part})"
        )
        meaning = (
            f"Broken: no match among the first {suite['broken_rank']} and an average precision "
            f"below {suite['broken_ap']:g}."
        )
        if self.facts["early_stop"]:
            meaning += " Broken queries were attacked no further, so robust mAP is not measured."
        members = [
            [
                member.name,
                *map(str, (member.restarts, member.queries, member.broken, member.first)),
                "-" if member.mAP is None else _percent(member.mAP),
                f"{255 * member.linf:.2f}",
                f"{member.forward} / {member.backward}",
                member.note,
            ]
            for member in self.members
        ]
        columns = ["member", "restarts", "queries", "broken alone", "broken first", "mAP alone"]
        columns += ["L∞ ·255", "forward / backward", ""]
        parts = [title, _table(head, rows), meaning, _table(columns, members), self._verdict()]
        parts += [f"WARNING: {found.measured}. {found.cure}" for found in self.findings]
        if self.audit is not None:
            parts += [
                f"{found['level'].upper()}: {found['name']}: {found['measured']}. {found['cure']}"
                for found in self.audit["findings"]
                if found["name"] in self.audit["warnings"]
            ]
        return "\n\n".join(parts) + "\n"

    @property
    def _answered(self) -> int:
        return int((self.clean.first_match > 0).sum())

    def _verdict(self) -> str:
        if self.audit is None:
            return "Audit: left out; whether gradients are masked was not looked at."
        found = len(self.audit["warnings"])
        verdict = f"{found} warning{'s' * (found > 1)}" if found else "no sign of masked gradients"
        return f"Audit ({self.audit['facts']['queries']} queries): {verdict}."

    def save(self, path: Path | str) -> None:
        """Write the result atomically: as tables if ``path`` ends in .md, else as JSON."""
        if Path(path).suffix == ".md":
            with atomic_write(path) as temporary:
                temporary.write_text(self.to_markdown(), encoding="utf-8")
        else:
            write_json(path, json.loads(self.to_json()))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
