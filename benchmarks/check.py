"""Compare what things cost with the limits in benchmarks/results/limits.json.

Run: python benchmarks/check.py. It takes about a minute on a quiet machine, and ends with status 1
if a cost exceeds its limit: passes are counted and must not rise at all; of times and memory, what
lies above the limit by more than the margin and the spread of this run. --write measures new
limits, where a cost has changed for a reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from common import RESULTS, save
from rich.console import Console
from rich.table import Table

from benchmarks.costs import Cost, all_costs

FILE = RESULTS / "limits.json"


def exceeds(cost: Cost, limit: float) -> bool:
    """Return whether a cost is above its limit by more than margin and spread."""
    return cost.value - cost.spread > limit * (1 + cost.margin)


def compare(costs: dict[str, Cost], limits: dict[str, Any]) -> tuple[Table, list[str]]:
    """Return a table of all costs, and the names of those that exceed their limits."""
    table = Table()
    for heading in ("cost", "measured", "limit", "margin", "spread", ""):
        table.add_column(heading, justify="left" if heading == "cost" else "right")
    wrong = []
    for name, cost in costs.items():
        limit = limits.get(name, {}).get("value")
        if limit is None:
            wrong.append(name)
            verdict, shown = "[bold red]no limit[/]", "–"
        else:
            shown = f"{limit:.3g}"
            verdict = "[bold red]EXCEEDED[/]" if exceeds(cost, limit) else ""
            wrong += [name] if verdict else []
        margin = f"{100 * cost.margin:.0f} %" if cost.margin else ""
        spread = f"± {cost.spread:.2g}" if cost.margin else ""
        table.add_row(name, f"{cost.value:.3g}", shown, margin, spread, verdict)
    return table, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the limits")
    options = parser.parse_args()
    costs = all_costs()
    if options.write:
        save("limits", {"limits": {name: asdict(cost) for name, cost in costs.items()}})
    table, wrong = compare(costs, json.loads(FILE.read_text("utf-8"))["limits"])
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    if wrong:
        console.print(f"above the limits of {FILE.name}: {'; '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
