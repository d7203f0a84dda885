"""The paper's tables and figures: what it reports, and how to measure and draw it again."""

from reidguard.paper.drawn import draw_picture, shown_picture
from reidguard.paper.measured import measurable, measure_table, shown_table, table_beside_paper
from reidguard.paper.plan import PAPER, READERS, STAND_IN, Network, Plan, lacking, reasons
from reidguard.paper.tables import (
    Contradiction,
    Figure,
    PaperPicture,
    PaperTable,
    contradictions,
    paper_pictures,
    paper_tables,
)
from reidguard.paper.workshop import Workshop

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
    "lacking",
    "measurable",
    "measure_table",
    "paper_pictures",
    "paper_tables",
    "reasons",
    "shown_picture",
    "shown_table",
    "table_beside_paper",
]
