"""Fit one perturbation for all images that makes a model of yours retrieve the wrong identity."""

from pathlib import Path

import torch
from PIL import Image

import reidguard as rg
from reidguard.report import amplified

# %%
# A dataset and a network
# ~~~~~~~~~~~~~~~~~~~~~~~
# The people are rendered, so nothing is downloaded; ``"market1501:/data/market1501"`` would be a
# dataset of yours. A small network is trained for a few seconds in place of yours: ``network`` is a
# plain timm model, independent of reidguard.

PEOPLE = "virtual:studio?identities=16&cameras=3&height=64"
SIZE = (64, 32)  # height and width at which images are read; real ones need (256, 128)
people = rg.load_dataset(PEOPLE)
torch.manual_seed(0)
ide = rg.create_model("ide", backbone="test_resnet", size=SIZE, num_classes=people.num_train_pids)
rg.train_model(ide, people, steps=40, lr=1e-3, images_per_identity=4, image_size=SIZE)
network = ide.backbone

# %%
# The attack, in ten lines
# ~~~~~~~~~~~~~~~~~~~~~~~~
# An attack works on pixels in [0, 1]. The network's preprocessing (size, mean, standard deviation)
# is its ``InputSpec``. ``fit`` uses training images only and does not change the network.

out = Path("runs/example")
spec = rg.InputSpec(SIZE, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
model = rg.wrap_model(network, input_spec=spec, metric="euclidean")
attack = rg.DeltaAttack(rg.Budget(8 / 255), size=SIZE)
attack.fit(model, people, steps=20, image_size=SIZE)
attack.save(out / "delta.safetensors")
print(rg.verify(attack, people, image_size=SIZE), end="\n\n")
result = rg.evaluate(model, people, attack, rg.Protocol(image_size=SIZE))
print(result.to_markdown())

# %%
# The queries, as files
# ~~~~~~~~~~~~~~~~~~~~~
# Each adversarial query is saved under its query's name, rounded within the budget. Evaluating the
# files gives the 8-bit row above.

images = rg.save_adversarial(attack, people, out / "images", image_size=SIZE)
saved = rg.evaluate(model, people.with_query(images), protocol=rg.Protocol(image_size=SIZE))
print(f"the images in {images}: mAP {100 * saved.attacked_8bit.ranking.mAP:.1f}")

# %%
# What it looks like
# ~~~~~~~~~~~~~~~~~~
# The perturbation is the same for all images; it is shown eight times amplified.

strip = Image.new("RGB", (4 * SIZE[1], SIZE[0]))
strip.paste(amplified(attack.delta[0], 8).resize(SIZE[::-1]))
for place, sample in enumerate(people.query[:3], 1):
    strip.paste(Image.open(images / sample.path.name), (place * SIZE[1], 0))
strip.resize((3 * strip.width, 3 * strip.height)).save("changes.png")

# %%
# .. image:: changes.png
#    :alt: the perturbation on grey, then three people with that perturbation added
