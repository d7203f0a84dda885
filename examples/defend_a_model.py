"""Defend a model against an attack, and measure how robust it is."""

from typing import Any

import torch

import reidguard as rg

# %%
# A vulnerable model
# ~~~~~~~~~~~~~~~~~~
# ``elsewhere`` has other people: the paper's defense trains on a second dataset, so that robustness
# generalises beyond the first.

PEOPLE = "virtual:studio?identities=16&cameras=3"
OTHERS = "virtual:plaza?identities=16&cameras=2&height=64"
SIZE = (64, 32)
people, elsewhere = rg.load_dataset(PEOPLE), rg.load_dataset(OTHERS)
recipe: dict[str, Any] = {"image_size": SIZE, "identities": 8, "images_per_identity": 4}
torch.manual_seed(0)
model = rg.create_model("ide", backbone="test_resnet", size=SIZE, num_classes=people.num_train_pids)
rg.train_model(model, people, steps=60, lr=1e-3, **recipe)
attack = rg.DeltaAttack(rg.Budget(8 / 255), size=SIZE).fit(model, people, steps=20, **recipe)

# %%
# Defend it
# ~~~~~~~~~
# ``MetaDefense`` is the paper's defense: it trains on clean and adversarial images of each batch,
# and minimises also the loss on the second dataset after an inner step. ``maml``, the default,
# differentiates through that step; ``first_order`` is cheaper. ``fit`` returns a new model;
# ``model`` does not change.

defense = rg.MetaDefense(attack, learner="first_order")
robust = defense.fit(model, people, elsewhere, steps=40, lr=1e-3, **recipe)

# %%
# Measure it twice
# ~~~~~~~~~~~~~~~~
# The paper measures a defended model with the attack that was learnt on the *undefended* one, which
# the defense was trained against. That says little about new attacks, so here a second attack is
# learnt on the defended model itself, with as many steps.

adaptive = rg.DeltaAttack(rg.Budget(8 / 255), size=SIZE).fit(robust, people, steps=20, **recipe)
protocol = rg.Protocol(image_size=SIZE)
print("mAP in %                      clean  attacked")
for name, network, against in (
    ("normal model                ", model, attack),
    ("hardened, the same attack   ", robust, attack),
    ("hardened, attacked by itself", robust, adaptive),
):
    result = rg.evaluate(network, people, against, protocol)
    clean, attacked = 100 * result.clean.mAP, 100 * result.attacked.ranking.mAP
    print(f"{name}  {clean:5.1f}     {attacked:5.1f}")

# %%
# Is it gradient masking?
# ~~~~~~~~~~~~~~~~~~~~~~~
# A model may resist attacks only because its gradients are uninformative. ``audit`` checks for
# signs of that: gradients that vanish or do not predict the loss, a larger budget that is less
# effective, an attack transferred from another model that is more effective.

report = rg.audit(
    robust,
    people,
    surrogate=model,
    protocol=protocol,
    queries=32,
    learning_steps=10,
    attack_steps=8,
)
print("warnings:", ", ".join(report.warnings) or "none")
robust.save("robust.safetensors")
