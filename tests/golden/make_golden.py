"""Made attack_schema1.safetensors, once. Never overwrite it: users have files like it.

Run only to add a file for a new schema, under a new name.
"""

import sys

import torch

from reidguard.attacks import CombinatorialAttack
from reidguard.types import Budget


def golden_attack() -> CombinatorialAttack:
    """Simple fractions, which every machine computes alike."""
    attack = CombinatorialAttack(Budget(8 / 255), resolution=3, size=(4, 2), stacked=True)
    count = attack.color.offset.numel()
    with torch.no_grad():
        attack.color.offset.copy_((torch.arange(count) % 17 - 8).view_as(attack.color.offset) / 256)
        attack.delta.delta.copy_((torch.arange(24) % 13 - 6).view(1, 3, 4, 2) / 256)
    attack.provenance = {"learner": "plain", "steps": 100, "seed": 0}
    return attack


if __name__ == "__main__":
    golden_attack().save(sys.argv[1])
