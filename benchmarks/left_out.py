"""How far do universal attacks reach networks that they never saw? Each network left out in turn.

Run: python benchmarks/left_out.py clean
     python benchmarks/left_out.py development [--recipes pixels …] [--seeds 0 1 2] [--steps 100]
     python benchmarks/left_out.py final --recipes …
Needs REIDGUARD_DATA, REIDGUARD_WEIGHTS with omz/person-reidentification-retail-0031 and -0248, and
REIDGUARD_NETWORKS: a folder with mobilenetv2_100.safetensors (benchmarks/surrogates.py) and, for
``final``, with osnet_x0_5.onnx (Ferdi0412/person_follower@785f249f, learnt on MSMT17) and
person-reidentification-retail-0288.xml and .bin (tienesphus/pedestrian_tracker@0a430a5).
REIDGUARD_CACHE names a folder for clean features.

``development``: an attack is learnt on all networks but one and measured on that one, for each of
four; fixed patterns are measured on it, and as a ceiling the same attack learnt on it alone.
``final``: learnt on all four, measured on two networks that took part in no choice. ε = 8/255, the
8-bit images of every n-th query, against the whole gallery. Rows that results/left_out.json has
already are not measured again.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from common import RESULTS, commit, market, osnet, save
from universality import EIGHT, omz, percents

from reidguard.attacks import CombinatorialAttack, DeltaAttack, UniversalAttack, fixed_patterns
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.models import ReIDModel, load_model, load_onnx, load_openvino

BATCH = {"identities": 8, "images_per_identity": 4}
DEVELOPMENT = ("osnet", "0031", "0248", "mobilenet")
FINAL = ("osnet_x0_5", "0288")
CEILING = "ceiling: "


def blocks(side: int) -> DeltaAttack:
    """δ of squares of ``side`` pixels."""
    return DeltaAttack(EIGHT, basis="blocks", grid=(256 // side, 128 // side))


def with_tint(side: int) -> CombinatorialAttack:
    """The same, and one colour."""
    return CombinatorialAttack(EIGHT, 1, basis="blocks", grid=(256 // side, 128 // side))


# The attack, options of its fit, and whether OSNet alone is the surrogate.
RECIPES = {
    "pixels, one surrogate": (lambda: DeltaAttack(EIGHT), {}, True),
    "blocks of 16, one surrogate": (lambda: blocks(16), {}, True),
    "pixels": (lambda: DeltaAttack(EIGHT), {"ensemble": "gradient"}, False),
    "blocks of 16": (lambda: blocks(16), {"ensemble": "gradient"}, False),
    "blocks of 16, maml over networks": (
        lambda: blocks(16),
        {"ensemble": "left_out", "learner": "maml"},
        False,
    ),
    "blocks of 16, diversity, shift": (
        lambda: blocks(16),
        {"ensemble": "gradient", "diversity": 0.7, "shift": 8},
        False,
    ),
    "blocks of 8": (lambda: blocks(8), {"ensemble": "gradient"}, False),
    "blocks of 4": (lambda: blocks(4), {"ensemble": "gradient"}, False),
    "tint + blocks of 8": (lambda: with_tint(8), {"ensemble": "gradient"}, False),
    "tint + blocks of 8, diversity, shift": (
        lambda: with_tint(8),
        {"ensemble": "gradient", "diversity": 0.7, "shift": 8},
        False,
    ),
    "tint + blocks of 8, admix": (
        lambda: with_tint(8),
        {"ensemble": "gradient", "admix": 0.2},
        False,
    ),
    "tint + blocks of 8, aggregate": (
        lambda: with_tint(8),
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
        want = {"recipe": recipe, "target": target, **own}
        return any(want.items() <= row.items() for row in self.found["rows"])

    def measure(self, attack, target: str, row: dict) -> None:
        every = self.options.query_every
        result = evaluate(network(target), self.data, attack, store=self.store, query_every=every)
        row = {**row, "target": target, "attacked": percents(result.attacked_8bit.ranking)}
        self.found["rows"].append(row | {"commit": commit()})
        print(row, flush=True)
        self.keep()

    def learn(self, recipe: str, surrogates: list[str], seed: int) -> tuple[UniversalAttack, dict]:
        make, options, _ = RECIPES[recipe]
        models = [network(name, differentiable=True) for name in surrogates]
        if len(models) == 1:
            options = {name: value for name, value in options.items() if name != "ensemble"}
        steps, began = self.options.steps, time.process_time()
        attack = make().fit(
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
        known = {"seed": seed, "steps": self.options.steps}
        if self.has(recipe, target, **known):
            return
        name = recipe.removeprefix(CEILING)
        alone = recipe.startswith(CEILING)
        first = next(other for other in others if other != target)
        one = [target] if alone else [first] if RECIPES[name][2] else list(others)
        attack, facts = self.learn(name, one, seed)
        self.measure(attack, target, {"recipe": recipe, **facts})

    def patterns(self, target: str) -> None:
        for name, pattern in fixed_patterns(EIGHT).items():
            if not self.has(name, target):
                self.measure(pattern, target, {"recipe": name, "surrogates": []})


def development(bench: Bench) -> None:
    for target in bench.options.targets or DEVELOPMENT:
        bench.clean(target)
        bench.patterns(target)
        others = tuple(name for name in DEVELOPMENT if name != target)
        for seed in bench.options.seeds:
            for recipe in bench.options.recipes or [*RECIPES, CEILING + "pixels"]:
                bench.row(recipe, target, others, seed)


def final(bench: Bench) -> None:
    for target in FINAL:
        bench.clean(target)
        bench.patterns(target)
    known = {"steps": bench.options.steps}
    for recipe in bench.options.recipes or RECIPES:
        for seed in bench.options.seeds:
            targets = [t for t in FINAL if not bench.has(recipe, t, seed=seed, **known)]
            if not targets:
                continue
            surrogates = ["osnet"] if RECIPES[recipe][2] else list(DEVELOPMENT)
            attack, facts = bench.learn(recipe, surrogates, seed)
            for target in targets:
                bench.measure(attack, target, {"recipe": recipe, **facts})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["clean", "development", "final"])
    every = [*RECIPES, *(CEILING + name for name in RECIPES)]
    parser.add_argument("--recipes", nargs="+", choices=every)
    parser.add_argument("--targets", nargs="+", choices=[*DEVELOPMENT, *FINAL])
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
    else:
        final(bench)


if __name__ == "__main__":
    main()
