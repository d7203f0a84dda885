"""Ways to harden a small network on Market-1501 at 128×64, attacked adaptively.

Run: python benchmarks/hardening.py --keep DIR [--methods trades act ...] [--seeds 0 1 2]
     [--steps 1000] [--query-every 8] [--restarts 3] [--eps 4]
The whole measurement: first the normal model, alone; then parts that may run side by side in one
DIR; then the last line, which finds all of it done and writes the results file:
     python benchmarks/hardening.py --keep runs/hardening --methods normal --seeds 0 --no-save
     python benchmarks/hardening.py --keep runs/hardening --seeds 0 --no-save
     python benchmarks/hardening.py --keep runs/hardening --seeds 1 --no-save
     python benchmarks/hardening.py --keep runs/hardening --seeds 2 --no-save
     python benchmarks/hardening.py --keep runs/hardening
     python benchmarks/page.py
A look at whether all of it runs, in some minutes:
     python benchmarks/hardening.py --keep /tmp/look --base-steps 20 --steps 10 --attack-steps 5 \\
         --query-every 256 --restarts 1 --methods normal trades free --seeds 0 --no-save
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS. Set THP_MEM_ALLOC_ENABLE=1 (docs/distributed.rst): else
the process grows with the steps, to 10 GiB and more.

The network is OSNet x0.25 with 128×64 inside, where a pass costs a quarter of that at its own
256×128: published weights, fine-tuned for --base-steps steps; "normal" is that model. Each method
hardens it for --steps steps. "longer" takes these steps without any attack.

Each model is measured clean and, on every n-th query, against:
- transfer: the universal attacks of FAMILIES, learnt on the normal model, with other seeds than the
  attack of the training;
- adaptive: the same families learnt afresh on the model itself, once for each restart; the lowest
  mAP counts, for each family and over all of them ("universal");
- SMA and FNA with restarts on the model itself, FNA with the true identities.
All values are of 8-bit images. Each model, attack and value is in DIR as soon as it is there, so
that a stopped run resumes; DIR/progress.txt is the table of all values so far.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import torch
from attacks import shares
from common import CHECKPOINT, commit, market, mean_and_spread, save, weights

from reidguard.attacks import (
    FNA,
    SMA,
    ColorAttack,
    CombinatorialAttack,
    DeltaAttack,
    Guides,
    load_attack,
)
from reidguard.data import load_dataset
from reidguard.defenses import (
    ACT,
    GOAT,
    HM,
    MART,
    TRADES,
    AdversarialTraining,
    Blur,
    CollapsePairs,
    FreePerturbation,
    FreeTraining,
    GuideSampling,
    MetaDefense,
    MixedTraining,
    RaiseHardness,
)
from reidguard.evaluation import FeatureStore, Protocol, evaluate
from reidguard.models import create_model, load_model
from reidguard.storage import write_json
from reidguard.training import train_model
from reidguard.types import Budget

SIZE = (128, 64)
BATCH = {"identities": 8, "images_per_identity": 8, "image_size": SIZE}
FAMILIES = {
    "delta": partial(DeltaAttack, size=SIZE),
    "blocks": partial(DeltaAttack, basis="blocks", grid=(16, 8)),
    "color": ColorAttack,
    "combinatorial": partial(CombinatorialAttack, size=SIZE),
}
UNSEEN = 100  # seed of the first attack of the tests; trainings have those of --seeds


def sma(attack, steps=7, step=1 / 4):
    """Per-image attack of the training: of the universal one's ε, with steps of a part of it."""
    return SMA(attack.budget, steps=steps, step_size=step * attack.budget.eps)


def one_step(attack):
    return sma(attack, 1, 5 / 4)


# Of each method, the defense, given the universal attack of the training, and options of fit;
# "times" multiplies its steps.
METHODS = {
    "normal": None,
    "longer": (lambda a: AdversarialTraining(a, adversarial=0.0), {}),
    "blur": (lambda a: Blur(), None),
    "delta": (AdversarialTraining, {}),
    "delta, relearnt": (lambda a: AdversarialTraining(a, refresh_every=1, refresh_steps=50), {}),
    "delta, EMA": (AdversarialTraining, {"ema": 0.99}),
    "delta, SWA": (AdversarialTraining, {"swa": 0.5}),
    "delta, AWP": (lambda a: AdversarialTraining(a, awp=0.005), {}),
    "delta, separate BN": (lambda a: AdversarialTraining(a, batch_norm="separate"), {}),
    "delta, auxiliary BN": (lambda a: AdversarialTraining(a, batch_norm="auxiliary"), {}),
    "mixed": (MixedTraining, {}),
    "alternate": (lambda a: AdversarialTraining(a, alternate=True), {}),
    "meta": (MetaDefense, {}),
    "fast": (lambda a: AdversarialTraining(one_step(a)), {}),
    "fast, warm-up": (lambda a: AdversarialTraining(one_step(a), warmup=0.3), {}),
    "free": (lambda a: FreeTraining(FreePerturbation(a.budget)), {}),
    "free, 20 times longer": (lambda a: FreeTraining(FreePerturbation(a.budget)), {"times": 20}),
    "SMA": (lambda a: AdversarialTraining(sma(a)), {}),
    "SMA, EMA": (lambda a: AdversarialTraining(sma(a)), {"ema": 0.99}),
    "trades": (lambda a: TRADES(sma(a)), {}),
    "trades, KL": (lambda a: TRADES(sma(a), divergence="kl"), {}),
    "mart": (lambda a: MART(sma(a)), {}),
    "act": (lambda a: ACT(CollapsePairs(a.budget)), {}),
    "hm": (lambda a: HM(RaiseHardness(a.budget)), {}),
    "goat": (lambda a: GOAT(GuideSampling(a.budget)), {}),
}


def base(options, source):
    """The normal model, trained here unless DIR has it."""
    path = options.keep / "base.safetensors"
    if not path.exists():
        model = create_model(
            "osnet_x0_25", size=SIZE, num_classes=source.num_train_pids, weights=weights(CHECKPOINT)
        )
        checkpoint = path.with_suffix(".checkpoint")
        train_model(
            model,
            source,
            steps=options.base_steps,
            checkpoint=checkpoint,
            progress=partial(report, "base"),
            **BATCH,
        ).save(path)
    return load_model(path)


def report(name, progress) -> None:
    if progress.done % 50 == 0 and progress.metrics:
        print(name, progress.done, "of", progress.total, dict(progress.metrics), flush=True)


def learnt(options, model, source, family: str, name: str, seed: int):
    """A universal attack on a model, learnt here unless DIR has it."""
    path = options.keep / f"{name}-{family}-{seed}.attack.safetensors"
    if not path.exists():
        attack = FAMILIES[family](options.budget)
        attack.fit(
            model, source, steps=options.attack_steps, seed=seed, learner="plain", **BATCH
        ).save(path)
    return load_attack(path)


def hardened(options, method: str, seed: int, normal, source):
    """The model of a method, hardened here unless DIR has it, and its cost in seconds a step."""
    if METHODS[method] is None:
        return normal, {}
    make, fit = METHODS[method]
    steps = steps_of(options, method)
    defense = make(learnt(options, normal, source, "delta", "normal", 0))
    if fit is None:
        return defense.fit(normal, source), {}
    path = options.keep / f"{slug(method)}-{seed}.safetensors"
    facts = path.with_suffix(".facts.json")
    if not path.exists():
        other = load_dataset("virtual:plaza") if defense.needs_meta_test else None
        began, first = time.process_time(), []
        model = defense.fit(
            normal,
            source,
            other,
            steps=steps,
            seed=seed,
            checkpoint=path.with_suffix(".checkpoint"),
            progress=lambda p: (first.append(p.done), report(f"{method} {seed}", p)),
            **BATCH,
            **options_of_fit(method),
        )
        taken = max(1, steps - first[0])
        seconds = (time.process_time() - began) / taken
        write_json(facts, {"processor_seconds_per_step": round(seconds, 3), "commit": commit()})
        model.save(path)
    return load_model(path), json.loads(facts.read_text("utf-8"))


def steps_of(options, method: str) -> int:
    """The steps of a method's hardening; 0 where nothing is trained."""
    _, fit = METHODS[method] or (None, None)
    return 0 if fit is None else options.steps * fit.get("times", 1)


def options_of_fit(method: str) -> dict:
    """The options of a method's fit, beside those of all."""
    _, fit = METHODS[method] or (None, None)
    return {name: value for name, value in (fit or {}).items() if name != "times"}


def slug(method: str) -> str:
    return method.lower().replace(", ", "-").replace(" ", "-")


def gallery(model, source, store) -> Guides:
    """The gallery's features, which are those of the evaluation."""
    features = store.features(model, source, "gallery", image_size=SIZE)
    return Guides(features, [sample.pid for sample in source.gallery])


def tests(options, method: str, seed: int, model, normal, source, store):
    """Yield each value's name and the attack that it is measured with."""
    yield "clean", lambda: None
    for family in FAMILIES:
        if method != "normal":
            yield (
                f"{family}, transfer",
                lambda f=family: learnt(options, normal, source, f, "normal", UNSEEN),
            )
        for restart in range(options.restarts):
            yield (
                f"{family}, adaptive {restart}",
                lambda f=family, k=restart: learnt(
                    options, model, source, f, f"{slug(method)}-{seed}", UNSEEN + k
                ),
            )
    strong = {"steps": options.instance_steps, "restarts": options.restarts}
    yield "SMA", lambda: SMA(options.budget, **strong).bind(model)
    yield "FNA", lambda: FNA(options.budget, **strong).bind(model, gallery(model, source, store))


def row(options, method: str, seed: int, normal, source) -> dict:
    """All values of one model, each measured unless DIR has it."""
    path = options.keep / f"{slug(method)}-{seed}.json"
    known = {"method": method, "seed": seed, "steps": steps_of(options, method)}
    if path.exists():
        known = json.loads(path.read_text("utf-8"))
    model, facts = hardened(options, method, seed, normal, source)
    known |= facts
    store = FeatureStore()
    for label, make in tests(options, method, seed, model, normal, source, store):
        if label in known:
            continue
        result = evaluate(
            model,
            source,
            make(),
            Protocol(image_size=SIZE),
            store=store,
            query_every=options.query_every,
            with_labels=label == "FNA",
        )
        if result.attacked is None:
            clean = result.clean
            known[label] = {
                "mAP": round(100 * clean.mAP, 2),
                "rank1": round(100 * clean.rank_k(1), 2),
            }
        else:
            known[label] = shares(result.attacked_8bit)
        write_json(path, known)
        show(options)
        print(method, seed, label, known[label]["mAP"], known[label]["rank1"], flush=True)
    return known


def worst(known: dict) -> dict[str, dict]:
    """The values of a model, of several restarts the one with the lowest mAP."""
    values = {k: v for k, v in known.items() if isinstance(v, dict)}
    found = {k: v for k, v in values.items() if "adaptive" not in k}
    for family in FAMILIES:
        restarts = [v for k, v in values.items() if k.startswith(f"{family}, adaptive")]
        if restarts:
            found[f"{family}, adaptive"] = min(restarts, key=lambda v: v["mAP"])
    learnt_on_it = [v for k, v in found.items() if k.endswith("adaptive")]
    if len(learnt_on_it) == len(FAMILIES):
        found["universal"] = min(learnt_on_it, key=lambda v: v["mAP"])
    return found


def summary(rows) -> list[dict]:
    """Mean and sample standard deviation over seeds of every value of every method."""
    out = []
    for method in [m for m in METHODS if any(r["method"] == m for r in rows)]:
        mine = [r for r in rows if r["method"] == method]
        line = {"method": method, "seeds": [r["seed"] for r in mine]}
        costs = [r["processor_seconds_per_step"] for r in mine if "commit" in r]
        if costs:
            line["processor_seconds_per_step"] = sorted(costs)[len(costs) // 2]
        values = [worst(r) for r in mine]
        for label in dict.fromkeys(k for v in values for k in v):
            for key in ("mAP", "rank1"):
                line[f"{label} {key}"] = mean_and_spread(
                    [v[label][key] for v in values if label in v]
                )
        out.append(line)
    return out


def rows_of(options) -> list[dict]:
    rows = [
        json.loads(path.read_text("utf-8")) for path in sorted(options.keep.glob("*-[0-9].json"))
    ]
    return [r for r in rows if r.get("method") in METHODS]


def show(options) -> None:
    """Write the table of all values so far to DIR/progress.txt."""
    labels = ["clean", *(f"{f}, {w}" for w in ("transfer", "adaptive") for f in FAMILIES)]
    labels += ["universal", "SMA", "FNA"]
    wide = max(len(label) for label in labels)
    lines = ["mAP".ljust(24) + " ".join(label.rjust(wide) for label in labels)]
    for line in summary(rows_of(options)):
        cells = [line.get(f"{label} mAP") for label in labels]
        texts = ["–" if c is None else f"{c[0]:.1f} ± {c[1]:.1f}" for c in cells]
        head = f"{line['method']} ({len(line['seeds'])})"
        lines.append(head.ljust(24) + " ".join(text.rjust(wide) for text in texts))
    (options.keep / "progress.txt").write_text("\n".join(lines) + "\n", "utf-8")


def same_settings(options) -> None:
    """Refuse a DIR whose values were measured with other settings."""
    names = ("base_steps", "steps", "attack_steps", "instance_steps", "restarts", "query_every")
    settings = {name: getattr(options, name) for name in names}
    if options.eps != 8:
        settings["eps"] = options.eps
    path = options.keep / "settings.json"
    if not path.exists():
        write_json(path, settings)
    elif json.loads(path.read_text("utf-8")) != settings:
        raise SystemExit(f"{path} has other settings: take another --keep, or the same settings")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--base-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--attack-steps", type=int, default=200)
    parser.add_argument("--instance-steps", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-save", action="store_true", help="leave results/ as it is")
    parser.add_argument("--eps", type=int, default=8, help="in 255ths, of training and tests")
    options = parser.parse_args()
    options.budget = Budget(options.eps / 255)
    torch.set_num_threads(options.threads)
    options.keep.mkdir(parents=True, exist_ok=True)
    same_settings(options)
    source = market()
    normal = base(options, source)
    for seed in options.seeds:
        for method in options.methods:
            if seed == options.seeds[0] or method not in ("normal", "blur"):
                row(options, method, seed, normal, source)
    print((options.keep / "progress.txt").read_text("utf-8"))
    if options.no_save:
        return
    rows = rows_of(options)
    setting = {
        "setting": f"OSNet x0.25 at 128×64, fine-tuned on Market-1501 for {options.base_steps} "
        f"steps and hardened for {options.steps} of 8 × 8 images; universal attacks of the tests: "
        f"{options.attack_steps} steps, {options.restarts} restarts; SMA and FNA: "
        f"{options.instance_steps} steps, {options.restarts} restarts; ε = {options.eps}/255",
        "query_every": options.query_every,
    }
    name = "hardening" if options.eps == 8 else f"hardening_{options.eps}"
    save(name, {**setting, "rows": rows, "summary": summary(rows)}, source)


if __name__ == "__main__":
    main()
