"""What the attack of a defense gets: the model in its mode, guides and labels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers import TinyNet, random_batch
from reidguard.attacks import FNA, SMA, DeltaAttack, Guides, InstanceAttack
from reidguard.defenses import DEFENSES, AdversarialTraining, GuideSampling
from reidguard.defenses.crafting import Crafter, attack_provenance, is_bound, registered_name
from reidguard.errors import InputError
from reidguard.fingerprint import fingerprint, weights_fingerprint
from reidguard.models.fingerprint import model_key
from reidguard.types import Budget

SIZE = (32, 16)
CHOSEN = torch.tensor([0, 3, 4])


class Watch(InstanceAttack):
    """Keeps what it is called with."""

    def __init__(self, budget=None):
        super().__init__(budget)
        self.calls = []

    def search(self, x, clean, target):
        self.calls.append((x, clean, target, torch.rand(3)))
        return x + 0.01


class GuidedWatch(Watch):
    needs_guides = True


def normed_net():
    """Batch norm and dropout, so that modes and random draws show."""
    torch.manual_seed(0)
    model = TinyNet()
    model.body = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Tanh()
    )
    return model.train()


def drawn():
    return random_batch(3, 2, SIZE, low=0.2, high=0.8)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_guides_are_the_clean_images_of_the_batch_with_their_identities(mode):
    model, batch, attack = normed_net(), drawn(), GuidedWatch()
    before = copy.deepcopy(model.state_dict())
    result = Crafter(attack, model, mode)(batch, CHOSEN)
    torch.testing.assert_close(result, batch.images[CHOSEN] + 0.01)
    ((x, _, target, _),) = attack.calls
    assert torch.equal(x, batch.images[CHOSEN])
    # Numbered from 1, as identity 0 would mark distractors.
    assert target.prototypes.known.tolist() == [1, 2, 3]
    assert target.prototypes.index.tolist() == [0, 0, 1, 1, 2, 2]
    assert target.pids.tolist() == [1, 2, 3]
    if mode == "eval":
        expected = copy.deepcopy(model).eval().features(batch.images)
        assert torch.equal(target.prototypes.features, expected)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = copy.deepcopy(model).features(batch.images)
        assert torch.equal(target.prototypes.features, expected)
    assert not target.prototypes.features.requires_grad
    assert target.model.metric == "euclidean"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules())


def test_in_train_mode_draws_are_the_same_in_each_step_and_leave_no_trace():
    model, batch, attack = normed_net(), drawn(), Watch()
    crafter = Crafter(attack, model, "train")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    crafter(batch, CHOSEN)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    crafter(batch, CHOSEN)
    (_, clean, target, noise), (_, again, _, same_noise) = attack.calls
    assert target.prototypes is None
    assert target.pids is None
    assert torch.equal(clean, again)
    assert torch.equal(noise, same_noise)
    assert int(model.body[1].num_batches_tracked) == 0
    # The statistics of the attacked images, and dropout, not those of a test.
    assert not torch.allclose(clean, copy.deepcopy(model).eval().features(batch.images[CHOSEN]))


def test_in_eval_mode_the_attack_sees_the_model_as_it_would_be_tested():
    model, batch, attack = normed_net(), drawn(), Watch()
    Crafter(attack, model, "eval")(batch, CHOSEN)
    ((_, clean, target, _),) = attack.calls
    assert torch.equal(clean, copy.deepcopy(model).eval().features(batch.images[CHOSEN]))
    assert not any(module.training for module in target.model.modules())


def test_a_bound_attack_keeps_its_model():
    model, bound_model, batch, attack = normed_net(), TinyNet(), drawn(), GuidedWatch()
    guides = Guides(bound_model.features(batch.images), batch.pids + 5)
    Crafter(attack.bind(bound_model, guides), model, "eval")(batch, CHOSEN)
    ((_, clean, target, _),) = attack.calls
    assert target.prototypes.known.tolist() == [5, 6, 7]
    torch.testing.assert_close(clean, bound_model.features(batch.images[CHOSEN]).detach())


def learnt():
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    nn.init.constant_(attack.delta, 2 / 255)
    return attack.train()


def test_a_learned_attack_is_copied_frozen_and_in_eval_mode():
    attack, batch = learnt(), drawn()
    crafter = Crafter(attack, normed_net(), "eval")
    torch.testing.assert_close(crafter(batch, CHOSEN), batch.images[CHOSEN] + 2 / 255)
    assert crafter.attack is not attack
    assert not crafter.attack.training
    assert not crafter.attack.delta.requires_grad
    assert attack.training
    assert attack.delta.requires_grad


@pytest.mark.parametrize("fails", [False, True])
def test_after_relearning_the_attack_is_frozen_again(fails, monkeypatch):
    crafter = Crafter(learnt(), normed_net(), "eval")
    seen = []

    def fit(self, model, dataset, **options):
        seen.append((self.delta.requires_grad, model, dataset, options))
        self.delta.grad = torch.ones_like(self.delta)
        if fails:
            raise InputError("no")

    monkeypatch.setattr(DeltaAttack, "fit", fit)
    if fails:
        with pytest.raises(InputError):
            crafter.refresh("data", steps=3)
    else:
        crafter.refresh("data", steps=3)
    assert seen == [(True, crafter.model, "data", {"learner": "plain", "steps": 3})]
    assert not crafter.attack.delta.requires_grad
    assert crafter.attack.delta.grad is None


def test_an_attack_on_another_device_is_refused():
    with pytest.raises(InputError, match=r"attack is on cpu.*model on meta.*attack\.to\('meta'\)"):
        Crafter(learnt(), normed_net().to("meta"), "eval")


def test_one_learned_value_is_enough():
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    with pytest.raises(InputError, match="learnt nothing"):
        Crafter(attack, normed_net(), "eval")
    with torch.no_grad():
        attack.delta[0, 1, 2, 3] = -1e-6
    Crafter(attack, normed_net(), "eval")


def test_the_facts_of_an_attack_identify_it():
    attack = learnt()
    assert attack_provenance(attack) == {
        "class": "delta",
        "config": attack.config(),
        "weights": weights_fingerprint(attack),
    }
    assert attack_provenance(SMA(steps=3))["config"]["steps"] == 3
    assert attack_provenance(GuideSampling())["class"] == "GuideSampling"  # not registered


def test_the_facts_of_a_bound_attack_hold_its_target():
    class Function:
        metric = "cosine"

        def features(self, x):
            return x.flatten(1)

    model = TinyNet()
    assert attack_provenance(SMA().bind(model))["target"] == fingerprint(model_key(model))
    assert attack_provenance(SMA().bind(Function()))["target"] is None
    assert "target" not in attack_provenance(SMA())
    assert is_bound(SMA().bind(model))
    assert not is_bound(FNA())
    assert not is_bound(learnt())


def test_names_are_those_of_the_registry_where_there_is_one():
    class Mine(AdversarialTraining):
        pass

    assert registered_name(DEFENSES, AdversarialTraining) == "adversarial"
    assert registered_name(DEFENSES, Mine).endswith("Mine")
