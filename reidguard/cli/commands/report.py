"""``reidguard report``."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from reidguard.cli.options import MACHINE, Flag, Options, command
from reidguard.cli.sections import CACHE, Device
from reidguard.errors import InputError

EXAMPLES = """\
  one run, or several with a curve over their ε, on one page:
    reidguard report runs/delta
    reidguard report runs/eps4 runs/eps8 runs/eps12 --out eps.html

  the demo, or the folder of evaluate_grid:
    reidguard report runs/demo runs/grid

The page needs no network and no other file. Virtual people are shown. Real people are shown only
with --blur, as a few blocks of colour, or with --images, as they are. Their pictures are then part
of the page, so think before you pass it on. Pictures of people need the data where it was during
the run.
"""


class Page(TypedDict, total=False):
    """The runs to report on, the page and its pictures."""

    runs: Annotated[list[str], Flag("run folders", required=True, positional=True)]
    out: Annotated[Path, Flag("the page", Path("report.html"))]
    no_images: Annotated[
        bool, Flag("no pictures at all, only text and curves", False, excludes="blur")
    ]
    blur: Annotated[
        bool, Flag("show real people, as a few blocks of colour", False, excludes="images")
    ]
    images: Annotated[bool, Flag("show real people as they are", False, excludes="no_images")]
    cache: Annotated[Path, CACHE]


def run(options: Options) -> None:
    """Read the runs, draw, write the page."""
    from reidguard.cli.pictures import pictures
    from reidguard.cli.session import feature_store, use_device
    from reidguard.report import read_run, report_page, save_page

    device = use_device(options.device, options.threads)
    runs = [read_run(path) for path in options.runs]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise InputError("a run is given twice: name each folder once")
    names = [run.name for run in runs]  # folders of equal names are called by their paths
    runs = [replace(r, name=str(r.path)) if names.count(r.name) > 1 else r for r in runs]
    parts = {}
    if not options.no_images:
        store = feature_store(options.cache)
        real: Literal["blur", "show"] | None = "blur" if options.blur else None
        if options.images:
            real = "show"
        parts = {run.name: pictures(run, device, store, real=real) for run in runs}
    save_page(options.out, report_page(runs, parts))
    print(f"page: {options.out.resolve()}")


app = command("report", run, {"page": (Page,), MACHINE: (Device,)}, examples=EXAMPLES)
