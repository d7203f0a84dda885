"""The paper's tables and figures: what it reports, and how to measure and draw it again."""

from benchmarks.paper.experiments import PAPER, READERS, STAND_IN, Network, Plan, missing, reasons
from benchmarks.paper.figures import draw_picture, shown_picture
from benchmarks.paper.results import measurable, measure_table, shown_table, table_beside_paper
from benchmarks.paper.runner import Workshop
from benchmarks.paper.tables import (
    Contradiction,
    Figure,
    PaperPicture,
    PaperTable,
    contradictions,
    paper_pictures,
    paper_tables,
)

__all__ = [
    "PAPER",
    "READERS",
    "STAND_IN",
    "Contradiction",
    "Figure",
    "Network",
    "PaperPicture",
    "PaperTable",
    "Plan",
    "Workshop",
    "contradictions",
    "draw_picture",
    "measurable",
    "measure_table",
    "missing",
    "paper_pictures",
    "paper_tables",
    "reasons",
    "shown_picture",
    "shown_table",
    "table_beside_paper",
]
