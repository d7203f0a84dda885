"""``reidguard data``."""

from pathlib import Path
from typing import Annotated, TypedDict

import reidguard as rg
from reidguard.cli.options import Flag, Options, command
from reidguard.errors import InputError
from reidguard.options import VirtualOptions

EXAMPLES = """\
  reidguard data /data/market1501
  reidguard data market1501:/data/market1501
  reidguard data /data/crops --pattern '{pid}_{camid}_{n}'
  reidguard data csv:people.csv --check
  reidguard data virtual:plaza
  reidguard data 'virtual:mall?identities=20&cameras=3'

  virtual people as a folder in Market-1501's layout, for other programs:
    reidguard data export virtual:station /data/station --identities 200 --height 256
"""
EXPORT_EXAMPLES = """\
  reidguard data export virtual:station /data/station --identities 200 --height 256
"""


class Dataset(TypedDict, total=False):
    """The dataset to summarise, and whether to check it."""

    dataset: Annotated[
        str, Flag("a path, or NAME:PATH (reidguard list datasets)", required=True, positional=True)
    ]
    pattern: Annotated[str, Flag("of image names in a flat folder, such as '{pid}_{camid}_{n}'")]
    check: Annotated[bool, Flag("decode every image, so that damage shows now", False)]


class Target(TypedDict, total=False):
    """The dataset to write, and where."""

    domain: Annotated[str, Flag("virtual people", required=True, positional=True)]
    folder: Annotated[Path, Flag("where to write them", required=True, positional=True)]
    identities: Annotated[int, Flag("training identities, and as many test identities", low=1)]


def run(options: Options) -> None:
    """Print a table of the splits."""
    from reidguard.cli.progress import Display
    from reidguard.data import SPLITS
    from reidguard.tables import Table

    pattern = options.get("pattern")
    dataset = rg.load_dataset(options.dataset, **({"pattern": pattern} if pattern else {}))
    counts = dataset.summary()
    columns = ("images", "identities", "cameras")
    rows = [[split, *(f"{counts[split][c]:,}" for c in columns)] for split in SPLITS]
    print(f"{dataset.name}\n")
    print(Table(["split", *columns], rows).to_markdown())
    print(f"\ndistractors in the gallery: {counts['distractors']:,}")
    print(f"junk images left out: {counts['junk']:,}")
    print(f"terms: {counts['licence']}")
    for line in counts["notes"]:
        print(f"note: {line}")
    if options.get("check"):
        with Display() as display:
            dataset.check(progress=display.phase("checking images"))
        print("every image can be read")


def export(options: Options) -> None:
    """Write virtual people into a folder, and print its table."""
    from reidguard.cli.progress import Display

    kind, _, domain = options.domain.partition(":")
    if kind != "virtual":
        raise InputError(
            f"only virtual sets can be exported, not {options.domain!r}: write virtual:plaza"
        )
    values = options.of(VirtualOptions, explicit=True)
    if options.identities is not None:
        equal = dict.fromkeys(("train_identities", "test_identities"), options.identities)
        values = {**equal, **values}
    name, folder = f"virtual:{domain or 'plaza'}", options.folder
    with Display() as display:
        rg.load_dataset(name, folder=folder, progress=display.phase("rendering"), **values)
    run(Options(dataset=f"virtual:{options.folder.absolute()}"))


app = command("data", run, {"options": (Dataset,)}, examples=EXAMPLES)
app.command(
    command(
        "export",
        export,
        {"virtual people": (Target, VirtualOptions)},
        examples=EXPORT_EXAMPLES,
        summary="write virtual people as a folder in Market-1501's layout",
    )
)
