"""Eight threads on one model: each gets its numbers as if it were alone, and the model stays."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reidguard as rg
from helpers import noise_datasets, tiny_model

SIZE = (32, 16)
FIT: dict[str, Any] = {"identities": 2, "images_per_identity": 2, "image_size": SIZE, "steps": 3}
SMALL = rg.Protocol(image_size=SIZE)
THREADS = 8
Job = Callable[[], Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> rg.ReIDDataset:
    train = noise_datasets(tmp_path_factory.mktemp("noise"), 2, SIZE)[0].train
    return rg.ReIDDataset("noise", train, train[::2], train[1::2])


@pytest.fixture
def model() -> rg.ReIDModel:
    """In train mode, in an unusual layout, with some frozen weights: as a caller may have it."""
    model = tiny_model(num_classes=6).to(memory_format=torch.channels_last).train()
    next(model.parameters()).requires_grad_(False)
    return model


def snapshot(model: rg.ReIDModel) -> tuple[Any, ...]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: (t.detach().clone(), t.stride(), t.requires_grad) for name, t in tensors.items()},
        [module.training for module in model.modules()],
        {name: id(t) for name, t in tensors.items()},
    )


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def jobs(model: rg.ReIDModel, data: rg.ReIDDataset) -> dict[str, Job]:
    images = torch.randint(256, (4, 3, *SIZE), generator=torch.Generator().manual_seed(1)) / 255

    def evaluate(attack: rg.Attack | None) -> Any:
        return {**rg.evaluate(model, data, attack, SMALL).to_dict(), "seconds": 0}

    def fit(attack: rg.LearnedAttack, **options: Any) -> Any:
        # Diversity and masks draw from torch's global generators, which all threads share.
        fitted = attack.fit(model, data, **FIT, **options)
        return {name: t.clone() for name, t in fitted.state_dict().items()}

    def harden() -> Any:
        defense = rg.AdversarialTraining(rg.SMA(steps=1), losses=("triplet",))
        return defense.fit(model, data, **FIT).state_dict()

    return {
        "clean": lambda: evaluate(None),
        "sma": lambda: evaluate(rg.SMA(steps=2).bind(model)),
        "square": lambda: rg.SquareAttack(steps=3).bind(model)(images),
        "apgd": lambda: rg.SMA(steps=3, step_size=None, diversity=0.5).bind(model)(images),
        "delta": lambda: fit(rg.DeltaAttack(size=SIZE), diversity=0.7),
        "misrank": lambda: fit(rg.MisRank(size=SIZE, width=1, pixels=30)),
        "harden": harden,
        "audit": lambda: rg.audit(
            model, data, protocol=SMALL, queries=2, probes=2, attack_steps=1, epsilons=(0.03,)
        ).to_dict(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [3])
def test_eight_threads_get_the_numbers_of_one(
    model: rg.ReIDModel, data: rg.ReIDDataset, rounds: int
) -> None:
    work = jobs(model, data)
    before, generator = snapshot(model), torch.get_rng_state()
    alone = {name: job() for name, job in work.items()}
    names = [name for _ in range(rounds) for name in work]
    together = threading.Barrier(THREADS)

    def run(place: int) -> Any:
        if place < THREADS:
            together.wait(60)
        return work[names[place]]()

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(run, range(len(names))))
    for name, result in zip(names, results, strict=True):
        assert equal(result, alone[name]), name
    assert equal(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), generator)


def test_copies_made_meanwhile_have_weights_of_their_own(
    model: rg.ReIDModel, data: rg.ReIDDataset, tmp_path: Path
) -> None:
    """As replicas of DataParallel are: copied while the original is attacked in other threads."""
    stop = threading.Event()

    def attack() -> None:
        while not stop.is_set():
            rg.evaluate(model, data, rg.SMA(steps=1).bind(model), SMALL)

    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(attack) for _ in range(4)]
        try:
            for _ in range(4):
                replica = copy.deepcopy(model)
                buffer = io.BytesIO()
                torch.save(model, buffer)
                loaded = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
                for other in (replica, loaded):
                    assert [m.training for m in other.modules()] == [
                        m.training for m in model.modules()
                    ]
                    shared = {t.data_ptr() for t in model.state_dict().values()}
                    assert not shared & {t.data_ptr() for t in other.state_dict().values()}
                    with torch.no_grad():
                        for p in other.parameters():
                            p.zero_()
                    assert not other.eval().features(torch.rand(1, 3, *SIZE)).any()
        finally:
            stop.set()
        for future in busy:
            future.result()
    assert model.eval().features(torch.rand(1, 3, *SIZE)).any()
