"""What learning, ranking and importing cost, as numbers that any machine can compare.

Passes are counted: convolutions of a step, divided by the layers of the network. Times are
processor times relative to something that takes turns with them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.hot_loops import EACH, IDENTITIES, PEOPLE, TINY, random_images, tiny_model
from reidguard.attacks import SMA, CombinatorialAttack, DeltaAttack
from reidguard.data import ReIDDataset
from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.learners import LEARNERS
from reidguard.metrics import rank
from reidguard.models import create_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet, normalized_features
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.training import MISGD
from reidguard.types import ReIDBatch, ReIDSample

ROOT = Path(__file__).parents[1]
NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")


@dataclass(frozen=True)
class Cost:
    """One measured number; less is better.

    Args:
        value: A count, a ratio of medians, or MiB.
        spread: Median distance of the turns' own ratios from theirs; 0 for a count.
        margin: By what fraction a value may exceed its limit, which another machine may have
            measured.
    """

    value: float
    spread: float = 0.0
    margin: float = 0.0


# --- passes -----------------------------------------------------------------------------------


class Convolutions(TorchDispatchMode):
    """Counts the convolutions, forward and backward, that are computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.forward += func is torch.ops.aten.convolution.default
        self.backward += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


def passes_of(run: Callable[[], Any], layers: int) -> dict[str, float]:
    """Return the forward and backward passes of a network with so many convolutions."""
    with Convolutions() as count:
        run()
    return {"forward": count.forward / layers, "backward": count.backward / layers}


def passes() -> dict[str, Cost]:
    """Passes of one step of each learner, of an instance attack, and of an evaluation's images."""
    model = tiny_model(PEOPLE)
    layers = sum(isinstance(part, nn.Conv2d) for part in model.modules())
    found = {
        f"passes, attack step, {name}": passes_of(step, layers)
        for name, step in attack_steps(model, TINY).items()
    }
    for name in NAMES:
        found[f"passes, defense step, {name}"] = passes_of(defense_step(name), layers)
    images = random_images(4, TINY)
    attack = SMA().bind(model)
    found["passes, sma"] = passes_of(lambda: attack(images), layers)
    found["passes, evaluation of 2 queries"] = evaluation_passes(model, layers)
    return {f"{k}, {kind}": Cost(v) for k, row in found.items() for kind, v in row.items()}


def batch(model: Any, size: tuple[int, int], seed: int) -> ReIDBatch:
    images = random_images(IDENTITIES * EACH, size, seed)
    index = torch.arange(len(images))
    with torch.no_grad():
        clean = normalized_features(model, images)
    return ReIDBatch(images, index // EACH, index, index, clean)


def attack_steps(model: Any, size: tuple[int, int]) -> dict[str, Callable[[], None]]:
    """Return a step of each learner on a combinatorial attack."""
    view = inference_view(model)
    train, test = batch(view, size, 0), batch(view, size, 1)
    objective = FeatureObjective(view, MisrankingTriplet())

    def make(name: str) -> Callable[[], None]:
        attack, learner = CombinatorialAttack(size=size), LEARNERS.create(name)
        optimizer = MISGD(attack.parameters(), lr=0.1 * attack.budget.eps, momentum=0.5)

        def step() -> None:
            learner.step(attack, objective, train, test, optimizer=optimizer)
            optimizer.step()
            attack.clip_parameters()

        return step

    return {name: make(name) for name in NAMES}


def defense_step(name: str) -> Callable[[], Any]:
    model = tiny_model(PEOPLE).train()
    index = torch.arange(IDENTITIES * EACH)
    batches = [
        DefenseBatch(
            random_images(len(index), TINY, seed), index // EACH, index, index, domain=domain
        )
        for seed, domain in enumerate(PEOPLE)
    ]
    learner = LEARNERS.create(name, **({} if name in ("plain", "joint") else {"inner": "sgd"}))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    return lambda: learner.step(model, DefenseObjective(), *batches, optimizer=optimizer)


def evaluation_passes(model: Any, layers: int) -> dict[str, float]:
    """One image a batch; less the passes of an evaluation whose clean features are cached."""
    with tempfile.TemporaryDirectory() as name:
        samples = []
        for number in range(4):
            path = Path(name) / f"{number}.png"
            pixels = random_images(1, TINY, number)[0].permute(1, 2, 0) * 255
            Image.fromarray(pixels.round().to(torch.uint8).numpy()).save(path)
            samples.append(ReIDSample(path, number % 2 + 1, number // 2))
        data = ReIDDataset("four", query=samples[:2], gallery=samples[2:])
        options = {"protocol": Protocol(image_size=TINY), "batch_size": 1, "store": FeatureStore()}
        evaluate(model, data, **options)
        return passes_of(lambda: evaluate(model, data, DeltaAttack(size=TINY), **options), layers)


# --- times ------------------------------------------------------------------------------------


def in_turn(functions: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Return processor seconds of each function in each turn, after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            began = time.process_time()
            function()
            if turn:
                times[name].append(time.process_time() - began)
    return times


def ratio(over: list[float], under: list[float], margin: float) -> Cost:
    """Return the ratio of two medians, and how far the turns' own ratios are from it."""
    value = statistics.median(over) / statistics.median(under)
    apart = [abs(a / b - value) for a, b in zip(over, under, strict=True)]
    return Cost(value, statistics.median(apart), margin)


def learning(turns: int) -> dict[str, Cost]:
    """Times of a step relative to the plain one, on OSNet x0.25."""
    size = (128, 64)
    model = create_model("osnet_x0_25")
    model.input_spec = type(model.input_spec)(size=size)
    times = in_turn(attack_steps(model.eval(), size), turns)
    return {
        f"time, {name} / plain": ratio(times[name], times["plain"], 0.3)
        for name in NAMES
        if name != "plain"
    }


def ranking_case(queries: int, gallery: int, width: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return features of identities with a centre each, as those of a model that works."""
    g = torch.Generator().manual_seed(0)
    labels = {
        "query_pids": torch.randint(1, 751, (queries,), generator=g),
        "query_camids": torch.randint(0, 6, (queries,), generator=g),
        "gallery_pids": torch.randint(0, 751, (gallery,), generator=g),
        "gallery_camids": torch.randint(0, 6, (gallery,), generator=g),
    }
    centres = torch.randn(751, width, generator=g)
    noise = torch.randn(queries + gallery, width, generator=g).split([queries, gallery])
    query, others = (
        centres[labels[f"{side}_pids"]] + 3 * part
        for side, part in zip(("query", "gallery"), noise, strict=True)
    )
    return query, others, labels


def ranking(turns: int) -> dict[str, Cost]:
    """Time of a ranking relative to the product of its features."""
    query, gallery, labels = ranking_case(1024, 16_384, 512)
    functions = {
        "product": lambda: query @ gallery.T,
        "rank": lambda: rank(query, gallery, **labels),
    }
    times = in_turn(functions, turns)
    return {"time, ranking / product": ratio(times["rank"], times["product"], 0.5)}


def memory() -> float:
    """Return MiB that a ranking adds to the peak of this process; to be called in a new one."""
    query, gallery, labels = ranking_case(1024, 32_768, 512)
    rank(
        query[:64],
        gallery[:4096],
        **{  # starts the libraries, which need memory of their own
            name: values[: 64 if "query" in name else 4096] for name, values in labels.items()
        },
    )
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak so far is forgotten
    before = _peak()
    rank(query, gallery, **labels)
    return (_peak() - before) / 1024


def _peak() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0])


def _python(code: str) -> str:
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip().splitlines()[-1]


def ranking_memory() -> dict[str, Cost]:
    """Linux only, where the system tells a process its peak."""
    if not sys.platform.startswith("linux"):
        return {}
    code = "import torch; torch.set_num_threads(1); from benchmarks.costs import memory"
    values = [float(_python(f"{code}; print(memory())")) for _ in range(3)]
    value = statistics.median(values)
    spread = statistics.median(abs(v - value) for v in values)
    return {"memory, ranking, MiB": Cost(value, spread, 0.3)}


IMPORTS = {
    "torch and timm": "import torch, timm",
    "from reidguard import MetaAttack": "from reidguard import MetaAttack",
    "import reidguard": "import reidguard",
}


def imports(turns: int) -> dict[str, Cost]:
    """Processor time of imports, each in a process of its own, relative to torch and timm."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(turns + 1):
        for name, code in IMPORTS.items():
            seconds = float(_python(f"{code}; import time; print(time.process_time())"))
            if turn:  # the first one reads the files
                times[name].append(seconds)
    base = times["torch and timm"]
    return {
        f"time, {name} / torch and timm": ratio(times[name], base, 0.3)
        for name in IMPORTS
        if name != "torch and timm"
    }


def all_costs() -> dict[str, Cost]:
    """Measure everything, with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of other processes
    torch.set_num_threads(1)
    return {
        **passes(),
        **learning(turns=7),
        **ranking(turns=9),
        **ranking_memory(),
        **imports(turns=3),
    }
