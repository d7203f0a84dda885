"""Evaluation: protocol, metrics under attack, grids, budgets, saved images, audit."""

from reidguard.evaluation.audit import audit
from reidguard.evaluation.audit_report import AuditReport, Finding
from reidguard.evaluation.autoattack import RetrievalAutoAttack
from reidguard.evaluation.autoattack_result import AutoAttackResult, MemberResult, WorstCase
from reidguard.evaluation.certify import certify
from reidguard.evaluation.certify_result import CertifyResult
from reidguard.evaluation.detection import detection_scores
from reidguard.evaluation.detection_result import DetectionResult
from reidguard.evaluation.evaluate import evaluate
from reidguard.evaluation.features import FeatureStore, extract_features
from reidguard.evaluation.grid import evaluate_grid
from reidguard.evaluation.grid_result import SETTINGS, GridCell, GridResult
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.results import AttackedResult, EvaluationResult, Result
from reidguard.evaluation.save import save_adversarial
from reidguard.evaluation.verify import VerifyReport, verify
from reidguard.metrics.lpips import LPIPS
from reidguard.metrics.quality import achieved_linf, ms_ssim, psnr, ssim

__all__ = [
    "LPIPS",
    "SETTINGS",
    "AttackedResult",
    "AuditReport",
    "AutoAttackResult",
    "CertifyResult",
    "DetectionResult",
    "EvaluationResult",
    "FeatureStore",
    "Finding",
    "GridCell",
    "GridResult",
    "MemberResult",
    "Protocol",
    "Result",
    "RetrievalAutoAttack",
    "VerifyReport",
    "WorstCase",
    "achieved_linf",
    "audit",
    "certify",
    "detection_scores",
    "evaluate",
    "evaluate_grid",
    "extract_features",
    "ms_ssim",
    "psnr",
    "save_adversarial",
    "ssim",
    "verify",
]
