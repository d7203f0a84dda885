"""Harden a model against an attack that breaks it, and ask how much that is worth."""

from typing import Any

import torch

import reidguard as rg

# %%
# A model that can be broken
# ~~~~~~~~~~~~~~~~~~~~~~~~~~
# ``elsewhere`` holds other people: the paper's defense learns from a second set, so that what it
# learns holds for more than the first.

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
# Harden it
# ~~~~~~~~~
# ``MetaDefense`` is the paper's: images of each batch are shown attacked, too, and a step counts by
# what it does to the loss on the second set. ``maml``, the default, differentiates through that
# step; ``first_order`` is cheaper. ``fit`` returns a new model; ``model`` stays as it is.

defense = rg.MetaDefense(attack, learner="first_order")
robust = defense.fit(model, people, elsewhere, steps=40, lr=1e-3, **recipe)

# %%
# Measure it twice
# ~~~~~~~~~~~~~~~~
# The paper measures a hardened model with the attack that was learnt on the *normal* one: what was
# seen in training. That says little about a new attack. So a second attack is learnt here, on the
# hardened model itself, with equal steps.

adaptive = rg.DeltaAttack(rg.Budget(8 / 255), size=SIZE).fit(robust, people, steps=20, **recipe)
protocol = rg.Protocol(image_size=SIZE)
print("mAP in %                      clean  attacked")
for name, network, against in (
    ("normal model                ", model, attack),
    ("hardened, the same attack   ", robust, attack),
    ("hardened, attacked by itself", robust, adaptive),
):
    found = rg.evaluate(network, people, against, protocol)
    print(f"{name}  {100 * found.clean.mAP:5.1f}     {100 * found.attacked.ranking.mAP:5.1f}")

# %%
# Does it only seem robust?
# ~~~~~~~~~~~~~~~~~~~~~~~~~
# A model may resist because its gradients tell an attack nothing. ``audit`` looks for signs of
# that: gradients that vanish, that do not predict the loss, a larger budget that hurts less, an
# attack from another model that hurts more.

checked = rg.audit(
    robust,
    people,
    surrogate=model,
    protocol=protocol,
    queries=32,
    learning_steps=10,
    attack_steps=8,
)
print("warnings:", ", ".join(checked.warnings) or "none")
robust.save("robust.safetensors")
