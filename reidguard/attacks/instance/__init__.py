"""Instance attacks: computed for each image on a target model."""

from reidguard.attacks.instance.base import Guides, InstanceAttack
from reidguard.attacks.instance.metric import FNA, MetricFGSM, MetricIFGSM, MetricMIFGSM
from reidguard.attacks.instance.pgd import GradientAttack
from reidguard.attacks.instance.self_metric import ODFA, SMA
from reidguard.attacks.instance.square import SquareAttack

__all__ = [
    "FNA",
    "ODFA",
    "SMA",
    "GradientAttack",
    "Guides",
    "InstanceAttack",
    "MetricFGSM",
    "MetricIFGSM",
    "MetricMIFGSM",
    "SquareAttack",
]
