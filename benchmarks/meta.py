"""Meta-learning on real data: every learner with every family, Market-1501 with virtual people.

Run: python benchmarks/meta.py --keep DIR [--seeds 0] [--query-every 8] [--only delta ...]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. The source is OSNet x0.25 on Market-1501, meta-test is
virtual:plaza, 100 outer steps of 32 + 32 images. Learnt attacks are kept in DIR. Models given with
--target NAME=FILE (saved by reidguard) are attacked by transfer on Market-1501, those given with
--target NAME=FILE@DATASET on another, as in campus=FILE@virtual:campus. Rows that results/meta.json
has already are not run again.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from attacks import BATCH, EIGHT, STEPS, shares
from common import RESULTS, commit, market, mean_and_spread, osnet, save

from reidguard.attacks import ColorAttack, CombinatorialAttack, DeltaAttack, load_attack
from reidguard.data import BatchLoader, ReIDDataset, load_dataset
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.learners import LEARNERS, PlainLearner
from reidguard.models import ReIDModel, load_model
from reidguard.nn import inference_view
from reidguard.objectives import FeatureObjective, MisrankingTriplet
from reidguard.training import MISGD

FAMILIES = {"delta": DeltaAttack, "color": ColorAttack, "combinatorial": CombinatorialAttack}
NAMES = ("plain", "joint", "first_order", "hessian_free", "maml")


def cosines(model, first, second, family: str, pairs: int = 5) -> dict:
    """Mean cosine of each learner's gradient, and of its second-order term, to maml's."""
    loaders = [BatchLoader(d, image_size=(256, 128), seed=7, **BATCH) for d in (first, second)]
    attack = FAMILIES[family](EIGHT)
    objective = FeatureObjective(inference_view(model), MisrankingTriplet())
    optimizer = MISGD(attack.parameters(), EIGHT.eps / 10, 0.5)
    learners = {name: LEARNERS.create(name) for name in NAMES}
    learners["hessian_free, difference 1"] = LEARNERS.create("hessian_free", difference=1.0)
    found = {name: [] for name in learners if name != "maml"}
    terms = {name: [] for name in found if name.startswith("hessian_free")}
    for step, (a, b) in enumerate(zip(*(loader.epoch(0) for loader in loaders), strict=False)):
        if step >= 20:
            gradients = {}
            for name, learner in learners.items():
                learner.step(attack, objective, a, b, optimizer=optimizer)
                gradients[name] = torch.cat([p.grad.flatten() for p in attack.parameters()])
            for name, values in found.items():
                cosine = F.cosine_similarity(gradients[name], gradients["maml"], dim=0)
                values.append(float(cosine))
            exact = gradients["maml"] - gradients["first_order"]
            share = float(exact.norm() / gradients["maml"].norm())
            for name, values in terms.items():
                own = gradients[name] - gradients["first_order"]
                values.append(float(F.cosine_similarity(own, exact, dim=0)))
            if step == 20 + pairs - 1:
                break
        PlainLearner().step(attack, objective, a)
        optimizer.step()
        attack.clip_parameters()
    return {
        "attack": family,
        "to_maml": {name: round(statistics.mean(v), 4) for name, v in found.items()},
        "second_order_terms_to_maml": {n: round(statistics.mean(v), 3) for n, v in terms.items()},
        "second_order_share_of_maml": round(share, 4),
    }


@dataclass
class Target:
    """A model that is attacked, on a dataset."""

    model: ReIDModel
    data: ReIDDataset
    query_every: int

    def clean(self, store) -> dict:
        """Figures without an attack."""
        ranking = evaluate(self.model, self.data, store=store, query_every=self.query_every).clean
        return {"data": self.data.name, "query_every": self.query_every, **shares_of(ranking)}

    def under(self, attack, store) -> dict:
        """Figures under an attack."""
        given = (self.model, self.data, attack)
        result = evaluate(*given, store=store, query_every=self.query_every)
        return {"float": shares(result.attacked), "8bit": shares(result.attacked_8bit)}


def attacked(model, source, given: list[str], query_every: int) -> dict[str, Target]:
    """The source and those of --target."""
    targets = {"source": Target(model, source, query_every)}
    for one in given:
        name, _, rest = one.partition("=")
        file, _, data = rest.partition("@")
        where = load_dataset(data) if data else source
        targets[name] = Target(load_model(file), where, query_every if where is source else 1)
    return targets


def variant_parser(doc: str, variants) -> argparse.ArgumentParser:
    """The options of a benchmark that compares variants of one attack."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--target", action="append", default=[], metavar="NAME=FILE[@DATA]")
    made.add_argument("--seeds", type=int, nargs="+", default=[0])
    made.add_argument("--query-every", type=int, default=8)
    made.add_argument("--only", nargs="+", choices=variants, default=list(variants))
    made.add_argument("--threads", type=int, default=2)
    return made


def compare_variants(name: str, options, model, source, learn) -> None:
    """Measure ``learn(variant, seed)`` on the source and every --target, saving after each."""
    path = RESULTS / f"{name}.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": [], "clean": {}}
    rows, done = known["rows"], {(row["variant"], row["seed"]) for row in known["rows"]}
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    targets = attacked(model, source, options.target, options.query_every)
    clean = known["clean"] | {name: target.clean(store) for name, target in targets.items()}
    print("clean", clean, flush=True)
    setting = f"delta on OSNet x0.25, Market-1501, {STEPS} steps of {BATCH} each, ε = 8/255"
    for seed in options.seeds:
        for variant in options.only:
            if (variant, seed) in done:
                continue
            began = time.process_time()
            attack = learn(variant, seed)
            seconds = (time.process_time() - began) / STEPS
            row = {
                "variant": variant,
                "seed": seed,
                "commit": commit(),
                "processor_seconds_per_step": round(seconds, 3),
                "measured": {n: target.under(attack, store) for n, target in targets.items()},
            }
            rows.append(row)
            scores = {
                n: (m["float"]["mAP"], m["float"]["rank1"]) for n, m in row["measured"].items()
            }
            print(variant, seed, scores, flush=True)
            save(name, {"setting": setting, "clean": clean, "rows": rows}, source)


def learn(options, model, source, other, family, learner, seed) -> tuple[Path, dict]:
    path = options.keep / f"{family}-{learner}-{seed}.safetensors"
    attack = FAMILIES[family](EIGHT)
    wall, work = time.perf_counter(), time.process_time()
    attack.fit(model, source, other, learner=learner, steps=STEPS, seed=seed, **BATCH)
    wall, work = time.perf_counter() - wall, time.process_time() - work
    attack.save(path)
    # The processor's time, unlike the wall's, does not count what other programs took.
    return path, {
        "seconds_per_step": round(wall / STEPS, 3),
        "processor_seconds_per_step": round(work / STEPS, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--learners", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--target", action="append", default=[], metavar="NAME=FILE[@DATA]")
    parser.add_argument("--cosines", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.keep.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "meta.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": [], "cosines": []}
    rows, angles = known["rows"], known["cosines"]
    model, source, other = osnet(), market(), load_dataset("virtual:plaza")
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    targets = attacked(model, source, options.target, options.query_every)
    clean = {name: target.clean(store) for name, target in targets.items()}
    print("clean", clean, flush=True)

    def write() -> None:
        setting = {
            "setting": f"OSNet x0.25, Market-1501, meta-test {other.name}, {STEPS} steps of "
            f"{BATCH} each, Eq. 5, inner step scaled",
            "meta_test_train": other.fingerprint("train"),
            "clean": {**known.get("clean", {}), **clean},
        }
        save("meta", {**setting, "rows": rows, "cosines": angles, "summary": summary(rows)}, source)

    if options.cosines:
        for family in options.only:
            if all(row["attack"] != family for row in angles):
                angles.append(cosines(model, source, other, family))
                print(angles[-1], flush=True)
                write()
    for seed in options.seeds:
        for family in options.only:
            for learner in options.learners:
                key = {"attack": family, "learner": learner, "seed": seed}
                row = next((r for r in rows if key.items() <= r.items()), None)
                if row is None:
                    file, facts = learn(options, model, source, other, family, learner, seed)
                    row = {**key, "commit": commit(), **facts, "measured": {}}
                    rows.append(row)
                file = options.keep / f"{family}-{learner}-{seed}.safetensors"
                for name, target in targets.items():
                    if name not in row["measured"]:
                        row["measured"][name] = target.under(load_attack(file), store)
                        print(key, name, row["measured"][name]["float"], flush=True)
                        write()
    write()
    for line in table(rows):
        print(line)


def shares_of(ranking) -> dict:
    return {"mAP": round(100 * ranking.mAP, 2), "rank1": round(100 * ranking.rank_k(1), 2)}


def summary(rows) -> list[dict]:
    """Mean and sample standard deviation over seeds, for each model that was attacked."""
    out = []
    for family, learner in dict.fromkeys((r["attack"], r["learner"]) for r in rows):
        mine = [r for r in rows if (r["attack"], r["learner"]) == (family, learner)]
        line = {"attack": family, "learner": learner, "seeds": [r["seed"] for r in mine]}
        for key in ("seconds_per_step", "processor_seconds_per_step"):
            if known := [r[key] for r in mine if key in r]:
                line[key] = round(statistics.median(known), 2)
        for name in dict.fromkeys(n for r in mine for n in r["measured"]):
            for key in ("mAP", "rank1"):
                values = [r["measured"][name]["float"][key] for r in mine if name in r["measured"]]
                line[f"{name} {key}"] = mean_and_spread(values)
        out.append(line)
    return out


def table(rows) -> list[str]:
    """The summary as Markdown."""
    lines = summary(rows)
    names = list(dict.fromkeys(k for line in lines for k in line if k.endswith(("mAP", "rank1"))))
    head = ["attack", "learner", "seeds", "s/step", *names]
    out = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for line in lines:
        cells = [line["attack"], line["learner"], str(len(line["seeds"]))]
        cells.append(str(line.get("processor_seconds_per_step", "")))
        cells += [f"{line[n][0]:.1f} ± {line[n][1]:.1f}" if n in line else "" for n in names]
        out.append(f"| {' | '.join(cells)} |")
    return out


if __name__ == "__main__":
    main()
