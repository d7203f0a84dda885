"""``reidguard evaluate``."""

from pathlib import Path
from typing import Annotated, TypedDict

from reidguard.cli.gate import Gate, thresholds
from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import Machine, Reading, Scoring, Target
from reidguard.options import MeasureOptions

EXAMPLES = """\
  a published model:
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth

  the adversarial images that an attack has saved, beside the clean queries
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query runs/delta/images

  a gate for your own tests: exit code 3 where the model is worse, and runs/gate/verdict.json
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query runs/delta/images --fail-below mAP=60 --fail-below rank1=80 --out runs/gate

The thresholds are compared with the metrics of the images of --query, if it is given. Without --out
it only prints; else the folder gets manifest.json, result.json and result.md, and verdict.json with
--fail-below.
"""


class Queries(TypedDict, total=False):
    """Other query images."""

    query: Annotated[
        Path, Flag("take the query images from this folder: one for each query, under its name")
    ]


def run(options: Options) -> int:
    """Evaluate and print; with ``--out`` also write."""
    from reidguard.cli.session import Session

    thresholds(options)  # mistakes are found before anything slow
    session = Session.open(options)
    settings = session.settings("query", "gallery", query_every=options.query_every)
    return session.report(settings, lambda display: session.measure(display, session.model))


app = command(
    "evaluate",
    run,
    {
        "data and model": (Target,),
        "evaluation": (Reading, Scoring, MeasureOptions, Queries, Gate),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
