"""``reidguard autoattack``."""

from pathlib import Path
from typing import Annotated, TypedDict

import reidguard as rg
from reidguard.cli.gate import Gate, judge, thresholds
from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import EPS, Machine, Reading, Scoring, Surrogate
from reidguard.options import AutoAttackOptions
from reidguard.schema import settings

EXAMPLES = """\
  the metrics of a model in the worst case:
    reidguard autoattack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query-every 8 --out runs/autoattack

  of a hardened one, with all members: a universal attack, and transfer from the normal model
    reidguard autoattack --data market1501:/data/market1501 \\
        --model runs/robust/model.safetensors --universal runs/delta/attack.safetensors \\
        --surrogate runs/ide/model.safetensors

  only robust rank-1, -5, -10, which is far cheaper: broken queries are attacked no further
    reidguard autoattack --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --early-stop

Members: self-metric and furthest-negative attacks with adaptive steps, the universal attack and
the surrogate's if they are given, and a black-box search with squares. All are given the
ground-truth identity of each query. A query is broken where no match is among the first 10 and the
average precision is below 0.1. Robust mAP is the mean over queries of the lowest average precision
under any member; robust rank-k the fraction of queries with a match among the first k under all.

--fail-below mAP=20 ends with exit code 3 if the lower of robust mAP for float and for 8-bit images
is below 20 %, or if the audit or the suite warns; the folder then gets verdict.json.

The run folder gets manifest.json, state/ (from which the same command resumes after an
interruption), result.json and result.md.
"""


class Suite(TypedDict, total=False):
    """Members of the suite."""

    eps: Annotated[float, EPS]
    universal: Annotated[Path, Flag("a saved attack within the budget, as a further member")]
    restarts: Annotated[int, Flag("random starts of each gradient attack", 2, low=1)]
    steps: Annotated[int, Flag("iterations of each", 100, low=1)]
    squares: Annotated[int, Flag("squares that the black-box member tries", 1000, low=1)]
    seed: Annotated[int, Flag("seed of every random draw", 0, low=0)]


class Images(TypedDict, total=False):
    """What else is written."""

    save_images: Annotated[Path, Flag("folder for the worst 8-bit image of each query, as PNG")]


def run(options: Options) -> int:
    """Run the suite and write the result."""
    from reidguard.cli.run_dir import open_run
    from reidguard.cli.session import Session

    thresholds(options)  # mistakes are found before anything slow
    universal = None if options.universal is None else rg.load_attack(options.universal)
    session = Session.open(options)
    suite = rg.RetrievalAutoAttack(
        rg.Budget(options.eps),
        universal=None if universal is None else universal.to(session.device),
        surrogate=session.surrogate,
        restarts=options.restarts,
        steps=options.steps,
        squares=options.squares,
        seed=options.seed,
    )
    values = options.of(AutoAttackOptions)
    own = {**settings(AutoAttackOptions, values), "suite": suite.config(options.image_size)}
    label = f"autoattack-{session.dataset.name}"
    with open_run(options, session.settings("query", "gallery", **own), label=label) as folder:
        if not folder.finished or options.save_images is not None:
            result = suite.run(
                session.model,
                session.dataset,
                session.protocol,
                state=folder / "state",
                images=options.save_images,
                store=session.store,
                progress=folder.display,
                **values,
            )
        if not folder.finished:
            folder.finish(result.to_dict(), result.to_markdown())
        folder.print()
        if options.save_images is not None:
            folder.say(f"images: {options.save_images}")
        folder.say(f"run: {folder.path}")
    return judge(options, folder.content(), folder.path) if folder.writes else 0


app = command(
    "autoattack",
    run,
    {
        "data and model": (Surrogate,),
        "suite": (Suite, AutoAttackOptions, Gate),
        "evaluation": (Reading, Scoring, Images),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
