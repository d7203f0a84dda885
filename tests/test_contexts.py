"""What the caller sets in torch around a call changes no bit of its result."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reidguard as rg
from helpers import TinyNet, noise_datasets, tiny_model
from reidguard.contexts import fixed_context, fixed_defaults
from reidguard.data import Augment
from reidguard.data.loader import BatchLoader
from reidguard.evaluation.features import extract_features
from reidguard.metrics import Reranking, top_k
from reidguard.virtual import render_person

SIZE = (32, 16)
FIT: dict[str, Any] = {"identities": 2, "images_per_identity": 2, "image_size": SIZE, "steps": 2}


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64": default_dtype,
    "meta": default_device,
    "with meta": lambda: torch.device("meta"),
    "with cpu": lambda: torch.device("cpu"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> rg.ReIDDataset:
    train = noise_datasets(tmp_path_factory.mktemp("noise"), 2, SIZE)[0].train
    return rg.ReIDDataset("noise", train, train[::2], train[1::2])


@pytest.fixture(scope="module")
def model() -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet().eval()


IMAGES = torch.randint(256, (4, 3, *SIZE), generator=torch.Generator().manual_seed(1)) / 255
SMALL = rg.Protocol(image_size=SIZE)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def learned(name: str, **options: Any) -> Callable[..., Any]:
    def fit(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
        attack = rg.create_attack(name, **options)
        assert isinstance(attack, rg.LearnedAttack)
        attack.fit(model, data, data if name == "meta" else None, **FIT)
        attack.save(folder / "attack.safetensors")
        return state(attack), rg.load_attack(folder / "attack.safetensors")(IMAGES)

    return fit


def instance(name: str) -> Callable[..., Any]:
    def apply(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
        options = {"steps": 2} if name != "metric_fgsm" else {}
        guides = rg.Guides(model.features(IMAGES).detach(), [1, 1, 2, 2])
        attack = (
            rg.create_attack(name, diversity=0.5, **options)
            if name != "square"
            else (rg.create_attack(name, steps=3))
        )
        assert isinstance(attack, rg.InstanceAttack)
        return attack.bind(model, guides).with_labels([1, 1, 2, 2])(IMAGES)

    return apply


def trained(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    fresh = tiny_model(num_classes=6)
    rg.train_model(fresh, data, **FIT, checkpoint=folder / "checkpoint")
    fresh.save(folder / "model.safetensors")
    again = rg.load_model(folder / "model.safetensors")
    return state(fresh), again.eval().features(IMAGES).detach()


def agw(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    fresh = tiny_model("agw", num_classes=6, non_local=(0, 0, 0, 0), last_stride=2)
    return state(rg.train_model(fresh, data, **FIT, recipe="agw"))


def hardened(kind: str) -> Callable[..., Any]:
    def fit(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
        own = kind in ("act", "free", "goat", "hm")
        options: dict[str, Any] = {} if own else {"attack": rg.SMA(steps=1)}
        defense = rg.DEFENSES.create(kind, **options, losses=("triplet",))
        second = data if kind == "meta" else None
        return state(defense.fit(model, data, second, **FIT))  # type: ignore[call-arg]

    return fit


def evaluated(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    attack = rg.SMA(steps=2).bind(model)
    result = rg.evaluate(model, data, attack, SMALL).to_dict()
    saved = rg.save_adversarial(attack, data, folder / "images", image_size=SIZE)
    report = rg.verify(attack, data, image_size=SIZE).to_dict()
    return {**result, "seconds": 0}, [p.read_bytes() for p in sorted(saved.glob("*.png"))], report


def grid(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    result = rg.evaluate_grid({"a": rg.FNA(steps=1)}, {"m": model}, {"d": data}, SMALL)
    return [{**cell.evaluation, "seconds": 0} for cell in result.cells]


def suite(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    tried = rg.RetrievalAutoAttack(restarts=1, steps=2, squares=2, surrogate=model)
    return tried.run(model, data, SMALL, audit_queries=2, state=folder / "state").to_dict()


def batches(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    loader = BatchLoader(
        data, identities=2, images_per_identity=2, image_size=SIZE, augment=Augment()
    )
    generator = torch.Generator().manual_seed(0)
    return [vars(b) for b in loader.epoch(0)], Augment()(IMAGES, generator)


def ranked(model: TinyNet, data: rg.ReIDDataset, folder: Path) -> Any:
    features = extract_features(model, data.query, image_size=SIZE)
    labels = {
        f"{side}_{kind}": list(range(6))
        for side in ("query", "gallery")
        for kind in ("pids", "camids")
    }
    labels["gallery_camids"] = list(range(1, 7))
    labels["query_pids"] = labels["gallery_pids"] = [1, 1, 2, 2, 3, 3]
    plain = vars(rg.rank(features, features.flip(0), **labels))
    reranked = vars(rg.rank(features, features.flip(0), **labels, metric=Reranking(k1=2, k2=2)))
    return plain, reranked, top_k(features, features.flip(0), 2, **labels)


CALLS: dict[str, Callable[[TinyNet, rg.ReIDDataset, Path], Any]] = {
    "delta": learned("delta", size=SIZE),
    "color": learned("color", resolution=3),
    "combinatorial": learned("combinatorial", size=SIZE, resolution=3),
    "uap": learned("uap", size=SIZE),
    "meta": learned("meta", size=SIZE, resolution=3),
    "misrank": learned("misrank", size=SIZE, width=1),
    **{
        name: instance(name)
        for name in ("sma", "odfa", "fna", "metric_fgsm", "metric_ifgsm", "metric_mifgsm", "square")
    },
    "evaluate": evaluated,
    "grid": grid,
    "suite": suite,
    "audit": lambda model, data, folder: rg.audit(
        model,
        data,
        protocol=SMALL,
        surrogate=model,
        queries=2,
        probes=2,
        learning_steps=1,
        attack_steps=1,
    ).to_dict(),
    "certify": lambda model, data, folder: rg.certify(
        model, data, protocol=SMALL, sigma=0.05, draws=5, alpha=0.1, state=folder / "state"
    ).to_dict(),
    "detect": lambda model, data, folder: rg.detection_scores(
        model,
        data,
        {"SMA": rg.SMA(steps=1), "adaptive": rg.AdaptiveSMA(steps=2)},
        others=[model],
        protocol=SMALL,
    ).to_dict(),
    "noisy": lambda model, data, folder: state(
        rg.train_model(tiny_model(num_classes=6), data, **FIT, noise=0.1)
    ),
    "train": trained,
    "agw": agw,
    "adversarial": hardened("adversarial"),
    "meta defense": hardened("meta"),
    **{name: hardened(name) for name in ("goat", "trades", "act", "hm", "free")},
    "batches": batches,
    "rank": ranked,
    "render": lambda model, data, folder: render_person("plaza", 1, 1, height=64).tobytes(),
    "cube": lambda model, data, folder: rg.ColorAttack(resolution=3).lut.detach(),
}


def same(a: Any, b: Any) -> bool:
    """Return whether two results are equal to the bit, dtype and device included."""
    if isinstance(a, Tensor):
        return (
            a.dtype == b.dtype
            and a.device == b.device
            and a.shape == b.shape
            and a.detach().clone().contiguous().numpy().tobytes()
            == b.detach().clone().contiguous().numpy().tobytes()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.fixture(scope="module")
def expected(
    model: TinyNet, data: rg.ReIDDataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    results: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in results:
            results[name] = CALLS[name](model, data, tmp_path_factory.mktemp("plain"))
        return results[name]

    return get


QUICK = ("delta", "sma", "rank", "batches", "cube")


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CALLS]
)
def test_a_context_changes_no_bit(
    name: str,
    context: str,
    expected: Callable[[str], Any],
    model: TinyNet,
    data: rg.ReIDDataset,
    tmp_path: Path,
) -> None:
    plain = expected(name)
    before = state(model)
    with CONTEXTS[context]():
        result = CALLS[name](model, data, tmp_path)
    assert same(result, plain)
    assert same(state(model), before)


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_is_built_in_a_context_works_outside(
    context: str, model: TinyNet, data: rg.ReIDDataset
) -> None:
    plain = rg.SMA(steps=1).bind(model)(IMAGES)
    delta = rg.DeltaAttack(size=SIZE).fit(model, data, **FIT)(IMAGES)
    with CONTEXTS[context]():
        attack, fresh = rg.SMA(steps=1).bind(model), rg.DeltaAttack(size=SIZE)
        network = tiny_model(num_classes=6)
    assert same(attack(IMAGES), plain)
    assert same(fresh.fit(model, data, **FIT)(IMAGES).detach(), delta.detach())
    rg.train_model(network, data, **FIT)


def test_images_and_weights_of_inference_mode(model: TinyNet, data: rg.ReIDDataset) -> None:
    plain = rg.SMA(steps=1).bind(model)(IMAGES)
    color = rg.ColorAttack(resolution=3)
    with torch.inference_mode():
        images = IMAGES.clone()
        torch.manual_seed(0)
        victim = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten())
    assert same(rg.SMA(steps=1).bind(model)(images), plain)
    color(images).sum().backward()
    assert color.offset.grad is not None
    wrapped = rg.wrap_model(victim, input_spec=rg.InputSpec(size=None))
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten())
    usual = rg.wrap_model(twin, input_spec=rg.InputSpec(size=None))
    assert same(rg.SMA(steps=1).bind(wrapped)(IMAGES), rg.SMA(steps=1).bind(usual)(IMAGES))


def test_gradients_follow_the_callers_mode() -> None:
    attack = rg.DeltaAttack(size=SIZE)
    assert attack(IMAGES).requires_grad
    with torch.no_grad():
        assert not attack(IMAGES).requires_grad
    with torch.inference_mode():
        assert attack(IMAGES).is_inference()


def test_the_default_dtype_is_restored_after_the_last_of_several_threads() -> None:
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with fixed_defaults():
            entered.set()
            leave.wait(10)

    torch.set_default_dtype(torch.float64)
    try:
        thread = threading.Thread(target=first)
        thread.start()
        entered.wait(10)
        with fixed_context():
            leave.set()
            thread.join()
            assert torch.ones(1).dtype == torch.float32
        assert torch.ones(1).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_pickled_attack_and_model_are_those_of_before(model: TinyNet) -> None:
    buffer = io.BytesIO()
    torch.save(rg.DeltaAttack(size=SIZE), buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert again.config() == rg.DeltaAttack(size=SIZE).config()
