"""``reidguard data``."""

from __future__ import annotations

from reidguard.cli.options import Options, Parser
from reidguard.cli.show import Display, table
from reidguard.data import SPLITS, load_dataset

EXAMPLES = """\
  reidguard data market1501:/data/market1501
  reidguard data csv:people.csv --check
  reidguard data synthetic
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("data", summary, EXAMPLES)
    made.usage = "reidguard data NAME[:PATH] [--check]"
    made.add_argument("dataset", metavar="NAME[:PATH]", help="reidguard list datasets")
    made.flag("--check", "decode every image, so that damage shows now")
    return made


def run(options: Options) -> int:
    """Print a table of the splits."""
    dataset = load_dataset(options.dataset)
    counts = dataset.summary()
    columns = ("images", "identities", "cameras")
    rows = [["split", *columns]]
    rows += [[split, *(f"{counts[split][c]:,}" for c in columns)] for split in SPLITS]
    print(f"{dataset.name}\n")
    print(table(rows))
    print(f"\ndistractors in the gallery: {counts['distractors']:,}")
    print(f"junk images left out: {counts['junk']:,}")
    print(f"terms: {counts['licence']}")
    for line in counts["notes"]:
        print(f"note: {line}")
    if options.check:
        with Display() as display:
            dataset.check(progress=display.phase("checking images"))
        print("every image can be read")
    return 0
