"""How far do universal attacks reach networks that they never saw? Each network left out in turn.

Run: python benchmarks/left_out.py clean
     python benchmarks/left_out.py development [--recipes pixels …] [--seeds 0 1 2] [--steps 100]
         [--networks osnet 0031 0248] [--eps 4]
     python benchmarks/left_out.py options [--seeds 0 1 2]
     python benchmarks/left_out.py bound
     python benchmarks/left_out.py final --recipes …
Needs REIDGUARD_DATA, REIDGUARD_WEIGHTS with omz/person-reidentification-retail-0031 and -0248, and
REIDGUARD_NETWORKS: a folder with mobilenetv2_100.safetensors (benchmarks/surrogates.py) and, for
``final``, with osnet_x0_5.onnx (Ferdi0412/person_follower@785f249f, learnt on MSMT17) and
person-reidentification-retail-0288.xml and .bin (tienesphus/pedestrian_tracker@0a430a5).
REIDGUARD_CACHE names a folder for clean features.

``development``: an attack is learnt on all networks but one and measured on that one, for each of
four; fixed patterns are measured on it, and as a ceiling the same attack learnt on it alone.
``options``: each option of `fit` for transfer, alone and together, with blocks learnt on OSNet and
measured on 0031 and 0248.
``bound``: SMA computed for each image on OSNet and on all others, and measured on the one left out.
``final``: learnt on all four, measured on two networks that took part in no choice. ε is 8/255
or --eps, of the 8-bit images of every n-th query, against the whole gallery. Rows that
results/left_out.json has already are not measured again.
"""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path

import torch
from common import RESULTS, commit, market, osnet, save
from universality import omz, percents

from reidguard.attacks import (
    SMA,
    CombinatorialAttack,
    DeltaAttack,
    UniversalAttack,
    fixed_patterns,
)
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.models import EnsembleModel, ReIDModel, load_model, load_onnx, load_openvino
from reidguard.types import Budget

BATCH = {"identities": 8, "images_per_identity": 4}
DEVELOPMENT = ("osnet", "0031", "0248", "mobilenet")
FINAL = ("osnet_x0_5", "0288")
CEILING = "ceiling: "


def pixels() -> partial:
    """δ of pixels."""
    return partial(DeltaAttack)


def blocks(side: int) -> partial:
    """δ of squares of ``side`` pixels."""
    return partial(DeltaAttack, basis="blocks", grid=(256 // side, 128 // side))


def stripes(side: int) -> partial:
    """δ of horizontal stripes of ``side`` pixels."""
    return partial(DeltaAttack, basis="blocks", grid=(256 // side, 1))


def with_tint(side: int) -> partial:
    """The same, and one colour."""
    grid = (256 // side, 128 // side)
    return partial(CombinatorialAttack, resolution=1, basis="blocks", grid=grid)


# Options of `fit` for transfer, alone and together.
OPTIONS = {
    "diversity": {"diversity": 0.7},
    "shift": {"shift": 8},
    "scales": {"scales": 3},
    "admix": {"admix": 0.2},
    "aggregate": {"aggregate": 4},
    "nesterov": {"nesterov": True},
    "skip gradient": {"skip_gradient": 0.5},
    "linear backward": {"linear_backward": 0.3},
    "ghost": {"ghost": 0.2},
    "dispersion": {"objective": "dispersion"},
    "FIA": {"objective": "fia"},
    "NAA": {"objective": "naa"},
    "skip gradient, ghost, diversity": {"skip_gradient": 0.5, "ghost": 0.2, "diversity": 0.7},
}

# The attack without its budget, options of its fit, and whether OSNet alone is the surrogate.
RECIPES = {
    "pixels, one surrogate": (pixels(), {}, True),
    "blocks of 16, one surrogate": (blocks(16), {}, True),
    **{
        f"blocks of 16, one surrogate, {name}": (blocks(16), options, True)
        for name, options in OPTIONS.items()
    },
    "stripes of 8, one surrogate": (stripes(8), {}, True),
    "stripes of 8": (stripes(8), {"ensemble": "gradient"}, False),
    "pixels": (pixels(), {"ensemble": "gradient"}, False),
    "blocks of 16": (blocks(16), {"ensemble": "gradient"}, False),
    "blocks of 16, maml over networks": (
        blocks(16),
        {"ensemble": "left_out", "learner": "maml"},
        False,
    ),
    "blocks of 16, diversity, shift": (
        blocks(16),
        {"ensemble": "gradient", "diversity": 0.7, "shift": 8},
        False,
    ),
    "blocks of 8": (blocks(8), {"ensemble": "gradient"}, False),
    "blocks of 4": (blocks(4), {"ensemble": "gradient"}, False),
    "tint + blocks of 8": (with_tint(8), {"ensemble": "gradient"}, False),
    "tint + blocks of 8, diversity, shift": (
        with_tint(8),
        {"ensemble": "gradient", "diversity": 0.7, "shift": 8},
        False,
    ),
    "tint + blocks of 8, admix": (
        with_tint(8),
        {"ensemble": "gradient", "admix": 0.2},
        False,
    ),
    "tint + blocks of 8, aggregate": (
        with_tint(8),
        {"ensemble": "gradient", "aggregate": 4},
        False,
    ),
}


def network(name: str, *, differentiable: bool = False) -> ReIDModel:
    folder = Path(os.environ.get("REIDGUARD_NETWORKS", "."))
    if name == "osnet":
        return osnet()
    if name == "mobilenet":
        return load_model(folder / "mobilenetv2_100.safetensors").eval()
    if name == "osnet_x0_5":
        return load_onnx(folder / "osnet_x0_5.onnx")
    if name == "0288":
        spec = omz("0248").input_spec
        return load_openvino(folder / "person-reidentification-retail-0288.xml", input_spec=spec)
    return omz(name, differentiable=differentiable)


class Bench:
    """Rows of results/left_out.json: measured once."""

    def __init__(self, options, data) -> None:
        self.options, self.data = options, data
        self.budget = Budget(options.eps / 255)
        # ε stands in a row where it is not 8.
        self.own = {} if options.eps == 8 else {"eps": options.eps}
        self.store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
        path = RESULTS / "left_out.json"
        self.found = json.loads(path.read_text("utf-8")) if path.exists() else {}
        self.found.setdefault("clean", {})
        self.found.setdefault("rows", [])
        self.found["setting"] = {"query_every": options.query_every, "batch": BATCH, "eps": 8}

    def keep(self) -> None:
        save(
            "left_out", {name: self.found[name] for name in ("setting", "clean", "rows")}, self.data
        )

    def clean(self, name: str) -> None:
        if name in self.found["clean"]:
            return
        began = time.process_time()
        every = self.options.query_every
        result = evaluate(network(name), self.data, store=self.store, query_every=every)
        self.found["clean"][name] = percents(result.clean)
        seconds = round(time.process_time() - began)
        print(name, "clean", self.found["clean"][name], seconds, "processor seconds", flush=True)
        self.keep()

    def has(self, recipe: str, target: str, **own) -> bool:
        want = {"recipe": recipe, "target": target, "eps": self.options.eps, **own}
        rows = ({"eps": 8, **row} for row in self.found["rows"])
        return any(all(row.get(k) == v for k, v in want.items()) for row in rows)

    def measure(self, attack, target: str, row: dict) -> None:
        every = self.options.query_every
        result = evaluate(network(target), self.data, attack, store=self.store, query_every=every)
        row = {
            **row,
            **self.own,
            "target": target,
            "attacked": percents(result.attacked_8bit.ranking),
        }
        self.found["rows"].append(row | {"commit": commit()})
        print(row, flush=True)
        self.keep()

    def learn(self, recipe: str, surrogates: list[str], seed: int) -> tuple[UniversalAttack, dict]:
        make, options, _ = RECIPES[recipe]
        models = [network(name, differentiable=True) for name in surrogates]
        if len(models) == 1:
            options = {name: value for name, value in options.items() if name != "ensemble"}
        steps, began = self.options.steps, time.process_time()
        attack = make(self.budget).fit(
            models if len(models) > 1 else models[0],
            self.data,
            steps=steps,
            seed=seed,
            **BATCH,
            **options,
        )
        seconds = round(time.process_time() - began)
        own = {"surrogates": surrogates, "steps": steps, "seed": seed}
        return attack, {**own, "processor_seconds_of_learning": seconds}

    def row(self, recipe: str, target: str, others: tuple[str, ...], seed: int) -> None:
        name = recipe.removeprefix(CEILING)
        alone = recipe.startswith(CEILING)
        one = [target] if alone else [others[0]] if RECIPES[name][2] else list(others)
        known = {"seed": seed, "steps": self.options.steps, "surrogates": one}
        if self.has(recipe, target, **known):
            return
        attack, facts = self.learn(name, one, seed)
        self.measure(attack, target, {"recipe": recipe, **facts})

    def patterns(self, target: str) -> None:
        for name, pattern in fixed_patterns(self.budget).items():
            if not self.has(name, target):
                self.measure(pattern, target, {"recipe": name, "surrogates": []})


def development(bench: Bench) -> None:
    networks = bench.options.networks
    for target in bench.options.targets or networks:
        bench.clean(target)
        bench.patterns(target)
        others = tuple(name for name in networks if name != target)
        for seed in bench.options.seeds:
            for recipe in bench.options.recipes or [*RECIPES, CEILING + "pixels"]:
                bench.row(recipe, target, others, seed)


def alone_and_together(bench: Bench) -> None:
    """Every option with blocks learnt on OSNet, once for both targets."""
    base = "blocks of 16, one surrogate"
    for seed in bench.options.seeds:
        for recipe in [base, *(f"{base}, {name}" for name in OPTIONS)]:
            learn_once(bench, recipe, ["osnet"], seed, ("0031", "0248"))


def learn_once(bench: Bench, recipe: str, surrogates: list[str], seed: int, targets) -> None:
    """Learn an attack and measure it on those targets that have no row of it."""
    known = {"seed": seed, "steps": bench.options.steps, "surrogates": surrogates}
    missing = [target for target in targets if not bench.has(recipe, target, **known)]
    if missing:
        attack, facts = bench.learn(recipe, surrogates, seed)
        for target in missing:
            bench.measure(attack, target, {"recipe": recipe, **facts})


def bound(bench: Bench) -> None:
    """Attacks computed for each image on other networks than the target, FINAL ones too."""
    networks, steps = bench.options.networks, bench.options.steps
    for target in bench.options.targets or (*networks, *FINAL):
        others = [name for name in networks if name != target]
        for surrogates in (others[:1], others):
            facts = {"surrogates": surrogates, "steps": steps}
            if bench.has("SMA, for each image", target, **facts):
                continue
            bench.clean(target)
            ensemble = EnsembleModel([network(name, differentiable=True) for name in surrogates])
            attack = SMA(bench.budget, steps=steps).bind(ensemble)
            bench.measure(attack, target, {"recipe": "SMA, for each image", **facts})


def final(bench: Bench) -> None:
    for target in FINAL:
        bench.clean(target)
        bench.patterns(target)
    for recipe in bench.options.recipes or RECIPES:
        surrogates = ["osnet"] if RECIPES[recipe][2] else list(bench.options.networks)
        for seed in bench.options.seeds:
            learn_once(bench, recipe, surrogates, seed, FINAL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["clean", "development", "options", "bound", "final"])
    every = [*RECIPES, *(CEILING + name for name in RECIPES)]
    parser.add_argument("--recipes", nargs="+", choices=every)
    parser.add_argument("--targets", nargs="+", choices=[*DEVELOPMENT, *FINAL])
    parser.add_argument("--networks", nargs="+", choices=DEVELOPMENT, default=DEVELOPMENT)
    parser.add_argument("--eps", type=int, default=8, help="in 255ths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--query-every", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options, market())
    if options.what == "clean":
        for name in options.targets or (*DEVELOPMENT, *FINAL):
            bench.clean(name)
    elif options.what == "development":
        development(bench)
    elif options.what == "options":
        alone_and_together(bench)
    elif options.what == "bound":
        bound(bench)
    else:
        final(bench)


if __name__ == "__main__":
    main()
