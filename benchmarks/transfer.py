"""What makes a universal perturbation hurt a network unlike its source?

Run: python benchmarks/transfer.py --surrogate FILE --target NAME=FILE[@DATA] ... [--seeds 0]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. Delta attacks on OSNet x0.25 and Market-1501, all with
100 steps of 8 people × 4 images and ε = 8/255, differ in one thing each; they are measured on the
source and on models of other families, trained by `reidguard train`, that no attack saw (--target,
as in meta.py). --surrogate is one more model, which only the ensemble learns on. Rows that
results/transfer.json has already are not run again.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from attacks import BATCH, EIGHT, STEPS
from common import RESULTS, commit, market, osnet, save
from meta import attacked
from torch import Tensor

from reidguard.attacks import DeltaAttack
from reidguard.data import join_datasets, load_dataset
from reidguard.evaluation import FeatureStore
from reidguard.models import EnsembleModel, ReIDModel, load_model
from reidguard.objectives import (
    AttackLoss,
    MisrankingTriplet,
    SelfMetricLoss,
)
from reidguard.types import InputSpec

ONE, MIX = ("plaza",), ("plaza", "station", "mall")
SHRUNK = 0.7  # share of images that the network sees smaller and elsewhere


class Layers(ReIDModel):
    """Features from inside a network: the means of the maps of some layers, each of length 1."""

    def __init__(self, model: ReIDModel, names: Sequence[str]) -> None:
        nothing = InputSpec(size=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        super().__init__(input_spec=nothing, metric="cosine")
        self.model = model
        self.maps: list[Tensor] = []
        for name in names:
            model.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module, inputs, output: Tensor) -> None:
        self.maps.append(output)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def embed(self, inputs: Tensor) -> Tensor:
        self.maps.clear()
        self.model.features(inputs)
        return torch.cat([F.normalize(m.mean((2, 3))) for m in self.maps], 1)


@dataclass
class Variant:
    """What differs from a plain delta attack."""

    model: Callable[[ReIDModel, ReIDModel], ReIDModel] = lambda source, second: source
    loss: Callable[[], AttackLoss] = MisrankingTriplet
    diversity: float = 0.0
    learner: str = "plain"
    domains: tuple[str, ...] = ()


def both(source, second) -> EnsembleModel:
    return EnsembleModel([source, second])


VARIANTS = {
    "plain": Variant(),
    "self-supervised loss": Variant(loss=SelfMetricLoss),
    "input diversity": Variant(diversity=SHRUNK),
    "intermediate features": Variant(model=lambda *_: Layers(osnet(), ("conv3", "conv4"))),
    "two surrogates": Variant(model=both),
    "two surrogates, input diversity": Variant(model=both, diversity=SHRUNK),
    "one virtual domain": Variant(learner="joint", domains=ONE),
    "three virtual domains": Variant(learner="joint", domains=MIX),
    "three virtual domains, meta": Variant(learner="first_order", domains=MIX),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--surrogate", required=True, help="a second model, for the ensemble")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=FILE[@DATA]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "transfer.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    model, dataset = osnet(), market()
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    targets = attacked(model, dataset, options.target, options.query_every)
    clean = {name: target.clean(store) for name, target in targets.items()}
    print("clean", clean, flush=True)
    setting = f"delta on OSNet x0.25, Market-1501, {STEPS} steps of {BATCH}, ε = 8/255"
    second = load_model(options.surrogate)
    sets = {name: load_dataset(f"virtual:{name}") for name in MIX}
    for seed in options.seeds:
        for name in options.only:
            if any((r["variant"], r["seed"]) == (name, seed) for r in rows):
                continue
            how, attack, began = VARIANTS[name], DeltaAttack(EIGHT), time.process_time()
            other = {domain: sets[domain] for domain in how.domains}
            attack.fit(
                how.model(model, second),
                dataset,
                join_datasets(other, splits=("train",)) if other else None,
                learner=how.learner,
                objective=how.loss(),
                diversity=how.diversity,
                steps=STEPS,
                seed=seed,
                **BATCH,
            )
            seconds = (time.process_time() - began) / STEPS
            row = {
                "variant": name,
                "seed": seed,
                "commit": commit(),
                "processor_seconds_per_step": round(seconds, 3),
                "measured": {n: target.under(attack, store) for n, target in targets.items()},
            }
            rows.append(row)
            told = {n: (m["float"]["mAP"], m["float"]["rank1"]) for n, m in row["measured"].items()}
            print(name, seed, told, flush=True)
            save("transfer", {"setting": setting, "clean": clean, "rows": rows}, dataset)


if __name__ == "__main__":
    main()
