"""MetaAttack: Algorithm 1 from start to file, its presets, and what resumes."""

import pytest
import torch
from torch import nn

from reidguard.attacks import DeltaAttack, MetaAttack, load_attack
from reidguard.errors import InputError, RegistryError
from reidguard.learners import FirstOrderLearner, HessianFreeLearner, MAMLLearner
from reidguard.models import create_model, wrap_model
from reidguard.types import Budget, InputSpec

SIZE = (32, 16)
SMALL = {"identities": 3, "images_per_identity": 2, "image_size": SIZE}
PARTS = {"size": SIZE, "resolution": 4}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return wrap_model(net, input_spec=InputSpec(size=SIZE), metric="euclidean")


def same(one, two):
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


def test_it_is_the_perturbation_learnt_by_maml(model, studio, other_dataset):
    meta = MetaAttack("delta", size=SIZE)
    meta.fit(model, studio, other_dataset, steps=4, **SMALL)
    plain = DeltaAttack(size=SIZE)
    plain.fit(model, studio, other_dataset, learner=MAMLLearner(), steps=4, **SMALL)
    assert same(meta, plain)
    assert plain.delta.abs().max() > 0
    assert meta.provenance["learner"] == "maml"
    assert meta.provenance["learner_options"]["inner"] == "scaled"
    assert meta.provenance["meta_test"]["name"] == other_dataset.name
    plain = DeltaAttack(size=SIZE).fit(model, studio, steps=4, **SMALL)
    assert not same(meta, plain), "the second set changed nothing"


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_saved_it_comes_back(preset, model, studio, other_dataset, tmp_path):
    attack = MetaAttack(budget=Budget(4 / 255), preset=preset, **PARTS)
    attack.fit(model, studio, other_dataset, steps=3, **SMALL)
    attack.save(tmp_path / "a.safetensors")
    loaded = load_attack(tmp_path / "a.safetensors")
    assert isinstance(loaded, MetaAttack)
    assert loaded.budget == attack.budget == Budget((4 if preset == "paper" else 8) / 255)
    assert loaded.fit_defaults == attack.fit_defaults
    assert same(loaded, attack)
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(loaded(x), attack(x))
    assert (attack(x) - x).abs().max() <= attack.budget.eps + 1e-6


def test_the_released_preset_is_each_of_its_options(model, studio, other_dataset):
    preset = MetaAttack(preset="released", **PARTS)
    preset.fit(model, studio, other_dataset, steps=12, **SMALL)
    spelt = MetaAttack(stacked=True, **PARTS)
    learner = FirstOrderLearner(
        inner="sign", inner_momentum=0.0, from_buffer=False, keep_temporary=True
    )
    spelt.fit(
        model,
        studio,
        other_dataset,
        learner=learner,
        momentum=1.0,
        clip=False,
        steps=12,
        **SMALL,
    )
    assert same(preset, spelt)
    assert preset.fit_defaults.epochs == 5
    # Inner and outer step add up, and nothing clips the parameters: they leave ±ε.
    assert preset.attack.delta.delta.abs().max() > 8 / 255 * 1.5
    x = torch.rand(1, 3, *SIZE)
    assert (preset(x) - x).abs().max() <= 16 / 255 + 1e-6


def test_the_transfer_preset_is_blocks_on_all_surrogates(model, studio, tmp_path):
    other = create_model("ide", backbone="test_resnet", size=SIZE).eval()
    preset = MetaAttack(preset="transfer", grid=(4, 2))
    spelt = DeltaAttack(basis="blocks", grid=(4, 2))
    for surrogates, options in (([model, other], {"ensemble": "gradient"}), (model, {})):
        preset.fit(surrogates, studio, steps=3, **SMALL)
        spelt.fit(surrogates, studio, steps=3, **SMALL, **options)
        assert same(preset, spelt)
    assert spelt.delta.abs().max() > 0
    preset.save(tmp_path / "a.safetensors")
    loaded = load_attack(tmp_path / "a.safetensors")
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(loaded(x), preset(x))
    # Another choice of ensemble holds against the preset.
    preset.fit([model, other], studio, steps=3, ensemble="loss", **SMALL)
    assert preset.provenance["ensemble"] == "loss"
    assert MetaAttack("delta", preset="paper", size=SIZE).attack.basis == "pixels"
    assert MetaAttack("color", preset="transfer").attack.config()["resolution"] == 25


def test_resuming_gives_the_same_bits(model, studio, other_dataset, tmp_path):
    class StopError(Exception):
        pass

    def stop(p):
        if p.phase == "learning" and p.done == 3:
            raise StopError

    def fit(**options):
        attack = MetaAttack(**PARTS, learner="hessian_free")
        return attack.fit(model, studio, other_dataset, steps=6, **SMALL, **options)

    options = {"checkpoint": tmp_path / "c", "checkpoint_every": 1}
    with pytest.raises(StopError):
        fit(progress=stop, **options)
    assert same(fit(**options), fit())


def test_the_learner_can_be_chosen():
    assert MetaAttack("color", learner="first_order").fit_defaults.learner == "first_order"
    assert MetaAttack(learner="first_order").fit_defaults.epochs == 10
    assert HessianFreeLearner().config()["inner_steps"] == 1


def test_mistakes_name_the_cure(model, studio):
    with pytest.raises(InputError, match="meta_test="):
        MetaAttack("delta", size=SIZE).fit(model, studio, steps=1, **SMALL)
    with pytest.raises(InputError, match="paper, released, transfer"):
        MetaAttack(preset="pape")
    with pytest.raises(InputError, match="it takes: budget, size"):
        MetaAttack("delta", resolution=3)
    with pytest.raises(RegistryError, match="did you mean 'maml'"):
        MetaAttack(learner="mamml")
    with pytest.raises(InputError, match="no perturbation"):
        MetaAttack("meta")
