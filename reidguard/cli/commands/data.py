"""``reidguard data``."""

from __future__ import annotations

from typing import Any

from reidguard.cli.options import Options, Parser, not_negative, pathname, positive
from reidguard.cli.progress import Display
from reidguard.data import SPLITS, load_dataset
from reidguard.errors import InputError
from reidguard.tables import Table
from reidguard.virtual import write_virtual
from reidguard.virtual.dataset import parse_name

EXAMPLES = """\
  reidguard data market1501:/data/market1501
  reidguard data csv:people.csv --check
  reidguard data virtual:plaza
  reidguard data 'virtual:mall?identities=20&cameras=3'

  virtual people as a folder in Market-1501's layout, for other programs:
    reidguard data export virtual:station /data/station --identities 200 --height 256
"""
SIZES = ("cameras", "images_per_camera", "height", "seed")


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("data", summary, EXAMPLES)
    made.usage = (
        "reidguard data NAME[:PATH] [--check]\n"
        "       reidguard data export virtual:DOMAIN FOLDER [options]"
    )
    made.add_argument("dataset", metavar="NAME[:PATH]", help="reidguard list datasets")
    made.add_argument("more", nargs="*", metavar="FOLDER", help="where an export goes")
    made.defaults["more"] = []
    made.flag("--check", "decode every image, so that damage shows now")
    made.section("export")
    made.option("--identities", "in training, and in the test", positive, metavar="N")
    made.option("--cameras", "from 2", positive, metavar="N")
    made.option("--images-per-camera", "of each person", positive, metavar="N")
    made.option("--height", "a multiple of 32; the width is half of it", positive, metavar="N")
    made.option("--seed", "other people, other cameras", not_negative, metavar="N")
    made.flag("--balanced", "show everybody to every camera once from every 10 degrees")
    return made


def run(options: Options) -> int:
    """Print a table of the splits, or write a folder first."""
    name = options.dataset
    if name == "export":
        name = f"virtual:{_export(options)}"
    else:
        asked = options.given & {*SIZES, "identities", "balanced"}
        if options.more or asked:
            stray = options.more[0] if options.more else f"--{min(asked).replace('_', '-')}"
            raise InputError(
                f"{stray} belongs to an export: reidguard data export virtual:DOMAIN FOLDER"
            )
    _show(name, check=options.check)
    return 0


def _export(options: Options) -> str:
    """Write the virtual set and return its folder."""
    if len(options.more) != 2:
        raise InputError("an export needs two names: reidguard data export virtual:DOMAIN FOLDER")
    kind, _, domain = options.more[0].partition(":")
    if kind != "virtual":
        raise InputError(
            f"only virtual sets can be exported, not {options.more[0]!r}: write virtual:plaza"
        )
    values: dict[str, Any] = parse_name(domain or "plaza")
    for name in SIZES:
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    if options.identities is not None:
        values["train_identities"] = values["test_identities"] = options.identities
    if options.balanced:
        values["balanced"] = True
    with Display() as display:
        folder = pathname(options.more[1])
        write_virtual(folder, **values, progress=display.phase("rendering"))
    return str(folder.absolute())


def _show(name: str, *, check: bool) -> None:
    dataset = load_dataset(name)
    counts = dataset.summary()
    columns = ("images", "identities", "cameras")
    rows = [["split", *columns]]
    rows += [[split, *(f"{counts[split][c]:,}" for c in columns)] for split in SPLITS]
    print(f"{dataset.name}\n")
    print(Table(rows[0], rows[1:]).to_markdown())
    print(f"\ndistractors in the gallery: {counts['distractors']:,}")
    print(f"junk images left out: {counts['junk']:,}")
    print(f"terms: {counts['licence']}")
    for line in counts["notes"]:
        print(f"note: {line}")
    if check:
        with Display() as display:
            dataset.check(progress=display.phase("checking images"))
        print("every image can be read")
