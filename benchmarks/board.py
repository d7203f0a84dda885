"""The first board: published networks under the suite of attacks, as result cards.

Run: python benchmarks/board.py --query-every 8 --by "YOUR NAME"
Needs REIDGUARD_DATA with market1501/, and REIDGUARD_WEIGHTS with osnet_x0_25_market1501.pth and
omz/person-reidentification-retail-{0031,0248}.{xml,bin}. For each network and ε it runs
`reidguard autoattack` with the suite's own settings, and `reidguard attack` with a delta learnt on
the training images. The run folders below --runs resume after an interruption; finished ones are
not run again. Each finished run is then written to results/board/ as a card without folders, and
the page of all cards to the folder --runs. `python benchmarks/page.py` writes the table of
docs/board.rst.

The whole board, every 8th query (421) in the whole gallery, some hours a network on one core:

    python benchmarks/board.py --query-every 8 --eps 2 4 8 --threads 1 --by "YOUR NAME"
    python benchmarks/page.py

A look at the same with 14 queries, in some minutes:

    python benchmarks/board.py --query-every 256 --eps 8 --networks osnet_x0_25 \\
        --runs runs/board-look --steps 10 --squares 20 --delta-steps 0 --audit-queries 0 \\
        --cards runs/board-look/cards

One row again, compared with its card (exit code 3 if it differs):

    reidguard board verify benchmarks/results/board/osnet_x0_25-eps8.json \\
        --data market1501:$REIDGUARD_DATA/market1501 \\
        --model osnet_x0_25:$REIDGUARD_WEIGHTS/osnet_x0_25_market1501.pth
"""

import argparse
import os
import sys
from pathlib import Path

from common import CHECKPOINT, RESULTS

from reidguard.cli import main as reidguard
from reidguard.report import read_cards, write_card

OMZ = ["--model-set", "differentiable=true", "--input", "bgr,255"]  # as their documentation says
NETWORKS = {
    "osnet_x0_25": (f"osnet_x0_25:{{}}/{CHECKPOINT}", []),
    "retail-0031": ("{}/omz/person-reidentification-retail-0031.xml", OMZ),
    "retail-0248": ("{}/omz/person-reidentification-retail-0248.xml", OMZ),
}
CARDS = RESULTS / "board"


def calls(name: str, eps: int, options: argparse.Namespace) -> dict[str, list[str]]:
    """The commands that measure a network at an ε, without their folders, by the card's name."""
    spec, how = NETWORKS[name]
    shared = ["--data", f"market1501:{os.environ['REIDGUARD_DATA']}/market1501"]
    shared += ["--model", spec.format(os.environ["REIDGUARD_WEIGHTS"]), *how]
    shared += ["--eps", f"{eps}/255", "--query-every", str(options.query_every)]
    shared += ["--threads", str(options.threads)]
    shared += ["--by", options.by] if options.by else []
    suite = ["--audit-queries", options.audit_queries]
    for option in ("restarts", "steps", "squares"):
        value = getattr(options, option)
        suite += [] if value is None else [f"--{option}", value]
    found = {f"{name}-eps{eps}": ["autoattack", *shared, *map(str, suite)]}
    if options.delta_steps > 0:
        fit = ["--attack", "delta", "--steps", options.delta_steps]
        fit += ["--identities", 8, "--images-per-identity", 4]
        found[f"{name}-eps{eps}-delta"] = ["attack", *shared, *map(str, fit)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--query-every", type=int, default=8)
    parser.add_argument("--eps", type=int, nargs="+", default=[2, 4, 8], help="in grey levels")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--by", help="who measures, as the cards will say")
    parser.add_argument("--restarts", type=int, help="the suite's own by default")
    parser.add_argument("--steps", type=int, help="the suite's own by default")
    parser.add_argument("--squares", type=int, help="the suite's own by default")
    parser.add_argument("--audit-queries", type=int, default=100)
    parser.add_argument("--delta-steps", type=int, default=100, help="0 learns no delta")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/board"), help="of the run folders")
    parser.add_argument("--cards", type=Path, default=CARDS, help="folder of the cards")
    options = parser.parse_args()
    if missing := {"REIDGUARD_DATA", "REIDGUARD_WEIGHTS"} - os.environ.keys():
        sys.exit(f"set {' and '.join(sorted(missing))}: see --help")
    options.cards.mkdir(parents=True, exist_ok=True)
    for eps in options.eps:
        for network in options.networks:
            for name, call in calls(network, eps, options).items():
                if code := reidguard([*call, "--out", str(options.runs / name)]):
                    sys.exit(code)
                write_card(options.cards / f"{name}.json", read_cards([options.runs / name])[0])
    page = options.runs / "board.html"
    sys.exit(reidguard(["board", str(options.cards), "--out", str(page)]))


if __name__ == "__main__":
    main()
