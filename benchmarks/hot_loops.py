"""The loops that must keep a GPU busy, each as a function that a watch of `syncs` looks at.

On "meta" the models have no values; all loops are those that users run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.syncs import Watch
from reidguard.attacks import CombinatorialAttack, Guides, MisRank, create_attack
from reidguard.attacks.misrank.attack import MisRankObjective
from reidguard.data.images import to_device
from reidguard.evaluation.features import to_float
from reidguard.learners import LEARNERS
from reidguard.learners.displaced import DisplacedLearner
from reidguard.models import ReIDModel, create_model
from reidguard.nn import inference_view
from reidguard.nn.gradients import count_gradients
from reidguard.objectives import FeatureObjective, InputCopies, MisrankingTriplet
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.training import MISGD, LoopHooks, learn
from reidguard.types import ReIDBatch

WARM, WATCHED = 1, 1  # steps
IDENTITIES, EACH = 4, 3
PEOPLE = {"real": IDENTITIES, "virtual": IDENTITIES}
Size = tuple[int, int]
Loop = Callable[[Watch], None]

# Name of the loop: registered attack, options, whether it gets guides.
INSTANCE: dict[str, tuple[str, dict[str, Any], bool]] = {
    "sma": ("sma", {}, False),
    "sma, adaptive steps": ("sma", {"step_size": None}, False),
    "fna": ("fna", {}, True),
    "metric_mifgsm, DI and TI": ("metric_mifgsm", {"diversity": 0.7, "translation": 5}, True),
    "square, self-metric": ("square", {}, False),
    "square, margin": ("square", {}, True),
}
UNIVERSAL = {
    "combinatorial": {},
    "delta": {"basis": "dct"},
    "pattern": {"kind": "perlin"},
    "misrank": {"width": 4, "pixels": 20},
}


TINY = (32, 16)


class _EndOfLoop(Exception):  # noqa: N818
    pass


def tiny_model(num_classes: Any = None) -> ReIDModel:
    """Return a small network for small images, for tests."""
    model = create_model("ide", backbone="test_resnet", num_classes=num_classes)
    model.input_spec = replace(model.input_spec, size=TINY)
    return model.eval()


def random_images(count: int, size: Size, seed: int = 0) -> Tensor:
    """Return 8-bit images divided by 255, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator).float() / 255


@dataclass
class WatchedBatches:
    """Batches of random images. The watch looks at some steps after the first, then the run ends.

    So it does not see what a run does once, such as writing its result.
    """

    watch: Watch
    size: Size
    domain: str | None = None
    starts: bool = True

    def __post_init__(self) -> None:
        self.batches = [self._batch(0), self._batch(1)]

    def __len__(self) -> int:
        return 2

    def epoch(self, number: int, start: int = 0) -> Iterator[ReIDBatch]:
        for step in range(2 * number + start, 2 * number + 2):
            batch = self.batches[step % 2]
            if self.starts and step == WARM:
                self.watch.start()
            if self.starts and step == WARM + WATCHED:
                self.watch.stop()
                raise _EndOfLoop
            yield batch

    def _batch(self, seed: int) -> ReIDBatch:
        device = self.watch.device
        images = random_images(IDENTITIES * EACH, self.size, seed).to(device)
        index = torch.arange(len(images)).to(device)
        batch = ReIDBatch(images, index // EACH, index, index)
        if self.domain is None:
            return batch
        return DefenseBatch(**vars(batch), domain=self.domain, adversarial=2 * EACH)


def _learn(watch: Watch, module: nn.Module, objective: Any, learner: Any, size: Size, **more: Any):
    names = PEOPLE if more.pop("domains", False) else (None, None)
    batches = [WatchedBatches(watch, size, d, i == 0) for i, d in enumerate(names)]
    try:
        learn(
            module,
            learner=learner,
            objective=objective,
            meta_train=batches[0],
            meta_test=batches[1],
            steps=WARM + WATCHED + 1,
            **more,
        )
    except _EndOfLoop:
        pass
    finally:
        watch.stop()


def attack_step(watch: Watch, *, model: ReIDModel, learner: str, size: Size) -> None:
    """The step of `UniversalAttack.fit`, with every option for transfer."""
    attack = CombinatorialAttack(size=size).to(watch.device)
    view = inference_view(copy.deepcopy(model).to(watch.device))
    copies = InputCopies(diversity=0.5, shift=2, scales=2, admix=0.2)
    _learn(
        watch,
        attack,
        FeatureObjective(view, MisrankingTriplet(), copies),
        DisplacedLearner(LEARNERS.create(learner), EACH, True, attack.clip_parameters),
        size,
        optimizer=MISGD(attack.parameters(), lr=1e-3, momentum=0.5),
        hooks=LoopHooks(after_step=attack.clip_parameters),
    )


def defense_step(watch: Watch, *, model: ReIDModel, learner: str, size: Size) -> None:
    """The step of a defense; with the learner "plain" that of `train_model`, too."""
    own = copy.deepcopy(model).to(watch.device).train()
    inner = {} if learner == "plain" else {"inner": "sgd"}
    optimizer = torch.optim.Adam(own.parameters(), lr=3e-4)
    made = LEARNERS.create(learner, **inner)
    _learn(watch, own, DefenseObjective(), made, size, optimizer=optimizer, domains=True)


def misrank_step(watch: Watch, *, model: ReIDModel, size: Size) -> None:
    """The step of `MisRank.fit`."""
    attack = MisRank(size=size, width=4, pixels=20).to(watch.device)
    view = inference_view(copy.deepcopy(model).to(watch.device))
    optimizer = torch.optim.Adam(attack.parameters(), lr=2e-4)
    plain = LEARNERS.create("plain")
    _learn(watch, attack, MisRankObjective(view), plain, size, optimizer=optimizer)


class _Target:
    """A target model that starts the watch at one of its passes."""

    def __init__(self, model: ReIDModel, watch: Watch, first: int) -> None:
        self.model, self.watch, self.first = model, watch, first
        self.metric = model.metric
        self.passes = 0

    def features(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.passes == self.first:
            self.watch.start()
        return self.model.features(x)


def instance_attack(watch: Watch, *, model: ReIDModel, name: str, size: Size) -> None:
    """The inner loop of an instance attack, from its first step on."""
    registered, options, guided = INSTANCE[name]
    steps = {} if registered == "metric_fgsm" else {"steps": 3}
    x = random_images(IDENTITIES * EACH, size)
    pids = torch.arange(len(x)) // EACH + 1
    view = inference_view(model)
    with torch.no_grad():
        guides = Guides(view.features(x), pids) if guided else None
    attack = create_attack(registered, **options, **steps).bind(view, guides)
    # The guides are prepared on the CPU and then moved: their preparation is no part of the loop.
    known = copy.copy(attack.target.prototypes)
    for key, value in vars(known).items() if known is not None else ():
        setattr(known, key, value.to(watch.device))
    # The first pass is that of the clean images; before a later one random draws are made.
    first = 3 if registered == "square" else 2
    target = _Target(inference_view(copy.deepcopy(model).to(watch.device)), watch, first)
    attack._target = replace(attack.target, model=target, prototypes=known)
    images = x.to(watch.device)
    with count_gradients():  # as in an evaluation, which reads the count at its end
        attack(images)
    watch.stop()


def universal_attack(watch: Watch, *, name: str, size: Size) -> None:
    """Applying an attack that is no instance attack."""
    sized = {} if name == "delta" else {"size": size}
    attack = create_attack(name, **sized, **UNIVERSAL[name]).to(watch.device)
    images = random_images(2, size).to(watch.device)
    watch.start()
    with torch.no_grad():
        attack(images)
    watch.stop()


def extraction(watch: Watch, *, model: ReIDModel, size: Size) -> None:
    """The loop of `extract_features`, without decoding."""
    view = inference_view(copy.deepcopy(model).to(watch.device))
    pixels = (255 * random_images(2, size)).round().to(torch.uint8)
    on_host = watch.device == "cuda"
    batches = [pixels if on_host else pixels.to(watch.device)] * 3
    watch.start()
    with torch.no_grad():
        for batch in batches:
            images = to_device(batch, torch.device("cuda")) if on_host else batch
            view.features(to_float(images))
    watch.stop()


def hot_loops(model: ReIDModel, size: Size) -> dict[str, Loop]:
    """Return all loops by name.

    Args:
        model: A model on the CPU with classifiers of the domains of `PEOPLE`.
        size: Height and width of the images.
    """
    shared: dict[str, Any] = {"model": model, "size": size}
    loops: dict[str, Loop] = {}
    for learner in ("plain", "joint", "first_order", "hessian_free", "maml"):
        loops[f"fit, {learner}"] = partial(attack_step, learner=learner, **shared)
    for learner in ("plain", "first_order", "maml"):
        loops[f"defense, {learner}"] = partial(defense_step, learner=learner, **shared)
    loops["fit of misrank"] = partial(misrank_step, **shared)
    for name in INSTANCE:
        loops[f"instance, {name}"] = partial(instance_attack, name=name, **shared)
    for name in UNIVERSAL:
        loops[f"apply {name}"] = partial(universal_attack, name=name, size=size)
    loops["extraction"] = partial(extraction, **shared)
    return loops
