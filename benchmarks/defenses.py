"""Defenses on real data: OSNet x0.25 fine-tuned on Market-1501, attacked by what it never saw.

Run: python benchmarks/defenses.py --keep DIR --attack FILE [--seeds 0 1] [--steps 300]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. FILE is the attack of the training images, learnt on the
normal model. Each model is measured clean and, every 8th query, against Color, Delta and
Combinatorial: *transfer*, learnt on the normal model (another seed than any in training), and
*adaptive*, learnt on the model itself with the same learner and steps; and against SMA on itself.
And how far the gradients of the two domains agree in the model as it is: the mean cosine, over 5
batches, of that of the Market-1501 loss to that of the virtual people's. Each model and figure is
kept in DIR as soon as it is there, so that a run that was stopped goes on
and two runs with different --only or --seeds can work side by side in one DIR.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from attacks import BATCH, EIGHT, STEPS, shares
from common import commit, market, mean_and_spread, osnet, save

from reidguard.attacks import SMA, ColorAttack, CombinatorialAttack, DeltaAttack, load_attack
from reidguard.data import load_dataset
from reidguard.defenses import AdversarialTraining, MetaDefense, MixedTraining
from reidguard.evaluation import FeatureStore, evaluate
from reidguard.learners import LEARNERS, JointLearner
from reidguard.models import load_model
from reidguard.storage import write_json

FAMILIES = {"color": ColorAttack, "delta": DeltaAttack, "combinatorial": CombinatorialAttack}
DEFENSES = {
    "normal": None,
    "adversarial": AdversarialTraining,
    "mixed": MixedTraining,
    "meta": MetaDefense,
    # With its own inner step, MetaDefense's gradient is nearly that of mixed training: see
    # inner_steps.py.
    "longer": lambda attack: MetaDefense(attack, learner="first_order", inner_lr=3e-3),
}
ROWS = {
    "adversarial": "plain adversarial training",
    "mixed": "both domains, no meta",
    "meta": "MetaDefense (maml)",
    "longer": "MetaDefense (first_order), inner step 10 times as long",
}
UNSEEN = 11  # seed of the attacks of the tests


@LEARNERS.register("agreement")
class Agreement(JointLearner):
    """Mixed training that notes the cosine of the two domains' gradients at each step."""

    def __init__(self) -> None:
        self.cosines = []

    def step(self, module, objective, meta_train_batch, meta_test_batch=None, *, optimizer=None):
        start = {name: value.clone() for name, value in module.state_dict().items()}
        found = []
        for batch in (meta_train_batch, meta_test_batch):
            module.load_state_dict(start)
            module.zero_grad(set_to_none=True)
            objective(module, batch).backward()
            shared = [p for n, p in module.named_parameters() if "classifier" not in n]
            found.append(torch.cat([p.grad.flatten() for p in shared if p.grad is not None]))
        self.cosines.append(float(torch.nn.functional.cosine_similarity(*found, dim=0)))
        module.load_state_dict(start)
        return super().step(
            module, objective, meta_train_batch, meta_test_batch, optimizer=optimizer
        )


def agreement(options, model, source, other) -> float:
    """The mean cosine over the first batches of a seed that no training took."""
    probe = Agreement()
    attack = load_attack(options.attack)
    MetaDefense(attack, learner=probe).fit(model, source, other, steps=5, seed=UNSEEN, **BATCH)
    return round(statistics.mean(probe.cosines), 3)


def harden(options, name: str, seed: int, normal, source, other):
    """The model of a row, trained here unless DIR has it."""
    if name == "normal":
        return normal
    path = options.keep / f"{name}-{seed}.safetensors"
    if not path.exists():
        defense = DEFENSES[name](load_attack(options.attack))
        second = other if defense.needs_meta_test else None
        wall, work = time.perf_counter(), time.process_time()
        model = defense.fit(
            normal,
            source,
            second,
            steps=options.steps,
            seed=seed,
            checkpoint=path.with_suffix(".checkpoint"),
            progress=lambda p: (
                print(name, seed, p.phase, p.done, p.total, dict(p.metrics), flush=True)
                if p.done % 25 == 0
                else None
            ),
            **BATCH,
        )
        model.save(path)
        facts = {
            "seconds_per_step": round((time.perf_counter() - wall) / options.steps, 3),
            "processor_seconds_per_step": round((time.process_time() - work) / options.steps, 3),
            "commit": commit(),
        }
        write_json(path.with_suffix(".facts.json"), facts)
    return load_model(path)


def learnt(options, name: str, seed: int, family: str, model, source):
    """The attack of a family on the model of a row, learnt here unless DIR has it."""
    path = options.keep / f"{name}-{seed}-{family}.attack.safetensors"
    if not path.exists():
        made = FAMILIES[family](EIGHT)
        made.fit(model, source, steps=STEPS, seed=UNSEEN, **BATCH).save(path)
    return load_attack(path)


def row(options, name: str, seed: int, normal, source, other, store) -> dict:
    """Everything about one model, each figure measured unless DIR has it."""
    path = options.keep / f"{name}-{seed}.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    known = {
        "model": name,
        "seed": seed,
        "steps": 0 if name == "normal" else options.steps,
        **known,
    }
    model = harden(options, name, seed, normal, source, other)
    facts = options.keep / f"{name}-{seed}.facts.json"
    if facts.exists():
        known |= json.loads(facts.read_text("utf-8"))

    if "domain_cosine" not in known:
        known["domain_cosine"] = agreement(options, model, source, other)
        write_json(path, known)
        print(name, seed, "cosine of the domains", known["domain_cosine"], flush=True)

    def attacks():
        yield "clean", lambda: None
        for family in FAMILIES:
            if name != "normal":
                yield (
                    f"{family}, transfer",
                    lambda f=family: learnt(options, "normal", 0, f, normal, source),
                )
            yield (
                f"{family}, adaptive",
                lambda f=family: learnt(options, name, seed, f, model, source),
            )
        yield "SMA", lambda: SMA(EIGHT).bind(model)

    for label, make in attacks():
        if label not in known:
            attack = make()
            result = evaluate(model, source, attack, store=store, query_every=options.query_every)
            if attack is None:
                known[label] = {
                    "mAP": round(100 * result.clean.mAP, 2),
                    "rank1": round(100 * result.clean.rank_k(1), 2),
                }
            else:
                known[label] = {
                    **shares(result.attacked),
                    "8bit": shares(result.attacked_8bit),
                }
            write_json(path, known)
            print(name, seed, label, known[label]["mAP"], known[label]["rank1"], flush=True)
    return known


def summary(rows) -> list[dict]:
    """Mean and sample standard deviation over seeds of every figure of every model."""
    out = []
    for name in dict.fromkeys(r["model"] for r in rows):
        mine = [r for r in rows if r["model"] == name]
        line = {"model": ROWS.get(name, name), "seeds": [r["seed"] for r in mine]}
        line["domain_cosine"] = round(statistics.mean(r["domain_cosine"] for r in mine), 3)
        costs = [r["processor_seconds_per_step"] for r in mine if "commit" in r]
        if costs:
            line["processor_seconds_per_step"] = round(statistics.median(costs), 2)
        for label in dict.fromkeys(k for r in mine for k, v in r.items() if isinstance(v, dict)):
            for key in ("mAP", "rank1"):
                values = [r[label][key] for r in mine if label in r]
                line[f"{label} {key}"] = mean_and_spread(values)
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--attack", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=DEFENSES, default=list(DEFENSES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.keep.mkdir(parents=True, exist_ok=True)
    normal, source, other = osnet(), market(), load_dataset("virtual:plaza")
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    for seed in options.seeds:
        for name in options.only:
            if name != "normal" or seed == 0:
                row(options, name, seed, normal, source, other, store)
    rows = [
        json.loads(path.read_text("utf-8"))
        for name in DEFENSES
        for path in sorted(options.keep.glob(f"{name}-[0-9].json"))
    ]
    setting = {
        "setting": f"OSNet x0.25 fine-tuned on Market-1501 with {other.name}, "
        f"{options.steps} steps of {BATCH} and half as many adversarial images, Adam 3e-4; "
        f"attacks of the test: {STEPS} steps, learner plain, ε = 8/255",
        "query_every": options.query_every,
        "training_attack": load_attack(options.attack).card(),
        "meta_test_train": other.fingerprint("train"),
    }
    save("defenses", {**setting, "rows": rows, "summary": summary(rows)}, source)


if __name__ == "__main__":
    main()
