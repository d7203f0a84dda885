"""All instance attacks on real data: OSNet x0.25 on Market-1501, ε = 8/255.

Run: python benchmarks/instance.py [--query-every 8] [--only sma ...] [--threads 2]
Needs REIDGUARD_DATA and REIDGUARD_WEIGHTS; REIDGUARD_CACHE names a folder in which clean features
are kept for the next run. Rows that results/instance.json has already, for the same queries, are
not run again, so a run that was stopped goes on; --fresh starts anew. The last row is
retrieval-autoattack, which keeps its state below --state; --universal FILE and --surrogate FILE,
saved by reidguard, give it those members.

Passes are counted, per query, on the network itself; measuring takes two more. Seconds are wall
time per query, measuring included.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from common import RESULTS, commit, market, osnet, save

from reidguard.attacks import Guides, SquareAttack, create_attack, load_attack
from reidguard.evaluation import FeatureStore, RetrievalAutoAttack, evaluate
from reidguard.models import load_model
from reidguard.types import Budget

EIGHT = Budget(8 / 255)
MEASURE = 2  # passes that look at the float and at the 8-bit image
SUITE = "retrieval-autoattack"

# Name of the row: registered name, options, whether it is given the identities.
ATTACKS = {
    "sma": ("sma", {}, False),
    "sma, 5 restarts": ("sma", {"restarts": 5}, False),
    "sma, adaptive steps": ("sma", {"step_size": None}, False),
    "sma, 100 adaptive steps": ("sma", {"step_size": None, "steps": 100}, False),
    "odfa": ("odfa", {}, False),
    "fna": ("fna", {}, False),
    "fna, with labels": ("fna", {}, True),
    "fna, with labels, 5 restarts": ("fna", {"restarts": 5}, True),
    "fna, with labels, adaptive steps": ("fna", {"step_size": None}, True),
    "metric_fgsm, with labels": ("metric_fgsm", {}, True),
    "metric_fgsm, targeted": ("metric_fgsm", {"targeted": True}, True),
    "metric_ifgsm, with labels": ("metric_ifgsm", {}, True),
    "metric_ifgsm, targeted": ("metric_ifgsm", {"targeted": True}, True),
    "metric_mifgsm, with labels": ("metric_mifgsm", {}, True),
    "metric_mifgsm, DI + TI, with labels": (
        "metric_mifgsm",
        {"diversity": 0.7, "translation": 5},
        True,
    ),
    "square, self-metric": ("square", {}, False),
    "square, margin, with labels": ("square", {}, True),
}


class Passes:
    """Counts the images that go through a network, forward and backward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.forward = self.backward = 0
        first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
        first.register_forward_hook(self._seen)

    def _seen(self, module, inputs, output) -> None:
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, gradient) -> None:
        self.backward += len(gradient)


def shares(ranking, linf: float, ssim: float | None) -> dict:
    return {
        "mAP": round(100 * ranking.mAP, 2),
        "rank1": round(100 * ranking.rank_k(1), 2),
        "linf_levels": round(255 * linf, 4),
        "ssim": None if ssim is None else round(ssim, 4),
    }


def row(name: str, model, dataset, store, guides, passes: Passes, query_every: int) -> dict:
    """Measure one attack."""
    registered, options, tell = ATTACKS[name]
    recipe = create_attack(registered, budget=EIGHT, **options)
    # Squares climb the margin of rank-1 if they see guides, else the self-metric.
    blind = isinstance(recipe, SquareAttack) and not tell
    attack = recipe.bind(model, None if blind else guides)
    passes.forward = passes.backward = 0
    result = evaluate(
        model, dataset, attack, store=store, query_every=query_every, with_labels=tell
    )
    queries = result.counts["query"]
    kinds = {"float": result.attacked, "8bit": result.attacked_8bit}
    return {
        **{k: shares(kind.ranking, kind.linf, kind.ssim) for k, kind in kinds.items()},
        "forward": passes.forward / queries - MEASURE,
        "backward": passes.backward / queries,
        "seconds_per_query": round(result.seconds["queries"] / queries, 3),
    }


def suite_row(model, dataset, store, passes: Passes, options) -> dict:
    """Measure the suite; ``broken`` also says how many queries any member breaks alone."""
    state = options.state / f"every-{options.query_every}"
    began = time.perf_counter()
    passes.forward = passes.backward = 0
    universal = options.universal and load_attack(options.universal)
    surrogate = options.surrogate and load_model(options.surrogate)
    result = RetrievalAutoAttack(EIGHT, universal=universal, surrogate=surrogate).run(
        model,
        dataset,
        state=state,
        store=store,
        query_every=options.query_every,
        audit_queries=0,
        progress=lambda p: print(p.phase, p.done, p.total, flush=True),
    )
    queries = result.facts["counts"]["query"]
    figures = result.to_dict()
    return {
        "float": shares(result.worst, result.worst.linf, None),
        "8bit": shares(result.worst_8bit, result.worst_8bit.linf, None),
        # after a stop, of the part that was still to do
        "forward": passes.forward / queries,
        "backward": passes.backward / queries,
        "seconds_per_query": round((time.perf_counter() - began) / queries, 3),
        "broken": {k: figures[k]["broken"] for k in ("robust", "robust_8bit")},
        "members": figures["members"],
    }


def table(rows) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| attack | mAP | rank-1 | mAP 8-bit | rank-1 8-bit | L∞ | L∞ 8-bit | SSIM "
        "| forward | backward | s/query |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        a, b = r["float"], r["8bit"]
        cells = [f"{side[key]:.1f}" for side in (a, b) for key in ("mAP", "rank1")]
        cells += [f"{a['linf_levels']:.2f}", f"{b['linf_levels']:.0f}"]
        cells += ["-" if a["ssim"] is None else f"{a['ssim']:.3f}"]
        cells += [f"{r['forward']:.0f}", f"{r['backward']:.0f}", f"{r['seconds_per_query']:.2f}"]
        lines.append(f"| {r['attack']} | " + " | ".join(cells) + " |")
    return lines


def main(options) -> None:
    torch.set_num_threads(options.threads)
    model, dataset = osnet(), market()
    store = FeatureStore(os.environ.get("REIDGUARD_CACHE"))
    path = RESULTS / "instance.json"
    kept = {} if options.fresh or not path.exists() else json.loads(path.read_text("utf-8"))
    rows, known_clean = kept.get("rows", []), kept.get("clean", {})
    clean = evaluate(model, dataset, store=store, query_every=options.query_every)
    features = store.features(model, dataset, "gallery")
    guides = Guides(features, [s.pid for s in dataset.gallery])
    passes = Passes(model)
    queries = clean.counts["query"]
    setting = {
        "setting": "OSNet x0.25, Market-1501, ε = 8/255, the model is the target",
        # by which queries: every n-th
        "clean": known_clean
        | {
            str(options.query_every): {
                "queries": queries,
                "mAP": round(100 * clean.clean.mAP, 2),
                "rank1": round(100 * clean.clean.rank_k(1), 2),
            }
        },
    }
    print("clean", setting["clean"], flush=True)
    for name in [*ATTACKS, SUITE]:
        which = {"attack": name, "query_every": options.query_every}
        known = any(which.items() <= r.items() for r in rows)
        if known or (options.only and name not in options.only):
            continue
        figures = (
            suite_row(model, dataset, store, passes, options)
            if name == SUITE
            else row(name, model, dataset, store, guides, passes, options.query_every)
        )
        rows.append({**which, "queries": queries, "commit": commit(), **figures})
        print(rows[-1], flush=True)
        save("instance", {**setting, "rows": rows}, dataset)
    for line in table(rows):
        print(line)


if __name__ == "__main__":
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--query-every", type=int, default=8)
    made.add_argument("--only", nargs="+", choices=[*ATTACKS, SUITE], help="rows to run")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    made.add_argument("--universal", help="a learnt attack, for the suite")
    made.add_argument("--surrogate", help="a model of another kind, for the suite")
    made.add_argument("--state", type=Path, default=Path("runs/benchmark-instance"))
    main(made.parse_args())
