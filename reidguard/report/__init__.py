"""One HTML page that needs nothing else: tables, curves, pictures, rank lists."""

from reidguard.report.charts import line_chart
from reidguard.report.html import (
    figure,
    figure_row,
    page,
    paragraph,
    rank_list,
    save_page,
    section,
    table,
)
from reidguard.report.images import amplified, as_image, color_cube
from reidguard.report.rank_lists import (
    adversarial_examples,
    attacked_queries,
    before_and_after,
    evenly_spaced,
    perturbation,
    rank1_correct,
    rank_lists,
    thumbnail,
)
from reidguard.report.runs import Run, read_run, report_page

__all__ = [
    "Run",
    "adversarial_examples",
    "amplified",
    "as_image",
    "attacked_queries",
    "before_and_after",
    "color_cube",
    "evenly_spaced",
    "figure",
    "figure_row",
    "line_chart",
    "page",
    "paragraph",
    "perturbation",
    "rank1_correct",
    "rank_list",
    "rank_lists",
    "read_run",
    "report_page",
    "save_page",
    "section",
    "table",
    "thumbnail",
]
