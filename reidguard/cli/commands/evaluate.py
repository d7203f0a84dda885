"""``reidguard evaluate``."""

from pathlib import Path
from typing import Annotated, TypedDict

from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import Machine, Reading, Victim
from reidguard.options import MeasureOptions

EXAMPLES = """\
  a published model:
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth

  the adversarial images that an attack has saved: their metrics are its 8-bit ones
    reidguard evaluate --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --query runs/delta/images

Without --out it only prints; else the folder gets manifest.json, result.json and result.md.
"""


class Queries(TypedDict, total=False):
    """Other query images."""

    query: Annotated[
        Path, Flag("take the query images from this folder: one for each query, under its name")
    ]


def run(options: Options) -> None:
    """Evaluate and print; with ``--out`` also write."""
    from reidguard.cli.session import Session

    session = Session.open(options)
    settings = session.settings("query", "gallery", query_every=options.query_every)
    session.report(settings, lambda display: session.measure(display, session.model))


app = command(
    "evaluate",
    run,
    {
        "data and model": (Victim,),
        "evaluation": (Reading, MeasureOptions, Queries),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
