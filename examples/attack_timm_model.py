"""Attack any timm network: learn one perturbation for all images, measure it, keep the images.

python examples/attack_timm_model.py [FOLDER]
"""

import sys
from pathlib import Path

import torch

import reidguard as rg
from reidguard.data import read_virtual

SIZE = (64, 32)  # small and quick; real images need (256, 128)
out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
sizes = {"train_identities": 16, "test_identities": 16, "cameras": 3, "height": 64}
people = read_virtual("studio", root=out / "people", **sizes)  # rendered: nothing is downloaded

# Stands for your own network: a few seconds of training give it something to lose.
torch.manual_seed(0)
ide = rg.create_model("ide", backbone="test_resnet", size=SIZE, num_classes=people.num_train_pids)
rg.train_model(ide, people, steps=40, lr=1e-3, images_per_identity=4, image_size=SIZE)
network = ide.backbone  # a plain timm network from here on; put yours in its place

# The attack, in ten lines.
spec = rg.InputSpec(SIZE, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
model = rg.wrap_model(network, input_spec=spec, metric="euclidean")
attack = rg.DeltaAttack(rg.Budget(8 / 255), size=SIZE)
attack.fit(model, people, steps=20, image_size=SIZE)
attack.save(out / "delta.safetensors")
print(rg.verify(attack, people, image_size=SIZE), end="\n\n")
result = rg.evaluate(model, people, attack, rg.Protocol(image_size=SIZE))
print(result.to_markdown())
images = rg.save_adversarial(attack, people, out / "images", image_size=SIZE)
saved = rg.evaluate(model, people.with_query(images), protocol=rg.Protocol(image_size=SIZE))
print(f"the images in {images}: mAP {100 * saved.clean.mAP:.1f}")
