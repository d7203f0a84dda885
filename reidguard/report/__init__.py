"""One HTML page that needs nothing else: tables, curves, pictures, rank lists."""

from reidguard.report.charts import curves
from reidguard.report.html import (
    gallery,
    page,
    paragraph,
    picture,
    ranked,
    save_page,
    section,
    table,
)
from reidguard.report.people import (
    attacked_queries,
    before_and_after,
    examples,
    found_at_once,
    perturbation,
    rank_lists,
    spread,
)
from reidguard.report.pictures import amplified, as_image, color_cube
from reidguard.report.runs import Run, read_run, report_page

__all__ = [
    "Run",
    "amplified",
    "as_image",
    "attacked_queries",
    "before_and_after",
    "color_cube",
    "curves",
    "examples",
    "found_at_once",
    "gallery",
    "page",
    "paragraph",
    "perturbation",
    "picture",
    "rank_lists",
    "ranked",
    "read_run",
    "report_page",
    "save_page",
    "section",
    "spread",
    "table",
]
