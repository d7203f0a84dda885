"""Sections of gpu.py: images/s of extraction, steps/s of learners, an epoch, several processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.gpu_setup import (
    Row,
    Setup,
    attack_objective,
    batch_of,
    combinatorial,
    in_turn,
    on,
    seconds_of,
    wait,
)
from benchmarks.hot_loops import random_images, tiny_model
from benchmarks.paper import paper_tables
from reidguard.attacks import MetaAttack
from reidguard.data import ReIDDataset
from reidguard.data.images import to_device
from reidguard.evaluation import extract_features
from reidguard.evaluation.features import to_float
from reidguard.learners import LEARNERS
from reidguard.models import ReIDModel, create_model
from reidguard.nn import inference_view
from reidguard.training import MISGD
from reidguard.types import ReIDSample

Pairs = Iterator[tuple[str, Callable[[], Row]]]
GOAL = 0.95  # images/s of extraction, relative to the bare network
EACH = 8  # images of an identity in a batch, as in the paper
MARKET_IMAGES, BATCH = 12_936, 64  # Market-1501's training images, N_b of Algorithm 1


def drawn_model(name: str) -> ReIDModel:
    """Return a network with random weights on the CPU."""
    kind, _, backbone = name.partition(" ")
    options = {"backbone": backbone} if backbone else {}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return create_model(kind, **options).eval()


def networks(setup: Setup, *names: str) -> dict[str, ReIDModel]:
    """Return networks with random weights on the CPU; in small, one for tests in their place."""
    if setup.small:
        return {"tiny": tiny_model()}
    return {name: drawn_model(name) for name in names}


def drawn_dataset(folder: Path, name: str, identities: int, images: int) -> ReIDDataset:
    """Write JPEG files of 128×64 random pixels, as large as Market-1501's."""
    samples = []
    for number in range(identities * images):
        pixels = random_images(1, (16, 8), number)[0].permute(1, 2, 0)
        path = folder / f"{name}-{number}.jpg"
        # enlarged, so that a file is no larger than one of a photograph
        image = Image.fromarray((255 * pixels).round().to(torch.uint8).numpy())
        image.resize((64, 128), Image.Resampling.BILINEAR).save(path, quality=90)
        samples.append(ReIDSample(path, number // images + 1, number % 2))
    return ReIDDataset(name, samples)


# --- extraction -----------------------------------------------------------------------------------


def extraction(setup: Setup) -> Pairs:
    """Images/s from 8-bit images in memory and from files, beside the network alone."""
    for name, drawn in networks(setup, "osnet_x0_25", "ide resnet50").items():
        model = on(drawn, setup.device)
        for batch in (4,) if setup.small else (64, 256):
            yield f"{name}, batches of {batch}", partial(memory_row, setup, model, batch)
        yield f"{name}, from JPEG files", partial(files_row, setup, model)


def bare(model: ReIDModel, images: torch.Tensor) -> Callable[[], Any]:
    """Return the network's own pass on images that are ready for it."""
    inputs = model.prepare(images)

    def run() -> Any:
        with torch.no_grad():
            return model.embed(inputs)

    return run


def memory_row(setup: Setup, model: ReIDModel, count: int) -> Row:
    pixels = (255 * random_images(count, setup.size)).round().to(torch.uint8)
    device = torch.device(setup.device)
    view = inference_view(model)

    def extract() -> Any:
        with torch.no_grad():
            return view.features(to_float(to_device(pixels, device)))

    functions = {"bare": bare(model, pixels.to(device).float() / 255), "extraction": extract}
    times = in_turn(functions, setup.device, 2 if setup.small else 7, 1 if setup.small else 20)
    return compared(setup, times, count)


def files_row(setup: Setup, model: ReIDModel) -> Row:
    """The public function, with decoding; of fewer processors than it needs, decoding decides."""
    images, count = (8, 4) if setup.small else (2048, 64)
    with tempfile.TemporaryDirectory() as folder:
        samples = drawn_dataset(Path(folder), "files", images, 1).train
        run = bare(model, random_images(count, setup.size).to(setup.device))

        def all_batches() -> None:
            for _ in range(images // count):
                run()

        def extract() -> None:
            extract_features(model, samples, image_size=setup.size, batch_size=count)

        times = in_turn({"bare": all_batches, "extraction": extract}, setup.device, 2)
    return compared(setup, times, images, promised=False)


def compared(setup: Setup, times: dict[str, float], images: int, promised: bool = True) -> Row:
    ratio = times["bare"] / times["extraction"]
    row: Row = {f"{name}, images/s": round(images / s, 1) for name, s in times.items()}
    row["ratio"] = round(ratio, 3)
    if promised and setup.device == "cuda":
        row |= {"goal": GOAL, "ok": ratio >= GOAL}
    return row


# --- steps ----------------------------------------------------------------------------------------


def steps(setup: Setup) -> Pairs:
    """Steps/s of learners; each switch is turned on a basis of channels-last alone."""
    # compiling takes longest, so it comes last
    switches = {
        "channels-last": (False, False, False),
        "contiguous": (True, False, False),
        "bfloat16": (False, True, False),
        "compiled": (False, False, True),
        "bfloat16, compiled": (False, True, True),
    }
    models = networks(setup, "osnet_x1_0", "ide resnet50")
    for title, (contiguous, amp, compiled) in switches.items():
        if setup.small and amp and compiled:
            continue
        for name, model in models.items():
            objective = cache(partial(step_objective, setup, model, contiguous, compiled))
            # torch.compile has no second derivative
            learners = ("plain", "first_order") if compiled else ("plain", "first_order", "maml")
            for learner in learners:
                row = partial(steps_row, setup, objective, learner, amp)
                yield f"{name}, {learner}, {title}", row


def step_objective(setup: Setup, model: ReIDModel, contiguous: bool, compiled: bool) -> Any:
    """Return Eq. 5 on a network in a layout, compiled or not."""
    here = on(model, setup.device)
    if contiguous:
        here.memory_format = torch.contiguous_format
    objective = attack_objective(here)
    view: Any = objective.model
    if compiled:
        backend = "aot_eager" if setup.small else "inductor"
        view.embed = torch.compile(view.embed, backend=backend)
    return objective


def steps_row(setup: Setup, prepared: Callable[[], Any], learner: str, amp: bool) -> Row:
    device, objective = setup.device, prepared()
    attack = on(combinatorial(setup), device)
    optimizer = MISGD(attack.parameters(), lr=0.8 / 255, momentum=0.5)
    made = LEARNERS.create(learner)
    count, each = (8, 2) if setup.small else (BATCH, EACH)
    batches = [batch_of(setup.images(count, seed), each, device) for seed in (1, 2)]

    def loss(module: Any, batch: Any) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            value: torch.Tensor = objective(module, batch)
            return value

    def step() -> Any:
        result = made.step(attack, loss, *batches, optimizer=optimizer)
        optimizer.step()
        attack.clip_parameters()
        return result

    first = seconds_of(step, device)
    if setup.small:
        seconds = seconds_of(step, device)
    else:
        seconds_of(step, device, 3)
        calls = max(3, min(50, round(1 / seconds_of(step, device))))
        seconds = min(seconds_of(step, device, calls) for _ in range(2))
    finite = bool(torch.isfinite(step().train_loss))
    row: Row = {"ok": finite, "steps/s": round(1 / seconds, 2), "first_s": round(first, 2)}
    if device == "cuda":
        row["peak_gib"] = round(peak_memory(step) / 2**30, 2)
    return row


def peak_memory(step: Callable[[], Any]) -> int:
    """Return the bytes of the GPU that are in use at most during a step."""
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


# --- epoch ----------------------------------------------------------------------------------------


def epoch(setup: Setup) -> Pairs:
    """Seconds of an epoch of Table 1's attack: IDE (ResNet-50), combinatorial, batches of 64."""
    table = paper_tables()[19].values
    printed = {v.conditions["meta"]: v.value for v in table if v.conditions["what"] == "attack"}
    for learner, meta in (("plain", False), ("first_order", True), ("maml", True)):
        yield learner, partial(epoch_row, setup, learner, printed[meta])


def epoch_row(setup: Setup, learner: str, printed: float) -> Row:
    """Steps of `fit` on files of random pixels; the first ones, in which it warms up, left out."""
    identities, images, count = (8, 8, 4) if setup.small else (64, 16, 40)
    (model,) = networks(setup, "ide resnet50").values()
    model = on(model, setup.device)
    times: list[float] = []

    def progress(news: Any) -> None:
        if news.phase == "learning":
            times.append(time.perf_counter())

    attack = MetaAttack(learner=learner, size=setup.size).to(setup.device)
    with tempfile.TemporaryDirectory() as folder:
        sets = [drawn_dataset(Path(folder), n, identities, images) for n in ("real", "virtual")]
        given = sets if learner != "plain" else sets[:1]
        began = time.perf_counter()
        attack.fit(model, *given, steps=count, image_size=setup.size, progress=progress)
        wait(setup.device)
        whole = time.perf_counter() - began
    warm = len(times) // 4
    step = (times[-1] - times[warm]) / (len(times) - 1 - warm)
    number = MARKET_IMAGES // BATCH
    return {
        "ok": bool(all(torch.isfinite(p).all() for p in attack.parameters())),
        "step_s": round(step, 4),
        "steps of an epoch of Market-1501": number,
        "epoch_s": round(step * number, 1),
        "the paper's epoch_s (another GPU)": printed,
        "whole fit_s": round(whole, 1),
    }


# --- processes ------------------------------------------------------------------------------------


def processes(setup: Setup) -> Pairs:
    """Two processes compute the gradient of one, over NCCL (gloo on the CPU)."""
    yield "two processes", partial(processes_row, setup)


def processes_row(setup: Setup) -> Row:
    if setup.device == "cuda" and torch.cuda.device_count() < 2:
        return {"note": f"not run: {torch.cuda.device_count()} GPU, two are needed"}
    worker = Path(__file__).with_name("gpu_worker.py")
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    call += [str(worker), setup.device, *(["--small"] * setup.small)]
    done = subprocess.run(
        call, capture_output=True, text=True, timeout=300 if setup.small else 55, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr else "no message")
    return json.loads(done.stdout.strip().splitlines()[-1])
