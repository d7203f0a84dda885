"""The report of `audit`: findings, each with a verdict and a cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from reidguard.evaluation.results import Result
from reidguard.storage import library_versions
from reidguard.tables import Table, percent

__all__ = ["AuditReport", "Finding", "audit_verdict", "make_finding"]

Level = Literal["ok", "warning", "error", "unchecked"]
VERDICTS = {"ok": "ok", "unchecked": "not checked", "warning": "WARNING", "error": "ERROR"}

TITLES = {
    "non_finite_gradients": "gradients are finite",
    "zero_gradients": "gradients are not zero",
    "randomness": "equal calls give equal results",
    "gradient_mismatch": "gradients predict the loss",
    "curve": "mAP falls as ε rises",
    "transfer": "white-box attacks are stronger than transfer",
    "black_box": "gradient attacks break what black-box ones break",
}

CURES = {
    "non_finite_gradients": "Gradient attacks do nothing where the gradient is NaN or infinite. "
    "Find the operation (a root or a norm at zero, a logarithm, a division), bound it away from "
    "there, and measure again.",
    "zero_gradients": "Gradient attacks do not move. Replace what has no gradient (rounding, "
    "thresholds, detached tensors) by a differentiable stand-in in the backward pass, and attack "
    "with SquareAttack, which needs no gradient.",
    "randomness": "One gradient is one draw. Average gradients and features over many draws, or "
    "fix the draw, before any result is reported.",
    "gradient_mismatch": "The backward pass is not the derivative of the forward pass, or the loss "
    "is shattered. Attack through a smooth stand-in, and with SquareAttack, which needs no "
    "gradient.",
    "curve": "The attack fails at the larger ε; the model is not more robust there. Give it more "
    "steps and restarts, and report the lowest mAP over all ε up to the largest.",
    "transfer": "The white-box mAP is too favourable. Report the transfer mAP as the "
    "model's, and give the white-box attack more steps, restarts, or another objective (FNA, "
    "SquareAttack).",
    "black_box": "Attacks that need no gradient of the model break queries that the gradient "
    "attacks leave unbroken: its gradients are masked, or the white-box members too weak. Trust "
    "the results of this suite no further than the audit of the model; attack it through a smooth "
    "stand-in.",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: ``zero_gradients``, ``non_finite_gradients``, ``randomness``, ``gradient_mismatch``,
            ``curve`` or ``transfer``; ``black_box`` of the suite of attacks.
        level: ``error`` where gradient attacks cannot have worked, ``warning`` where their results
            are doubtful, ``ok``, or ``unchecked``.
        measured: The measurement, in words; the reason where nothing was checked.
        limit: Where the check warns.
        evidence: Measurements by name. Metrics and ε lie in [0, 1].
        cure: What to do about it; empty where nothing is to be done.

    Example:
        >>> Finding("curve", "ok", "mAP falls as ε rises").level
        'ok'
    """

    name: str
    level: Level
    measured: str
    limit: str = ""
    evidence: dict[str, float] = field(default_factory=dict)
    cure: str = ""


def make_finding(
    name: str, level: Level, measured: str, limit: str, evidence: dict[str, float]
) -> Finding:
    """Return a finding, with the check's cure if it warns."""
    cure = CURES[name] if level in ("warning", "error") else ""
    return Finding(name, level, measured, limit, evidence, cure)


@dataclass(frozen=True)
class AuditReport(Result):
    """The result of an audit.

    No warning proves nothing: masked gradients may escape all checks.

    Attributes:
        findings: One of each check, in the order of severity.
        curve: mAP and rank-1 under SMA by ``eps`` (in [0, 1] units), from 0 (clean) up.
        transfer: Per attack, the mAP under it when made on the model and when made on the
            surrogate.
        facts: Model, dataset and options of the audit.

    Example:
        >>> finding = Finding("curve", "warning", "mAP rises with ε")
        >>> report = AuditReport((finding,), (), (), {"dataset": "market1501", "queries": 100})
        >>> [warning.name for warning in report.warnings]
        ['curve']
    """

    findings: tuple[Finding, ...]
    curve: tuple[dict[str, float], ...]
    transfer: tuple[dict[str, Any], ...]
    facts: dict[str, Any]

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings of level ``error`` and ``warning``."""
        return tuple(f for f in self.findings if f.level in ("error", "warning"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; metrics and ε lie in [0, 1]."""
        return {
            "warnings": [finding.name for finding in self.warnings],
            "findings": [asdict(finding) for finding in self.findings],
            "curve": list(self.curve),
            "transfer": list(self.transfer),
            "facts": self.facts,
            "versions": library_versions(),
        }

    def parts(self) -> list[str | Table]:
        """Return the verdict, tables, and what to do about each warning."""
        verdict = audit_verdict(len(self.warnings))
        title = f"Audit on {self.facts['dataset']} ({self.facts['queries']} queries): {verdict}"
        cures = [f"{VERDICTS[f.level]}: {TITLES[f.name]}? {f.cure}" for f in self.warnings]
        return [title, *self._tables(), *cures]

    def _tables(self) -> list[Table]:
        checks = [
            [TITLES[f.name], f.measured, f.limit or None, VERDICTS[f.level]] for f in self.findings
        ]
        tables = [Table(["check", "measured", "warns", "verdict"], checks, text_columns=4)]
        if self.curve:
            header = ["SMA, ε ·255", *(f"{255 * point['eps']:g}" for point in self.curve)]
            metrics = [
                [name, *(percent(point[key]) for point in self.curve)]
                for name, key in (("mAP", "mAP"), ("rank-1", "rank1"))
            ]
            tables.append(Table(header, metrics, text_columns=1))
        if self.transfer:
            eps = f"{255 * self.facts['eps']:g}"
            header = [f"mAP at ε = {eps}/255, made on", "the model", "the surrogate"]
            cells = [
                [row["attack"], percent(row["white_box"]), percent(row["surrogate"])]
                for row in self.transfer
            ]
            tables.append(Table(header, cells, text_columns=1))
        return tables


def audit_verdict(warnings: int) -> str:
    """Return the verdict on a number of warnings, in words."""
    if warnings == 0:
        return "no sign of masked gradients"
    return f"{warnings} warning{'s' * (warnings > 1)}"
