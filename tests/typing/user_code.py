"""A user's code for type checkers: `make type` runs mypy on it, and nothing runs it.

``assert_type`` states what a type checker infers. Each ``type: ignore`` marks a mistake that it
must find: mypy reports an ignore that is not needed.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from typing_extensions import assert_type

import reidguard as rg
from reidguard.data import ReIDDataset


def attack_a_model(weights: Path) -> float:
    people = rg.load_dataset("market1501", "/data/market1501")
    assert_type(people, ReIDDataset)
    model = rg.create_model("osnet_x0_25", weights=weights)
    assert_type(model, rg.ReIDModel)
    attack = rg.DeltaAttack(rg.Budget(8 / 255), size=(256, 128))
    fitted = attack.fit(model, people, steps=20, lr=0.01, image_size=(256, 128))
    assert_type(fitted, rg.DeltaAttack)
    result = rg.evaluate(model, people, attack, rg.Protocol(), query_every=8)
    assert_type(result, rg.EvaluationResult)
    assert_type(result.clean.mAP, float)
    assert_type(result.to_markdown(), str)
    if result.attacked is None:
        return result.clean.rank_k(1)
    assert_type(result.attacked, rg.AttackedResult)
    return result.attacked.ranking.mAP


def use_tensors(attack: rg.Attack, model: rg.ReIDModel, images: Tensor) -> Tensor:
    adversarial = attack(images)
    assert_type(adversarial, Tensor)
    assert_type(model.features(adversarial), Tensor)
    assert_type(model(adversarial), rg.ReIDOutput)
    return adversarial


def harden(model: rg.ReIDModel, people: ReIDDataset, virtual: ReIDDataset) -> rg.ReIDModel:
    attack = rg.load_attack("attack.safetensors")
    assert_type(attack, rg.Attack)
    robust = rg.MetaDefense(attack=attack).fit(model, people, virtual, epochs=1)
    assert_type(robust, rg.ReIDModel)
    report = rg.audit(robust, people, surrogate=model, queries=30)
    assert_type(report, rg.AuditReport)
    suite = rg.RetrievalAutoAttack(rg.Budget(8 / 255), steps=10).run(robust, people)
    assert_type(suite, rg.AutoAttackResult)
    return rg.train_model(robust, people, steps=10, recipe="agw")


def wrap(network: nn.Module) -> rg.ReIDModel:
    return rg.wrap_model(network, input_spec=rg.InputSpec(size=(256, 128)))


class Tint(rg.UniversalAttack):
    """A subclass overrides what the base class declares."""

    def perturb(self, x: Tensor) -> Tensor:
        return x + self.budget.eps

    def clip_parameters(self) -> None:
        assert_type(self.budget, rg.Budget)


@rg.register_attack("typed_tint")
class RegisteredTint(Tint):
    """A decorator keeps the class's type."""


assert_type(RegisteredTint(), RegisteredTint)


def mistakes(model: rg.ReIDModel, people: ReIDDataset, attack: rg.DeltaAttack) -> None:
    rg.evaluate(model, people, batch_sise=3)  # type: ignore[call-arg]
    rg.evaluate(model, people, query_every="8")  # type: ignore[arg-type]
    rg.evaluate(people, model)  # type: ignore[arg-type]
    attack.fit(model, people, step=20)  # type: ignore[call-arg]
    rg.train_model(model, people, recipe="unknown")  # type: ignore[arg-type]
    rg.DeltaAttack(8 / 255)  # type: ignore[arg-type]
    rg.evaluate_gird  # type: ignore[attr-defined]  # noqa: B018
