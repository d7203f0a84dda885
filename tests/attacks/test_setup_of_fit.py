"""What learned attacks pass to the training loop, recorded in place of learning."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from helpers import TinyNet, noise_datasets, rng
from reidguard.attacks import (
    ColorAttack,
    CombinatorialAttack,
    DeltaAttack,
    MetaAttack,
    MisRank,
    UAPRetrieval,
)
from reidguard.attacks.misrank import attack as misrank_module
from reidguard.attacks.universal import base as universal_module
from reidguard.errors import InputError
from reidguard.fingerprint import fingerprint
from reidguard.learners import FirstOrderLearner, JointLearner, MAMLLearner, PlainLearner
from reidguard.models.fingerprint import model_key
from reidguard.objectives import MisrankingTriplet
from reidguard.training import MISGD
from reidguard.types import Budget

SIZE = (32, 16)
SMALL = {"image_size": SIZE, "identities": 2, "images_per_identity": 2}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Six identities and nine others, of twelve images each."""
    return noise_datasets(tmp_path_factory.mktemp("sets"), 12, SIZE)


@pytest.fixture
def learn(monkeypatch):
    """Keep the arguments of the loop and learn nothing."""
    calls = []

    def record(module, **arguments):
        calls.append(SimpleNamespace(module=module, **arguments))
        return 0.0  # no unusable gradients

    monkeypatch.setattr(universal_module, "learn", record)
    monkeypatch.setattr(misrank_module, "learn", record)
    return calls


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyNet()


def test_usual_values_of_a_universal_attack(sets, learn, model):
    attack = DeltaAttack(Budget(10 / 255), size=SIZE)
    assert attack.fit(model, sets[1], image_size=SIZE) is attack
    (call,) = learn
    assert call.module is attack
    assert isinstance(call.learner, PlainLearner)
    assert call.meta_test is None
    assert call.seed == 0
    assert call.steps == 10 * len(call.meta_train)
    assert isinstance(call.optimizer, MISGD)
    (group,) = call.optimizer.param_groups
    assert (group["lr"], group["momentum"]) == (1 / 255, 0.5)
    assert group["params"] == [attack.delta]
    assert len(next(call.meta_train.epoch(0))) == 64
    assert isinstance(call.objective.loss, MisrankingTriplet)
    assert call.objective.inputs.diversity == 0
    assert attack.provenance is not None
    assert call.settings == {**attack.provenance, "attack": attack.config()}
    facts = attack.provenance
    assert (facts["learner"], facts["objective"], facts["clip"]) == ("plain", "misranking", True)
    assert (facts["lr"], facts["momentum"], facts["seed"]) == (1 / 255, 0.5, 0)
    assert (facts["identities"], facts["images_per_identity"]) == (8, 8)
    assert facts["model"] == fingerprint(model_key(model))
    assert facts["meta_train"] == {"name": "nine", "train": sets[1].fingerprint("train")}
    assert "meta_test" not in facts
    assert "learner_options" not in facts


def test_the_rate_falls_by_a_hundredth_of_e_and_parameters_are_clipped(sets, learn, model):
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    attack.fit(model, sets[0], steps=1, **SMALL)
    hooks = learn[0].hooks
    assert [hooks.schedule(epoch) for epoch in (0, 1, 7)] == pytest.approx(
        [1, math.exp(-0.01), math.exp(-0.07)]
    )
    attack.delta.data.fill_(1.0)
    hooks.before_epoch()
    assert attack.delta.min() == 1
    hooks.after_step()
    assert attack.delta.max() == 8 / 255
    attack.fit(model, sets[0], steps=1, clip=False, **SMALL)
    attack.delta.data.fill_(1.0)
    learn[1].hooks.after_step()
    assert attack.delta.min() == 1


def test_an_epoch_of_uap_begins_with_its_check_of_saturation(sets, learn, model):
    attack = UAPRetrieval(Budget(8 / 255), size=SIZE)
    attack.fit(model, sets[0], steps=1, **SMALL)
    (call,) = learn
    assert call.optimizer.param_groups[0]["momentum"] == 1
    attack.delta.data.fill_(8 / 255)
    call.hooks.before_epoch()
    assert attack.saturation == 1


def test_a_second_domain_reaches_learners_that_use_one_and_no_others(sets, learn, model):
    attack = MetaAttack("delta", size=SIZE)
    attack.fit(model, *sets, seed=3, steps=60, diversity=0.3, lr=0.01, momentum=0.25, **SMALL)
    (call,) = learn
    assert call.module is attack.attack
    assert isinstance(call.learner, MAMLLearner)
    assert (call.seed, call.steps, call.objective.inputs.diversity) == (3, 60, 0.3)
    assert call.optimizer.param_groups[0]["lr"] == 0.01
    assert call.optimizer.param_groups[0]["momentum"] == 0.25
    assert (len(call.meta_train.loader.samples), len(call.meta_test.loader.samples)) == (72, 108)
    facts = attack.provenance
    assert facts["meta_test"] == {"name": "nine", "train": sets[1].fingerprint("train")}
    assert facts["learner_options"] == call.learner.config()
    DeltaAttack(size=SIZE).fit(model, *sets, steps=60, **SMALL)
    assert learn[1].meta_test is None
    DeltaAttack(size=SIZE).fit(model, *sets, steps=60, learner=JointLearner(), **SMALL)
    assert len(learn[2].meta_test.loader.samples) == 108


def test_clean_features_are_computed_once_in_parts_of_64_images(sets, learn, model):
    seen = []
    attack = DeltaAttack(size=SIZE)
    attack.fit(model, sets[1], epochs=1, progress=seen.append, **SMALL)
    assert [(p.phase, p.done, p.total) for p in seen] == [
        ("clean features", 64, 108),
        ("clean features", 108, 108),
    ]
    stream = learn[0].meta_train
    batches = [*stream.epoch(1)]
    assert len(batches) == len(stream)
    assert len([*stream.epoch(1, 2)]) == len(stream) - 2
    for batch in batches:
        expected = model.eval().features(batch.images).detach()
        torch.testing.assert_close(batch.features, expected, rtol=1e-4, atol=1e-5)
    assert learn[0].progress is not None


def test_less_than_an_epoch_needs_no_features_of_all_images(sets, learn, model):
    seen = []
    attack = DeltaAttack(size=SIZE)
    attack.fit(model, sets[1], epochs=1, **SMALL)
    length = len(learn[0].meta_train)
    for steps in (length - 1, length):
        attack.fit(model, sets[1], steps=steps, progress=seen.append, **SMALL)
        assert bool(seen) == (steps == length)
        features = next(learn[-1].meta_train.epoch(0)).features
        assert (features is not None) == (steps == length)
    seen.clear()
    attack.fit(model, sets[1], steps=1, objective="pairwise", progress=seen.append, **SMALL)
    assert seen  # its centroids are those of all images


def test_a_flat_loss_starts_a_step_away(sets, learn, model):
    def start(seed, **options):
        attack = DeltaAttack(Budget(8 / 255), size=SIZE)
        options = {"objective": "self_metric", "steps": 1, "lr": 2 / 255, **options}
        attack.fit(model, sets[0], seed=seed, **options, **SMALL)
        return attack.delta.detach()

    first = start(1)
    assert torch.equal(first.abs(), torch.full_like(first, 2 / 255))
    assert 0.4 < float((first > 0).float().mean()) < 0.6
    assert torch.equal(start(1), first)
    assert not torch.equal(start(2), first)
    assert start(1, lr=1.0).abs().max() == 8 / 255
    assert not start(1, objective="misranking").any()
    signs = torch.randint(0, 2, first.shape, generator=rng(1)) * 2 - 1
    assert torch.equal(first.sign(), signs.float())


def test_the_released_preset(sets, learn, model):
    attack = MetaAttack(preset="released", size=SIZE, resolution=3)
    attack.fit(model, *sets, steps=1, **SMALL)
    (call,) = learn
    assert isinstance(call.learner, FirstOrderLearner)
    options = call.learner.config()
    assert (options["inner"], options["inner_momentum"]) == ("sign", 0.0)
    assert (options["from_buffer"], options["keep_temporary"]) == (False, True)
    assert call.optimizer.param_groups[0]["momentum"] == 1
    call.hooks.after_step()
    assert attack.fit_defaults.epochs == 5
    assert attack.attack.stacked
    assert attack.config()["stacked"]
    other = MetaAttack(preset="released", learner="maml", size=SIZE).fit_defaults
    assert (other.learner, other.learner_options, other.momentum) == ("maml", {}, 1.0)
    same = MetaAttack(preset="released", learner="first_order", size=SIZE).fit_defaults
    assert same.learner_options["inner"] == "sign"
    assert not MetaAttack(
        "combinatorial", preset="released", stacked=False, size=SIZE
    ).attack.stacked


def test_the_settings_of_a_meta_attack_build_it_again():
    attack = MetaAttack("delta", Budget(4 / 255), learner="hessian_free", size=(8, 4))
    config = attack.config()
    assert config == {
        "eps": 4 / 255,
        "size": (8, 4),
        "basis": "pixels",
        "grid": (16, 8),
        "perturbation": "delta",
        "learner": "hessian_free",
        "preset": "paper",
    }
    again = MetaAttack.from_config(config)
    assert again.config() == config
    assert again.attack.fit_defaults == again.fit_defaults == attack.fit_defaults
    x = torch.rand(1, 3, 8, 4)
    attack.attack.delta.data.fill_(1 / 255)
    assert torch.equal(attack(x), attack.attack(x))
    assert MetaAttack().perturbation == "combinatorial"
    assert MetaAttack().learner is None
    assert not MetaAttack().attack.stacked


@pytest.mark.parametrize("pixels", [-1, 30])
def test_usual_values_of_misrank(sets, learn, model, pixels):
    attack = MisRank(Budget(8 / 255), size=SIZE, width=2, pixels=pixels)
    assert attack.fit(model, sets[1], image_size=SIZE) is attack
    (call,) = learn
    assert call.module is attack
    assert isinstance(call.learner, PlainLearner)
    assert call.meta_test is None
    assert (call.seed, call.steps) == (0, 40 * len(call.meta_train))
    assert type(call.optimizer) is torch.optim.Adam
    (group,) = call.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (2e-4, (0.5, 0.999))
    assert {id(p) for p in group["params"]} == {id(p) for p in attack.parameters()}
    facts = attack.provenance
    assert facts is not None
    assert call.settings == {**facts, "attack": attack.config()}
    assert (facts["learner"], facts["objective"]) == ("plain", "misrank")
    assert (facts["identities"], facts["images_per_identity"]) == (8, 4)
    assert (facts["lr"], facts["momentum"]) == (2e-4, 0.5)
    assert facts["model"] == fingerprint(model_key(model))
    assert facts["meta_train"] == {"name": "nine", "train": sets[1].fingerprint("train")}
    view = call.objective.model
    assert view is not model
    assert not view.training
    assert len(next(call.meta_train.epoch(0))) == 32


def test_the_options_of_misrank(sets, learn, model):
    attack = MisRank(size=SIZE, width=2)
    options = {"seed": 5, "steps": 3, "lr": 0.1, "momentum": 0.8, "learner": "joint"}
    attack.fit(model, *sets, **options, **SMALL)
    (call,) = learn
    assert isinstance(call.learner, JointLearner)
    assert (call.seed, call.steps) == (5, 3)
    assert call.optimizer.param_groups[0]["lr"] == 0.1
    assert call.optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    assert (len(call.meta_train.samples), len(call.meta_test.samples)) == (72, 108)
    assert attack.provenance["meta_test"]["name"] == "nine"
    attack.fit(model, *sets, steps=1, **SMALL)
    assert learn[1].meta_test is None
    assert "meta_test" not in attack.provenance


@pytest.mark.parametrize(
    "attack", [DeltaAttack(size=SIZE), ColorAttack(resolution=3), MisRank(size=SIZE, width=2)]
)
def test_a_model_on_another_device_is_refused(sets, learn, attack):
    with pytest.raises(InputError, match=r"on cpu and the model on meta.*attack\.to\('meta'\)"):
        attack.fit(TinyNet().to("meta"), sets[0], steps=1, **SMALL)
    assert not learn


def test_a_stacked_budget_ends_at_the_whole_range():
    assert CombinatorialAttack(Budget(0.3), 3, SIZE, stacked=True).budget.eps == 0.6
    assert CombinatorialAttack(Budget(0.7), 3, SIZE, stacked=True).budget.eps == 1.0
    assert CombinatorialAttack(Budget(0.7), 3, SIZE, stacked=True).config()["eps"] == 0.7
    assert CombinatorialAttack(Budget(0.3), 3, SIZE).budget.eps == 0.3
    usual = CombinatorialAttack()
    assert (usual.budget, usual.resolution, usual.size) == (Budget(8 / 255), 25, (256, 128))
    assert (usual.color.resolution, usual.delta.size) == (25, (256, 128))
    assert (usual.color.budget, usual.delta.budget) == (usual.budget, usual.budget)


def test_stages_are_clipped_each_in_its_own_ball():
    attack = CombinatorialAttack(Budget(8 / 255), 3, (8, 4))
    attack.color.offset.data.fill_(1.0)
    attack.delta.delta.data.fill_(-1.0)
    attack.clip_parameters()
    assert attack.color.offset.max() == 8 / 255
    assert attack.delta.delta.max() == -8 / 255
    with pytest.raises(InputError):
        attack.stage_sizes(torch.zeros(3, 8, 4))


@pytest.mark.parametrize("size", [(4,), (4, 2, 1), (0, 3), (3, 0)])
def test_a_delta_needs_a_height_and_a_width(size):
    with pytest.raises(InputError, match="height, width"):
        DeltaAttack(size=size)
    assert DeltaAttack(size=(1, 1)).size == (1, 1)
    assert DeltaAttack().size == UAPRetrieval().size == (256, 128)


def test_a_colour_grid_has_at_least_one_node():
    assert ColorAttack(resolution=1).offset.shape == (3, 1, 1, 1)
    assert ColorAttack().resolution == 25
    with pytest.raises(InputError, match=r"at least 1 .*, not 0"):
        ColorAttack(resolution=0)


def test_colours_end_in_their_balls_and_in_the_cube():
    attack = ColorAttack(Budget(0.1), resolution=3)
    axis = torch.tensor([0.0, 0.5, 1.0])
    own = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    attack.offset.data.normal_(generator=rng(0))
    before = attack.offset.detach().clone()
    expected = (own + before.clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(attack.lut.detach(), expected)
    attack.clip_parameters()
    torch.testing.assert_close(own + attack.offset.detach(), expected)


def test_the_cube_file_names_the_attack_and_its_budget(tmp_path):
    attack = ColorAttack(Budget(8 / 255), resolution=2)
    attack.offset.data[0] = 0.01
    attack.save_cube(tmp_path / "a.cube")
    title, size, *rows = (tmp_path / "a.cube").read_text("utf-8").splitlines()
    assert title.startswith('TITLE "reidguard colour attack, eps ')
    assert str(attack.budget) in title
    assert size == "LUT_3D_SIZE 2"
    assert rows[:3] == [
        "0.010000 0.000000 0.000000",
        "1.000000 0.000000 0.000000",
        "0.010000 1.000000 0.000000",
    ]
    assert len(rows) == 8
