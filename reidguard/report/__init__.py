"""Self-contained HTML pages: tables, charts, figures and rank lists."""

from reidguard.report.attack_figures import adversarial_examples, evenly_spaced, perturbation
from reidguard.report.board import BoardRow, board_rows, board_table
from reidguard.report.board_page import board_page
from reidguard.report.cards import Card, read_cards, write_card
from reidguard.report.charts import bar_chart, line_chart, line_svg
from reidguard.report.html import (
    columns,
    figure,
    figure_row,
    page,
    paragraph,
    preformatted,
    rank_list,
    save_page,
    section,
    subsection,
    swatches,
    table,
)
from reidguard.report.images import amplified, as_image, color_cube
from reidguard.report.rank_lists import Retrieval, thumbnail
from reidguard.report.run_page import report_page
from reidguard.report.runs import Run, read_run

__all__ = [
    "BoardRow",
    "Card",
    "Retrieval",
    "Run",
    "adversarial_examples",
    "amplified",
    "as_image",
    "bar_chart",
    "board_page",
    "board_rows",
    "board_table",
    "color_cube",
    "columns",
    "evenly_spaced",
    "figure",
    "figure_row",
    "line_chart",
    "line_svg",
    "page",
    "paragraph",
    "perturbation",
    "preformatted",
    "rank_list",
    "read_cards",
    "read_run",
    "report_page",
    "save_page",
    "section",
    "subsection",
    "swatches",
    "table",
    "thumbnail",
    "write_card",
]
