"""The contract suite of re-ID models.

Each check takes a factory ``make(num_classes) -> ReIDModel``, where ``num_classes`` is a mapping of
domains or None, and raises an AssertionError that says what is wrong::

    @pytest.mark.parametrize("check", MODEL_CHECKS)
    def test_my_model(check):
        check(lambda num_classes: MyModel(num_classes=num_classes))

Models are called on a few images; a small input size keeps that quick.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reidguard.errors import InputError
from reidguard.learners import FirstOrderLearner
from reidguard.models import ReIDModel, ReIDOutput, load_model
from reidguard.nn import inference_view
from reidguard.nn.cameras import probe_cameras, with_cameras
from reidguard.objectives.reid import ReIDObjective
from reidguard.types import ReIDBatch

__all__ = ["MODEL_CHECKS", "ModelFactory"]

ModelFactory = Callable[[Mapping[str, int] | None], ReIDModel]

_NUM_CLASSES = {"one": 3, "two": 4}


def images(count: int = 4, size: tuple[int, int] = (48, 24), seed: int = 0) -> Tensor:
    """8-bit images divided by 255."""
    pixels = torch.randint(256, (count, 3, *size), generator=torch.Generator().manual_seed(seed))
    return pixels.float() / 255


def _batch(model: ReIDModel, seed: int = 0) -> ReIDBatch:
    pids = torch.tensor([0, 0, 1, 1])
    cameras = probe_cameras(model, 4)
    camids = torch.zeros_like(pids) if cameras is None else cameras
    return ReIDBatch(images(seed=seed), pids, camids, torch.arange(4))


def _features(model: ReIDModel, x: Tensor) -> Tensor:
    """Return features; a model whose features depend on cameras gets some that it knows."""
    return with_cameras(model, probe_cameras(model, len(x))).features(x)


def _outputs(model: ReIDModel, x: Tensor, domain: str | None = None) -> ReIDOutput:
    return with_cameras(model, probe_cameras(model, len(x)))(x, domain=domain)


def _build(make: ModelFactory, num_classes: Mapping[str, int] | None) -> ReIDModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(num_classes)


def _close(actual: Tensor, expected: Tensor, what: str) -> None:
    torch.testing.assert_close(
        actual, expected, rtol=1e-3, atol=1e-4, msg=lambda text: f"{what}: {text}"
    )


def state_of(module: nn.Module) -> dict[str, object]:
    """Return everything about a module that attacks and evaluation must not change."""
    return {
        **{f"tensor {name}": tensor.clone() for name, tensor in module.state_dict().items()},
        **{f"mode of {name}": part.training for name, part in module.named_modules()},
        **{f"requires_grad of {n}": p.requires_grad for n, p in module.named_parameters()},
        **{f"gradient of {n}": p.grad is None for n, p in module.named_parameters()},
    }


def assert_same_state(before: Mapping[str, object], after: Mapping[str, object]) -> None:
    """Compare two :func:`state_of`, bit by bit."""
    assert before.keys() == after.keys(), "parts of the module came or went"
    for name, value in before.items():
        other = after[name]
        same = (
            torch.equal(value, other)
            if isinstance(value, Tensor) and isinstance(other, Tensor)
            else value == other
        )
        assert same, f"{name} changed"


@torch.no_grad()
def check_features(make: ModelFactory) -> None:
    """(N, D) finite features of images of any size and dtype, each image on its own."""
    model = _build(make, None).eval()
    x = images()
    features = _features(model, x)
    assert features.dim() == 2, f"features have shape {tuple(features.shape)}, not (N, D)"
    assert len(features) == len(x), f"{len(features)} features of {len(x)} images"
    assert bool(torch.isfinite(features).all()), "features are not finite"
    assert features.std(0).max() > 0, "all images have the same features"
    _close(_features(model, x[:1]), features[:1], "an image's features depend on its batch")
    for size in ((7, 5), (90, 31)):
        shape = _features(model, images(2, size)).shape
        assert shape == (2, features.shape[1]), f"images of {size} give {shape}"
    assert _features(model, x.double()).shape == features.shape
    for wrong in (x[0], (x * 255).to(torch.uint8)):
        try:
            _features(model, wrong)
        except InputError:
            continue
        raise AssertionError(f"images of {tuple(wrong.shape)}, {wrong.dtype} are not refused")


@torch.no_grad()
def check_eval_is_pure(make: ModelFactory) -> None:
    """In eval mode: the same bits twice, images and model left alone."""
    model = _build(make, None).eval()
    x, before = images(), state_of(model)
    original = x.clone()
    assert torch.equal(_features(model, x), _features(model, x)), (
        "features differ from call to call"
    )
    assert torch.equal(x, original), "the images were written to"
    assert_same_state(before, state_of(model))


@torch.no_grad()
def check_output(make: ModelFactory) -> None:
    """Calling gives features, embeddings and logits of the requested domain."""
    model = _build(make, _NUM_CLASSES).eval()
    assert dict(model.num_classes) == _NUM_CLASSES, f"num_classes is {model.num_classes}"
    x = images()
    for domain, identities in _NUM_CLASSES.items():
        output = _outputs(model, x, domain)
        assert isinstance(output, ReIDOutput), f"the call gives a {type(output).__name__}"
        _close(output.features, _features(model, x), "features and forward differ")
        parts, scores = _listed(output.embeddings), _listed(output.logits)
        assert parts, "no embeddings"
        assert scores, "no logits, though num_classes was given"
        assert all(len(part) == len(x) and part.dim() == 2 for part in parts), "embeddings: (N, E)"
        shapes = [tuple(part.shape) for part in scores]
        assert shapes == [(len(x), identities)] * len(scores), f"logits of {domain}: {shapes}"
    assert _outputs(_build(make, None).eval(), x).logits is None, "logits without num_classes"


def check_domains(make: ModelFactory) -> None:
    """With several domains one must be named, and be known."""
    model = _build(make, _NUM_CLASSES).eval()
    for wrong in (None, "three"):
        try:
            _outputs(model, images(), wrong)
        except InputError:
            continue
        raise AssertionError(f"model(x, domain={wrong!r}) is no InputError")


def check_gradients(make: ModelFactory) -> None:
    """The images get a gradient from the features, the parameters one from the training loss."""
    model = _build(make, _NUM_CLASSES).eval()
    x = images().requires_grad_()
    (slope,) = torch.autograd.grad(_features(model, x).square().sum(), x, allow_unused=True)
    assert slope is not None, "no gradient reaches the images"
    assert bool(torch.isfinite(slope).all()), "the images' gradient is not finite"
    assert float(slope.abs().max()) > 0, "the images' gradient is zero"
    model.train()
    ReIDObjective(domain="one", margin=5.0)(model, _batch(model)).backward()  # type: ignore[no-untyped-call]
    reached = [n for n, p in model.named_parameters() if p.grad is not None]
    body = [n for n in reached if not n.startswith(model.head_prefixes)]
    trained = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and not n.startswith(model.head_prefixes)
    ]
    assert body or not trained, "the training loss reaches no parameter of the body"
    assert any(n.startswith(model.head_prefixes) for n in reached), "nor the classifier"
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None
    ), "gradients are not finite"


@torch.no_grad()
def check_inference_view(make: ModelFactory) -> None:
    """An inference view computes what the model in eval mode does, and leaves it as it is."""
    model = _build(make, _NUM_CLASSES).eval()
    expected = _features(model, images())
    model.train()
    before = state_of(model)
    _close(_features(inference_view(model), images()), expected, "features of a view differ")
    plain = _features(inference_view(model, fold=False), images())
    assert torch.equal(plain, expected), "features of a view that is not folded differ"
    assert_same_state(before, state_of(model))


def check_copies(make: ModelFactory) -> None:
    """Defenses copy a model, learners call it with other weights, files rebuild it."""
    model = _build(make, _NUM_CLASSES).eval()
    with torch.no_grad():
        expected = _features(model, images())
        assert torch.equal(_features(copy.deepcopy(model), images()), expected), "a copy differs"
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    FirstOrderLearner(inner="sgd", inner_lr=1e-3).step(
        model, ReIDObjective(domain="one", margin=5.0), _batch(model, 0), _batch(model, 1)
    )
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), f"a learner's step changed {name}"
    if model.build_spec is None:  # not made by create_model, so never saved
        return
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.safetensors")
        again = load_model(Path(folder) / "model.safetensors")
    with torch.no_grad():
        for domain in _NUM_CLASSES:
            output, rebuilt = (_outputs(m, images(), domain) for m in (model, again))
            assert torch.equal(output.features, rebuilt.features), "a saved model's features differ"
            pairs = zip(_listed(output.logits), _listed(rebuilt.logits), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "a saved model's logits differ"


def _listed(value: Tensor | list[Tensor] | None) -> list[Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else list(value)


MODEL_CHECKS: tuple[Callable[[ModelFactory], None], ...] = (
    check_features,
    check_eval_is_pure,
    check_output,
    check_domains,
    check_gradients,
    check_inference_view,
    check_copies,
)
"""The checks that hold for every model with a classifier."""
