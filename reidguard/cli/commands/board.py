"""``reidguard board``."""

from pathlib import Path
from typing import Annotated, TypedDict

from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import CACHE, Device
from reidguard.errors import InputError

EXAMPLES = """\
  compare two models that autoattack has measured, or all finished runs below a folder:
    reidguard board runs/osnet runs/robust --out board.html
    reidguard board runs --by RobustLab

  measure a row of the page again, and compare:
    reidguard board verify 3f2a9c1b runs
    reidguard board verify cards/osnet.json --model osnet_x0_25:osnet.pth \\
        --data market1501:/data/market1501

A card is a run folder of autoattack, evaluate, attack, audit or certify, or its result.json.
The page gets a row for each model, dataset and budget, sorted by robust mAP; beside it the same
table is written as Markdown and as CSV. Who measured a card is what --by said of it when it was
measured, or what --by of this command says of all cards that name nobody.
"""
VERIFY_EXAMPLES = """\
  reidguard board verify runs/osnet
  reidguard board verify 3f2a9c1b runs
  reidguard board verify cards/osnet.json --model osnet_x0_25:osnet.pth \\
      --data market1501:/data/market1501

The exit code is 0 if all metrics are equal, and 3 if any differs. A card of another model, dataset
or setting is refused before anything is measured, by fingerprints. The same command resumes after
an interruption. Only verify cards of people whom you would let choose your command line: a card
says which files are read.
"""


class Cards(TypedDict, total=False):
    """The cards and the page."""

    cards: Annotated[
        list[str], Flag("run folders, results, or folders of these", required=True, positional=True)
    ]
    out: Annotated[Path, Flag("the page", Path("board.html"))]
    by: Annotated[str, Flag("who measured the cards that do not say so")]


class Card(TypedDict, total=False):
    """The card to measure again."""

    card: Annotated[
        str, Flag("a card, or the digits of a row or card", required=True, positional=True)
    ]
    cards: Annotated[list[str], Flag("the board's cards, for the digits of a row", positional=True)]
    data: Annotated[str, Flag("where the dataset is", shown="where the card's was")]
    model: Annotated[str, Flag("where the model is", shown="where the card's was")]
    surrogate: Annotated[str, Flag("where the second model is", shown="where the card's was")]
    universal: Annotated[Path, Flag("where the saved attack is", shown="where the card's was")]
    tolerance: Annotated[
        float, Flag("percentage points by which metrics may differ", 0.05, low=0, high=100)
    ]


class Output(Device, total=False):
    """What computes, and where the results go."""

    out: Annotated[Path, Flag("folder for the new run", shown="runs/verify-DIGITS")]
    cache: Annotated[Path, CACHE]


def run(options: Options) -> None:
    """Read the cards, write the page and the tables."""
    from reidguard.files import atomic_write
    from reidguard.report import board_page, board_rows, board_table, read_cards, save_page

    if options.out.suffix != ".html":
        raise InputError(f"--out {options.out} must end in .html; the tables get its name")
    cards = read_cards(options.cards)
    rows = board_rows(cards, by=options.by or "")
    save_page(options.out, board_page(rows))
    commands = [f"`{row.id}`: `{command}`" for row in rows for command in row.commands]
    texts = {
        ".md": "\n\n".join([board_table(rows).to_markdown(), *commands]) + "\n",
        ".csv": board_table(rows, commands=True).to_csv(),
    }
    for suffix, text in texts.items():
        with atomic_write(options.out.with_suffix(suffix)) as temporary:
            temporary.write_text(text, "utf-8")
    print(f"rows: {len(rows)}, of {len(cards)} cards")
    print(f"page: {options.out.resolve()}")
    print(f"tables: {', '.join(str(options.out.with_suffix(suffix)) for suffix in texts)}")


def verify(options: Options) -> int:
    """Measure cards again, and compare."""
    from reidguard.cli.card_check import check_card, find_cards

    found = find_cards(options.card, options.cards or [])
    return max([check_card(card, options, several=len(found) > 1) for card in found])


app = command("board", run, {"board": (Cards,)}, examples=EXAMPLES)
app.command(
    command(
        "verify",
        verify,
        {"card": (Card,), MACHINE: (Output,)},
        examples=VERIFY_EXAMPLES,
        summary="measure a row or a card again, and compare",
    )
)
