"""Which learners take which backbones, for attacks and for defenses: one step of each.

Run: python benchmarks/backbones.py [--only NAME ...]
Random weights, random images (2 people × 2 images of 64×32), so nothing is downloaded. An attack's
step learns a delta against the frozen model; a defense's step learns the model itself, on clean and
adversarial images, with an inner SGD step. "exact" is maml.
"""

import argparse

import torch
import torch.nn.functional as F
from common import save

from reidguard.attacks import DeltaAttack
from reidguard.errors import TrainingError
from reidguard.learners import LEARNERS
from reidguard.models import create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.types import Budget, ReIDBatch

SIZE = (64, 32)
BACKBONES = (
    "resnet18",
    "resnet10t",
    "regnetx_002",
    "densenet121",
    "hrnet_w18_small",
    "convnext_atto",
    "efficientnet_b0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "ghostnet_100",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "pvt_v2_b0",
    "edgenext_xx_small",
    "mobilevit_xxs",
)
MODELS = {
    **{name: ("ide", {"backbone": name}) for name in BACKBONES},
    "PCB on resnet18": ("pcb", {"backbone": "resnet18", "parts": 4}),
    "AGW on resnet18": ("agw", {"backbone": "resnet18"}),
    "OSNet x0.25": ("osnet_x0_25", {}),
}
LEARNT = {"first_order": "first_order", "hessian_free": "hessian_free", "exact": "maml"}


def batch(seed: int) -> ReIDBatch:
    images = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    pids = torch.tensor([0, 0, 1, 1])
    return ReIDBatch(images, pids, torch.zeros_like(pids), torch.arange(4))


def attack_step(model, learner) -> torch.Tensor:
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    torch.nn.init.uniform_(attack.delta, -0.01, 0.01, generator=torch.Generator().manual_seed(3))
    objective = FeatureObjective(inference_view(model), MisrankingTriplet())
    LEARNERS.create(learner, inner_lr=0.8 / 255).step(attack, objective, batch(1), batch(2))
    return attack.delta.grad.flatten()


def defense_step(model, learner) -> torch.Tensor:
    def defended(seed: int) -> DefenseBatch:
        clean = batch(seed)
        noise = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed + 9))
        adversarial = (clean.images[::2] + (2 * noise - 1) * 8 / 255).clamp(0, 1)
        rows = torch.tensor([0, 1, 2, 3, 0, 2])
        images = torch.cat((clean.images, adversarial))
        labels = (clean.pids[rows], clean.camids[rows], clean.indices[rows])
        return DefenseBatch(images, *labels, adversarial=2)

    model.train()
    torch.manual_seed(0)
    made = LEARNERS.create(learner, inner="sgd", inner_lr=3e-4)
    made.step(model, DefenseObjective(), defended(1), defended(2))
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(grads)


def probe(step, model) -> dict:
    """What each learner does in one step: whether it can, and how its gradient lies to maml's."""
    found, gradients = {}, {}
    for name, learner in LEARNT.items():
        try:
            gradients[name] = step(model, learner)
        except TrainingError as error:
            found[name] = {"works": False, "why": str(error).partition(";")[0]}
            continue
        found[name] = {"works": bool(torch.isfinite(gradients[name]).all())}
    exact = gradients.get("exact")
    if exact is not None:
        for name in ("first_order", "hessian_free"):
            if name in gradients and len(gradients[name]) == len(exact):
                cosine = F.cosine_similarity(gradients[name].double(), exact.double(), dim=0)
                found[name]["cosine_to_exact"] = round(float(cosine), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.only:
        kind, arguments = MODELS[name]
        torch.manual_seed(0)
        model = create_model(kind, size=SIZE, num_classes=2, **arguments)
        parameters = sum(p.numel() for p in model.parameters())
        row = {"model": name, "parameters": parameters}
        row["attack"] = probe(attack_step, model)
        row["defense"] = probe(defense_step, model)
        rows.append(row)
        print(name, {s: {k: v["works"] for k, v in row[s].items()} for s in ("attack", "defense")})
    if options.only == list(MODELS):
        height, width = SIZE
        save("backbones", {"setting": f"2 people × 2 images of {height}×{width}", "rows": rows})


if __name__ == "__main__":
    main()
