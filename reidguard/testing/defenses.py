"""The contract suite of defenses.

Each check takes a function ``fit(model, source, other) -> ReIDModel`` and raises an
AssertionError that says what is wrong. A step or two are enough::

    def fit(model, source, other):
        return MyDefense().fit(model, source, steps=2, image_size=(32, 16))

    @pytest.mark.parametrize("check", DEFENSE_CHECKS)
    def test_my_defense(check):
        check(fit)

The model is small, with batch norms, dropout, a classifier for ``source`` and one frozen parameter.
Both datasets show 4 people in 4 images of 32×16 each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from reidguard.data import ReIDDataset
from reidguard.models import ReIDModel, create_model
from reidguard.testing.models import assert_same_state, images, state_of
from reidguard.types import ReIDSample

__all__ = ["DEFENSE_CHECKS", "DefenseFit", "small_dataset", "small_model"]

DefenseFit = Callable[[ReIDModel, ReIDDataset, ReIDDataset], ReIDModel]

_SIZE = (32, 16)


def small_model(num_classes: int | Mapping[str, int] | None = None) -> ReIDModel:
    """Return a model of a few layers for 32×16 images, the same at every call, in eval mode.

    Example:
        >>> small_model().features(torch.rand(2, 3, 32, 16)).shape[0]
        2
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("ide", backbone="test_resnet", size=_SIZE, num_classes=num_classes)
    next(model.parameters()).requires_grad_(False)
    return model.eval()


@contextmanager
def small_dataset(name: str = "small", seed: int = 0) -> Iterator[ReIDDataset]:
    """Draw 4 people in clothes of their own, 4 images of 32×16 each, into a temporary folder.

    Example:
        >>> with small_dataset() as data:
        ...     len(data.train), len(data.query), len(data.gallery)
        (16, 4, 12)
    """
    with tempfile.TemporaryDirectory() as folder:
        train: list[ReIDSample] = []
        query: list[ReIDSample] = []
        gallery: list[ReIDSample] = []
        generator = torch.Generator().manual_seed(seed)
        for pid in range(1, 9):
            clothes = torch.rand(3, 2, 1, generator=generator)
            for number in range(4):
                noise = 0.2 * torch.rand(3, *_SIZE, generator=generator)
                colours = clothes.repeat_interleave(_SIZE[0] // 2, 1) + noise
                pixels = (colours.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
                path = Path(folder) / f"{pid:04}_{number}.png"
                Image.fromarray(pixels).save(path)
                split = train if pid <= 4 else gallery if number else query
                split.append(ReIDSample(path, pid, number + 1))
        yield ReIDDataset(name, train, query, gallery, root=folder, licence="drawn by a program")


@contextmanager
def _case() -> Iterator[tuple[ReIDModel, ReIDDataset, ReIDDataset]]:
    with small_dataset("source") as source, small_dataset("other", 1) as other:
        yield small_model({"source": source.num_train_pids}), source, other


def check_model_is_only_read(fit: DefenseFit) -> None:
    """The model stays as it was: weights, buffers, modes, flags, gradients."""
    with _case() as (model, source, other):
        model.get_submodule("backbone.bn1").train()  # a mode of its own
        before = state_of(model)
        fit(model, source, other)
        assert_same_state(before, state_of(model))


def check_new_model(fit: DefenseFit) -> None:
    """A new model comes out, that shares nothing with the old one and can be used like it."""
    with _case() as (model, source, other):
        robust = fit(model, source, other)
        assert isinstance(robust, ReIDModel), f"fit gives a {type(robust).__name__}"
        assert robust is not model, "fit gives the model itself back"
        old = {t.data_ptr() for t in model.state_dict().values() if t.numel()}
        shared = [n for n, t in robust.state_dict().items() if t.numel() and t.data_ptr() in old]
        assert not shared, f"the new model shares memory with the old one: {shared[:3]}"
        wild = [n for n, t in robust.state_dict().items() if not bool(torch.isfinite(t).all())]
        assert not wild, f"the new model has values that are not finite: {wild[:3]}"
        robust.eval()
        with torch.no_grad():
            width = model.features(images()).shape
            assert robust.features(images()).shape == width, "features of another width"
        assert robust.metric == model.metric, "another metric"
        assert robust.input_spec == model.input_spec, "another input_spec"


def check_repeatable(fit: DefenseFit) -> None:
    """The same call gives the same bits, whatever random numbers were drawn before."""
    with _case() as (model, source, other):
        states = []
        for seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                states.append(fit(model, source, other).state_dict())
        assert states[0].keys() == states[1].keys()
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), f"{name} differs from run to run"


DEFENSE_CHECKS: tuple[Callable[[DefenseFit], None], ...] = (
    check_model_is_only_read,
    check_new_model,
    check_repeatable,
)
"""The checks that hold for every defense."""
