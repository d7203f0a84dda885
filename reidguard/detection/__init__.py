"""Detection of attacked queries: scores of how suspicious an image is, and an attack on these."""

from reidguard.detection.adaptive import AdaptiveSMA
from reidguard.detection.detector import Detector
from reidguard.detection.scores import (
    DETECTION_SCORES,
    AgreementScore,
    BlurScore,
    ConsistencyScore,
    DetectionScore,
    DetectorBatch,
    FlipScore,
    JpegScore,
    NeighbourScore,
    Reference,
    ShiftScore,
)

__all__ = [
    "DETECTION_SCORES",
    "AdaptiveSMA",
    "AgreementScore",
    "BlurScore",
    "ConsistencyScore",
    "DetectionScore",
    "Detector",
    "DetectorBatch",
    "FlipScore",
    "JpegScore",
    "NeighbourScore",
    "Reference",
    "ShiftScore",
]
