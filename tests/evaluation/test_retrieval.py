"""A model on a dataset: its rankings, batches and bound attacks."""

from __future__ import annotations

import copy

import pytest
import torch

from reidguard.attacks import FNA, SMA, Attack, DeltaAttack, InstanceAttack
from reidguard.data import ReIDDataset
from reidguard.errors import InputError
from reidguard.evaluation import FeatureStore, Protocol, extract_features
from reidguard.evaluation.retrieval import Retrieval
from reidguard.evaluation.split_pass import BatchAccumulator
from reidguard.metrics import rank
from reidguard.metrics.quality import achieved_linf, ms_ssim, psnr, ssim
from reidguard.types import Budget

SIZE = (64, 32)


@pytest.fixture
def few(people):
    return ReIDDataset("few", [], people.query[:5], people.gallery[::2])


@pytest.mark.parametrize(
    "protocol",
    [
        Protocol(image_size=SIZE),
        Protocol(SIZE, metric="cosine", same_camera="keep", max_rank=7, dtype=torch.float64),
    ],
)
def test_its_ranking_is_that_of_the_protocol(model, few, passes, protocol):
    model = model.to(protocol.dtype)
    retrieval = Retrieval(model, few, protocol, batch_size=4)
    features, gallery = (
        extract_features(model, samples, image_size=SIZE, dtype=protocol.dtype, batch_size=4)
        for samples in (few.query, few.gallery)
    )
    assert retrieval.metric == (protocol.metric or "euclidean")

    def expected(gallery):
        return rank(
            features,
            gallery,
            query_pids=[s.pid for s in few.query],
            query_camids=[s.camid for s in few.query],
            gallery_pids=[s.pid for s in few.gallery],
            gallery_camids=[s.camid for s in few.gallery],
            metric=protocol.metric or "euclidean",
            same_camera=protocol.same_camera,
            max_rank=protocol.max_rank,
        )

    assert retrieval.model_key
    passes.clear()
    found = retrieval.rank(features, few.query)
    assert sorted(set(passes)) == sorted({4, len(few.gallery) % 4 or 4})
    assert sum(passes) == len(few.gallery)
    assert torch.equal(retrieval.gallery, gallery)
    assert found.ap.tolist() == expected(gallery).ap.tolist()
    assert found.cmc.tolist() == expected(gallery).cmc.tolist()
    turned = retrieval.rank(features, few.query, gallery.flip(0))
    assert turned.ap.tolist() == expected(gallery.flip(0)).ap.tolist() != found.ap.tolist()
    assert sum(passes) == len(few.gallery)  # extracted once
    for split, every in (("query", 3), ("gallery", 1)):
        key = FeatureStore().key(
            model, few, split, image_size=SIZE, dtype=protocol.dtype, every=every
        )
        assert retrieval.key(split, every) == key
    assert torch.equal(
        retrieval.store.get(retrieval.key("gallery"), retrieval.device), retrieval.gallery
    )


def test_what_it_starts_with(model, few):
    store = FeatureStore()
    retrieval = Retrieval(model, few, store=store)
    assert retrieval.store is store
    assert retrieval.protocol == Protocol()
    assert retrieval.batch_size == 64
    assert (retrieval.model, retrieval.dataset) == (model, few)
    for query, gallery in (([], few.gallery), (few.query, [])):
        with pytest.raises(InputError, match="none has no query or no gallery images"):
            Retrieval(model, ReIDDataset("none", [], query, gallery))


def test_attacks_that_are_not_bound_are_bound_with_the_gallery(model, few):
    retrieval = Retrieval(model, few, Protocol(image_size=SIZE))
    universal, bound = DeltaAttack(size=SIZE), SMA().bind(copy.deepcopy(model))
    assert retrieval.bind(universal) is universal
    assert retrieval.bind(bound) is bound
    assert retrieval.bind(SMA()).target.model is model
    assert retrieval.bind(SMA()).target.prototypes is None
    assert retrieval.bind(FNA()).target.prototypes is not None
    guides = retrieval.guides()
    assert torch.equal(guides.features, retrieval.gallery)
    assert torch.as_tensor(guides.pids).tolist() == [s.pid for s in few.gallery]


class Labels(InstanceAttack):
    """Brightens by half the identity that it is given, in grey levels."""

    def search(self, x, clean, target):
        levels = torch.ones(len(x)) if target.pids is None else target.pids / 2
        return x + levels[:, None, None, None] / 255


def test_a_batch_as_floats_and_in_eight_bits(model, few):
    retrieval = Retrieval(model, few, Protocol(image_size=SIZE, dtype=torch.float64), batch_size=3)
    batches = list(retrieval.read(few.query))
    assert [(b[0].start, b[0].stop, b[1].shape) for b in batches] == [
        (0, 3, (3, 3, *SIZE)),
        (3, 5, (2, 3, *SIZE)),
    ]
    pixels = torch.full((3, 3, *SIZE), 100, dtype=torch.uint8)
    x = retrieval.to_input(pixels)
    assert torch.equal(x, torch.full((3, 3, *SIZE), 100, dtype=torch.float64) / 255)
    attack = Labels(Budget(8 / 255)).bind(model.double())
    images, images_8bit, saved = retrieval.perturb(attack, x, few.query[:3], with_labels=True)
    pids = torch.tensor([s.pid for s in few.query[:3]])
    added = (pids / 2).clamp(max=8).double()
    torch.testing.assert_close(images[:, 0, 0, 0] * 255, 100 + added, rtol=0, atol=1e-5)
    assert saved.dtype == torch.uint8
    assert torch.equal(images_8bit, saved.double() / 255)
    assert (saved.double() - 255 * images).abs().max() <= 0.5 + 1e-5
    plain = retrieval.perturb(attack, x, few.query[:3], with_labels=False)
    assert (plain[2] == 101).all()


def test_an_attack_on_another_device_names_the_cure(model, few):
    retrieval = Retrieval(model, few, Protocol(image_size=SIZE))
    for module in (None, DeltaAttack(size=SIZE), SMA().bind(model), model):
        retrieval.check_device("attack", module)
    with pytest.raises(InputError, match=r"model is on cpu, the attack on meta; .*\.to\('cpu'\)"):
        retrieval.check_device("attack", DeltaAttack(size=SIZE).to("meta"))
    far = copy.deepcopy(model).to("meta")
    with pytest.raises(InputError, match="the attack on meta; bind it to a model there"):
        retrieval.check_device("attack", SMA().bind(far))
    with pytest.raises(InputError, match="bind"):
        retrieval.check_device("attack", SMA())


@pytest.mark.parametrize("with_lpips", [False, True])
def test_the_quality_of_batches_is_a_mean_over_images(with_lpips):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 24, 22, generator=generator)
    x_adv = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)

    def distance(a, b):
        return (a - b).square().sum((1, 2, 3))

    accumulator = BatchAccumulator(distance if with_lpips else None)
    features = torch.arange(10.0).view(5, 2)
    for part in (slice(0, 3), slice(3, 5)):
        accumulator.add(features[part], x_adv[part], x[part])
    seen = []
    result = accumulator.result(lambda shards: seen.extend(shards) or "ranking", torch.cat)
    assert result.ranking == "ranking"
    assert torch.equal(seen[0], features)
    assert result.psnr == pytest.approx(float(psnr(x_adv, x).mean()), rel=1e-5)
    assert result.ssim == pytest.approx(float(ssim(x_adv, x).mean()), rel=1e-5)
    assert result.ms_ssim == pytest.approx(float(ms_ssim(x_adv, x).mean()), rel=1e-5)
    assert result.linf == pytest.approx(float(achieved_linf(x_adv, x).max()))
    expected = pytest.approx(float(distance(x_adv, x).mean()), rel=1e-5) if with_lpips else None
    assert result.lpips == expected


def test_changes_of_eight_bit_images_are_whole_grey_levels():
    pixels = (torch.arange(576) % 248).float().view(1, 1, 24, 24).expand(1, 3, -1, -1)
    x, x_adv = pixels / 255, (pixels + 8) / 255
    assert float(achieved_linf(x_adv, x)) > 8 / 255  # by rounding
    accumulator = BatchAccumulator(None, eight_bit=True)
    accumulator.add(torch.ones(1, 2), x_adv, x)
    assert accumulator.result(lambda shards: "ranking", torch.cat).linf == 8 / 255


def test_attacks_need_no_special_class(model, few):
    class Same(Attack):
        def perturb(self, x):
            return x

    retrieval = Retrieval(model, few, Protocol(image_size=SIZE))
    retrieval.check_device("attack", Same())
    x = retrieval.to_input(torch.zeros(1, 3, *SIZE, dtype=torch.uint8))
    assert not any(x_adv.any() for x_adv in retrieval.perturb(Same(), x, few.query[:1], False))
