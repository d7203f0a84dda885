from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import Killed, kill_at, tiny_model
from reidguard.data import Augment, NoisyAugment, ReIDDataset, iterate_images
from reidguard.errors import CheckpointError, InputError
from reidguard.metrics import RankingResult, rank
from reidguard.models import ReIDModel, ReIDOutput, create_model, load_model
from reidguard.nn import inference_view
from reidguard.objectives.reid import CentreLoss
from reidguard.training import Progress, train_model
from reidguard.types import InputSpec

SIZE = (64, 32)
SHORT = {"image_size": SIZE, "identities": 8, "images_per_identity": 4, "lr": 1e-3}


def small_model(seed: int = 0, num_classes: object = 16) -> ReIDModel:
    return tiny_model(seed=seed, num_classes=num_classes)


def figures(model: ReIDModel, dataset: ReIDDataset) -> RankingResult:
    features = {}
    model = inference_view(model)
    with torch.no_grad():
        for split in ("query", "gallery"):
            batches = iterate_images(dataset.split(split), SIZE)
            features[split] = torch.cat([model.features(x.float() / 255) for _, x in batches])
    labels = {
        f"{split}_{field}s": [getattr(s, field) for s in dataset.split(split)]
        for split in features
        for field in ("pid", "camid")
    }
    return rank(features["query"], features["gallery"], metric=model.metric, **labels)


def assert_same_weights(one: nn.Module, two: nn.Module) -> None:
    assert_same_tensors(one.state_dict(), two.state_dict())


def assert_same_tensors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_small_model_learns_people_it_has_not_seen(studio):
    """The test identities are other people than the training ones."""
    model = small_model()
    before = figures(model, studio)
    losses = []
    result = train_model(
        model,
        studio,
        steps=24,
        **SHORT,
        progress=lambda p: losses.append(p.metrics["loss"]) if p.metrics else None,
    )
    after = figures(model, studio)
    assert result is model
    assert len(losses) == 24
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert after.mAP > before.mAP + 0.25
    assert after.rank_k(1) > before.rank_k(1) + 0.25


@pytest.mark.parametrize(("step", "resumed_from"), [(1, 0), (5, 3), (6, 3)])
def test_killed_and_resumed_equals_never_killed(studio, tmp_path, step, resumed_from):
    """Killed before any checkpoint, between two, and just before one; all random parts on."""
    whole = train_model(small_model(), studio, steps=8, **SHORT)
    run = {**SHORT, "steps": 8, "checkpoint": tmp_path / "c.safetensors", "checkpoint_every": 3}
    with pytest.raises(Killed):
        train_model(small_model(), studio, **run, progress=kill_at(step))
    reports: list[Progress] = []
    # A checkpoint brings its own weights, so those given do not matter - if there is one.
    other = small_model(seed=7 if resumed_from else 0)
    resumed = train_model(other, studio, **run, progress=reports.append)
    assert reports[0].done == resumed_from
    assert_same_weights(resumed, whole)


def test_same_seed_same_bytes_and_another_seed_others(studio, tmp_path):
    files = []
    for run, seed in enumerate((3, 3, 4)):
        model = small_model()
        torch.manual_seed(run)  # the caller's generator plays no part
        train_model(model, studio, steps=2, **SHORT, seed=seed)
        model.save(tmp_path / f"{run}.safetensors")
        files.append((tmp_path / f"{run}.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_epochs_follow_the_stretched_schedule(studio, tmp_path):
    """Two batches an epoch. With 85 epochs the schedule would be the paper's own."""
    model, rates = small_model(), []
    original = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        train_model(model, studio, epochs=4, image_size=SIZE, images_per_identity=8, lr=1e-3)
    flat = 40 / 85 * 4
    expected = [1e-3 * min(1.0, 0.1 ** ((epoch - flat) / flat)) for epoch in range(4)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(2)])
    assert rates[2] == 1e-3 > rates[4]
    assert model.provenance["steps"] == 8


def small_agw(seed: int = 0) -> ReIDModel:
    return tiny_model("agw", seed=seed, non_local=(0, 0, 0, 1), num_classes=16)


def test_agw_learns_by_its_own_recipe(studio):
    model = small_agw()
    before = figures(model, studio)
    losses = []
    train_model(
        model,
        studio,
        recipe="agw",
        steps=36,
        **{**SHORT, "lr": 5e-3},
        progress=lambda p: losses.append(p.metrics["loss"]) if p.metrics else None,
    )
    after = figures(model, studio)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert after.mAP > before.mAP + 0.15
    assert model.provenance["smoothing"] == 0.1
    assert model.provenance["augment"]["crop"] == "pad"
    assert "margin" not in model.provenance


def test_agw_killed_and_resumed_with_its_centres(studio, tmp_path):
    short = {**SHORT, "recipe": "agw"}
    whole = tmp_path / "whole.safetensors"
    train_model(small_agw(), studio, steps=6, **short, checkpoint=whole)
    broken = tmp_path / "broken.safetensors"
    run = {**short, "steps": 6, "checkpoint": broken, "checkpoint_every": 2}
    with pytest.raises(Killed):
        train_model(small_agw(), studio, **run, progress=kill_at(5))
    train_model(small_agw(seed=7), studio, **run)
    one, two = load_file(whole), load_file(broken)
    assert_same_tensors(one, two)
    centres = one["objective.centres.centres"]
    assert not torch.equal(centres, CentreLoss(*centres.shape, seed=0).centres)


def test_agw_defaults_are_the_published_ones(studio):
    given = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reidguard.training.recipe.learn", lambda model, **rest: given.update(rest))
        train_model(small_agw(), studio, recipe="agw", image_size=SIZE)
    batches = given["meta_train"]
    assert given["steps"] == 120 * len(batches)
    pids = next(iter(batches.epoch(0))).pids
    assert torch.unique(pids, return_counts=True)[1].tolist() == [4] * 16
    assert given["optimizer"].defaults["lr"] == 3.5e-4
    assert given["optimizer"].defaults["weight_decay"] == 5e-4
    factors = [given["hooks"].schedule(epoch) for epoch in range(120)]
    assert factors[:10] == pytest.approx([0.01 + 0.099 * n for n in range(1, 11)])
    assert factors[9:] == pytest.approx([1.0] * 30 + [0.1] * 30 + [0.01] * 51)


def test_mistakes_with_recipes(studio):
    with pytest.raises(InputError, match=r"recipe must be .*'agv': did you mean 'agw'\?"):
        train_model(small_agw(), studio, recipe="agv")
    with pytest.raises(InputError, match="no margin"):
        train_model(small_agw(), studio, recipe="agw", margin=0.3)
    parts = create_model(
        "pcb", backbone="test_resnet", parts=2, size=SIZE, last_stride=2, num_classes=16
    )
    with pytest.raises(InputError, match="PCB gives 2 parts: take the recipe 'paper'"):
        train_model(parts, studio, recipe="agw", **SHORT)


class _Alike(ReIDModel):
    """Gives all people the same embedding and the same logits, whatever it learns."""

    def __init__(self, num_classes: int) -> None:
        spec = InputSpec(size=SIZE)
        super().__init__(input_spec=spec, metric="euclidean", num_classes=num_classes)
        self.scale = nn.Parameter(torch.ones(1))
        self.build_classifiers(4)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def embed(self, inputs: Tensor) -> Tensor:
        return self.scale * torch.zeros(len(inputs), 4)


@pytest.mark.parametrize(("recipe", "alike"), [("paper", "0.50"), ("agw", "0.69")])
def test_a_collapsed_network_is_told(studio, recipe, alike):
    """The network's loss is known: it cannot tell anyone from anyone."""
    with pytest.warns(UserWarning, match=rf"all images one embedding \(ln 16 \+ {alike}\)"):
        train_model(_Alike(16), studio, recipe=recipe, steps=3, **{**SHORT, "lr": 1e-9})


class _AlikeInParts(_Alike):
    """Three parts, whose losses are added."""

    def forward(self, x: Tensor, domain: str | None = None) -> ReIDOutput:
        one = super().forward(x, domain)
        return ReIDOutput(one.features, 3 * [one.embeddings], 3 * [one.logits])


def test_a_collapsed_network_of_parts_is_told(studio):
    with pytest.warns(UserWarning, match="all images one embedding"):
        train_model(_AlikeInParts(16), studio, steps=3, **{**SHORT, "lr": 1e-9})


def test_one_that_learns_is_told_nothing(studio, recwarn):
    train_model(small_model(), studio, steps=30, **SHORT)
    assert not [w for w in recwarn if "alike" in str(w.message)]


def test_modes_flags_and_facts(studio, tmp_path):
    model = small_model(num_classes={"other": 3, "virtual:studio": 16})
    model.eval()
    model.classifier.train()
    model.backbone.conv1.requires_grad_(False)
    stem = [p.clone() for p in model.backbone.conv1.parameters()]
    other = model.classifier["other"].weight.clone()
    modes = [module.training for module in model.modules()]
    train_model(model, studio, steps=1, **SHORT, augment=None)
    assert [module.training for module in model.modules()] == modes
    for now, before in zip(model.backbone.conv1.parameters(), stem, strict=True):
        assert torch.equal(now, before)
        assert not now.requires_grad
    assert torch.equal(model.classifier["other"].weight, other)  # another domain's

    facts = model.provenance
    assert facts["domain"] == "virtual:studio"
    assert facts["augment"] is None
    assert facts["train"]["fingerprint"] == studio.fingerprint("train")
    model.save(tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").provenance == facts


def test_noise_is_part_of_the_augmentation_and_of_the_provenance(studio):
    """The option does what an augmentation that ends with noise does."""
    options = {"steps": 1, **SHORT}
    noisy = train_model(small_model(), studio, noise=0.1, **options)
    same = train_model(small_model(), studio, augment=NoisyAugment(noise=0.1), **options)
    assert_same_weights(noisy, same)
    plain = train_model(small_model(), studio, **options)
    assert any(
        not torch.equal(a, b) for a, b in zip(noisy.parameters(), plain.parameters(), strict=True)
    )
    assert noisy.provenance["noise"] == noisy.provenance["augment"]["noise"] == 0.1
    assert "noise" not in plain.provenance


def test_modes_come_back_after_a_failure(studio):
    model = small_model().eval()
    with pytest.raises(Killed):
        train_model(model, studio, steps=2, **SHORT, progress=kill_at(1))
    assert not any(module.training for module in model.modules())


def test_mistakes_name_the_cure(studio, tmp_path):
    cure = r"num_classes=\{'virtual:studio': 16\}"
    with pytest.raises(InputError, match=f"no classifier for virtual:studio.*{cure}"):
        train_model(small_model(num_classes=None), studio)
    with pytest.raises(InputError, match=f"has: a, b.*{cure}"):
        train_model(small_model(num_classes={"a": 16, "b": 16}), studio)
    with pytest.raises(InputError, match=f"'default' knows 4 identities.*show 16; .*{cure}"):
        train_model(small_model(num_classes=4), studio)
    with pytest.raises(InputError, match=r"epochs must be .* at least 1 .*, not 0"):
        train_model(small_model(), studio, epochs=0)
    with pytest.raises(InputError, match=r"lr must be .* above 0 .*, not 0"):
        train_model(small_model(), studio, lr=0)

    run = {**SHORT, "steps": 1, "checkpoint": tmp_path / "c.safetensors"}
    train_model(small_model(), studio, **run)
    with pytest.raises(CheckpointError, match=r"augment.*another folder"):
        train_model(small_model(), studio, **run, augment=Augment(erase=0))
    stranger = create_model("osnet_x0_25", num_classes=16)
    with pytest.raises(CheckpointError, match="network"):
        train_model(stranger, studio, **run)
