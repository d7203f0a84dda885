"""``reidguard audit``."""

from typing import TYPE_CHECKING, Any

import reidguard as rg
from reidguard.cli.gate import Gate, thresholds
from reidguard.cli.options import MACHINE, Options, command
from reidguard.cli.sections import Machine, Reading, Scoring, Surrogate
from reidguard.options import AuditOptions
from reidguard.schema import settings

if TYPE_CHECKING:
    from reidguard.cli.progress import Display

EXAMPLES = """\
  a hardened model, with the model that it started from to compare transfer with:
    reidguard audit --data market1501:/data/market1501 --model runs/robust/model.safetensors \\
        --surrogate runs/ide/model.safetensors --out runs/audit

  a quick look, without transfer:
    reidguard audit --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth --queries 30

It warns of gradients that are zero, not finite, random, or that do not predict the loss; of a
larger budget that hurts less; and of a perturbation made on another model that hurts more than one
made on this model with equal steps. A lack of warnings proves nothing. Warnings are results: the
exit code is 0, unless there is --fail-below. Its thresholds are compared with the lowest mAP and
rank-1 that were measured at radii up to --eps, and a warning fails, too: the exit code is 3.

Without --out it only prints; else the folder gets manifest.json, audit.json and audit.md,
and verdict.json with --fail-below.
"""


def run(options: Options) -> int:
    """Audit and print; with ``--out`` also write."""
    from reidguard.cli.session import Session

    thresholds(options)  # mistakes are found before anything slow
    session = Session.open(options)
    values = options.of(AuditOptions)

    def measure(display: "Display") -> tuple[dict[str, Any], str]:
        report = rg.audit(
            session.model,
            session.dataset,
            surrogate=session.surrogate,
            **values,
            protocol=session.protocol,
            store=session.store,
            progress=display.phase("auditing"),
        )
        return report.to_dict(), report.to_markdown()

    own = settings(AuditOptions, values)
    run_settings = session.settings("train", "query", "gallery", **own)
    return session.report(run_settings, measure, "audit")


app = command(
    "audit",
    run,
    {
        "data and model": (Surrogate,),
        "audit": (AuditOptions, Gate),
        "evaluation": (Reading, Scoring),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
