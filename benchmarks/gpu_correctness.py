"""Sections of gpu.py: results equal those of the CPU, and hot loops never wait for the GPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_setup import (
    Row,
    Setup,
    attack_objective,
    batch_of,
    combinatorial,
    on,
    started,
)
from benchmarks.hot_loops import EACH, hot_loops
from benchmarks.syncs import HostWatch, waits_of
from reidguard.attacks import ATTACKS, ColorAttack, DeltaAttack, Guides, InstanceAttack, MetaAttack
from reidguard.data.images import to_device
from reidguard.evaluation.features import to_float
from reidguard.learners import LEARNERS
from reidguard.metrics import rank
from reidguard.nn import inference_view
from reidguard.nn.derivatives import Replaced
from reidguard.objectives.defense import DefenseBatch, DefenseObjective
from reidguard.training import MISGD

Pairs = Iterator[tuple[str, Callable[[], Row]]]
DOUBLE, FLOAT, HALF, BRAIN = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (DOUBLE, FLOAT, HALF, BRAIN)
# Largest difference of a pixel from the CPU's. Half precision is rounded from float32, and then
# perhaps one step inwards: two units in the last place.
PIXEL = {DOUBLE: 1e-9, FLOAT: 1e-5, HALF: 2.0**-10, BRAIN: 2.0**-7}
# An instance attack steps by the sign of a gradient, which rounding may turn where it is nearly
# zero: the fraction of pixels that may differ by more.
TURNED = {DOUBLE: 1e-3, FLOAT: 0.02, HALF: 0.02, BRAIN: 0.02}
# Largest difference of a gradient, relative to its norm; None records it alone. In float32 on the
# CPU an attack's gradient is within 4e-4 of that in float64 (OSNet x0.25, 64x32 images); that of a
# model that trains is up to 0.6 away, as rounding exchanges the hardest positives and negatives.
GRADIENT = {DOUBLE: 1e-8, FLOAT: 4e-3}
MODEL_GRADIENT = {DOUBLE: 1e-6, FLOAT: None}
# A finite difference divides rounding errors by a small number.
FINITE_DIFFERENCE = {DOUBLE: 1e-6, FLOAT: 2e-2}


@contextmanager
def exact_products() -> Iterator[None]:
    """Compute float32 convolutions and products of matrices in float32, without TF32."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


def correctness(setup: Setup) -> Pairs:
    """All attacks, gradients and rankings against the CPU, and the same twice."""
    for name in ATTACKS.list():
        if ATTACKS.get(name).__module__.startswith("reidguard."):
            yield f"attack {name}", partial(attack_row, setup, name)
    for name in LEARNERS.list():
        if LEARNERS.get(name).__module__.startswith("reidguard."):
            yield f"gradient of an attack, {name}", partial(gradient_row, setup, name, False)
            yield f"gradient of a model, {name}", partial(gradient_row, setup, name, True)
    for metric in ("euclidean", "cosine"):
        yield f"ranking, {metric}", partial(ranking_row, setup, metric)
    for name, function in repeated(setup).items():
        yield f"the same twice, {name}", partial(determinism_row, function)


# --- attacks ------------------------------------------------------------------------------------


def make_attack(setup: Setup, name: str) -> Any:
    """Return an attack on the CPU with random parameters, some of them outside of its bounds."""
    known = inspect.signature(ATTACKS.get(name)).parameters
    options: dict[str, Any] = {}
    if "size" in known or name == "meta":
        options["size"] = setup.size
    if "steps" in known:
        options["steps"] = 3
    if name == "misrank":
        return ATTACKS.create(name, **options, width=4).eval()
    attack = ATTACKS.create(name, **options)
    return started(attack, 2 * attack.budget.eps, setup.seed)


def applied(
    setup: Setup, attack: Any, device: str, dtype: torch.dtype, x: Tensor
) -> tuple[Tensor, Any]:
    """Return adversarial images of x, computed on a device, and the attack there."""
    if not isinstance(attack, InstanceAttack):
        # Parameters stay in float32 or more, as they do for a user.
        wide = torch.promote_types(dtype, FLOAT)
        attack = on(attack, device, wide)
        with torch.no_grad():
            return attack(x.to(device)), attack
    wide = torch.promote_types(dtype, FLOAT)
    model = on(setup.model(), device, wide)
    guides = None
    if attack.needs_guides:
        with torch.no_grad():
            features = inference_view(model).features(x.to(device, wide))
        guides = Guides(features, torch.arange(len(x)) // 2 + 1)
    attack = attack.bind(model, guides)
    return attack(x.to(device)), attack


def attack_row(setup: Setup, name: str) -> Row:
    attack = make_attack(setup, name)
    result: Row = {"ok": True, "difference": {}, "pixels beyond": {}, "outside": {}}
    images = setup.images(4)
    with exact_products():
        for dtype in DTYPES:
            x = images.to(dtype)
            expected, _ = applied(setup, attack, "cpu", dtype, x)
            got, here = applied(setup, attack, setup.device, dtype, x)
            apart = (got.cpu().double() - expected.double()).abs()
            turned = float((apart > PIXEL[dtype]).double().mean())
            allowed = TURNED[dtype] if isinstance(attack, InstanceAttack) else 0.0
            outside = outside_of_budget(here.budget, got, x.to(setup.device))
            key = str(dtype).removeprefix("torch.")
            result["difference"][key] = float(apart.max())
            result["pixels beyond"][key] = turned
            result["outside"][key] = outside
            result["ok"] &= got.dtype == dtype and turned <= allowed and outside <= 1e-6
    return result


def outside_of_budget(budget: Any, x_adv: Tensor, x: Tensor) -> float:
    """Return how far images, and their 8-bit ones, are outside of the ε-ball or of [0, 1]."""
    wide, centre = x_adv.cpu().double(), x.cpu().double()
    pixels = budget.quantize(x_adv, x).cpu().double()
    change = (pixels - (255 * centre).round()).abs().max()
    beyond = torch.stack(
        [
            (wide - centre).abs().max() - budget.eps,
            -wide.min(),
            wide.max() - 1,
            (change - budget.levels) / 255,
            torch.where(wide.isfinite().all(), 0.0, torch.inf).double(),
        ]
    )
    return max(float(beyond.max()), 0.0)


# --- learners -----------------------------------------------------------------------------------


def gradient_of(setup: Setup, name: str, of_model: bool, device: str, dtype: Any) -> Tensor:
    """Return the gradient that a learner leaves in an attack, or in a model that is trained."""
    train, test = (
        batch_of(setup.images(4 * EACH, seed).to(dtype), EACH, device) for seed in (1, 2)
    )
    if of_model:
        module = on(setup.people(), device, dtype).train()
        objective: Any = DefenseObjective()
        train, test = (
            DefenseBatch(**vars(batch), domain=domain, adversarial=EACH)
            for batch, domain in ((train, "real"), (test, "virtual"))
        )
    else:
        module = on(combinatorial(setup), device, dtype)
        objective = attack_objective(on(setup.model(), device, dtype))
    inner = {} if name in ("plain", "joint") else {"inner": "sgd" if of_model else "scaled"}
    if of_model:
        optimizer: Any = torch.optim.SGD(module.parameters(), lr=1e-3)
    else:
        optimizer = MISGD(module.parameters(), lr=0.8 / 255, momentum=0.5)
    # A GPU's dropout draws other numbers.
    with Replaced({F.dropout: lambda x, *args, **kwargs: x}):
        LEARNERS.create(name, **inner).step(module, objective, train, test, optimizer=optimizer)
    grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return torch.cat(grads).cpu().double()


def gradient_row(setup: Setup, name: str, of_model: bool) -> Row:
    limits: Any = FINITE_DIFFERENCE if name == "hessian_free" else GRADIENT
    limits = MODEL_GRADIENT if of_model else limits
    result: Row = {"ok": True, "difference": {}}
    with exact_products():
        for dtype, limit in limits.items():
            expected = gradient_of(setup, name, of_model, "cpu", dtype)
            got = gradient_of(setup, name, of_model, setup.device, dtype)
            apart = float((got - expected).norm() / expected.norm())
            result["difference"][str(dtype).removeprefix("torch.")] = apart
            if limit is not None:
                result["ok"] &= apart <= limit  # False for NaN
    return result


# --- ranking ------------------------------------------------------------------------------------


def ranking_case(setup: Setup, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return features, of which many are at equal distances, and their labels."""
    queries, gallery, width = (40, 300, 32) if setup.small else (512, 5000, 512)
    g = torch.Generator().manual_seed(setup.seed)
    labels = {
        "query_pids": torch.randint(1, 40, (queries,), generator=g),
        "query_camids": torch.randint(0, 3, (queries,), generator=g),
        "gallery_pids": torch.randint(-1, 40, (gallery,), generator=g),
        "gallery_camids": torch.randint(0, 3, (gallery,), generator=g),
    }
    features = torch.randn(queries + gallery, width, generator=g)
    features[queries // 2 :] = (4 * features[queries // 2 :]).round() / 4  # ties
    features[queries + 10 : queries + 50] = features[queries]
    query, others = features.to(dtype).split([queries, gallery])
    return query, others, labels


def ranking_row(setup: Setup, metric: str) -> Row:
    """The ranks of all matches are those of the CPU, to the bit."""
    result: Row = {"ok": True, "mAP": {}}
    for dtype in DTYPES:
        query, gallery, labels = ranking_case(setup, dtype)
        expected = rank(query, gallery, metric=metric, **labels)
        got = rank(query.to(setup.device), gallery.to(setup.device), metric=metric, **labels)
        same = all(
            torch.equal(getattr(got, name), getattr(expected, name))
            for name in ("cmc", "first_match", "skipped")
        )
        for name in ("ap", "inp"):
            a, b = getattr(got, name), getattr(expected, name)
            same &= torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        result["mAP"][str(dtype).removeprefix("torch.")] = got.mAP
        result["ok"] &= same
    return result


# --- determinism --------------------------------------------------------------------------------


def repeated(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """Return functions that compute something from the same seeds, as one tensor."""
    device = setup.device

    def features() -> Tensor:
        view = inference_view(on(setup.model(), device))
        with torch.no_grad():
            return view.features(setup.images(8).to(device))

    def learnt(kind: Any, learner: str) -> Tensor:
        attack = on(started(kind(), 4 / 255, setup.seed), device)
        objective = attack_objective(on(setup.model(), device))
        optimizer = MISGD(attack.parameters(), lr=0.8 / 255, momentum=0.5)
        batches = [batch_of(setup.images(4 * EACH, seed), EACH, device) for seed in (1, 2)]
        for _ in range(3):
            LEARNERS.create(learner).step(attack, objective, *batches, optimizer=optimizer)
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in attack.parameters()])

    def instance(name: str) -> Tensor:
        attack = ATTACKS.create(name, steps=3).bind(on(setup.model(), device))
        return attack(setup.images(4).to(device))

    def meta() -> Tensor:
        attack = on(started(MetaAttack(size=setup.size), 4 / 255, setup.seed), device)
        with torch.no_grad():
            return attack(setup.images(4).to(device))

    def ranks() -> Tensor:
        query, gallery, labels = ranking_case(setup, FLOAT)
        return rank(query.to(device), gallery.to(device), **labels).ap.nan_to_num(-1)

    delta, color = partial(DeltaAttack, size=setup.size), ColorAttack
    return {
        "features": features,
        "ranking": ranks,
        "applying meta": meta,
        "sma": partial(instance, "sma"),
        "square": partial(instance, "square"),
        "three steps of delta, plain": partial(learnt, delta, "plain"),
        "three steps of delta, maml": partial(learnt, delta, "maml"),
        "three steps of color, plain": partial(learnt, color, "plain"),
    }


def determinism_row(function: Callable[[], Tensor]) -> Row:
    """Whether two calls give the same bits: as is, and with deterministic algorithms.

    Only the second is promised, and only where torch has such algorithms: it raises an error for
    the gradient of the colour table (grid_sample).
    """
    as_is = torch.equal(function(), function())
    torch.use_deterministic_algorithms(True)
    try:
        same = torch.equal(function(), function())
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        return {"as is": as_is, "no deterministic algorithm": str(error).split(".")[0]}
    finally:
        torch.use_deterministic_algorithms(False)
    return {"ok": same, "as is": as_is}


# --- waits --------------------------------------------------------------------------------------


def waits(setup: Setup) -> Pairs:
    """Where hot loops wait for the GPU: nowhere. The ranking reads sizes, and is only counted."""
    for name, loop in hot_loops(setup.people(), setup.size).items():
        yield name, partial(waits_row, loop, setup.device)
    yield "ranking (counted)", partial(ranking_waits, setup)
    if setup.device == "cuda":
        yield "copying a batch", partial(preparing_waits, setup)


def waits_row(loop: Any, device: str) -> Row:
    found = waits_of(loop, device)
    return {"ok": not found, **({"waits": found} if found else {})}


def ranking_waits(setup: Setup) -> Row:
    query, gallery, labels = ranking_case(setup, FLOAT)
    query, gallery = query.to(setup.device), gallery.to(setup.device)

    def run(watch: Any) -> None:
        watch.start()
        rank(query, gallery, **labels)
        watch.stop()

    if setup.device == "cpu":
        with HostWatch(real=True) as watch:
            run(watch)
        found = dict(watch.found)
    else:
        found = waits_of(run, setup.device)
    return {"waits": sum(found.values()), "places": dict(list(found.items())[:10])}


def preparing_waits(setup: Setup) -> Row:
    """Copying 8-bit images to a GPU from pinned memory, and making floats of them there."""
    pixels = (255 * setup.images(4)).round().to(torch.uint8)

    def run(watch: Any) -> None:
        watch.start()
        to_float(to_device(pixels, torch.device("cuda")))
        watch.stop()

    return waits_row(run, setup.device)
