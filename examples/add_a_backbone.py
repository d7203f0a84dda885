"""Add a network of your own: write it, check it, train it, attack it."""

import torch
from torch import Tensor, nn

import reidguard as rg
from reidguard.testing import MODEL_CHECKS

# %%
# Write it
# ~~~~~~~~
# ``embed`` takes images that are resized and normalised by the ``InputSpec``, and returns one
# feature for each. ``build_classifiers`` adds the classifiers for training. Files and commands find
# the network by its name in the registry.


@rg.register_model("stripes")
class Stripes(rg.ReIDModel):
    """Convolutions, then average pooling over horizontal stripes."""

    def __init__(self, num_classes=None, stripes: int = 4, width: int = 32) -> None:
        spec = rg.InputSpec(size=(64, 32))
        super().__init__(input_spec=spec, metric="cosine", num_classes=num_classes)
        layers: list[nn.Module] = []
        for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.stripes, self.width = stripes, width
        self.build_classifiers(4 * width * stripes)

    def embed(self, inputs: Tensor) -> Tensor:
        maps = self.layers(inputs)
        return nn.functional.adaptive_avg_pool2d(maps, (self.stripes, 1)).flatten(1)


# %%
# Check it
# ~~~~~~~~
# The checks that every network of this library passes: features for images of any size and dtype,
# gradients to images and weights, a training branch for each domain, no change by an attack, saving
# and loading. In your own tests each is a case of ``parametrize``.

for check in MODEL_CHECKS:
    check(Stripes)
    print("passed:", check.__name__.removeprefix("check_").replace("_", " "))

# %%
# Train it
# ~~~~~~~~
# Triplet loss and cross-entropy, with Adam.

PEOPLE = "virtual:studio?identities=16&cameras=3"
SIZE = (64, 32)
people = rg.load_dataset(PEOPLE)
torch.manual_seed(0)
model = rg.create_model("stripes", num_classes=people.num_train_pids)
rg.train_model(model, people, steps=60, lr=3e-3, images_per_identity=4, image_size=SIZE)
model.save("stripes.safetensors")

# %%
# Attack it
# ~~~~~~~~~
# Every attack and every learner works with it. ``SMA`` is not fitted: it optimises each query on
# the model itself.

model = rg.load_model("stripes.safetensors")
protocol = rg.Protocol(image_size=SIZE)
learnt = rg.MetaAttack("color", learner="joint").fit(
    model, people, people, steps=20, image_size=SIZE, images_per_identity=4
)
for name, attack in (("colour, learnt", learnt), ("SMA", rg.SMA().bind(model))):
    result = rg.evaluate(model, people, attack, protocol)
    clean, attacked = 100 * result.clean.mAP, 100 * result.attacked.ranking.mAP
    print(f"{name:15s} mAP {clean:.1f} -> {attacked:.1f}")

# %%
# An existing network needs no class: ``rg.wrap_model(network, input_spec=...)`` takes any module,
# and ``rg.create_model("ide", backbone="NAME")`` any of timm's. To publish yours under its name,
# see :doc:`/extending`.
