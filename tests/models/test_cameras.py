"""Models whose features depend on the camera get the cameras of the samples, everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import reidguard as rg
from helpers.models import CameraNet
from reidguard.attacks import FNA, SMA, DeltaAttack, Guides
from reidguard.attacks.fingerprint import attack_fingerprint
from reidguard.data import BatchLoader, decode_image
from reidguard.defenses import AdversarialTraining
from reidguard.errors import InputError
from reidguard.evaluation import (
    FeatureStore,
    Protocol,
    audit,
    evaluate,
    evaluate_grid,
    save_adversarial,
    verify,
)
from reidguard.metrics import rank
from reidguard.models import EnsembleModel, create_model, register_model
from reidguard.models.fingerprint import model_key
from reidguard.objectives import MisrankingTriplet, PairWiseLoss
from reidguard.report.rank_lists import Retrieval
from reidguard.testing import MODEL_CHECKS, small_dataset
from reidguard.training import train_model
from reidguard.types import Budget

SIZE = (32, 16)
PROTOCOL = Protocol(image_size=SIZE)
register_model("test_camera_net")(CameraNet)


@pytest.fixture(scope="module")
def people():
    with small_dataset() as dataset:  # cameras 1 to 4
        yield dataset


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CameraNet(num_classes=4).eval()


def image(sample) -> Tensor:
    return decode_image(sample.path, SIZE)[None].float() / 255


def own_feature(model, x: Tensor, camera: int) -> Tensor:
    """The feature of one image by the parameters alone."""
    return model.body(model.prepare(x)).mean((2, 3)) * model.table[camera - 1]


def own_features(model, samples) -> Tensor:
    return torch.cat([own_feature(model, image(s), s.camid) for s in samples]).detach()


def ranking(model, people, query: Tensor, gallery: Tensor | None = None):
    return rank(
        query,
        own_features(model, people.gallery) if gallery is None else gallery,
        query_pids=[s.pid for s in people.query],
        query_camids=[s.camid for s in people.query],
        gallery_pids=[s.pid for s in people.gallery],
        gallery_camids=[s.camid for s in people.gallery],
        metric="euclidean",
    )


@pytest.mark.parametrize("check", MODEL_CHECKS)
def test_contract(check):
    check(lambda num_classes: create_model("test_camera_net", num_classes=num_classes))


def test_evaluate_equals_a_loop_over_samples(model, people):
    expected = ranking(model, people, own_features(model, people.query))
    result = evaluate(model, people, protocol=PROTOCOL, batch_size=3)
    assert torch.equal(result.clean.ap, expected.ap)
    swapped = [replace(s, camid=5 - s.camid) for s in people.query]
    wrong = ranking(model, people, own_features(model, swapped))
    assert not torch.equal(wrong.ap, expected.ap)  # so the cameras matter here


def sma_by_hand(attack: SMA, model, sample) -> Tensor:
    x, eps = image(sample), attack.budget.eps
    clean = own_feature(model, x, sample.camid).detach()
    low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
    start = 2 * attack.uniform(x, "start 0", tuple(x.shape[1:])) - 1
    result = (x + eps * start).clamp(low, high)
    for _ in range(attack.steps):
        result = result.detach().requires_grad_()
        loss = (own_feature(model, result, sample.camid) - clean).square().sum()
        (gradient,) = torch.autograd.grad(loss, result)
        result = (result + attack.step_size * gradient.sign()).clamp(low, high)
    return result.detach()


def test_sma_equals_a_loop_over_samples(model, people, tmp_path):
    attack = SMA(steps=3).bind(model)
    images = torch.cat([sma_by_hand(attack, model, s) for s in people.query])
    x = torch.cat([image(s) for s in people.query])
    cameras = [s.camid for s in people.query]
    # a sign may turn where a gradient is nearly zero
    same = (attack.with_cameras(cameras)(x) - images).abs() < 1e-6
    assert same.float().mean() > 0.999
    result = evaluate(model, people, attack, PROTOCOL)
    features = [
        own_feature(model, adversarial[None], s.camid).detach()
        for adversarial, s in zip(images, people.query, strict=True)
    ]
    assert torch.equal(result.attacked.ranking.ap, ranking(model, people, torch.cat(features)).ap)
    assert verify(attack, people, image_size=SIZE, split="query").passed
    shown = Retrieval(model, people, FeatureStore(), SIZE)
    queries = range(len(people.query))
    pictures = shown.attacked(attack, queries).float() / 255
    assert ((pictures - images).abs() < 1.01 / 255).float().mean() > 0.999
    matched = {q for q in queries if result.attacked_8bit.ranking.first_match[q] == 1}
    assert set(shown.rank1_correct(images=(255 * pictures).byte())) == matched
    folder = save_adversarial(attack, people, tmp_path / "sma", image_size=SIZE)
    for sample, adversarial in zip(people.query, images, strict=True):
        saved = decode_image(folder / f"{sample.path.stem}.png", SIZE).float() / 255
        assert ((saved - adversarial).abs() < 1.01 / 255).float().mean() > 0.999


def test_fit_equals_a_step_by_hand(model, people):
    """The first step of MI-SGD is the sign of the gradient of Eq. 5, here from single images."""
    attack = DeltaAttack(Budget(8 / 255), size=SIZE)
    attack.fit(model, people, steps=1, identities=4, images_per_identity=4, image_size=SIZE)
    loader = BatchLoader(people, image_size=SIZE, identities=4, images_per_identity=4)
    batch = next(iter(loader.epoch(0)))
    delta = torch.zeros(1, 3, *SIZE, requires_grad=True)
    pairs = list(zip(batch.images, batch.camids.tolist(), strict=True))
    clean = torch.cat([own_feature(model, x[None], c) for x, c in pairs])
    moved = torch.cat([own_feature(model, x[None] + delta, c) for x, c in pairs])
    (gradient,) = torch.autograd.grad(MisrankingTriplet()(moved, clean, batch.pids), delta)
    expected = -attack.budget.eps / 10 * gradient.sign()
    assert (attack.delta.detach() - expected).abs().lt(1e-7).float().mean() > 0.99
    twisted = torch.cat([own_feature(model, x[None] + delta, 5 - c) for x, c in pairs])
    (other,) = torch.autograd.grad(MisrankingTriplet()(twisted, clean, batch.pids), delta)
    assert (other.sign() == gradient.sign()).float().mean() < 0.95


def test_fit_on_clean_representations_and_by_maml(model, people):
    options = {"identities": 4, "images_per_identity": 4, "image_size": SIZE}
    rg.create_attack("uap", size=SIZE).fit(
        model, people, objective=PairWiseLoss(clusters=3), epochs=1, **options
    )
    for feedback in ("features", "ranks"):
        square = rg.create_attack("universal_square", feedback=feedback, queries=32)
        square.fit(model, people, **options)
    attack = DeltaAttack(size=SIZE)
    attack.fit(model, people, people, learner="maml", steps=2, **options)
    assert float(attack.delta.detach().abs().max()) > 0


def test_errors_name_the_cure(model, people):
    x = torch.rand(2, 3, *SIZE)
    with pytest.raises(InputError, match=r"cameras=\.\.\..*1 to 4"):
        model.features(x)
    with pytest.raises(InputError, match="with_cameras"):
        SMA(steps=1).bind(model)(x)
    with pytest.raises(InputError, match="2 images, not"):
        model.features(x, cameras=[1])
    for wrong in ([0, 1], [4, 5]):
        with pytest.raises(InputError, match="first_camera"):
            model.features(x, cameras=wrong)
    with pytest.raises(InputError, match=r"cameras 1 to 4, .* 0 to 3"):
        evaluate(CameraNet(first_camera=0), people, protocol=PROTOCOL)
    options = {"steps": 1, "identities": 4, "images_per_identity": 4, "image_size": SIZE}
    late = CameraNet(num_classes=4, first_camera=3)
    for fit in (
        lambda: DeltaAttack(size=SIZE).fit(late, people, **options),
        lambda: rg.create_attack("universal_square").fit(late, people, identities=4),
        lambda: train_model(late, people, **options),
        lambda: AdversarialTraining(SMA()).fit(late, people, **options),
    ):
        with pytest.raises(InputError, match=r"cameras 1 to 4, .* 3 to 6"):
            fit()
    with pytest.raises(InputError, match="whole numbers"):
        SMA().bind(model).with_cameras([0.5])
    with pytest.raises(InputError, match="at least 2"):
        CameraNet(cameras=1)


def test_mirror_images_and_several_queries(model, people):
    protocol = Protocol(image_size=SIZE, flip=True)
    result = evaluate(model, people, protocol=protocol)
    parts = []
    for sample in people.query:
        x = image(sample)
        both = [own_feature(model, a, sample.camid) for a in (x, x.flip(3))]
        parts.append(sum(both).detach() / 2)
    gallery = own_features(model, people.gallery)
    mirrored = [own_feature(model, image(s).flip(3), s.camid) for s in people.gallery]
    expected = ranking(
        model, people, torch.cat(parts), (gallery + torch.cat(mirrored).detach()) / 2
    )
    assert torch.equal(result.clean.ap, expected.ap)
    several = Protocol(image_size=SIZE, multi_query=True)
    assert evaluate(model, people, protocol=several).clean.mAP > 0


def test_a_model_without_cameras_ignores_them(people):
    plain = CameraNet(cameras=0).eval()
    x = torch.rand(2, 3, *SIZE)
    assert torch.equal(plain.features(x), plain.features(x, cameras=[7, 9]))
    attack = SMA(steps=2).bind(plain)
    assert torch.equal(attack(x), attack.with_cameras([7, 9])(x))
    assert model_key(plain)["models"][0].keys() == {"input_spec", "metric", "build_spec"}


def test_ensembles_pass_cameras_to_members(model, people):
    torch.manual_seed(1)
    other = CameraNet(cameras=6).eval()
    both = EnsembleModel([model, create_model("osnet_x0_25", size=(64, 32)).eval(), other]).eval()
    assert both.cameras == range(1, 5)
    x, cameras = torch.rand(3, 3, *SIZE), [1, 4, 2]
    with torch.no_grad():
        joined = both.features(x, cameras=cameras)
        first = torch.cat([own_feature(model, a[None], c) for a, c in zip(x, cameras, strict=True)])
    torch.testing.assert_close(joined[:, :6], torch.nn.functional.normalize(first))
    for ensemble in ("features", "loss"):
        attack = DeltaAttack(size=SIZE)
        attack.fit(
            [model, other], people, ensemble=ensemble, steps=1, image_size=SIZE, identities=4
        )
        assert float(attack.delta.detach().abs().max()) > 0
    with pytest.raises(InputError, match="different cameras"):
        EnsembleModel([CameraNet(cameras=2), CameraNet(cameras=2, first_camera=5)])


def test_keys_depend_on_cameras(model):
    other = CameraNet(num_classes=4, first_camera=0).eval()
    other.load_state_dict(model.state_dict())
    assert model_key(model) != model_key(other)
    bound = SMA().bind(model)
    prints = {
        attack_fingerprint(a) for a in (bound, bound.with_cameras([1]), bound.with_cameras([2]))
    }
    assert len(prints) == 3


def test_training_defenses_grids_and_audits(model, people, tmp_path):
    train_model(model, people, steps=1, identities=4, images_per_identity=4, image_size=SIZE)
    options = {"steps": 1, "identities": 4, "images_per_identity": 4, "image_size": SIZE}
    for attack, mode in (
        (SMA(steps=1), "eval"),
        (FNA(steps=1), "train"),
        (SMA().bind(model), "eval"),
    ):
        policy = "separate" if mode == "train" else "shared"
        defense = AdversarialTraining(attack, attack_mode=mode, batch_norm=policy)
        assert defense.fit(model, people, **options).cameras == model.cameras
    x = torch.cat([image(s) for s in people.gallery])
    cameras = [s.camid for s in people.gallery]
    features = model.features(x, cameras=cameras).detach()
    guides = Guides(features, [s.pid for s in people.gallery])
    attack = FNA(steps=2).bind(model, guides)
    grid = evaluate_grid({"fna": attack}, {"m": model}, {"d": people}, protocol=PROTOCOL)
    assert grid.cells
    report = audit(model, people, protocol=PROTOCOL, attack_steps=2, learning_steps=1, probes=2)
    assert report.findings[0].level == "ok"
    suite = rg.RetrievalAutoAttack(steps=1, restarts=1, squares=1)
    assert suite.run(model, people, protocol=PROTOCOL) is not None
