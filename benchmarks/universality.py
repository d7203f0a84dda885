"""Do universal attacks reach other networks? Fixed patterns, bases of δ, surrogates.

Run: python benchmarks/universality.py networks
     python benchmarks/universality.py attacks [--steps 60] [--query-every 16] [--only blocks ...]
     python benchmarks/universality.py queries [--target 0031] [--feedback features] [--most 51200]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS with omz/person-reidentification-retail-0031 and -0248
(Open Model Zoo, Apache-2.0), and for rows with three networks surrogates/ with what
benchmarks/surrogates.py trains; REIDGUARD_CACHE names a folder for clean features.

``networks`` measures both networks on the full Market-1501 protocol, beside what is published.
``attacks`` measures the fixed patterns and attacks learnt on OSNet x0.25 (or other networks) by
steps of 8 people × 4 images, ε = 8/255, on the 8-bit images of every n-th query, against the whole
gallery. After a row's name, options of ``fit`` for transfer: ``--only "blocks + admix + scales"``
(OPTIONS has their values). A network that is among a row's surrogates shows no transfer. Rows that
results/universality.json has already are not measured again. ``queries`` runs ``universal_square``
on a network that it sees as a black box, and measures what it has found after 0, 1,600, 3,200 …
adversarial images, on that network and on the others.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from common import RESULTS, commit, market, osnet, save

from reidguard.attacks import (
    Attack,
    ColorAttack,
    CombinatorialAttack,
    DeltaAttack,
    UniversalSquare,
    fixed_patterns,
)
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.models import ReIDModel, load_model, load_openvino
from reidguard.types import Budget, InputSpec

EIGHT = Budget(8 / 255)
BATCH = {"identities": 8, "images_per_identity": 4}
PUBLISHED = {"0031": (61.8, 77.9), "0248": (55.6, 84.3)}  # mAP, rank-1
SIZES = {"0031": (96, 48), "0248": (256, 128)}

# Options of fit, by the name that follows a row's, as in "blocks + admix + shift".
OPTIONS = {
    "diversity": {"diversity": 0.7},
    "shift": {"shift": 8},
    "scales": {"scales": 3},
    "admix": {"admix": 0.2},
    "nesterov": {"nesterov": True},
    "aggregate": {"aggregate": 4, "images_per_identity": 16},  # four batches in a step
    "skip gradient": {"skip_gradient": 0.5},
    "linear backward": {"linear_backward": 0.5},
    "ghost networks": {"ghost": 0.2},
    "dispersion": {"objective": "dispersion"},
    "fia": {"objective": "fia"},
    "naa": {"objective": "naa"},
    "mean loss": {"ensemble": "loss"},
    "joint over networks": {"ensemble": "left_out", "learner": "joint"},
    "first_order over networks": {"ensemble": "left_out", "learner": "first_order"},
    "maml over networks": {"ensemble": "left_out", "learner": "maml"},
}

# The attack, and the networks that it is learnt on.
LEARNT = {
    "pixels": (lambda: DeltaAttack(EIGHT), ("osnet",)),
    "blocks": (lambda: DeltaAttack(EIGHT, basis="blocks"), ("osnet",)),
    "bilinear": (lambda: DeltaAttack(EIGHT, basis="bilinear"), ("osnet",)),
    "dct": (lambda: DeltaAttack(EIGHT, basis="dct"), ("osnet",)),
    "colour, 25 nodes": (lambda: ColorAttack(EIGHT), ("osnet",)),
    "colour, 1 node": (lambda: ColorAttack(EIGHT, 1), ("osnet",)),
    "colour, 1 node + blocks": (lambda: CombinatorialAttack(EIGHT, 1, basis="blocks"), ("osnet",)),
    "pixels, learnt on 0031": (lambda: DeltaAttack(EIGHT), ("0031",)),
    "blocks, learnt on OSNet and 0031": (
        lambda: DeltaAttack(EIGHT, basis="blocks"),
        ("osnet", "0031"),
    ),
    "blocks, learnt on three networks": (
        lambda: DeltaAttack(EIGHT, basis="blocks"),
        ("osnet", "mobilenetv2_100", "tf_efficientnet_lite0"),
    ),
}


def parse(name: str) -> tuple[str, dict]:
    """The row of LEARNT that a name starts with, and the options of fit that it ends with."""
    words = name.split(" + ")
    for end in range(len(words), 0, -1):  # a name of LEARNT may have a + itself
        base, chosen = " + ".join(words[:end]), words[end:]
        if base in LEARNT and {*chosen} <= {*OPTIONS}:
            return base, {k: v for word in chosen for k, v in OPTIONS[word].items()}
    known = ", ".join([*fixed_patterns(), *LEARNT])
    raise argparse.ArgumentTypeError(
        f"rows are {known}; after a learnt one + {', + '.join(OPTIONS)}"
    )


def row_name(name: str) -> str:
    """A name of --only, if there is such a row."""
    if name not in fixed_patterns():
        parse(name)
    return name


def omz(name: str, **options) -> ReIDModel:
    """An Open Model Zoo network, which takes BGR images of 0 to 255."""
    raw = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    spec = InputSpec(size=SIZES[name], channels="bgr", value_range=255, **raw)
    folder = Path(os.environ["REIDGUARD_WEIGHTS"]) / "omz"
    file = folder / f"person-reidentification-retail-{name}.xml"
    return load_openvino(file, input_spec=spec, **options)


def surrogate(name: str) -> ReIDModel:
    if name == "osnet":
        return osnet()
    if name in SIZES:
        return omz(name, differentiable=True)
    return load_model(Path(os.environ["REIDGUARD_WEIGHTS"]) / "surrogates" / f"{name}.safetensors")


def percents(ranking) -> list[float]:
    return [round(100 * ranking.mAP, 2), round(100 * ranking.rank_k(1), 2)]


def results() -> dict:
    path = RESULTS / "universality.json"
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    return {"networks": {}, "rows": []}


def keep(found: dict, data) -> None:
    names = ("networks", "clean", "setting", "rows", "queries")
    save("universality", {name: found[name] for name in names if name in found}, data)


def measure_networks(data, store: FeatureStore) -> None:
    found = results()
    for name, published in PUBLISHED.items():
        began = time.process_time()
        clean = evaluate(omz(name), data, store=store).clean
        found["networks"][name] = {
            "measured": percents(clean),
            "published": list(published),
            "processor_seconds": round(time.process_time() - began),
        }
        print(name, found["networks"][name], flush=True)
        keep(found, data)


def learn(name: str, steps: int, data) -> tuple[Attack, tuple[str, ...], float]:
    if name in (patterns := fixed_patterns(EIGHT)):
        return patterns[name], (), 0.0
    base, options = parse(name)
    make, surrogates = LEARNT[base]
    model = [surrogate(network) for network in surrogates]
    began = time.process_time()
    options = {**BATCH, "steps": steps, **options}
    attack = make().fit(model if len(model) > 1 else model[0], data, **options)
    return attack, surrogates, time.process_time() - began


def measure_attacks(options, data, store: FeatureStore) -> None:
    found = results()
    targets = {"osnet": osnet(), **{name: omz(name) for name in PUBLISHED}}
    every = options.query_every
    found["clean"] = {
        name: percents(evaluate(model, data, store=store, query_every=every).clean)
        for name, model in targets.items()
    }
    found["setting"] = {"steps": options.steps, "query_every": every, "batch": BATCH, "eps": 8}
    print("clean", found["clean"], flush=True)
    done = {(row["attack"], row["steps"]) for row in found["rows"]}
    for name in options.only or [*fixed_patterns(), *LEARNT]:
        if (name, options.steps) in done:
            continue
        attack, surrogates, seconds = learn(name, options.steps, data)
        if options.keep and surrogates:
            options.keep.mkdir(parents=True, exist_ok=True)
            attack.save(options.keep / f"{name.replace(' ', '-')}.safetensors")
        row = {"attack": name, "steps": options.steps, "surrogates": list(surrogates)}
        for target, model in targets.items():
            result = evaluate(model, data, attack, store=store, query_every=every)
            row[target] = percents(result.attacked_8bit.ranking)
        row |= {"commit": commit(), "processor_seconds_of_learning": round(seconds)}
        found["rows"].append(row)
        print(row, flush=True)
        keep(found, data)


def measure_queries(options, data, store: FeatureStore) -> None:
    found = results()
    targets = {"osnet": osnet(), **{name: omz(name) for name in PUBLISHED}}
    every, batch = options.query_every, 2 * BATCH["identities"] * BATCH["images_per_identity"]
    attack = UniversalSquare(EIGHT, feedback=options.feedback, queries=options.most)
    states = {0: attack.delta.detach().clone()}
    budgets = {1600 * 2**n for n in range(20) if 1600 * 2**n < options.most} | {options.most}

    def look(progress) -> None:
        if progress.done * batch in budgets and progress.metrics:
            states[progress.done * batch] = attack.delta.detach().clone()

    began = time.process_time()
    attack.fit(targets[options.target], data, progress=look, seed=options.seed, **BATCH)
    curve = []
    for queries, delta in states.items():
        attack.delta.data.copy_(delta)
        point = {"queries": queries}
        for target, model in targets.items():
            result = evaluate(model, data, attack, store=store, query_every=every)
            point[target] = percents(result.attacked_8bit.ranking)
        print(options.target, options.feedback, point, flush=True)
        curve.append(point)
    run = {
        "target": options.target,
        "feedback": options.feedback,
        "seed": options.seed,
        "query_every": every,
        "curve": curve,
        "commit": commit(),
        "processor_seconds": round(time.process_time() - began),
    }
    found["queries"] = [*found.get("queries", []), run]
    keep(found, data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["networks", "attacks", "queries"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--query-every", type=int, default=16)
    parser.add_argument("--only", nargs="+", type=row_name, help='rows, such as "blocks + admix"')
    parser.add_argument("--keep", type=Path, help="folder for learnt attacks")
    parser.add_argument("--target", default="0031", choices=["osnet", *PUBLISHED])
    parser.add_argument("--feedback", default="features", help="features, scores or ranks")
    parser.add_argument("--most", type=int, default=51_200, help="queries of universal_square")
    parser.add_argument("--seed", type=int, default=0, help="of universal_square")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data, store = market(), FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    if options.what == "networks":
        measure_networks(data, store)
    elif options.what == "queries":
        measure_queries(options, data, store)
    else:
        measure_attacks(options, data, store)


if __name__ == "__main__":
    main()
