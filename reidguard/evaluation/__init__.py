"""Evaluation: protocol, figures under attack, image quality, budgets verified, images saved."""

from reidguard.evaluation.evaluate import AttackedResult, EvaluationResult, evaluate
from reidguard.evaluation.features import FeatureStore, extract_features
from reidguard.evaluation.protocol import Protocol
from reidguard.evaluation.quality import achieved_linf, psnr, ssim
from reidguard.evaluation.save import save_adversarial
from reidguard.evaluation.verify import VerifyReport, verify

__all__ = [
    "AttackedResult",
    "EvaluationResult",
    "FeatureStore",
    "Protocol",
    "VerifyReport",
    "achieved_linf",
    "evaluate",
    "extract_features",
    "psnr",
    "save_adversarial",
    "ssim",
    "verify",
]
