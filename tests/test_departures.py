"""Where paper, released code and library part: the page's claims have tests, some of them here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import tiny_model
from reidguard.attacks import ColorAttack, DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.defenses import MetaDefense
from reidguard.learners import FirstOrderLearner, MAMLLearner
from reidguard.models import ReIDModel
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.training import MISGD
from reidguard.types import Budget, ReIDBatch, ReIDSample
from reidguard.virtual import render_person

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "departures.rst").read_text("utf-8")
SIZE = (64, 32)
EPS = 8 / 255
SHORT: dict[str, Any] = {"image_size": SIZE, "identities": 2, "images_per_identity": 2}


def sections() -> dict[str, str]:
    parts = re.split(r"^(.+)\n-{4,}\n", PAGE, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("title", [t for t in sections() if t != "Not done yet"])
def test_each_claim_names_its_tests(title: str) -> None:
    named = re.findall(r"``(tests/[\w/]+\.py)::(\w+)``", sections()[title])
    assert named, "no test is named"
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name} is not there"


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> ReIDDataset:
    """Three people before two cameras, two images each, drawn as noise around a colour."""
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    samples: dict[str, list[ReIDSample]] = {"train": [], "query": [], "gallery": []}
    for pid in (1, 2, 3):
        colour = rng.uniform(60, 200, 3)
        for split, camid in (("train", 1), ("train", 2), ("query", 1), ("gallery", 2)):
            for shot in (0, 1):
                pixels = (colour + rng.normal(0, 30, (64, 32, 3))).clip(0, 255).astype(np.uint8)
                path = folder / f"{split}-{pid}-{camid}-{shot}.png"
                Image.fromarray(pixels).save(path)
                samples[split].append(ReIDSample(path, pid, camid))
    return ReIDDataset("noise", **samples, root=folder)


@pytest.fixture(scope="module")
def model() -> ReIDModel:
    return tiny_model(num_classes=3).eval()


@pytest.mark.parametrize("clip", [True, False])
def test_unclipped_parameters_run_away_but_images_do_not(clip, model, people):
    attack = DeltaAttack(Budget(EPS), size=SIZE)
    attack.fit(model, people, steps=25, clip=clip, **SHORT)
    furthest = float(attack.delta.detach().abs().max())
    assert (furthest <= EPS + 1e-7) is clip
    x = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    assert float((attack(x) - x).detach().abs().max()) <= EPS + 1e-6


def test_a_table_of_zeros_would_be_black():
    """Algorithm 1's Θ = 0, taken as target colours: the offset to there is minus the identity."""
    attack = ColorAttack(Budget(1.0), resolution=5)
    grid = torch.linspace(0, 1, 5)
    identity = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij"))
    torch.testing.assert_close(attack.lut.detach().reshape(identity.shape), identity)
    x = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attack(x), x)
    with torch.no_grad():
        (offset,) = attack.parameters()
        offset -= identity.reshape(offset.shape)
    assert float(attack(x).detach().abs().max()) < 1e-6


def test_clamping_normalised_pixels_leaves_the_ball():
    """What the released defense does to the image of an attack that changes nothing."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    moved = []
    for identity in range(1, 9):
        pixels = torch.from_numpy(render_person("plaza", identity, 1, height=64))
        x = pixels.permute(2, 0, 1).float() / 255
        kept = ((x - mean) / deviation).clamp(0, 1) * deviation + mean
        moved.append(((kept - x).abs() > EPS).float().mean())
    assert float(torch.stack(moved).mean()) > 0.4


def on_delta(model: ReIDModel) -> tuple[DeltaAttack, FeatureObjective, list[ReIDBatch]]:
    generator = torch.Generator().manual_seed(0)
    attack = DeltaAttack(Budget(EPS), size=SIZE)
    pids, cameras, places = torch.tensor([1, 1, 2, 2]), torch.ones(4).long(), torch.arange(4)
    batches = [
        ReIDBatch(torch.rand(4, 3, *SIZE, generator=generator), pids, cameras, places)
        for _ in range(2)
    ]
    return attack, FeatureObjective(model, MisrankingTriplet()), batches


def test_the_literal_inner_step_moves_nothing(model):
    """SGD of size ε/10 on a gradient per pixel, against the step that is taken here."""
    shares = {}
    for inner in ("sgd", "scaled"):
        attack, objective, batches = on_delta(model)
        optimizer = MISGD(attack.parameters(), lr=EPS / 10)
        learner = MAMLLearner(inner=inner, keep_temporary=True)
        learner.step(attack, objective, *batches, optimizer=optimizer)
        shares[inner] = float(attack.delta.detach().abs().mean()) / (EPS / 10)
    assert shares["sgd"] < 0.01
    assert shares["scaled"] == pytest.approx(1, abs=1e-4)


def test_the_outer_step_starts_from_the_original(model):
    """The released way goes up to twice as far in one iteration."""
    rate = EPS / 10
    reached = {}
    for kept in (False, True):
        attack, objective, batches = on_delta(model)
        optimizer = MISGD(attack.parameters(), lr=rate)
        learner = FirstOrderLearner(inner="sign", keep_temporary=kept)
        learner.step(attack, objective, *batches, optimizer=optimizer)
        optimizer.step()
        reached[kept] = float(attack.delta.detach().abs().max())
    assert reached[False] == pytest.approx(rate, rel=1e-4)
    assert reached[True] == pytest.approx(2 * rate, rel=1e-4)


def test_the_robust_network_is_built_like_the_normal_one(model, people):
    attack = DeltaAttack(Budget(EPS), size=SIZE).fit(model, people, steps=1, **SHORT)
    robust = MetaDefense(attack).fit(model, people, people, steps=1, **SHORT)

    def built(network: nn.Module) -> list[tuple[str, type]]:
        parts = network.named_modules()
        return [(n, type(m)) for n, m in parts if not n.startswith("classifier")]

    assert built(robust) == built(model)


def test_learning_reads_training_images_only(model, people):
    """The same bits without any query or gallery image: nothing is chosen by the test set."""
    blind = ReIDDataset(people.name, people.train, [], [], root=people.root)
    attacks = [DeltaAttack(Budget(EPS), size=SIZE).fit(model, s, steps=3, **SHORT)
               for s in (people, blind)]  # fmt: skip
    assert torch.equal(attacks[0].delta, attacks[1].delta)
    robust = [MetaDefense(attacks[0]).fit(model, s, s, steps=2, **SHORT) for s in (people, blind)]
    for (name, one), other in zip(
        robust[0].state_dict().items(), robust[1].state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
