"""The effect of meta-learning in the four settings: several networks on two datasets.

Run: python benchmarks/settings.py --keep DIR --model NAME MARKET CAMPUS [--model ...]
         [--seeds 0 1 2] [--sources NAME ...] [--only delta ...]
Needs REIDGUARD_DATA. Each network is a NAME and two files that reidguard saved: trained on
Market-1501 and on virtual:campus. Attacks are learnt on the one of Market-1501 (100 steps of 32
images, meta-test 32 of virtual:plaza) and measured on every network on both datasets, so that each
is attacked in the paper's four settings. Learnt attacks are kept in DIR. What results/settings.json
has already is not done again.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from attacks import BATCH, EIGHT, STEPS
from common import RESULTS, commit, market, mean_and_spread, save
from meta import FAMILIES, Target

from reidguard.attacks import load_attack
from reidguard.data import load_dataset
from reidguard.evaluation import SETTINGS, FeatureStore
from reidguard.models import load_model

LEARNERS = ("plain", "joint", "maml")
MARKET, CAMPUS = "market1501", "virtual:campus"


def setting(source: str, model: str, dataset: str) -> str:
    """The paper's name of where an attack learnt on a source of Market-1501 is measured."""
    return SETTINGS[(model != source) + 2 * (dataset != MARKET)]


def learn(options, model, source, other, row) -> Path:
    """Learn an attack unless it is kept, and note what a step took."""
    name = "-".join((row["source"].replace(" ", "_"), row["attack"], row["learner"]))
    path = options.keep / f"{name}-{row['seed']}.safetensors"
    if not path.exists():
        attack, work = FAMILIES[row["attack"]](EIGHT), time.process_time()
        extra = None if row["learner"] == "plain" else other
        given = {"learner": row["learner"], "steps": STEPS, "seed": row["seed"], **BATCH}
        attack.fit(model, source, extra, **given)
        # The processor's time, unlike the wall's, does not count what other programs took.
        row["processor_seconds_per_step"] = round((time.process_time() - work) / STEPS, 3)
        attack.save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True)
    files = ("NAME", "MARKET", "CAMPUS")
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=files)
    parser.add_argument("--sources", nargs="+", help="learn on these only (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=["delta"])
    parser.add_argument("--query-every", type=int, default=8, help="on Market-1501")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.keep.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "settings.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {"rows": [], "clean": {}}
    rows, clean = known["rows"], known["clean"]
    source, campus, other = market(), load_dataset(CAMPUS), load_dataset("virtual:plaza")
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    targets = {}
    for name, *pair in options.model:
        for dataset, file in zip((source, campus), pair, strict=True):
            every = options.query_every if dataset is source else 1
            target = Target(load_model(file), dataset, every)
            targets[name, MARKET if dataset is source else CAMPUS] = target
    for (name, dataset), target in targets.items():
        measured = {"model": name, "dataset": dataset, **target.clean(store)}
        clean[f"{name}, {dataset}"] = measured
        print("clean", measured, flush=True)

    def write() -> None:
        text = f"Attacks learnt on Market-1501, meta-test {other.name}, {STEPS} steps of {BATCH}"
        figures = {"setting": text, "clean": clean, "rows": rows, "summary": summary(rows)}
        save("settings", figures, source)

    for name in options.sources or [name for name, *_ in options.model]:
        for family in options.only:
            for seed in options.seeds:
                for learner in LEARNERS:
                    key = {"source": name, "attack": family, "learner": learner, "seed": seed}
                    row = next((r for r in rows if key.items() <= r.items()), None)
                    if row is None:
                        row = {**key, "commit": commit(), "measured": []}
                        rows.append(row)
                    file = learn(options, targets[name, MARKET].model, source, other, row)
                    have = {(m["model"], m["dataset"]) for m in row["measured"]}
                    for model, dataset in targets.keys() - have:
                        found = {
                            "model": model,
                            "dataset": dataset,
                            "setting": setting(name, model, dataset),
                            **targets[model, dataset].under(load_attack(file), store),
                        }
                        row["measured"].append(found)
                        print(key, found["setting"], model, found["float"]["mAP"], flush=True)
                    write()
    write()


def summary(rows) -> list[dict]:
    """Mean and sample standard deviation over seeds, each the mean over what was attacked."""
    out = []
    for source, family in dict.fromkeys((r["source"], r["attack"]) for r in rows):
        mine = [r for r in rows if (r["source"], r["attack"]) == (source, family)]
        for where in SETTINGS:
            line = {"source": source, "attack": family, "setting": where}
            by_seed = {}
            for row in mine:
                here = [m["float"]["mAP"] for m in row["measured"] if m["setting"] == where]
                if here:
                    by_seed.setdefault(row["seed"], {})[row["learner"]] = statistics.mean(here)
            for learner in LEARNERS:
                line[learner] = mean_and_spread(
                    [v[learner] for v in by_seed.values() if learner in v]
                )
            # The same seed draws the same batches, so differences are taken seed by seed.
            for base in ("plain", "joint"):
                pairs = [v for v in by_seed.values() if base in v and "maml" in v]
                line[f"maml - {base}"] = mean_and_spread([v["maml"] - v[base] for v in pairs])
            out.append(line)
    return out


if __name__ == "__main__":
    main()
