"""Evaluation: protocol, figures under attack, quality, budgets verified, images saved, audit."""

from reidguard.evaluation.audit import AuditReport, Finding, audit
from reidguard.evaluation.evaluate import AttackedResult, EvaluationResult, evaluate
from reidguard.evaluation.features import FeatureStore, extract_features
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.quality import achieved_linf, psnr, ssim
from reidguard.evaluation.save import save_adversarial
from reidguard.evaluation.verify import VerifyReport, verify

__all__ = [
    "AttackedResult",
    "AuditReport",
    "EvaluationResult",
    "FeatureStore",
    "Finding",
    "Protocol",
    "VerifyReport",
    "achieved_linf",
    "audit",
    "evaluate",
    "extract_features",
    "psnr",
    "save_adversarial",
    "ssim",
    "verify",
]
