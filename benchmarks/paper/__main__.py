"""Show, measure or draw tables and figures of the paper: ``python -m benchmarks.paper --help``."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import benchmarks.paper as paper
from benchmarks.common import RESULTS, commit, save
from benchmarks.paper import PaperFigure, PaperTable, Runner, Setup
from reidguard.cli.progress import Display, note
from reidguard.cli.run_dir import RunFolder, default_folder, open_run
from reidguard.cli.session import use_device
from reidguard.data import ReIDDataset, load_dataset
from reidguard.errors import DataError, InputError, ReIDGuardError, TrainingError
from reidguard.files import atomic_write
from reidguard.records import read_record, to_path
from reidguard.report import save_page
from reidguard.storage import write_json
from reidguard.tables import Table

PROGRAM = "python -m benchmarks.paper"
# In the output folder: networks of the user's, or files of other tables' runs.
SHARED = ("models", "attacks", "people", "features")

Item = PaperTable | PaperFigure

EXAMPLES = f"""\
examples:
  {PROGRAM} list
  the paper's values of a table, their peculiarities, and what measuring them requires:
    {PROGRAM} table1
  measured on your data, beside the paper's values (cells of missing datasets are left out):
    {PROGRAM} table1 --data market1501:/data/market1501 --data personx-456:/data/personx
  without data: virtual people and small networks stand in
    {PROGRAM} table1 --stand-in
    {PROGRAM} figure7 --stand-in
  with some of the data: virtual people stand in for the rest
    {PROGRAM} table1 --data market1501:/data/market1501 --stand-in
  all that can be measured with one network of yours
    {PROGRAM} all --data market1501:/data/market1501 --stand-in --blur \\
      --model Market-IDE=model.safetensors --only-given-models --out runs/market

Networks are trained as the paper describes unless RUN_DIR/models/ has them: a file of yours, such
as RUN_DIR/models/Market-IDE.safetensors, is used as it is. An interrupted command resumes when it
is repeated. Results of stand-ins say nothing about the paper's values.
"""


class Options(argparse.Namespace):
    """Values of the command line's options.

    Attributes:
        argv: The command line.
        explicit: No names: which options were set is not recorded.
        expected: None: the run may have any settings.
    """

    argv: Sequence[str]
    explicit: frozenset[str] = frozenset()
    expected: Mapping[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Return the values as JSON."""
        items = ((k, v) for k, v in sorted(vars(self).items()) if k != "argv")
        return {k: str(v) if isinstance(v, Path) else v for k, v in items}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {PROGRAM} --help)")


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse(argv: Sequence[str]) -> Options:
    """Parse the command line."""
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} list\n       {PROGRAM} NAME [NAME ...] [options]",
        description="Show, measure or draw tables and figures of the paper.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("names", nargs="+", metavar="NAME", help="table1 to table19, figure4 to figure8, or all")
    readers = ", ".join(paper.DATASETS)
    add("--data", action="append", default=[], metavar="NAME:PATH", help=f"a dataset: {readers}")
    add(
        "--stand-in",
        action="store_true",
        help="virtual people for missing datasets, and small networks for the paper's",
    )
    add(
        "--model",
        action="append",
        default=[],
        metavar="DATA-NETWORK=FILE",
        help="a network of yours, such as Market-IDE=model.safetensors",
    )
    add(
        "--only-given-models",
        action="store_true",
        help="train no other networks than those of --model: leave out cells that require them",
    )
    add("--steps", type=positive, metavar="N", help="of each attack (default: 10 epochs)")
    add(
        "--model-steps",
        type=positive,
        metavar="N",
        help="of each network and defense (default: 85 epochs)",
    )
    add("--query-every", type=positive, metavar="N", default=1, help="use every n-th query")
    add("--seed", type=int, metavar="N", default=0, help="fixes every random draw (default: 0)")
    people = parser.add_mutually_exclusive_group()
    people.add_argument(
        "--blur", action="store_true", help="draw real people in a figure as blocks of colour"
    )
    people.add_argument(
        "--images", action="store_true", help="draw real people in a figure as they are"
    )
    add(
        "--out",
        type=Path,
        metavar="RUN_DIR",
        help="run folder (default: one in runs/); with several names, each has a folder in it and "
        "they share networks, attacks, people and features",
    )
    add(
        "--results",
        metavar="NAME",
        help="also collect the values in benchmarks/results/NAME.json; what is there already is "
        "not measured again",
    )
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: cuda if available)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    options = parser.parse_args(list(argv), Options())
    options.argv = argv
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if done, 1 for a failed training, 2 for an error of the user's, 130 if interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        run(parse(argv))
    except SystemExit as end:  # --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        command = f"{PROGRAM} {shlex.join(argv)}"
        print(f"\nbenchmarks.paper: interrupted; to resume: {command}", file=sys.stderr)
        return 130
    except ReIDGuardError as error:
        print(f"benchmarks.paper: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    return 0


def run(options: Options) -> None:
    """List the tables and figures, describe some of them, or measure and draw them."""
    if options.names == ["list"]:
        print(list_items().to_markdown())
        return
    items = find_items(options.names)
    if not (options.stand_in or options.data):
        describe = [paper.describe_table, paper.describe_figure]
        print("\n\n".join(describe[isinstance(item, PaperFigure)](item) for item in items))
        return
    device = use_device(options.device, options.threads)
    datasets = load_datasets(options.data)
    models = parse_models(options.model)
    setup = make_setup(options, datasets, models)
    items = possible_items(options, items, setup, set(setup.domains) | set(datasets))
    settings = {
        "command": "paper",
        "stand_in": options.stand_in,
        "setup": asdict(setup),
        "data": {name: fingerprints(dataset) for name, dataset in datasets.items()},
        "seed": options.seed,
        "device": device.type,
        **({"blur": True} if options.blur else {}),
        **({"models": {name: digest(file) for name, file in models.items()}} if models else {}),
    }
    label = items[0].name if len(items) == 1 else "all"
    out = options.out or default_folder(f"paper-{label}", {**settings, "names": options.names})
    for name, file in models.items():
        (out / "models").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, out / "models" / f"{name}.safetensors")
    with Display() as display:
        runner = Runner(setup, out, datasets, seed=options.seed, device=device, progress=display)
        for item in items:
            folder = out if len(items) == 1 else out / item.name
            if options.results is None:
                run_item(item, runner, folder, options, settings)
            elif item.name not in (collected := collected_results(options.results)):
                start = time.time()
                content = run_item(item, runner, folder, options, settings)
                collected[item.name] = {
                    **compact(content),
                    "commit": commit(),
                    "minutes": round((time.time() - start) / 60, 1),
                }
                results = {"setup": settings["setup"], "tables": collected}
                save(options.results, results, datasets.get("Market"))


def run_item(
    item: Item, runner: Runner, path: Path, options: Options, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure a table or draw a figure in a run folder, unless it is finished; print the result.

    Returns:
        The content of result.json.
    """
    is_table = isinstance(item, PaperTable)
    settings = {**settings, **({"table": item.number} if is_table else {"figure": item.name})}
    products = ("result.json", "result.md" if is_table else "figure.html")
    with open_run(options, settings, products, path=path, existing=SHARED) as folder:
        folder.manifest["command"] = [*PROGRAM.split(), *options.argv]
        if not folder.finished:
            runner.own_networks.clear()
            if isinstance(item, PaperTable):
                measure(item, runner, folder)
            else:
                content, page = paper.draw_figure(item, runner, blur=options.blur)
                save_page(folder / "figure.html", page)
                write_json(folder / "result.json", content)
            folder.mark("finished")
    if is_table:
        print((path / "result.md").read_text("utf-8"))
        print(f"run: {path}")
    else:
        print(f"page: {(path / 'figure.html').resolve()}")
    return read_record(path / "result.json", dict[str, Any])


def measure(table: PaperTable, runner: Runner, folder: RunFolder) -> None:
    """Measure a table into a run folder."""
    content, grid = paper.measure_table(table, runner)
    if grid is not None:
        grid.save(folder / "grid.json")
    write_json(folder / "result.json", content)
    text = paper.compare_table(table, content, runner.setup)
    with atomic_write(folder / "result.md") as temporary:
        temporary.write_text(f"{text}\n`{shlex.join(folder.manifest['command'])}`\n", "utf-8")


def all_items() -> dict[str, Item]:
    """Return all tables and figures by their names."""
    items = (*paper.paper_tables().values(), *paper.paper_figures().values())
    return {item.name: item for item in items}


def find_items(names: Sequence[str]) -> list[Item]:
    """Return the tables and figures of these names; "all" for all of them."""
    items = all_items()
    if names == ["all"]:
        return [*items.values()]
    for name in names:
        if name not in items:
            raise InputError(
                f"{name!r} is no table and no figure: use list, all, table1 to table19, or figure4 "
                "to figure8"
            )
    return [items[name] for name in dict.fromkeys(names)]


def list_items() -> Table:
    """Return a table of all tables and figures, and how much of each can be measured."""
    rows = []
    for table in paper.paper_tables().values():
        total = len(table.values)
        counts = ["all" if n == total else str(n) for n in paper.count_measurable(table)]
        rows.append([table.name, table.caption, str(total), *counts])
    for figure in paper.paper_figures().values():
        counts = [
            "no" if any(paper.missing(c, setup, datasets) for c in figure.rows) else "all"
            for setup, datasets in (
                (paper.PAPER, {*paper.DATASETS.values()}),
                (paper.STAND_IN, {*paper.STAND_IN.domains}),
            )
        ]
        rows.append([figure.name, figure.caption, "-", *counts])
    return Table(["name", "shows", "values", "measurable", "with --stand-in"], rows)


def load_datasets(specs: Sequence[str]) -> dict[str, ReIDDataset]:
    """Load the datasets of ``--data``, by the paper's names."""
    datasets: dict[str, ReIDDataset] = {}
    for spec in specs:
        reader = spec.partition(":")[0]
        if reader not in paper.DATASETS:
            raise InputError(
                f"{reader!r} is none of the paper's datasets ({', '.join(paper.DATASETS)}); "
                "--stand-in uses virtual people in their place"
            )
        name = paper.DATASETS[reader]
        if name in datasets:
            raise InputError(f"{name} is given twice: {spec}")
        datasets[name] = load_dataset(spec)
    return datasets


def parse_models(specs: Sequence[str]) -> dict[str, Path]:
    """Parse the values of ``--model``: files by names such as "Market-IDE"."""
    models = {}
    for spec in specs:
        name, _, file = spec.partition("=")
        data, _, network = name.partition("-")
        if data not in paper.DATASETS.values() or network not in paper.PAPER.networks or not file:
            raise InputError(f"--model {spec!r} is not of the form Market-IDE=FILE")
        models[name] = to_path(file)
        if not models[name].is_file():
            raise InputError(f"--model {name}: there is no file {file}")
    return models


def make_setup(
    options: Options, datasets: Mapping[str, ReIDDataset], models: Mapping[str, Path]
) -> Setup:
    """Return the paper's setup or the stand-ins, changed as the options say."""
    setup = paper.PAPER
    if options.stand_in:
        # Photographs have the paper's size, for which networks of the user's were trained.
        size = paper.PAPER.size if datasets else paper.STAND_IN.size
        domains = {n: d for n, d in paper.STAND_IN.domains.items() if n not in datasets}
        setup = replace(paper.STAND_IN, domains=domains, size=size)
    if options.only_given_models:
        used = {*(name.split("-")[0] for name in models), "PersonX"}
        networks = {name.split("-")[1] for name in models}
        setup = replace(
            setup,
            networks={n: spec for n, spec in setup.networks.items() if n in networks},
            domains={n: domain for n, domain in setup.domains.items() if n in used},
        )
    if options.model_steps:
        networks = {k: replace(n, steps=options.model_steps) for k, n in setup.networks.items()}
        setup = replace(setup, networks=networks, defense_steps=options.model_steps)
    steps = options.steps or setup.attack_steps
    return replace(setup, attack_steps=steps, query_every=options.query_every)


def possible_items(
    options: Options, items: Sequence[Item], setup: Setup, datasets: set[str]
) -> list[Item]:
    """Return the items that can be measured or drawn, and print what is left out.

    A table may be measured in part; a figure is drawn completely or not at all.

    Raises:
        InputError: If an item cannot be measured or drawn, unless all were requested.
    """
    possible = []
    for item in items:
        if isinstance(item, PaperTable):
            reasons = [*paper.results.missing_by_cell(item, setup, datasets).values()]
            impossible = all(reasons)
        else:
            reasons = [paper.missing(c, setup, datasets) for c in item.rows]
            impossible = any(reasons)
            if options.data and not (options.blur or options.images):
                raise InputError(
                    "a figure shows real people: --blur draws them as blocks of colour, --images "
                    "as they are"
                )
        if not impossible:
            possible.append(item)
        elif options.names != ["all"]:
            raise InputError(
                f"nothing of {item.name} can be measured: {'; '.join(paper.summarize(reasons))} "
                f"({PROGRAM} {item.name} shows what it requires)"
            )
        for reason in paper.summarize(reasons):
            note(f"{item.name}: left out: {reason}")
    if not possible:
        raise InputError("nothing can be measured with these datasets and models")
    return possible


def fingerprints(dataset: ReIDDataset) -> dict[str, str]:
    """Return what identifies a dataset in a manifest."""
    splits = ("train", "query", "gallery")
    for split in splits[1:]:
        if not dataset.split(split):
            raise DataError(f"{dataset.name} has no {split} images, so nothing can be evaluated")
    return {"name": dataset.name, **{s: dataset.fingerprint(s) for s in splits if dataset.split(s)}}


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Collected:
    """A file of results: the contents of tables and figures by their names."""

    tables: dict[str, dict[str, Any]]


def collected_results(name: str) -> dict[str, Any]:
    """Return the contents of tables and figures in a file of results, by their names."""
    path = RESULTS / f"{name}.json"
    return read_record(path, Collected).tables if path.exists() else {}


def compact(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without its setup and without what paper.toml has already."""
    if "table" not in content:
        return {**content, "stand_in": None}
    keys = ("row", "column", "metric", "paper", "measured", "measured_8bit")
    values = [
        {key: round(v[key], 4) if isinstance(v[key], float) else v[key] for key in keys}
        for v in content["values"]
    ]
    rest = {key: value for key, value in content.items() if key != "tables"}
    return {**rest, "stand_in": None, "values": values}


if __name__ == "__main__":
    sys.exit(main())
