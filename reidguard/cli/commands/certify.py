"""``reidguard certify``."""

import reidguard as rg
from reidguard.cli.gate import Gate, judge, thresholds
from reidguard.cli.options import MACHINE, Options, command
from reidguard.cli.sections import Machine, Reading, Scoring, Target
from reidguard.files import atomic_write
from reidguard.options import CertifyOptions
from reidguard.schema import settings

EXAMPLES = """\
  certified rank-1, -5 and -10 of a model, by noise of 0.1 on every 64th query:
    reidguard certify --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --sigma 0.1 --draws 200 --query-every 64 --out runs/certified

  a model of reidguard train --noise 0.1, which has larger radii:
    reidguard certify --data market1501:/data/market1501 --model runs/noisy/model.safetensors \\
        --sigma 0.1 --query-every 64

Certified is, for each query by itself and with a confidence of 1 - alpha: whatever changes its
image by less than the radius r (L2, in [0, 1] pixel units of the image as read), most noisy copies
of the result still have a match among the first k. That is said of the ranking smoothed by noise,
not of the model's own; of L2 and not of the L∞ ball of attacks; and of one fixed, clean gallery.

--fail-below rank1=30 ends with exit code 3 if certified rank-1 at --radius is below 30 %; the
folder then gets verdict.json.

The run folder gets manifest.json, state/ (from which the same command resumes after an
interruption), result.json, result.md and curve.svg.
"""


def run(options: Options) -> int:
    """Certify and write the result."""
    from reidguard.cli.run_dir import open_run
    from reidguard.cli.session import Session
    from reidguard.report import line_svg
    from reidguard.report.run_page import certified_chart

    thresholds(options)  # mistakes are found before anything slow
    session = Session.open(options)
    values = options.of(CertifyOptions)
    run_settings = session.settings("query", "gallery", **settings(CertifyOptions, values))
    products = ("result.json", "result.md", "curve.svg")
    label = f"certify-{session.dataset.name}"
    with open_run(options, run_settings, products, label) as folder:
        if not folder.finished:
            result = rg.certify(
                session.model,
                session.dataset,
                protocol=session.protocol,
                state=folder / "state",
                store=session.store,
                progress=folder.display,
                **values,
            )
            if folder.writes:
                svg = line_svg(*certified_chart(result.to_dict()), from_zero=True)
                with atomic_write(folder / "curve.svg") as temporary:
                    temporary.write_text(svg, "utf-8")
            folder.finish(result.to_dict(), result.to_markdown())
        folder.print()
        folder.say(f"curve: {folder / 'curve.svg'}")
        folder.say(f"run: {folder.path}")
    return judge(options, folder.content(), folder.path) if folder.writes else 0


app = command(
    "certify",
    run,
    {
        "data and model": (Target,),
        "certificate": (CertifyOptions, Gate),
        "evaluation": (Reading, Scoring),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
