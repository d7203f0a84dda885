"""``reidguard paper``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from benchmarks.paper import (
    PAPER,
    READERS,
    STAND_IN,
    PaperPicture,
    PaperTable,
    Plan,
    Workshop,
    draw_picture,
    measurable,
    measure_table,
    missing,
    paper_pictures,
    paper_tables,
    reasons,
    shown_picture,
    shown_table,
    table_beside_paper,
)
from reidguard.cli import common
from reidguard.cli.options import Options, Parser, pathname, positive
from reidguard.cli.progress import note
from reidguard.cli.run_dir import RunFolder, default_folder
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import InputError
from reidguard.report import save_page
from reidguard.report.markdown import markdown_table
from reidguard.storage import atomic_write, write_json

# In a run folder: networks of the user's own, or what another table's run has made.
KEPT = ("models", "attacks", "people", "features")

EXAMPLES = """\
  reidguard paper list
  the paper's figures of a table, what is odd about them, and what measuring them takes:
    reidguard paper table1
  measured on your data, beside the paper's figures (datasets that are not given are left out):
    reidguard paper table1 --data market1501:/data/market1501 --data personx-456:/data/personx
  what it looks like, without data: virtual people and small networks stand in
    reidguard paper table1 --stand-in
    reidguard paper figure7 --stand-in
  with some of the data: virtual people stand in for the rest
    reidguard paper table1 --data market1501:/data/market1501 --stand-in

Networks are trained as the paper says where OUT/models/ does not hold them yet: a file of your own,
such as OUT/models/Market-IDE.safetensors, is used as it is. The same command goes on after an
interruption. Figures of stand-ins say nothing about the paper's.
"""


def parser(summary: str) -> Parser:
    """Return the command's parser."""
    made = Parser("paper", summary, EXAMPLES)
    made.usage = "reidguard paper list\n       reidguard paper tableN|figureN [options]"
    made.add_argument(
        "what", metavar="list|tableN|figureN", help="table1 to table19, figure4 to figure8"
    )
    made.add_argument(
        "--data",
        action="append",
        metavar="NAME:PATH",
        help=f"a dataset at hand, once for each: {', '.join(READERS)}",
    )
    made.defaults["data"] = []
    made.flag(
        "--stand-in",
        "virtual people for datasets that are not given, and small networks for the paper's",
    )
    made.option("--steps", "of each attack (default: the paper's 10 epochs)", positive, metavar="N")
    made.option(
        "--model-steps", "of each network and defense (default: 85 epochs)", positive, metavar="N"
    )
    made.option("--query-every", "use every n-th query", positive, metavar="N", default=1)
    common.add_seed(made)
    made.flag("--blur", "draw real people in a figure, as a few blocks of colour")
    made.flag("--images", "draw real people in a figure as they are")
    made.exclusive("blur", "images")
    made.option("--out", "run folder (default: one below runs/)", pathname, metavar="RUN_DIR")
    common.add_device(made)
    return made


def run(options: Options) -> int:
    """List what the paper shows, show one of it, or measure it."""
    if options.what == "list":
        _list()
        return 0
    wanted = _wanted(options.what)
    if not (options.stand_in or options.data):
        print(shown_table(wanted) if isinstance(wanted, PaperTable) else shown_picture(wanted))
        return 0
    device = common.set_up_machine(options)
    given = _datasets(options.data)
    plan = _plan(options, given)
    _say_what_lacks(options, wanted, plan, set(plan.domains) | set(given))
    settings = {
        "command": "paper",
        **(
            {"table": wanted.number} if isinstance(wanted, PaperTable) else {"figure": options.what}
        ),
        "stand_in": options.stand_in,
        "plan": asdict(plan),
        "data": {n: common.data_settings(d, "train", "query", "gallery") for n, d in given.items()},
        "seed": options.seed,
        "device": device.type,
    }
    if options.blur:
        settings["blur"] = True
    out = options.out or default_folder("paper", options.what, settings)
    made = ("result.json", "result.md" if isinstance(wanted, PaperTable) else "figure.html")
    with common.running(out, options, settings, made, KEPT) as (folder, display):
        if not folder.finished:
            workshop = Workshop(
                plan, folder.path, given, seed=options.seed, device=device, progress=display
            )
            if isinstance(wanted, PaperTable):
                _measure(wanted, workshop, folder)
            else:
                content, page = draw_picture(wanted, workshop, blur=options.blur)
                save_page(folder / "figure.html", page)
                write_json(folder / "result.json", content)
            folder.finish()
        if isinstance(wanted, PaperTable):
            print((folder / "result.md").read_text("utf-8"))
            print(f"run: {out}")
        else:
            print(f"page: {(folder / 'figure.html').resolve()}")
    return 0


def _wanted(what: str) -> PaperTable | PaperPicture:
    tables, pictures = paper_tables(), paper_pictures()
    named: dict[str, PaperTable | PaperPicture] = {f"table{n}": t for n, t in tables.items()}
    named |= {f"figure{n}": p for n, p in pictures.items()}
    if what not in named:
        raise InputError(
            f"{what!r} is no table and no figure: use list, table1 to table{len(tables)}, or "
            f"figure{min(pictures)} to figure{max(pictures)}"
        )
    return named[what]


def _plan(options: Options, given: Mapping[str, ReIDDataset]) -> Plan:
    plan = PAPER
    if options.stand_in:
        absent = {name: domain for name, domain in STAND_IN.domains.items() if name not in given}
        # Photographs keep the paper's size: their detail is what networks of one's own know.
        plan = replace(STAND_IN, domains=absent, size=PAPER.size if given else STAND_IN.size)
    if options.model_steps:
        longer = {k: replace(n, steps=options.model_steps) for k, n in plan.networks.items()}
        plan = replace(plan, networks=longer, defense_steps=options.model_steps)
    steps = options.steps or plan.attack_steps
    return replace(plan, attack_steps=steps, query_every=options.query_every)


def _datasets(specs: Sequence[str]) -> dict[str, ReIDDataset]:
    found: dict[str, ReIDDataset] = {}
    for spec in specs:
        reader = spec.partition(":")[0]
        if reader not in READERS:
            raise InputError(
                f"{reader!r} is none of the paper's datasets ({', '.join(READERS)}); --stand-in "
                "takes virtual people in their place"
            )
        if READERS[reader] in found:
            raise InputError(f"{READERS[reader]} is given twice: {spec}")
        found[READERS[reader]] = load_dataset(spec)
    return found


def _say_what_lacks(
    options: Options, wanted: PaperTable | PaperPicture, plan: Plan, datasets: set[str]
) -> None:
    """Before anything slow: a table is measured in parts, a figure is drawn whole or not at all."""
    if isinstance(wanted, PaperTable):
        cells = {(f.row, f.column): f.conditions for f in wanted.figures}
        every = [missing(c, plan, datasets) for c in cells.values()]
        impossible = all(every)
    else:
        every = [missing(c, plan, datasets) for c in wanted.rows]
        impossible = any(every)
        if options.data and not (options.blur or options.images):
            raise InputError(
                "a figure shows real people: --blur draws them as blocks of colour, --images as "
                "they are"
            )
    if impossible:
        raise InputError(
            f"nothing of {options.what} can be measured: {'; '.join(reasons(every))} "
            f"(reidguard paper {options.what} shows what it takes)"
        )
    for reason in reasons(every):
        note(f"left out: {reason}")


def _measure(wanted: PaperTable, workshop: Workshop, folder: RunFolder) -> None:
    content, grid = measure_table(wanted, workshop)
    if grid is not None:
        grid.save(folder / "grid.json")
    write_json(folder / "result.json", content)
    command = f"`{shlex.join(folder.manifest['command'])}`\n"
    with atomic_write(folder / "result.md") as temporary:
        text = table_beside_paper(wanted, content, workshop.plan)
        temporary.write_text(f"{text}\n{command}", "utf-8")


def _list() -> None:
    rows = [["name", "shows", "figures", "this library has", "with --stand-in"]]
    for table in paper_tables().values():
        total = len(table.figures)
        able = ["all" if count == total else str(count) for count in measurable(table)]
        rows.append([f"table{table.number}", table.caption, str(total), *able])
    for drawn in paper_pictures().values():
        able = [
            "no" if any(missing(c, plan, names) for c in drawn.rows) else "all"
            for plan, names in ((PAPER, {*READERS.values()}), (STAND_IN, {*STAND_IN.domains}))
        ]
        rows.append([f"figure{drawn.number}", drawn.caption, "-", *able])
    print(markdown_table(rows))
