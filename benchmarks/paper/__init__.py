"""Tables and figures of the paper: their values, and how to measure and draw them again."""

from benchmarks.paper.experiments import (
    DATASETS,
    PAPER,
    STAND_IN,
    DefenseSpec,
    NetworkSpec,
    Setup,
    missing,
    parse_defense,
    summarize,
)
from benchmarks.paper.figures import describe_figure, draw_figure
from benchmarks.paper.results import (
    compare_table,
    count_measurable,
    describe_table,
    measure_table,
)
from benchmarks.paper.runner import Runner
from benchmarks.paper.tables import (
    Contradiction,
    PaperFigure,
    PaperTable,
    PaperValue,
    contradictions,
    paper_figures,
    paper_tables,
)

__all__ = [
    "DATASETS",
    "PAPER",
    "STAND_IN",
    "Contradiction",
    "DefenseSpec",
    "NetworkSpec",
    "PaperFigure",
    "PaperTable",
    "PaperValue",
    "Runner",
    "Setup",
    "compare_table",
    "contradictions",
    "count_measurable",
    "describe_figure",
    "describe_table",
    "draw_figure",
    "measure_table",
    "missing",
    "paper_figures",
    "paper_tables",
    "parse_defense",
    "summarize",
]
