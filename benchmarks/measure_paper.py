"""The paper's tables and figures, measured on what is at hand.

Run: python benchmarks/paper.py stand_in --keep DIR [--only table1 figure4 ...]
     python benchmarks/paper.py market --keep DIR --model Market-IDE=FILE [--model ...] [--only ...]
"stand_in" takes virtual people and small networks for everything, as `reidguard paper table1
--stand-in` does. "market" takes Market-1501 below REIDGUARD_DATA with images of 256x128, virtual
people for PersonX and for datasets whose networks are given, and no other networks. All tables
share one folder, so that what several need is made once. A table that results/paper_*.json has
already is not measured again; a figure's page is written to DIR.
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, commit, market, save

from benchmarks.paper import (
    PAPER,
    STAND_IN,
    Plan,
    Workshop,
    draw_picture,
    measure_table,
    paper_pictures,
    paper_tables,
    table_beside_paper,
)
from reidguard.cli.progress import Display
from reidguard.report import save_page

KINDS = ("stand_in", "market")
# Without a cell that could be measured: DeepChange has no stand-in, seconds are a machine's own.
TABLES = {f"table{n}": t for n, t in paper_tables().items() if n not in (11, 19)}
FIGURES = {f"figure{n}": p for n, p in paper_pictures().items()}


def measured(content: dict) -> dict:
    """What a result keeps of a table: the conditions of its figures are the library's."""
    keys = ("row", "column", "metric", "paper", "measured", "measured_8bit")
    figures = [
        {key: round(f[key], 4) if isinstance(f[key], float) else f[key] for key in keys}
        for f in content["figures"]
    ]
    return {**content, "stand_in": None, "figures": figures}


def with_market(plan: Plan, models: list[str], query_every: int) -> Plan:
    """Real people of the paper's size, and only networks from files: none is trained for minutes.

    Args:
        plan: With stand-ins for all.
        models: Names of the files, such as "Market-IDE".
        query_every: Of Market-1501.
    """
    trained = {data for data, _ in (name.split("-") for name in models)} - {"Market"}
    return replace(
        plan,
        networks={name.split("-")[1]: plan.networks[name.split("-")[1]] for name in models},
        domains={name: plan.domains[name] for name in (*sorted(trained), "PersonX")},
        size=PAPER.size,
        query_every=query_every,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--only", nargs="+", choices=[*TABLES, *FIGURES], metavar="TABLE")
    parser.add_argument("--steps", type=int, default=100, help="of each attack")
    parser.add_argument("--query-every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = [one.split("=", 1) for one in options.model]
    plan, given = replace(STAND_IN, attack_steps=options.steps), {}
    if options.kind == "market":
        given = {"Market": market()}
        plan = with_market(plan, [name for name, _ in files], options.query_every)
    for name, file in files:
        (options.keep / "models").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, options.keep / "models" / f"{name}.safetensors")
    name = f"paper_{options.kind}"
    path = RESULTS / f"{name}.json"
    done = json.loads(path.read_text("utf-8"))["tables"] if path.exists() else {}
    with Display() as display:
        workshop = Workshop(plan, options.keep, given, seed=options.seed, progress=display)
        for what in options.only or [*TABLES, *FIGURES]:
            if what in done:
                continue
            began = time.time()
            workshop.own.clear()
            if what in FIGURES:
                content, page = draw_picture(FIGURES[what], workshop, blur=bool(given))
                save_page(options.keep / f"{what}.html", page)
                done[what] = content | {"stand_in": None}
            else:
                content, _ = measure_table(TABLES[what], workshop)
                print(table_beside_paper(TABLES[what], content, plan), flush=True)
                done[what] = measured(content)
            done[what] |= {"commit": commit(), "minutes": round((time.time() - began) / 60, 1)}
            print(what, done[what]["minutes"], "minutes", flush=True)
            save(name, {"plan": content["stand_in"], "tables": done}, given.get("Market"))


if __name__ == "__main__":
    main()
