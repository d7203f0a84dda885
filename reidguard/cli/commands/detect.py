"""``reidguard detect``."""

from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import reidguard as rg
from reidguard.cli.named_attack import attack_from
from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import EPS, Machine, Reading, Scoring, Surrogate
from reidguard.options import MeasureOptions
from reidguard.schema import settings

if TYPE_CHECKING:
    from reidguard.cli.progress import Display

EXAMPLES = """\
  how well do scores find queries that SMA attacked, and those of an attack that knows the scores?
    reidguard detect --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack sma --adaptive --query-every 64 --out runs/detection

  a learnt attack, with a second model that the first is compared with:
    reidguard detect --data market1501:/data/market1501 --model osnet_x0_25:osnet.pth \\
        --attack runs/delta/attack.safetensors --surrogate runs/ide/model.safetensors

Scores are those of reidguard list detection. AUC is the probability that an attacked query has a
higher score than a clean one: 0.5 is chance, 1 perfect detection. An attack that does not know the
detector says little about it, so look at --adaptive as well.

Without --out it only prints; else the folder gets manifest.json, result.json and result.md.
"""


class Attacks(TypedDict, total=False):
    """What the detector is to find."""

    attack: Annotated[
        str, Flag("a saved attack, or the name of an instance attack such as sma", "sma")
    ]
    attack_set: Annotated[dict[str, Any], Flag("option of the named attack: steps=7")]
    eps: Annotated[float, EPS]
    adaptive: Annotated[bool, Flag("also attack with AdaptiveSMA, which lowers the scores", False)]


def run(options: Options) -> int:
    """Measure and print; with ``--out`` also write."""
    from reidguard.cli.session import Session

    attack = attack_from(options)  # mistakes are found before anything slow
    assert attack is not None
    session = Session.open(options)
    attacks = {type(attack).__name__: attack.to(session.device)}
    if options.adaptive:
        attacks["AdaptiveSMA"] = rg.AdaptiveSMA(attack.budget)
    values = options.of(MeasureOptions)

    def measure(display: "Display") -> tuple[dict[str, Any], str]:
        result = rg.detection_scores(
            session.model,
            session.dataset,
            attacks,
            others=[] if session.surrogate is None else [session.surrogate],
            protocol=session.protocol,
            store=session.store,
            progress=display,
            **values,
        )
        return result.to_dict(), result.to_markdown()

    from reidguard.attacks.fingerprint import attack_fingerprint

    own = {
        **settings(MeasureOptions, values),
        "attack": attack_fingerprint(attack, options.image_size),
        "adaptive": options.adaptive,
    }
    return session.report(session.settings("query", "gallery", **own), measure)


app = command(
    "detect",
    run,
    {
        "data and model": (Surrogate,),
        "attack": (Attacks, MeasureOptions),
        "evaluation": (Reading, Scoring),
        MACHINE: (Machine,),
    },
    examples=EXAMPLES,
)
